"""How figures mark arms, so that they are told apart in grey as well, and what they say that an interval is over."""

import itertools
import textwrap
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import KNOWN_GENERATORS, REFERENCE, arm_label, generators_of, method_of
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.plan import Plan

# Okabe and Ito's colours but yellow, which is lost on white.
_COLOURS = ("#D55E00", "#0072B2", "#000000", "#CC79A7", "#009E73", "#56B4E9")
_LINES: tuple[Any, ...] = (
    *((0, (5, 2)), (0, (5, 1.5, 1, 1.5)), "-"),
    *((0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))),
)
_MARKERS = "s^oDvP<>dph"
# 6 and 11 have no common factor, so no two of the 66 have both the marker and the line, or the
# colour, of another.
STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": _COLOURS[i % 6], "marker": _MARKERS[i % 11], "linestyle": _LINES[i % 6]}
    for i in range(66)
)
_WITHOUT_GENERATOR: dict[bool, dict[str, Any]] = {
    False: {"color": "0.35", "marker": "X", "linestyle": "-"},
    True: {"color": "0.35", "marker": "*", "linestyle": (0, (4, 2))},
}
_LETTERS = 14
"""That fit in an inch of a legend."""


def mark_of(plan: Plan, arm: ArmConfig) -> dict[str, Any]:
    """Return an arm's style: its generator's, that of standard augmentation, or the reference's.

    The paper's three generators keep theirs in every figure. What is not a method's plain amount
    (controls, combinations, other budgets) is hollow.
    """
    hollow = {} if is_plain(arm) else {"markerfacecolor": "white"}
    if not arm.generator:
        return _WITHOUT_GENERATOR[bool(arm.n_standard)] | hollow
    names = [
        *KNOWN_GENERATORS,
        *(name for name in generators_of(plan) if name not in KNOWN_GENERATORS),
    ]
    return STYLES[names.index(arm.generator) % len(STYLES)] | hollow


def is_plain(arm: ArmConfig) -> bool:
    """Return whether an arm is the reference, or adds nothing but moved copies, or synthetic pairs as they are."""
    return method_of(arm)[0] in (REFERENCE, "standard", arm.generator)


def interval_over(collected: Collected, scores: Sequence[ArmScores]) -> str:
    """Return what the intervals of some arms' means are over: an arm with one seed has none over seeds."""
    rows = collected.segment
    seeds = (
        rows.groupby(["data", "arm", "split_seed"])["seed"]
        .nunique()
        .groupby(level=["data", "arm"])
        .max()
    )
    single = [seeds[s.data, s.arm.name] == 1 or (bool(s.versus) and s.paired == 1) for s in scores]
    if all(single):
        return "95 % interval over cases (one seed)"
    return "95 % interval over seeds and cases" + ", where one seed: over cases" * any(single)


def not_drawn(scores: Sequence[ArmScores], drawn: Sequence[ArmScores]) -> list[str]:
    """Return a line that names the arms with done runs that a figure does not show, or none."""
    names = {s.arm.name for s in drawn}
    rest = [s.arm.name for s in scores if s.dice and s.arm.name not in names]
    return [f"not drawn: {', '.join(rest)}"] if rest else []


def wrapped_label(arm: ArmConfig, width: int = 26) -> str:
    """Return an arm's label in lines."""
    return textwrap.fill(arm_label(arm), width)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart until neighbours are at least a gap apart, in their order, each as little as can be.

    The least sum of squares: what is too near its neighbour joins it in a stack, which stands
        around the mean.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    stacks: list[list[float]] = []  # of heights, each less the gaps below it
    for rank, index in enumerate(order):
        stacks.append([heights[index] - rank * gap])
        while len(stacks) > 1 and fmean(stacks[-2]) > fmean(stacks[-1]):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    places = itertools.chain.from_iterable([fmean(stack)] * len(stack) for stack in stacks)
    moved = dict(zip(order, (place + rank * gap for rank, place in enumerate(places)), strict=True))
    return [moved[i] for i in range(len(heights))]


def finish_axes(axes: Axes) -> None:
    """Leave out the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)


def draw_legend_below(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], sample: float = 3.5
) -> None:
    """Draw a legend below the axes in as many columns as its longest label allows; the figure grows with its rows.

    Args:
        figure: has a constrained layout.
        handles, labels: of the entries.
        sample: length of the sample of a line, in letters' heights.
    """
    room = int(_LETTERS * figure.get_figwidth())
    beside = int(2 * sample) + 2
    shown = [textwrap.fill(label, room - beside) for label in labels]
    longest = max(len(line) for label in shown for line in label.splitlines())
    columns = min(len(shown), max(1, room // (longest + beside)))
    lines = sum(label.count("\n") + 1 for label in shown)
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-lines // columns))
    figure.legend(
        handles,
        shown,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=sample,
    )
