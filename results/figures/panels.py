"""Rows of images with outlines: what Figure 2, the cases and the contact sheets are drawn with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.frozen import frozen

TRUTH: dict[str, Any] = {"color": "#F0E442", "linestyle": "-", "linewidth": 1.2}
PREDICTION: dict[str, Any] = {"color": "#56B4E9", "linestyle": (0, (2.5, 1.2)), "linewidth": 1.2}
_LEFT, _LABEL_LINE, _RIGHT, _BETWEEN = 0.25, 0.13, 0.02, 0.025
"""Inches: room for a row's label, for each further line of it, at the right, and between panels."""


@frozen
class Panel:
    """An image (H, W) in [0, 1] with a title and outlines: (mask, line style) each."""

    image: np.ndarray
    title: str = ""
    outlines: tuple[tuple[np.ndarray, dict[str, Any]], ...] = ()


Row = tuple[str, list[Panel]]


def draw_grid(
    rows: Sequence[Row], size: float, top: float = 0.02, gap: float = 0.025, bottom: float = 0.02
) -> Figure:
    """Draw rows of panels without axes; all lengths are in inches.

    The places are computed: matplotlib's own layouts let titles overlap images of a fixed aspect.

    Args:
        rows: label and panels.
        size: width of a panel.
        top, bottom: room for titles and legend.
        gap: room between rows.
    """
    n_columns = max(len(panels) for _, panels in rows)
    height_px, width_px = rows[0][1][0].image.shape
    row_height = size * height_px / width_px
    left = _LEFT + _LABEL_LINE * max(label.count("\n") for label, _ in rows)
    width = left + size * n_columns + _BETWEEN * (n_columns - 1) + _RIGHT
    height = top + row_height * len(rows) + gap * (len(rows) - 1) + bottom

    figure = Figure(figsize=(width, height))
    places = {
        "left": left / width,
        "right": 1 - _RIGHT / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
        "wspace": _BETWEEN / size,
        "hspace": gap / row_height,
    }
    grid = figure.subplots(len(rows), n_columns, squeeze=False, gridspec_kw=places)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for (label, panels), axes_of_row in zip(rows, grid, strict=True):
        axes_of_row[0].set_ylabel(label)
        for panel, axes in zip(panels, axes_of_row, strict=False):
            _draw_panel(axes, panel)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(panel.title)
    for mask, style in panel.outlines:
        if mask.min() != mask.max():  # an empty mask has no outline
            plural: dict[str, Any] = {f"{name}s": [value] for name, value in style.items()}
            axes.contour(mask > 0, levels=[0.5], **plural)


def draw_outline_legend(figure: Figure) -> None:
    """Say below the panels which outline is the truth and which the prediction."""
    for label, style in (("truth", TRUTH), ("prediction", PREDICTION)):
        figure.axes[0].plot([], [], label=label, **style)
    figure.legend(loc="lower center", ncols=2, frameon=False, handlelength=3.5, borderaxespad=0.1)
