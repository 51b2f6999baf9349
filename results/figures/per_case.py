"""Case by case: how Dice is spread over the test cases, and how it differs from the reference's on the same ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.figures.style import finish_axes, mark_of, not_drawn, wrapped_label
from hvae_hpc.results.labels import REFERENCE, method_of
from hvae_hpc.results.scores import ArmScores, dice_of, reference_of, subtract, to_blocks
from hvae_hpc.runs.plan import Plan

MOST_ROWS = 10
_MOST_VECTORS = 4000
"""Points from which on a vector file holds them as a picture: it stays small."""
_DEEP = 0.36
"""Half the height of a row's points."""


def draw_per_case(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores], data: str
) -> tuple[Figure, list[str]]:
    """Draw the Dice of every test case, mean over seeds, arm by arm, and its difference to the reference.

    The points of a row are sorted, so they show the whole distribution; a box has its quartiles, a
    bar its median.

    Args:
        scores: of all arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms that it does not show.

    Raises:
        UserError: no arm is done yet.
    """
    of_data = [s for s in scores if s.data == data]
    arms = choose_arms(of_data)
    if not arms:
        raise UserError("no arm is done yet")
    labels = [wrapped_label(s.arm) for s in arms]
    tall = 1.0 + sum(0.14 * max(3, label.count("\n") + 2) for label in labels)
    figure = Figure(figsize=(7.2, tall), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    for row, s in enumerate(arms):
        own = dice_of(collected, data, s.arm.name)
        less = (
            subtract(own, dice_of(collected, data, reference_of(s.arm)))
            if s.versus
            else own.iloc[:0]
        )
        colour = str(mark_of(plan, s.arm)["color"])
        rasterized = len(arms) * len(over_seeds(own)) > _MOST_VECTORS
        _draw_row(left, row, over_seeds(own), colour, rasterized)
        if len(less):
            _draw_row(right, row, over_seeds(less), colour, rasterized)
            above = over_seeds(less) > 0
            right.text(
                1.02,
                row,
                f"{above.sum()} of {above.size}",
                transform=right.get_yaxis_transform(),
                va="center",
            )
    right.use_sticky_edges = (
        False  # where all cases are alike, the edge of a box is the edge of all
    )
    right.axvline(0, color="0.35", linewidth=0.8, zorder=0)
    right.text(1.02, -0.75, "better for", transform=right.get_yaxis_transform(), va="center")
    left.set_yticks(range(len(arms)), labels)
    left.set_ylim(len(arms) - 0.5, -0.6)
    left.set_xlim(-0.03, 1.03)
    left.set_xlabel("Dice of a test case, mean over seeds")
    right.set_xlabel("difference from the reference")
    left.set_title(data, loc="left")
    for axes in (left, right):
        finish_axes(axes)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, not_drawn(of_data, arms)


def choose_arms(scores: Sequence[ArmScores]) -> list[ArmScores]:
    """Return a data set's arms where they are few; else the reference, and each method's arm of the highest mean Dice.

    Where methods are many as well, those of the highest Dice.
    """
    done = [s for s in scores if s.dice]
    if len(done) <= MOST_ROWS:
        return done
    best: dict[str, ArmScores] = {}
    for s in done:
        method = method_of(s.arm)[0]
        if method in (REFERENCE, "standard", s.arm.generator) and _mean(s) > _mean(
            best.get(method)
        ):
            best[method] = s
    first = [best.pop(name) for name in (REFERENCE, "standard") if name in best]
    kept = sorted(best.values(), key=_mean, reverse=True)[: MOST_ROWS - len(first)]
    return [*first, *(s for s in best.values() if s in kept)]


def over_seeds(dice: pd.DataFrame) -> NDArray[np.float64]:
    """Return each case's mean over seeds, sorted; a case that several splits test counts once in each."""
    return np.sort(np.concatenate([block.scores.mean(axis=0) for block in to_blocks(dice)]))


def _mean(scores: ArmScores | None) -> float:
    return scores.dice.mean if scores and scores.dice else -1.0


def _draw_row(
    axes: Axes, row: int, values: NDArray[np.float64], colour: str, rasterized: bool
) -> None:
    """Draw sorted values, the lowest at the bottom of the row, with a box from quartile to quartile."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    box: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.55", "linewidth": 0.6, "zorder": 1}
    axes.barh(row, high - low, 2 * _DEEP, low, **box)
    axes.plot([median, median], [row - _DEEP, row + _DEEP], color="0.15", linewidth=1.8, zorder=2)
    rank = (np.arange(values.size) + 0.5) / values.size
    places = row + _DEEP * (1 - 2 * rank)
    axes.plot(
        values,
        places,
        ".",
        color=colour,
        markersize=4,
        markeredgewidth=0,
        zorder=3,
        rasterized=rasterized,
    )
