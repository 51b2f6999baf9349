"""Dice against the device time of one trained network and all that it needed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected, rows_of
from hvae_hpc.results.figures.style import (
    describe_interval,
    draw_estimates,
    draw_legend_below,
    hide_frame,
    is_plain,
    move_apart,
    needs_logarithm,
    style_of,
)
from hvae_hpc.results.labels import REFERENCE, arm_label, generator_label, method_of
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.plan import Plan

_UNITS = {"hours": (7200.0, 3600.0), "minutes": (120.0, 60.0), "seconds": (0.0, 1.0)}
"""Unit to the least highest cost that is shown in it, and its length, both in seconds."""
_NAME_WIDTH = 0.08
"""Share of the axis that a name takes: markers closer than that have theirs in one column."""


class _Name(NamedTuple):
    """A text for the marker at a cost and a Dice."""

    text: str
    cost: float
    dice: float
    colour: str


def draw_cost(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores], data: str
) -> tuple[Figure, list[str]]:
    """Draw one marker per arm, in its generator's style; hollow ones are numbered and named below.

    Args:
        scores: of the data set's arms, in the tables' order.

    Raises:
        UserError: no arm is done yet.
    """
    done = [s for s in scores if s.dice]
    if not done:
        raise UserError("no arm is done yet")
    needed = [needed_runs(plan, collected, data, s.arm.name) for s in done]
    seconds = [network_seconds(collected, networks) for networks in needed]
    unit = next(name for name, (least, _) in _UNITS.items() if max(seconds) >= least)
    costs = [of_arm / _UNITS[unit][1] for of_arm in seconds]

    height = max(3.0, 0.14 * len(done))
    figure = Figure(figsize=(7.2, 0.8 + height), layout="constrained")
    axes = figure.add_subplot()
    style = {"markersize": 5.5, "elinewidth": 0.5, "capsize": 1.5, "capthick": 0.5}
    for s, cost in zip(done, costs, strict=True):
        if s.dice:
            without_line = {**style_of(plan, s.arm), "linestyle": "none"}
            draw_estimates(axes, [cost], [s.dice], **style, **without_line)
    _scale_costs(axes, costs)

    run_ids = set().union(*(runs for networks in needed for runs in networks))
    made = collected.costs[collected.costs["run_id"].isin(run_ids)]
    devices = ", ".join(sorted(map(str, made["device"].unique())))
    axes.set_xlabel(f"device {unit} for one network, with all runs that it needed ({devices})")
    axes.set_ylabel(f"Dice: mean, {describe_interval(done)}")
    axes.set_title(data, loc="left")
    hide_frame(axes)

    others = [s.arm.name for s in done if not is_plain(s.arm)]
    numbers = {name: str(i) for i, name in enumerate(others, 1)}
    names = []
    for s, cost in zip(done, costs, strict=True):
        text = numbers.get(s.arm.name) or method_of(s.arm)[1].replace("x", "×")
        if text:
            names.append(_Name(text, cost, s.mean_dice, style_of(plan, s.arm)["color"]))
    _name_markers(axes, names, 0.13 / height)
    _draw_legend(figure, plan, done, numbers)
    return figure, []


def needed_runs(plan: Plan, collected: Collected, data: str, arm: str) -> list[set[str]]:
    """Return, for each done network of an arm, the ids of its run and of all runs before it.

    These are the standard augmentation, and the training of the generator and the making of all its
    pairs, whole, however many of them the arm takes.
    """

    def with_parents(run_id: str) -> set[str]:
        return {run_id}.union(*map(with_parents, plan.parents(run_id).values()))

    rows = rows_of(collected.segment, data=data, arm=arm)
    return [with_parents(str(run_id)) for run_id in rows["run_id"]]


def network_seconds(collected: Collected, networks: Sequence[set[str]]) -> float:
    """Return the device seconds that a network needed, mean over an arm's networks.

    All attempts at all its runs count.
    """
    costs = collected.costs
    seconds = dict(zip(costs["run_id"], costs["spent_s"] * costs["processes"], strict=True))
    return float(np.mean([sum(seconds[run_id] for run_id in sorted(runs)) for runs in networks]))


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Let costs of many sizes stand at their logarithms, others on a plain axis from 0."""
    if needs_logarithm(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(0, 1.08 * max(costs) or 1.0)


def _name_markers(axes: Axes, names: Sequence[_Name], gap: float) -> None:
    """Write names at the right of their markers; close ones in a column, with lines to the markers.

    Args:
        gap: between names, as a share of the axes' height.
    """
    if not names:
        return
    axes.set_ylim(axes.get_ylim())  # what is written does not move them
    to_share = axes.transScale + axes.transLimits
    places = to_share.transform([(name.cost, name.dice) for name in names])

    order = np.argsort(places[:, 0], kind="stable")
    starts = np.flatnonzero(np.diff(places[order, 0]) > _NAME_WIDTH) + 1
    for column in np.split(order, starts):
        is_alone = len(column) == 1
        x = places[column, 0].max() + (0.015 if is_alone else 0.04)
        heights = move_apart(places[column, 1].tolist(), gap)
        for i, height in zip(column, heights, strict=True):
            line: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.4, "color": names[i].colour}
            line |= {"shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}
            axes.annotate(
                names[i].text,
                xy=tuple(places[i]),
                xytext=(x, height),
                xycoords="axes fraction",
                textcoords="axes fraction",
                arrowprops=None if is_alone else line,
                va="center",
                fontsize=7,
                color=names[i].colour,
            )


def _draw_legend(
    figure: Figure, plan: Plan, done: Sequence[ArmScores], numbers: Mapping[str, str]
) -> None:
    """Name each method once, and each arm that has a number."""
    markers: dict[str, Any] = {}
    for s in done:
        method = method_of(s.arm)[0]
        if s.arm.name in numbers:
            label = f"{numbers[s.arm.name]}: {arm_label(s.arm)}"
        elif method in (REFERENCE, "standard"):
            label = {REFERENCE: "Reference", "standard": "Standard aug."}[method]
        else:
            label = generator_label(s.arm.generator)
        style = {**style_of(plan, s.arm), "linestyle": "none"}
        markers.setdefault(label, Line2D([], [], markersize=5.5, **style))
    draw_legend_below(figure, list(markers.values()), list(markers), sample=1.5)
