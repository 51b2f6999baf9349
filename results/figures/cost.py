"""Dice beside the device time of one trained network and all that it needed."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from hvae_hpc.results.collect import Collected, needed_runs, network_cost
from hvae_hpc.results.figures.style import (
    describe_interval,
    list_not_drawn,
    split_ends,
    start_rows,
    style_of,
)
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.plan import Plan

_UNITS = {"hours": (7200.0, 3600.0), "minutes": (120.0, 60.0), "seconds": (0.0, 1.0)}
"""Unit to the least highest cost that is shown in it, and its length, both in seconds."""


def draw_cost(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores]
) -> tuple[Figure, list[str]]:
    """Draw a row per arm: its mean Dice with the interval, and beside it a bar of its cost.

    Args:
        scores: of a data set's arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms that it does not show.

    Raises:
        UserError: no arm is done yet.
    """
    arms, figure, left, right = start_rows(scores)
    costs = [network_cost(collected, [needed_runs(plan, i) for i in s.run_ids]) for s in arms]
    seconds, devices = zip(*costs, strict=True)
    unit = next(name for name, (least, _) in _UNITS.items() if max(seconds) >= least)

    for row, s in enumerate(arms):
        assert s.dice, "all of them are done"
        colour = style_of(plan, s.arm)["color"]
        left.errorbar(s.dice.mean, row, xerr=split_ends([s.dice]), fmt="o", color=colour)
        bar = right.barh(row, seconds[row] / _UNITS[unit][1], 0.6, color=colour)
        right.bar_label(bar, fmt="%.3g", padding=3)

    named = ", ".join(sorted(set().union(*devices)))
    left.set_xlabel(f"Dice: mean,\n{describe_interval(arms)}")
    right.set_xlabel(f"device {unit} for one network, with all runs\nthat it needed ({named})")
    right.margins(x=0.15)
    return figure, list_not_drawn(scores, arms)
