"""How a generator's training went, from its log.jsonl: the bound, its parts, the flow."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.errors import UserError
from hvae_hpc.results.figures.style import hide_frame
from hvae_hpc.runs.folder import read_log

PANELS = {
    "bound, nats per pair": {"elbo": "ELBO", "objective": "objective (no bound)"},
    "bits per pixel": {"bits_per_pixel": "bits per pixel"},
    "its parts, nats": {"image": "log p(x|z)", "mask": "log p(m|z)", "kl": "KL"},
    "gain of the flow over K = 0, nats": {"elbo_gain": "same batch"},
    "what the flow does": {
        "moved": "|z_K - z_0| / s",
        "acceptance": "acceptance",
        "step_size": "eps",
    },
    "energy change over the leaps, nats": {"energy_change": "energy change"},
    "sigma_x, units of the image range": {"sigma_x": "sigma_x"},
    "losses": {"loss_discriminator": "discriminator", "loss_generator": "generator"},
    "scores (real 1, generated 0)": {"score_real": "real", "score_fake": "generated"},
    "gradient norm": {
        "gradient_norm": "all",
        "gradient_norm_discriminator": "discriminator",
        "gradient_norm_generator": "generator",
    },
}
"""Title of a panel, with the unit, to the logged terms that it shows, with their names."""
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)))
_LARGEST = 1e15
_COLUMNS = 3
_START = 0.1


def draw_progress(folder: Path, label: str) -> tuple[Figure, list[str]]:
    """Draw a training's logged terms against the images seen; dotted lines are where it went back.

    Args:
        folder: the run's.
        label: the title.

    Raises:
        UserError: nothing was logged yet.
    """
    log = [entry for entry in read_log(folder) if _is_count(entry.get("images_seen"))]
    progress = _read_progress(log)
    panels = {
        title: terms for title, terms in PANELS.items() if any(term in progress for term in terms)
    }
    if not panels:
        raise UserError("its training has logged nothing yet")

    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(3.0 * _COLUMNS, 2.1 * rows), layout="constrained")
    figure.suptitle(label, x=0.01, ha="left")
    for i, (title, terms) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, _COLUMNS, i + 1)
        axes.set_title(title, loc="left")
        _draw_terms(axes, progress, terms)
        axes.set_xlim(0, progress.index.max() or 1)
        for entry in log:
            if entry.get("event") == "rolled_back":
                dotted: Any = (0, (1, 2))
                at = entry["images_seen"] / 1000
                axes.axvline(at, color="0.6", linewidth=0.8, linestyle=dotted)
        if i >= len(panels) - _COLUMNS:
            axes.set_xlabel("images seen, thousands")
    return figure, []


def _read_progress(log: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the logged terms by thousands of images seen.

    What was logged twice, because the training went on from an older checkpoint, is taken as logged
    last.
    """
    windows: list[dict[str, float]] = []
    for entry in log:
        if "event" in entry:
            continue
        while windows and windows[-1]["images_seen"] >= entry["images_seen"]:
            windows.pop()
        numbers = {n: float(x) for n, x in entry.items() if isinstance(x, float) or _is_count(x)}
        windows.append(numbers)
    progress = pd.DataFrame(windows, columns=None if windows else ["images_seen"])
    return progress.set_index(progress.pop("images_seen") / 1000)


def _draw_terms(axes: Axes, progress: pd.DataFrame, terms: dict[str, str]) -> None:
    for (term, name), colour, dashes in zip(terms.items(), _COLOURS, _DASHES, strict=False):
        if term not in progress:
            continue
        points = progress[term].dropna()
        axes.plot(
            points.index,
            points,
            label=name,
            color=colour,
            linestyle=dashes,
            linewidth=1.1,
            marker="o" if len(points) == 1 else "",
        )
    _cut_start(axes, progress.filter(list(terms)))
    hide_frame(axes)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)


def _cut_start(axes: Axes, values: pd.DataFrame) -> None:
    """Cut the first tenth of a training off where it would flatten all that follows."""
    later = values[values.index > _START * values.index.max()].stack()
    everything = values.stack()
    height = later.max() - later.min()
    if everything.max() - everything.min() > 3 * height > 0:
        margin = 0.08 * height
        axes.set_ylim(later.min() - margin, later.max() + margin)


def _is_count(value: object) -> bool:
    """Return whether a value is an integer that can be drawn: JSON's may exceed any double."""
    return isinstance(value, int) and abs(value) < _LARGEST
