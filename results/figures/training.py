"""How a generator's training went, from its log.jsonl: the bound, its parts, the flow."""

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.errors import UserError
from hvae_hpc.results.figures.style import COLOURS, DASHES, hide_frame
from hvae_hpc.runs.folder import read_log

PANELS = {
    "bound, nats per pair": {"elbo": "ELBO", "objective": "objective (no bound)"},
    "its parts, nats": {"image": "log p(x|z)", "mask": "log p(m|z)", "kl": "KL"},
    "gain of the flow over K = 0, nats": {"elbo_gain": "same batch"},
    "what the flow does": {
        "moved": "|z_K - z_0| / s",
        "acceptance": "acceptance",
        "step_size": "eps",
    },
    "energy change over the leaps, nats": {"energy_change": "energy change"},
    "sigma_x, units of the image range": {"sigma_x": "sigma_x"},
    "losses": {
        "denoising": "denoising",
        "loss_discriminator": "discriminator",
        "loss_generator": "generator",
        "adversarial": "adversarial",
    },
    "scores (real 1, generated 0)": {"score_real": "real", "score_fake": "generated"},
    "gradient norm": {
        "gradient_norm": "all",
        "gradient_norm_discriminator": "discriminator",
        "gradient_norm_generator": "generator",
    },
}
"""Title of a panel, with the unit, to the logged terms that it shows, with their names."""
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
    progress, went_back = _read_progress(folder)
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
        for place in went_back:
            axes.axvline(place, color="0.6", linewidth=0.8, linestyle=":")
        if i >= len(panels) - _COLUMNS:
            axes.set_xlabel("images seen, thousands")
    return figure, []


def _read_progress(folder: Path) -> tuple[pd.DataFrame, list[float]]:
    """Return the logged terms by thousands of images seen, and where the training went back.

    What was logged twice, because the training went on from an older checkpoint, is taken as logged
    last.
    """
    windows: list[dict[str, float]] = []
    went_back = []
    for entry in read_log(folder):
        # JSON's integers may exceed any double.
        numbers = {
            name: float(x)
            for name, x in entry.items()
            if isinstance(x, int | float) and abs(x) < _LARGEST
        }
        if "images_seen" not in numbers:
            continue
        if "event" not in entry:
            while windows and windows[-1]["images_seen"] >= numbers["images_seen"]:
                windows.pop()
            windows.append(numbers)
        elif entry["event"] == "rolled_back":
            went_back.append(numbers["images_seen"] / 1000)
    progress = pd.DataFrame(windows, columns=None if windows else ["images_seen"])
    return progress.set_index(progress.pop("images_seen") / 1000), went_back


def _draw_terms(axes: Axes, progress: pd.DataFrame, terms: dict[str, str]) -> None:
    for i, (term, name) in enumerate(terms.items()):
        if term in progress:
            points = progress[term].dropna()
            marker = "o" if len(points) == 1 else ""
            axes.plot(
                points.index,
                points,
                label=name,
                linewidth=1.1,
                color=COLOURS[i],
                linestyle=DASHES[i - 2],
                marker=marker,
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
