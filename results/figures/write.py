"""All figures of a sweep: which there are, and how they are saved; what has no data yet is left out with a remark."""

import io
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.figures.cost import draw_cost
from hvae_hpc.results.figures.dose import draw_dice
from hvae_hpc.results.figures.images import draw_cases, draw_figure2
from hvae_hpc.results.figures.per_case import draw_per_case
from hvae_hpc.results.figures.training import draw_progress, progress_name, trainings
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.plan import Plan

DPI = 150
PLOT = ("png", "svg", "pdf")
IMAGES = ("png", "pdf")
"""An SVG of images would hold them as text."""
PROGRESS = ("png", "svg")
"""Trainings may be many, and a PDF takes longest."""
FORMATS = "HVAE_HPC_FIGURES"
"""In the environment: the endings that are wanted, "png,pdf"; the others take half of the time that results take."""
# parse_math off: a $ in a case id is a dollar sign. The rest: letters stay letters in vector
# files, and the same runs give the same bytes.
_SETTINGS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hvae_hpc",
    "pdf.fonttype": 42,
}
_NO_DATE: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

Draw = Callable[[], tuple[Figure, list[str]]]


def write_figures(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores], out: Path
) -> tuple[list[Path], list[str]]:
    """Draw the five figures of each data set, and one of each training.

    Args:
        plan: what is expected, and where.
        collected: what is there.
        scores: of all arms, in the tables' order.
        out: the folder for {figure2,dice,per-case,cost,cases}-<data> and progress-<training>, each
            as .png and .pdf, and as .svg unless it shows images.

    Returns:
        What was written, and a line for everything that was left out.

    Raises:
        UserError: ``$HVAE_HPC_FIGURES`` names a format that there is not.
    """
    paths, remarks, asked = [], [], _asked_formats()
    for name, (endings, draw) in _wanted(plan, collected, scores).items():
        with matplotlib.rc_context(_SETTINGS):
            try:
                figure, left_out = draw()
            except UserError as error:
                remarks.append(f"{name}.png is left out: {error}")
                for ending in endings:
                    (out / f"{name}.{ending}").unlink(missing_ok=True)  # of an earlier time
                continue
            for ending in endings:
                if ending in asked:
                    paths.append(_save(figure, out / f"{name}.{ending}"))
                    figure.set_layout_engine("none")  # the first one's holds for all
                else:
                    (out / f"{name}.{ending}").unlink(missing_ok=True)  # of an earlier time
        remarks += [f"{name}.png: {line}" for line in left_out]
    return paths, remarks


def _asked_formats() -> set[str]:
    """Return the endings that figures are to have; PNG among them, which the report shows."""
    asked = {"png", *filter(None, re.split(r"[\s,]+", os.environ.get(FORMATS, ",".join(PLOT))))}
    if unknown := sorted(asked - set(PLOT)):
        raise UserError(
            f"${FORMATS} has {', '.join(map(repr, unknown))}, expected some of {', '.join(PLOT)}"
        )
    return asked


def _wanted(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores]
) -> dict[str, tuple[tuple[str, ...], Draw]]:
    """Return name to endings and what draws it."""
    wanted: dict[str, tuple[tuple[str, ...], Draw]] = {}
    for data in plan.data:
        of_data = re.sub(r"[^A-Za-z0-9._+-]", "_", data)
        wanted[f"figure2-{of_data}"] = IMAGES, partial(draw_figure2, plan, collected, data)
        for kind, draw in (("dice", draw_dice), ("per-case", draw_per_case), ("cost", draw_cost)):
            wanted[f"{kind}-{of_data}"] = PLOT, partial(draw, plan, collected, scores, data)
        wanted[f"cases-{of_data}"] = IMAGES, partial(draw_cases, plan, collected, data)
    for run_id, label in trainings(plan).items():
        if run_id in collected.done:
            wanted[progress_name(label)] = (
                PROGRESS,
                partial(draw_progress, plan.folder(run_id), label),
            )
    return wanted


def _save(figure: Figure, path: Path) -> Path:
    ending = path.suffix[1:]
    options: dict[str, Any] = {"format": ending, "dpi": DPI, "metadata": _NO_DATE[ending]}
    content = io.BytesIO()  # where a disk is full, the PDF writer fails in ways of its own
    figure.savefig(content, **options)
    write_atomic(path, content.getvalue())
    return path
