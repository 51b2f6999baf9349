"""A 2D picture (PNG, TIFF, BMP, JPEG) -> pixels, or one line that says what is wrong with the file."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hvae_hpc.errors import UserError

_EXIF_ORIENTATION = 274
_GREY = {"1", "L", "P", "I;16", "I;16B", "I", "F"}
"""Pillow's modes of one number per pixel."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One 2D file.

    Attributes:
        path: for messages.
        sha256: of the file's bytes.
        data: (columns, rows, 1), like a volume of one slice.
        values: (columns * rows,) the same pixels.
        stored_px: rows and columns in the file.
    """

    path: Path
    sha256: str
    data: NDArray[Any]
    values: NDArray[Any]
    stored_px: tuple[int, int]


def read_picture(path: Path, fit: tuple[int, ...] | None, *, is_label: bool) -> Picture:
    """Read a picture.

    Colours become grey (ITU-R 601: 0.299 R + 0.587 G + 0.114 B); a label's three channels must be
    equal.

    Args:
        path: the file.
        fit: rows and columns to scale it into, its sides in proportion; None keeps its own pixels.
        is_label: scaling takes the nearest pixel, and palette entries count as label values.

    Raises:
        UserError: missing, damaged, of several pages, or a label in colours.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check path and permission"
        ) from error
    try:
        with Image.open(io.BytesIO(content)) as opened:
            pages = getattr(opened, "n_frames", 1)
            if pages != 1:
                raise UserError(f"{path}: holds {pages} pages, expected one picture; split it")
            if opened.format in ("JPEG", "PNG") and opened.getexif().get(
                _EXIF_ORIENTATION, 1
            ) not in (0, 1):
                raise UserError(
                    f"{path}: is turned by its EXIF orientation, expected none; save it upright"
                )
            opened.load()
            picture = _to_grey(path, opened, is_label)
    except UserError:
        raise
    except UnidentifiedImageError as error:  # its words hold an address in memory
        raise UserError(
            f"{path}: not a sound picture (cannot identify image file); copy it anew"
        ) from error
    except Exception as error:  # Pillow has a dozen kinds for a damaged file
        raise UserError(
            f"{path}: not a sound picture ({_first_line(error)}); copy it anew"
        ) from error
    stored = (picture.height, picture.width)
    if fit is not None:
        scale = min(fit[0] / picture.height, fit[1] / picture.width)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        if not is_label and picture.mode != "L":
            # Pillow's filters work on 8 bits and on floats.
            picture = Image.fromarray(np.asarray(picture, dtype=np.float32))
        picture = picture.resize(
            size, Image.Resampling.NEAREST if is_label else Image.Resampling.BILINEAR
        )
    pixels = np.asarray(picture)
    return Picture(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        data=pixels.T[:, :, None],
        values=pixels.reshape(-1),
        stored_px=stored,
    )


def _to_grey(path: Path, picture: Image.Image, is_label: bool) -> Image.Image:
    if is_label and picture.mode == "P" and _is_background_bright(picture):
        raise UserError(
            f"{path}: its palette's entry 0 is not the darkest colour, expected background; convert to grey"
        )
    if picture.mode in _GREY and (is_label or picture.mode not in ("1", "P")):
        return picture.convert("L") if picture.mode == "1" else picture.copy()
    colours = picture.convert("RGB")
    if is_label:
        red, green, blue = (np.asarray(band) for band in colours.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise UserError(
                f"{path}: a label in colours, expected one number per pixel; convert it to grey values"
            )
        return colours.getchannel("R")
    return colours.convert("L")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _is_background_bright(picture: Image.Image) -> bool:
    """Say whether a palette paints entry 0 brighter than another one that occurs: then 0 is hardly background."""
    bright = np.asarray(picture.convert("L")).reshape(-1)
    entries = np.asarray(picture).reshape(-1)
    background = bright[entries == 0]
    return bool(background.size and bright.min() < background[0])
