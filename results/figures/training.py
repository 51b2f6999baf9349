"""How each generator's training went, drawn from its log.jsonl: the bound and its parts, and what the flow did."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.plan import Plan

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)))


class PanelOf(NamedTuple):
    """One panel: its title with the unit, and the logged terms that it shows with their names."""

    title: str
    terms: dict[str, str]


PANELS = (
    PanelOf("bound, nats per pair", {"elbo": "ELBO", "objective": "objective (no bound)"}),
    PanelOf("bits per pixel", {"bits_per_pixel": "bits per pixel"}),
    PanelOf("its parts, nats", {"image": "log p(x|z)", "mask": "log p(m|z)", "kl": "KL"}),
    PanelOf("gain of the flow over K = 0, nats", {"elbo_gain": "same batch"}),
    PanelOf(
        "what the flow does",
        {"moved": "|z_K - z_0| / s", "acceptance": "acceptance", "step_size": "eps"},
    ),
    PanelOf("energy change over the leaps, nats", {"energy_change": "energy change"}),
    PanelOf("sigma_x, units of the image range", {"sigma_x": "sigma_x"}),
    PanelOf("losses", {"loss_discriminator": "discriminator", "loss_generator": "generator"}),
    PanelOf("scores (real 1, generated 0)", {"score_real": "real", "score_fake": "generated"}),
    PanelOf(
        "gradient norm",
        {
            "gradient_norm": "all",
            "gradient_norm_discriminator": "discriminator",
            "gradient_norm_generator": "generator",
        },
    ),
)
_LARGEST = 1e15
_COLUMNS = 3
_START = 0.1


def progress_name(label: str) -> str:
    """Return the name of a training's figure, without an ending."""
    return f"progress-{re.sub(r'[^A-Za-z0-9._+-]', '_', label)}"


def trainings(plan: Plan) -> dict[str, str]:
    """Return run id to label of the plan's trainings, in its order."""
    return {
        run_id: run.label
        for run_id, run in plan.runs.items()
        if isinstance(run.config, TrainConfig)
    }


def draw_progress(folder: Path, label: str) -> tuple[Figure, list[str]]:
    """Draw a training's logged terms against the images seen; dotted lines are where it went back.

    What was logged twice, because the training went on from an older checkpoint, is shown as logged
    last.

    Args:
        folder: the run's.
        label: the title.

    Raises:
        UserError: nothing was logged yet.
    """
    log = [entry for entry in read_log(folder) if _is_count(entry.get("images_seen"))]
    windows: dict[int, dict[str, float]] = {}
    for entry in log:
        seen = entry["images_seen"]
        if "event" not in entry:
            windows = {at: terms for at, terms in windows.items() if at < seen} | {
                seen: _numbers(entry)
            }
    shown = [
        panel
        for panel in PANELS
        if any(name in terms for terms in windows.values() for name in panel.terms)
    ]
    if not shown:
        raise UserError("its training has logged nothing yet")
    rows = math.ceil(len(shown) / _COLUMNS)
    figure = Figure(figsize=(3.0 * _COLUMNS, 2.1 * rows), layout="constrained")
    figure.suptitle(label, x=0.01, ha="left")
    back = [entry["images_seen"] for entry in log if entry.get("event") == "rolled_back"]
    for i, panel in enumerate(shown):
        axes = figure.add_subplot(rows, _COLUMNS, i + 1)
        _draw_terms(axes, panel, windows)
        axes.set_xlim(0, max(windows) / 1000 or 1)
        for at in back:
            axes.axvline(at / 1000, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
        if i >= len(shown) - _COLUMNS:
            axes.set_xlabel("images seen, thousands")
    return figure, []


def _draw_terms(axes: Axes, panel: PanelOf, windows: dict[int, dict[str, float]]) -> None:
    for (name, label), colour, line in zip(panel.terms.items(), COLOURS, LINES, strict=False):
        points = [
            (at / 1000, terms[name]) for at, terms in sorted(windows.items()) if name in terms
        ]
        if points:
            marker = "o" if len(points) == 1 else ""
            axes.plot(
                *zip(*points, strict=True),
                label=label,
                color=colour,
                linestyle=line,
                linewidth=1.1,
                marker=marker,
            )
    _leave_out_the_start(axes, max(windows) / 1000)
    axes.set_title(panel.title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)


def _leave_out_the_start(axes: Axes, end: float) -> None:
    """Let the first tenth of a training run off the panel where it would flatten all that follows."""
    points = [
        tuple(point) for line in axes.lines for point in np.asarray(line.get_xydata()).tolist()
    ]
    late = [y for x, y in points if x > _START * end]
    if (
        late
        and max(y for _, y in points) - min(y for _, y in points) > 3 * (max(late) - min(late)) > 0
    ):
        margin = 0.08 * (max(late) - min(late))
        axes.set_ylim(min(late) - margin, max(late) + margin)


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in entry.items()
        if isinstance(value, float) or _is_count(value)
    }


def _is_count(value: object) -> bool:
    """Return whether a logged value is an integer that can be drawn: those of JSON may be larger than any double."""
    return isinstance(value, int) and abs(value) < _LARGEST
