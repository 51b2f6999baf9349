"""What an arm costs and what it gives: Dice against the device hours of one trained network and all that it needed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.figures.style import (
    draw_legend_below,
    finish_axes,
    interval_over,
    is_plain,
    mark_of,
    not_drawn,
    spread,
)
from hvae_hpc.results.labels import REFERENCE, arm_label, generator_label, method_of
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.plan import Plan

_UNITS = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""Shortest highest cost, in seconds; seconds of the unit; its name."""
_LOG_FROM = 10.0
_NEAR = 0.08
"""Share of the axis that a name takes: markers nearer than that have theirs in one column."""
_LEADER: dict[str, Any] = {
    "arrowstyle": "-",
    "linewidth": 0.4,
    "shrinkA": 0,
    "shrinkB": 4,
    "relpos": (0, 0.5),
}


def draw_cost(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores], data: str
) -> tuple[Figure, list[str]]:
    """Draw one marker per arm, in its generator's style; hollow ones are numbered and named below.

    Args:
        scores: of all arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms of which it is not known what they needed.

    Raises:
        UserError: no arm is done yet.
    """
    of_data = [s for s in scores if s.data == data]
    needed = {s.arm.name: needed_runs(plan, collected, data, s.arm.name) for s in of_data if s.dice}
    done = [s for s in of_data if needed.get(s.arm.name)]
    if not done:
        raise UserError("no arm is done yet")
    costs = {s.arm.name: network_seconds(collected, needed[s.arm.name]) for s in done}
    _, unit_s, unit = next(entry for entry in _UNITS if max(costs.values()) >= entry[0])
    points = {s.arm.name: (costs[s.arm.name] / unit_s, s.dice.mean) for s in done if s.dice}
    numbers = {
        s.arm.name: str(i) for i, s in enumerate((s for s in done if not is_plain(s.arm)), 1)
    }
    tall = max(3.0, 0.14 * len(done))
    figure = Figure(figsize=(7.2, 0.8 + tall), layout="constrained")
    axes = figure.add_subplot()
    for s in done:
        _draw_arm(axes, s, points[s.arm.name][0], mark_of(plan, s.arm))
    _scale_costs(axes, [x for x, _ in points.values()])
    counted = {run_id for networks in needed.values() for runs in networks for run_id in runs}
    devices = sorted(
        map(str, collected.costs.loc[collected.costs["run_id"].isin(counted), "device"].unique())
    )
    axes.set_xlabel(
        f"device {unit} for one network, with all runs that it needed ({', '.join(devices)})"
    )
    axes.set_ylabel(f"Dice: mean, {interval_over(collected, done)}")
    axes.set_title(data, loc="left")
    finish_axes(axes)
    names = {
        s.arm.name: numbers.get(s.arm.name) or method_of(s.arm)[1].replace("x", "×") for s in done
    }
    named = [
        (*points[s.arm.name], names[s.arm.name], str(mark_of(plan, s.arm)["color"])) for s in done
    ]
    _name_points(axes, [entry for entry in named if entry[2]], 0.13 / tall)
    _draw_names(figure, plan, done, numbers)
    return figure, not_drawn(of_data, done)


def needed_runs(plan: Plan, collected: Collected, data: str, arm: str) -> list[set[str]]:
    """Return, for each done network of an arm, the ids of its run and of all runs that this one hangs on.

    These are the standard augmentation, and the training of the generator and the making of all its
    pairs, whole, however many of them the arm takes.
    """
    rows = collected.segment[
        (collected.segment["data"] == data) & (collected.segment["arm"] == arm)
    ]

    def with_parents(run_id: str) -> set[str]:
        return {run_id}.union(*(with_parents(parent) for parent in plan.parents(run_id).values()))

    return [with_parents(str(run_id)) for run_id in rows["run_id"]]


def network_seconds(collected: Collected, networks: Sequence[set[str]]) -> float:
    """Return the device seconds of all attempts at all runs that a network needed, mean over an arm's networks."""
    costs = collected.costs.set_index("run_id")
    seconds: pd.Series[float] = costs["spent_s"] * costs["processes"]
    return float(
        np.mean([sum(float(seconds[run_id]) for run_id in sorted(runs)) for runs in networks])
    )


def _draw_arm(axes: Axes, scores: ArmScores, x: float, mark: dict[str, Any]) -> None:
    if scores.dice:
        dice = scores.dice
        bars = [[dice.mean - dice.low], [dice.high - dice.mean]]
        style = {**mark, "linestyle": "none"}
        axes.errorbar(
            [x],
            [dice.mean],
            yerr=bars,
            markersize=5.5,
            elinewidth=0.5,
            capsize=1.5,
            capthick=0.5,
            **style,
        )


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Let costs of many sizes stand by their logarithm, others from 0."""
    if max(costs) > _LOG_FROM * min(costs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(0, 1.08 * max(costs) or 1.0)


def _name_points(axes: Axes, named: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Write an amount or a number at the right of each marker; where markers are near, apart, with lines to them.

    Args:
        named: cost, Dice, name and colour of each.
        gap: between names, as a share of the axes' height.
    """
    axes.set_ylim(axes.get_ylim())  # what is written does not move them
    to_share = axes.transScale + axes.transLimits
    places = to_share.transform([entry[:2] for entry in named]) if named else np.zeros((0, 2))
    order = np.argsort(places[:, 0], kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(places[order, 0]) > _NEAR) + 1):
        many = len(group) > 1
        for i, height in zip(group, spread(places[group, 1].tolist(), gap), strict=True):
            at = (places[group, 0].max() + (0.04 if many else 0.015), height)
            _, _, name, colour = named[i]
            line = {**_LEADER, "color": colour} if many else None
            share = "axes fraction"
            axes.annotate(
                name,
                tuple(places[i]),
                at,
                share,
                share,
                line,
                va="center",
                fontsize=7,
                color=colour,
            )


def _draw_names(
    figure: Figure, plan: Plan, done: Sequence[ArmScores], numbers: Mapping[str, str]
) -> None:
    named: dict[str, Any] = {}
    for s in done:
        method = method_of(s.arm)[0]
        label = {REFERENCE: "Reference", "standard": "Standard aug."}.get(
            method, generator_label(s.arm.generator)
        )
        if s.arm.name in numbers:
            label = f"{numbers[s.arm.name]}: {arm_label(s.arm)}"
        named.setdefault(
            label, Line2D([], [], markersize=5.5, **{**mark_of(plan, s.arm), "linestyle": "none"})
        )
    draw_legend_below(figure, list(named.values()), list(named), sample=1.5)
