"""What the figures share: styles that differ in grey too, a row per arm, how means are drawn."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.labels import KNOWN_GENERATORS, arm_label, generators_of
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.statistics import PARTS, Comparison
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.plan import Plan

GREY = "0.35"
# Okabe and Ito's colours but yellow, which is lost on white.
COLOURS = ("#D55E00", "#0072B2", "#000000", "#CC79A7", "#009E73", "#56B4E9", "#E69F00")
DASHES: tuple[Any, ...] = ("--", "-.", "-", ":")
# As many colours, lines and markers have no common factor, so the first 11 all differ.
MARKERS = "s^oDvP<>dph"
MOST_ROWS = 24
_ROW_INCH = 0.4


def style_of(plan: Plan, arm: ArmConfig) -> dict[str, Any]:
    """Return the colour, marker and line of an arm's generator, or those of arms without one.

    The paper's three generators keep theirs in every figure.
    """
    if not arm.generator:
        return {"color": GREY, "marker": "*" if arm.n_standard else "X", "linestyle": ":"}
    names = list(dict.fromkeys([*KNOWN_GENERATORS, *generators_of(plan)]))
    i = names.index(arm.generator)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def describe_interval(scores: Sequence[ArmScores]) -> str:
    """Say which repetitions the intervals of all arms are over."""
    once = {part for s in scores if s.dice for part in s.dice.not_covered}
    return f"95 % interval over {', '.join(f'{part}s' for part in PARTS if part not in once)}"


def list_not_drawn(scores: Sequence[ArmScores], drawn: Sequence[ArmScores]) -> list[str]:
    """Return a line that names the done arms that a figure does not show, or none."""
    shown = {s.arm.name for s in drawn}
    others = [s.arm.name for s in scores if s.dice and s.arm.name not in shown]
    return [f"not drawn: {', '.join(others)}"] if others else []


def start_rows(scores: Sequence[ArmScores]) -> tuple[list[ArmScores], Figure, Axes, Axes]:
    """Return a figure of two panels beside each other, which share a named row per arm.

    Returns:
        The done arms that have a row (the first ones of the tables, where they are many), the
        figure, and both panels.

    Raises:
        UserError: no arm is done yet.
    """
    rows = [s for s in scores if s.dice][:MOST_ROWS]
    if not rows:
        raise UserError("no arm is done yet")
    figure = Figure(figsize=(7.2, 1.0 + _ROW_INCH * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_yticks(range(len(rows)), [wrap_label(s.arm) for s in rows])
    left.set_ylim(len(rows) - 0.5, -0.6)
    left.set_title(rows[0].data, loc="left")
    for axes in (left, right):
        hide_frame(axes)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    return rows, figure, left, right


def split_ends(estimates: Sequence[Comparison]) -> list[list[float]]:
    """Return how far the intervals reach below and above their means, for error bars."""
    return [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]


def wrap_label(arm: ArmConfig) -> str:
    """Return an arm's label in short lines."""
    return textwrap.fill(arm_label(arm), 26)


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure in the format that its name ends in, atomically."""
    content = io.BytesIO()  # where a disk is full, the PDF writer fails in ways of its own
    figure.savefig(content, format=path.suffix[1:], **options)
    write_atomic(path, content.getvalue())


def hide_frame(axes: Axes) -> None:
    """Leave out the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)
