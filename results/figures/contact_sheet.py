"""Contact sheets: packed pairs with their masks' outlines, to be looked at before training."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style

from hvae_hpc.results.figures.panels import TRUTH, Panel, Row, draw_grid
from hvae_hpc.results.figures.style import save_figure

COLUMNS, PER_PAGE = 8, 48
_SIZE_INCH, _DPI = 1.5, 130
_TITLE_LETTERS = 24


def write_contact_sheets(
    folder: Path,
    titles: Sequence[str],
    read: Callable[[Sequence[int]], Any],
    at_most: int = PER_PAGE,
) -> list[Path]:
    """Draw pairs on pages of 48: ``contact.png``, or ``contact-01.png`` and so on.

    Args:
        folder: where the pages go; those of before are removed.
        titles: of all N pairs.
        read: rows -> pairs: ``images`` (n, H, W) in [0, 1] and ``masks`` (n, H, W).
        at_most: how many pairs to draw; fewer than N are spread evenly over all.

    Returns:
        The pages.
    """
    count = min(at_most, len(titles))
    rows = [round(place * (len(titles) - 1) / max(1, count - 1)) for place in range(count)]
    pages = math.ceil(count / PER_PAGE)
    for old in folder.glob("contact*.png"):
        if re.fullmatch(r"contact(-[0-9]+)?\.png", old.name):
            old.unlink()

    paths = []
    for page in range(pages):
        number = f"-{page + 1:0{len(str(pages))}}" if pages > 1 else ""
        paths.append(folder / f"contact{number}.png")
        shown = rows[page * PER_PAGE : (page + 1) * PER_PAGE]
        _write_page(paths[-1], [titles[row] for row in shown], read(shown))
    return paths


def _write_page(path: Path, titles: Sequence[str], pairs: Any) -> None:
    thin = TRUTH | {"linewidth": 0.7}
    panels = [
        # The end of each line is kept, where case ids differ.
        Panel(
            image=image,
            title="\n".join(line[-_TITLE_LETTERS:] for line in title.split("\n")),
            outlines=((mask, thin),),
        )
        for title, image, mask in zip(titles, pairs.images, pairs.masks, strict=True)
    ]
    starts = range(0, len(panels), COLUMNS)
    lines: list[Row] = [("", panels[start : start + COLUMNS]) for start in starts]
    # parse_math off: a $ in a case id is a dollar sign.
    style: Any = {"font.size": 5, "axes.titlesize": 5, "axes.titlepad": 2, "text.parse_math": False}
    with matplotlib.style.context(style, after_reset=True):
        figure = draw_grid(lines, size=_SIZE_INCH, top=0.25, gap=0.25)
        save_figure(figure, path, dpi=_DPI)
