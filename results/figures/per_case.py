"""Case by case: how Dice is spread over the test cases, and how it differs from the reference's."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvae_hpc.results.figures.style import (
    GREY,
    list_not_drawn,
    start_rows,
    style_of,
)
from hvae_hpc.results.scores import ArmScores, to_blocks
from hvae_hpc.runs.plan import Plan

_HALF_HEIGHT = 0.36
"""Of a row's points."""


def draw_per_case(plan: Plan, scores: Sequence[ArmScores]) -> tuple[Figure, list[str]]:
    """Draw the Dice of every test case, mean over seeds, and its difference to the reference.

    The points of a row are sorted, so they show the whole distribution; a box has its quartiles, a
    bar its median.

    Args:
        scores: of a data set's arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms that it does not show.

    Raises:
        UserError: no arm is done yet.
    """
    arms, figure, left, right = start_rows(scores)
    # Where all cases are alike, the edge of a box would be the edge of the axes.
    right.use_sticky_edges = False

    for row, s in enumerate(arms):
        colour = str(style_of(plan, s.arm)["color"])
        _draw_row(left, row, over_seeds(s.by_case), colour)
        if s.difference:
            differences = over_seeds(s.differences)
            _draw_row(right, row, differences, colour)
            _write_at_right(right, row, f"{(differences > 0).sum()} of {differences.size}")

    left.set_xlim(-0.03, 1.03)
    left.set_xlabel("Dice of a test case, mean over seeds")
    right.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    right.set_xlabel("difference from the reference")
    _write_at_right(right, -0.75, "better for")
    return figure, list_not_drawn(scores, arms)


def over_seeds(dice: pd.DataFrame) -> NDArray[np.float64]:
    """Return each case's mean over seeds, sorted; a case counts once in each split with it."""
    return np.sort(np.concatenate([block.scores.mean(axis=(0, 1)) for block in to_blocks(dice)]))


def _draw_row(axes: Axes, row: int, values: NDArray[np.float64], colour: str) -> None:
    """Draw sorted values, the lowest at the bottom of the row, with a box of the quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    axes.barh(
        row, high - low, 2 * _HALF_HEIGHT, low, facecolor="0.88", edgecolor="0.55", linewidth=0.6
    )
    ends = [row - _HALF_HEIGHT, row + _HALF_HEIGHT]
    axes.plot([median, median], ends, color="0.15", linewidth=1.8)

    places = np.linspace(ends[1], ends[0], values.size)
    axes.plot(values, places, ".", color=colour, markersize=4, markeredgewidth=0)


def _write_at_right(axes: Axes, row: float, text: str) -> None:
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center")
