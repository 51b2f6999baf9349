"""All figures of a sweep: which there are, and how they are saved.

A figure that has no data yet is left out, with a remark.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.figures.cost import draw_cost
from hvae_hpc.results.figures.dose import draw_dose
from hvae_hpc.results.figures.images import draw_cases, draw_figure2
from hvae_hpc.results.figures.per_case import draw_per_case
from hvae_hpc.results.figures.style import save_figure
from hvae_hpc.results.figures.training import draw_progress
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.plan import Plan

DPI = 150
PLOT = ("png", "svg", "pdf")
IMAGES = ("png", "pdf")
"""An SVG of images would hold them as text."""
PROGRESS = ("png", "svg")
"""Trainings may be many, and a PDF takes longest."""
FORMATS = "HVAE_HPC_FIGURES"
"""Environment variable with the wanted formats, "png,pdf"; all of them take twice the time."""
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
    """Draw the figures of each data set, and one of each training.

    Args:
        plan: what is expected, and where.
        collected: what is done.
        scores: of all arms, in the tables' order.
        out: the folder for {figure2,dice,per-case,cost,cases}-<data> and progress-<training>, each
            as .png and .pdf, and as .svg unless it shows images.

    Returns:
        What was written, and a line for everything that was left out.

    Raises:
        UserError: ``$HVAE_HPC_FIGURES`` names a format that there is not.
    """
    paths: list[Path] = []
    remarks: list[str] = []
    asked = _asked_formats()
    for name, (formats, draw) in _list_figures(plan, collected, scores).items():
        endings = [ending for ending in formats if ending in asked]
        with matplotlib.style.context(_SETTINGS, after_reset=True):
            try:
                figure, left_out = draw()
            except UserError as error:
                endings, left_out = [], []
                remarks.append(f"{name}.png is left out: {error}")
            for ending in endings:
                paths.append(out / f"{name}.{ending}")
                save_figure(figure, paths[-1], dpi=DPI, metadata=_NO_DATE[ending])
                figure.set_layout_engine("none")  # the first one's holds for all
        # Not before: another sweep's last job may be reading what is drawn anew here.
        for ending in set(PLOT).difference(endings):
            (out / f"{name}.{ending}").unlink(missing_ok=True)
        remarks += [f"{name}.png: {line}" for line in left_out]
    return paths, remarks


def _asked_formats() -> set[str]:
    """Return the endings that figures are to have; PNG among them, which the report shows."""
    named = os.environ.get(FORMATS) or ",".join(PLOT)
    asked = {"png", *named.replace(" ", "").split(",")}
    if unknown := sorted(asked - set(PLOT)):
        raise UserError(
            f"${FORMATS} has {', '.join(map(repr, unknown))}, expected some of {', '.join(PLOT)}"
        )
    return asked


def _list_figures(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores]
) -> dict[str, tuple[tuple[str, ...], Draw]]:
    """Return each figure's file name, formats and drawing. A new figure is one line here."""
    figures: dict[str, tuple[tuple[str, ...], Draw]] = {}
    for data in plan.data:
        of_data = [s for s in scores if s.data == data]
        figures |= {
            f"figure2-{data}": (IMAGES, partial(draw_figure2, plan, collected, data)),
            f"dice-{data}": (PLOT, partial(draw_dose, plan, of_data)),
            f"per-case-{data}": (PLOT, partial(draw_per_case, plan, of_data)),
            f"cost-{data}": (PLOT, partial(draw_cost, plan, collected, of_data)),
            f"cases-{data}": (IMAGES, partial(draw_cases, plan, collected, of_data)),
        }
    for run_id, run in plan.runs.items():
        if isinstance(run.config, TrainConfig) and collected.results[run_id].done:
            draw = partial(draw_progress, plan.folder(run_id), run.label)
            figures[f"progress-{run.label}"] = PROGRESS, draw
    return figures
