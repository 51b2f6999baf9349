"""Case by case: how Dice is spread over the test cases, and how it differs from the reference's."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.figures.style import (
    GREY,
    hide_frame,
    is_plain,
    list_not_drawn,
    style_of,
    wrap_label,
    write_at_right,
)
from hvae_hpc.results.labels import REFERENCE, method_of
from hvae_hpc.results.scores import ArmScores, dice_of, reference_of, subtract, to_blocks
from hvae_hpc.runs.plan import Plan

MOST_ROWS = 10
_MOST_VECTORS = 4000
"""Points from which on a vector file holds them as a picture: it stays small."""
_HALF_HEIGHT = 0.36
"""Of a row's points."""


def draw_per_case(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores], data: str
) -> tuple[Figure, list[str]]:
    """Draw the Dice of every test case, mean over seeds, and its difference to the reference.

    The points of a row are sorted, so they show the whole distribution; a box has its quartiles, a
    bar its median.

    Args:
        scores: of the data set's arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms that it does not show.

    Raises:
        UserError: no arm is done yet.
    """
    arms = choose_arms(scores)
    if not arms:
        raise UserError("no arm is done yet")
    labels = [wrap_label(s.arm) for s in arms]
    height = 1.0 + sum(0.14 * max(3, label.count("\n") + 2) for label in labels)
    figure = Figure(figsize=(7.2, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    # Where all cases are alike, the edge of a box would be the edge of the axes.
    right.use_sticky_edges = False

    for row, s in enumerate(arms):
        dice = dice_of(collected, data, s.arm.name)
        values = over_seeds(dice)
        colour = str(style_of(plan, s.arm)["color"])
        as_picture = len(arms) * values.size > _MOST_VECTORS
        _draw_row(left, row, values, colour, as_picture)
        if s.difference:
            reference = dice_of(collected, data, reference_of(s.arm))
            differences = over_seeds(subtract(dice, reference))
            _draw_row(right, row, differences, colour, as_picture)
            write_at_right(right, row, f"{(differences > 0).sum()} of {differences.size}")

    left.set_yticks(range(len(arms)), labels)
    left.set_ylim(len(arms) - 0.5, -0.6)
    left.set_xlim(-0.03, 1.03)
    left.set_xlabel("Dice of a test case, mean over seeds")
    left.set_title(data, loc="left")
    right.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    right.set_xlabel("difference from the reference")
    write_at_right(right, -0.75, "better for")
    for axes in (left, right):
        hide_frame(axes)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, list_not_drawn(scores, arms)


def choose_arms(scores: Sequence[ArmScores]) -> list[ArmScores]:
    """Return all done arms of a data set where they are few.

    Otherwise return the reference, and each method's arm of the highest mean Dice; where methods
    are many as well, those of the highest Dice.
    """
    done = [s for s in scores if s.dice]
    if len(done) <= MOST_ROWS:
        return done
    best: dict[str, ArmScores] = {}
    for s in filter(lambda s: is_plain(s.arm), done):
        method = method_of(s.arm)[0]
        best[method] = max(best.get(method, s), s, key=lambda s: s.mean_dice)
    first = [best.pop(name) for name in (REFERENCE, "standard") if name in best]
    highest = sorted(best.values(), key=lambda s: s.mean_dice, reverse=True)
    kept = highest[: MOST_ROWS - len(first)]
    return [*first, *(s for s in best.values() if s in kept)]


def over_seeds(dice: pd.DataFrame) -> NDArray[np.float64]:
    """Return each case's mean over seeds, sorted; a case counts once in each split with it."""
    return np.sort(np.concatenate([block.scores.mean(axis=0) for block in to_blocks(dice)]))


def _draw_row(
    axes: Axes, row: int, values: NDArray[np.float64], colour: str, as_picture: bool
) -> None:
    """Draw sorted values, the lowest at the bottom of the row, with a box of the quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    axes.barh(
        row,
        high - low,
        2 * _HALF_HEIGHT,
        low,
        facecolor="0.88",
        edgecolor="0.55",
        linewidth=0.6,
        zorder=1,
    )
    ends = [row - _HALF_HEIGHT, row + _HALF_HEIGHT]
    axes.plot([median, median], ends, color="0.15", linewidth=1.8, zorder=2)

    ranks = (np.arange(values.size) + 0.5) / values.size
    axes.plot(
        values,
        row + _HALF_HEIGHT * (1 - 2 * ranks),
        ".",
        color=colour,
        markersize=4,
        markeredgewidth=0,
        zorder=3,
        rasterized=as_picture,
    )
