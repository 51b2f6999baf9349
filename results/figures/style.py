"""What the figures share: styles that differ in grey too, and how means and names are drawn."""

import itertools
import textwrap
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.labels import KNOWN_GENERATORS, REFERENCE, arm_label, generators_of, method_of
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.statistics import Estimate
from hvae_hpc.runs.plan import Plan

GREY = "0.35"
STANDARD_DASHES: Any = (0, (4, 2))
# Okabe and Ito's colours but yellow, which is lost on white.
_COLOURS = ("#D55E00", "#0072B2", "#000000", "#CC79A7", "#009E73", "#56B4E9")
_DASHES: tuple[Any, ...] = (
    *((0, (5, 2)), (0, (5, 1.5, 1, 1.5)), "-"),
    *((0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))),
)
_MARKERS = "s^oDvP<>dph"
# 6 and 11 have no common factor, so no two of the 66 have both the marker and the line, or the
# colour, of another.
STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": _COLOURS[i % 6], "marker": _MARKERS[i % 11], "linestyle": _DASHES[i % 6]}
    for i in range(66)
)
_LETTERS_PER_INCH = 14
_LINE_INCH = 0.17


def style_of(plan: Plan, arm: ArmConfig) -> dict[str, Any]:
    """Return an arm's colour, marker and line: its generator's, or those of an arm without one.

    The paper's three generators keep theirs in every figure. What is not a method's plain amount
    (controls, combinations, other budgets) has a hollow marker.
    """
    hollow = {} if is_plain(arm) else {"markerfacecolor": "white"}
    if arm.generator:
        names = list(dict.fromkeys([*KNOWN_GENERATORS, *generators_of(plan)]))
        return STYLES[names.index(arm.generator) % len(STYLES)] | hollow
    if arm.n_standard:
        return {"color": GREY, "marker": "*", "linestyle": STANDARD_DASHES} | hollow
    return {"color": GREY, "marker": "X", "linestyle": "-"} | hollow


def is_plain(arm: ArmConfig) -> bool:
    """Return whether an arm is the reference, or adds only moved copies or only synthetic pairs."""
    return method_of(arm)[0] in (REFERENCE, "standard", arm.generator)


def describe_interval(scores: Sequence[ArmScores]) -> str:
    """Say what the intervals of some arms are over: with one seed there is none over seeds."""
    single = [s.seeds == 1 or (bool(s.versus) and s.paired == 1) for s in scores]
    if all(single):
        return "95 % interval over cases (one seed)"
    return "95 % interval over seeds and cases" + ", where one seed: over cases" * any(single)


def list_not_drawn(scores: Sequence[ArmScores], drawn: Sequence[ArmScores]) -> list[str]:
    """Return a line that names the done arms that a figure does not show, or none."""
    shown = {s.arm.name for s in drawn}
    others = [s.arm.name for s in scores if s.dice and s.arm.name not in shown]
    return [f"not drawn: {', '.join(others)}"] if others else []


def draw_estimates(
    axes: Axes, places: Sequence[float], estimates: Sequence[Estimate], **style: Any
) -> None:
    """Draw means with their intervals as bars."""
    bars = [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]
    axes.errorbar(places, [e.mean for e in estimates], yerr=bars, **style)


def write_at_right(axes: Axes, height: float, text: str) -> None:
    """Write a text at the right of the axes, at a height of the data."""
    axes.text(1.02, height, text, transform=axes.get_yaxis_transform(), va="center")


def needs_logarithm(values: Sequence[float]) -> bool:
    """Return whether positive values are of too many sizes for a plain axis."""
    return max(values) > 10 * min(values) > 0


def wrap_label(arm: ArmConfig) -> str:
    """Return an arm's label in short lines."""
    return textwrap.fill(arm_label(arm), 26)


def move_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights until neighbours are a gap apart, in their order, each as little as can be.

    Least squares: heights too near each other form a stack, which stands around their mean.
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


def hide_frame(axes: Axes) -> None:
    """Leave out the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)


def draw_legend_below(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], sample: float = 3.5
) -> None:
    """Draw a legend below the axes, with as many columns as its longest label allows.

    Args:
        figure: has a constrained layout; it grows with the legend's rows.
        handles, labels: of the entries.
        sample: length of the sample of a line, in letters' heights.
    """
    room = int(_LETTERS_PER_INCH * figure.get_figwidth())
    beside = int(2 * sample) + 2
    wrapped = [textwrap.fill(label, room - beside) for label in labels]
    longest = max(len(line) for label in wrapped for line in label.splitlines())
    columns = min(len(wrapped), max(1, room // (longest + beside)))
    lines = sum(label.count("\n") + 1 for label in wrapped)
    figure.set_figheight(figure.get_figheight() + _LINE_INCH * -(-lines // columns))
    figure.legend(
        handles,
        wrapped,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=sample,
    )
