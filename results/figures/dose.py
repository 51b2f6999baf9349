"""Dose and response: Dice, and its difference to the reference, against the number of synthetic pairs."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.figures.style import (
    draw_legend_below,
    finish_axes,
    interval_over,
    mark_of,
    not_drawn,
    spread,
)
from hvae_hpc.results.labels import REFERENCE, arm_label, generator_label, generators_of, method_of
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.statistics import Estimate
from hvae_hpc.runs.plan import Plan

_LOG_FROM = 10.0
"""Largest dose over smallest, from which on doses stand on a logarithmic scale."""
_STEP = 0.025
"""Between bars at the same dose, as a share of the axis, where there is room."""
_DASHES: tuple[Any, ...] = ((0, (1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1)))

Shown = Callable[[ArmScores], Estimate | None]


def draw_dice(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores], data: str
) -> tuple[Figure, list[str]]:
    """Draw one line per generator, with 95 % intervals; the reference and the largest standard arm are bands.

    Above is the mean Dice. Its interval is mostly the spread of cases, which all arms share, so
    below is the paired difference to the reference.

    Args:
        scores: of all arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms that it does not show.

    Raises:
        UserError: no arm with synthetic pairs is done yet.
    """
    done = [s for s in scores if s.data == data and s.dice]
    lines = {name: [s for s in done if method_of(s.arm)[0] == name] for name in generators_of(plan)}
    lines = {name: points for name, points in lines.items() if points}
    levels = [s for s in done if method_of(s.arm)[0] in (REFERENCE, "standard")]
    if not lines:
        raise UserError("no arm that adds nothing but a number of synthetic pairs is done yet")
    drawn = [*levels, *itertools.chain(*lines.values())]
    over = interval_over(collected, drawn)
    place, doses = _scale(lines)
    panels: list[tuple[str, Shown]] = [("Dice", lambda s: s.dice)]
    if any(s.difference for s in drawn):
        panels.append(("difference to the reference, Dice", lambda s: s.difference))
    figure = Figure(figsize=(5.8, 0.5 + 2.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (what, shown) in zip(grid, panels, strict=True):
        _draw_lines(axes, plan, lines, place, shown)
        _draw_levels(axes, levels, shown)
        axes.set_ylabel(what)
        finish_axes(axes)
    _mark_doses(grid[-1], doses, place)
    grid[-1].set_xlabel(
        f"synthetic pairs added to the real ones\nmarkers: mean; bars and bands: {over}"
    )
    grid[0].set_title(data, loc="left")
    draw_legend_below(figure, grid[0].containers, [generator_label(name) for name in lines])
    return figure, not_drawn([s for s in scores if s.data == data], drawn)


def _scale(lines: dict[str, list[ArmScores]]) -> tuple[Callable[[int], float], list[int]]:
    """Return where a dose stands on the axis, and all doses; many sizes of doses stand by their logarithm."""
    doses = sorted({s.arm.n_synthetic for points in lines.values() for s in points})
    return (math.log10 if doses[-1] > _LOG_FROM * doses[0] else float), doses


def _draw_lines(
    axes: Axes,
    plan: Plan,
    lines: dict[str, list[ArmScores]],
    place: Callable[[int], float],
    shown: Shown,
) -> None:
    places = sorted({place(s.arm.n_synthetic) for points in lines.values() for s in points})
    wide = places[-1] - places[0] or place(100)
    room = min((right - left for left, right in itertools.pairwise(places)), default=wide)
    step = min(_STEP * wide, 0.6 * room / len(lines))
    for i, points in enumerate(lines.values()):
        shift = (i - (len(lines) - 1) / 2) * step  # bars side by side, not on one another
        there = [(place(s.arm.n_synthetic) + shift, e) for s in points if (e := shown(s))]
        x, mean = [at for at, _ in there], [e.mean for _, e in there]
        bars = [[e.mean - e.low for _, e in there], [e.high - e.mean for _, e in there]]
        style: dict[str, Any] = {
            "markersize": 4.5,
            "linewidth": 1.4,
            "capsize": 2,
            "elinewidth": 0.8,
        }
        axes.errorbar(x, mean, yerr=bars, **style, **mark_of(plan, points[0].arm))
    margin = len(lines) / 2 * step + 0.06 * wide
    axes.set_xlim(places[0] - margin, places[-1] + margin)


def _draw_levels(axes: Axes, levels: Sequence[ArmScores], shown: Shown) -> None:
    """Draw arms without a dose as lines named at the right: the reference and the largest with their intervals."""
    dashes = itertools.cycle(_DASHES)
    labels = []
    for s in levels:
        is_reference = s.arm.name == REFERENCE
        estimate = shown(s) or (Estimate(mean=0.0, low=0.0, high=0.0) if is_reference else None)
        if estimate is None:
            continue
        labels.append((estimate.mean, arm_label(s.arm)))
        line: dict[str, Any] = {"color": "0.35", "linewidth": 1.2, "zorder": 1}
        if is_reference:
            axes.axhspan(estimate.low, estimate.high, color="0.9", linewidth=0, zorder=0)
        elif s is levels[-1]:
            line |= {"linestyle": (0, (4, 2))}
            axes.axhspan(
                estimate.low,
                estimate.high,
                facecolor="none",
                edgecolor="0.8",
                hatch="////",
                zorder=0.5,
            )
        else:
            line |= {"linestyle": next(dashes), "linewidth": 0.9}
        axes.axhline(estimate.mean, **line)
    bottom, top = axes.get_ylim()
    heights = spread([height for height, _ in labels], 0.06 * (top - bottom))
    for height, (_, label) in zip(heights, labels, strict=True):
        axes.text(1.02, height, label, transform=axes.get_yaxis_transform(), va="center")


def _mark_doses(axes: Axes, doses: Sequence[int], place: Callable[[int], float]) -> None:
    """Write the doses below their places; upright where they are near, and none on another."""
    places = [place(dose) for dose in doses]
    left, right = axes.get_xlim()
    near = min((b - a for a, b in itertools.pairwise(places)), default=right) < 0.09 * (
        right - left
    )
    labels: list[str] = []
    last = -math.inf
    for dose, at in zip(doses, places, strict=True):
        free = at - last > 0.03 * (right - left)
        labels.append(f"+{dose}" if free else "")
        last = at if free else last
    axes.set_xticks(places, labels, rotation=90 if near else 0)
