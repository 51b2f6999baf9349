"""Dice, and its difference to the reference, against the number of synthetic pairs."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.errors import UserError
from hvae_hpc.results.figures.style import (
    GREY,
    STANDARD_DASHES,
    describe_interval,
    draw_estimates,
    draw_legend_below,
    hide_frame,
    list_not_drawn,
    move_apart,
    needs_logarithm,
    style_of,
    write_at_right,
)
from hvae_hpc.results.labels import REFERENCE, arm_label, generator_label, generators_of, method_of
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.statistics import Estimate
from hvae_hpc.runs.plan import Plan

_DASHES: tuple[Any, ...] = ((0, (1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1)))

EstimateOf = Callable[[ArmScores], Estimate | None]


def draw_dose(plan: Plan, scores: Sequence[ArmScores], data: str) -> tuple[Figure, list[str]]:
    """Draw one line per generator; the reference and the largest standard arm are bands.

    Above is the mean Dice. Its interval is mostly the spread of cases, which all arms share, so
    below is the paired difference to the reference.

    Args:
        scores: of the data set's arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms that it does not show.

    Raises:
        UserError: no arm with synthetic pairs is done yet.
    """
    by_method: dict[str, list[ArmScores]] = {}
    for s in scores:
        if s.dice:
            by_method.setdefault(method_of(s.arm)[0], []).append(s)
    lines = {name: by_method[name] for name in generators_of(plan) if name in by_method}
    levels = [*by_method.get(REFERENCE, []), *by_method.get("standard", [])]
    drawn = [*levels, *itertools.chain(*lines.values())]
    if not lines:
        raise UserError("no arm that adds nothing but a number of synthetic pairs is done yet")

    # Doses of many sizes stand at their logarithms.
    doses = sorted({s.arm.n_synthetic for points in lines.values() for s in points})
    scale = math.log10 if needs_logarithm(doses) else float
    places = {dose: scale(dose) for dose in doses}

    panels: dict[str, EstimateOf] = {"Dice": attrgetter("dice")}
    if any(s.difference for s in drawn):
        panels["difference to the reference, Dice"] = attrgetter("difference")
    figure = Figure(figsize=(5.8, 0.5 + 2.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, estimate_of) in zip(grid, panels.items(), strict=True):
        _draw_lines(axes, plan, lines, places, estimate_of)
        _draw_levels(axes, levels, estimate_of)
        axes.set_ylabel(name)
        hide_frame(axes)

    _label_doses(grid[-1], places)
    grid[-1].set_xlabel(
        "synthetic pairs added to the real ones\n"
        f"markers: mean; bars and bands: {describe_interval(drawn)}"
    )
    grid[0].set_title(data, loc="left")
    draw_legend_below(figure, grid[0].containers, [generator_label(name) for name in lines])
    return figure, list_not_drawn(scores, drawn)


def _draw_lines(
    axes: Axes,
    plan: Plan,
    lines: Mapping[str, Sequence[ArmScores]],
    places: Mapping[int, float],
    estimate_of: EstimateOf,
) -> None:
    """Draw each generator's estimates, with the bars of a dose side by side."""
    ends = list(places.values())
    width = ends[-1] - ends[0] or 100.0
    nearest = min((right - left for left, right in itertools.pairwise(ends)), default=width)
    step = min(0.025 * width, 0.6 * nearest / len(lines))
    for i, points in enumerate(lines.values()):
        shift = (i - (len(lines) - 1) / 2) * step
        known = [(places[s.arm.n_synthetic] + shift, e) for s in points if (e := estimate_of(s))]
        draw_estimates(
            axes,
            [place for place, _ in known],
            [estimate for _, estimate in known],
            markersize=4.5,
            linewidth=1.4,
            capsize=2,
            elinewidth=0.8,
            **style_of(plan, points[0].arm),
        )
    margin = len(lines) / 2 * step + 0.06 * width
    axes.set_xlim(ends[0] - margin, ends[-1] + margin)


def _draw_levels(axes: Axes, levels: Sequence[ArmScores], estimate_of: EstimateOf) -> None:
    """Draw arms without a dose as horizontal lines, named at the right.

    The reference has a grey band for its interval, the last one a hatched band.
    """
    dashes = itertools.cycle(_DASHES)
    named = {}
    for s in levels:
        estimate = estimate_of(s)
        if s.arm.name == REFERENCE:
            estimate = estimate or Estimate(mean=0.0, low=0.0, high=0.0)
            band: dict[str, Any] = {"color": "0.9", "linewidth": 0, "zorder": 0}
            line: dict[str, Any] = {"linewidth": 1.2}
        elif s is levels[-1]:
            band = {"facecolor": "none", "edgecolor": "0.8", "hatch": "////", "zorder": 0.5}
            line = {"linewidth": 1.2, "linestyle": STANDARD_DASHES}
        else:
            band = {}
            line = {"linewidth": 0.9, "linestyle": next(dashes)}
        if estimate is None:
            continue
        if band:
            axes.axhspan(estimate.low, estimate.high, **band)
        axes.axhline(estimate.mean, color=GREY, zorder=1, **line)
        named[arm_label(s.arm)] = estimate.mean

    bottom, top = axes.get_ylim()
    heights = move_apart(list(named.values()), 0.06 * (top - bottom))
    for label, height in zip(named, heights, strict=True):
        write_at_right(axes, height, label)


def _label_doses(axes: Axes, places: Mapping[int, float]) -> None:
    """Write the doses below their places: upright where they are close, and none on another."""
    left, right = axes.get_xlim()
    width = right - left
    gaps = [later - earlier for earlier, later in itertools.pairwise(places.values())]
    labels: list[str] = []
    last = -math.inf
    for dose, place in places.items():
        is_free = place - last > 0.03 * width
        labels.append(f"+{dose}" if is_free else "")
        last = place if is_free else last
    rotation = 90 if min(gaps, default=width) < 0.09 * width else 0
    axes.set_xticks(list(places.values()), labels, rotation=rotation)
