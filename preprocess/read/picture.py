"""A 2D picture (PNG, TIFF, BMP, JPEG) -> a scan of one slice, or one line about what is wrong."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.scan import Scan, read_bytes

_EXIF_ORIENTATION = 274
_GREY = {"1", "L", "P", "I;16", "I;16B", "I", "F"}
"""Pillow's modes of one number per pixel."""


def read_picture(path: Path, fit: tuple[int, ...] | None, *, is_label: bool) -> Scan:
    """Read a picture as a scan of one slice.

    Colours become grey (ITU-R 601: 0.299 R + 0.587 G + 0.114 B); a label's three channels must be
    equal.

    Args:
        path: the file.
        fit: rows and columns to scale it into, its sides in proportion; None keeps its own pixels.
        is_label: scaling takes the nearest pixel, and palette entries count as label values.

    Raises:
        UserError: missing, damaged, of several pages, or a label in colours.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            _check_form(path, opened)
            opened.load()
            picture = _to_grey(path, opened, is_label)
    except UserError:
        raise
    except Exception as error:  # Pillow has a dozen kinds for a damaged file
        why = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, UnidentifiedImageError):  # its words hold an address in memory
            why = "cannot identify image file"
        raise UserError(f"{path}: not a sound picture ({why}); copy it again") from error

    width, height = picture.size
    if fit is not None:
        picture = _scale_into(picture, fit, is_label)
    pixels = np.asarray(picture)
    return Scan(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        data=pixels.T[:, :, None],
        values=pixels.reshape(-1),
        affine=np.full((4, 4), np.nan),
        stored="",
        shape=(width, height, 1),
    )


def _check_form(path: Path, picture: Image.Image) -> None:
    pages = getattr(picture, "n_frames", 1)
    if pages != 1:
        raise UserError(f"{path}: holds {pages} pages, expected one picture; split it")
    may_be_turned = picture.format in ("JPEG", "PNG")
    if may_be_turned and picture.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1):
        raise UserError(
            f"{path}: is turned by its EXIF orientation, expected none; save it upright"
        )


def _scale_into(picture: Image.Image, fit: tuple[int, ...], is_label: bool) -> Image.Image:
    """Scale a picture, its sides in proportion, to the largest that fits rows and columns."""
    scale = min(fit[0] / picture.height, fit[1] / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if is_label:
        return picture.resize(size, Image.Resampling.NEAREST)
    if picture.mode != "L":  # Pillow's filters work on 8 bits and on floats
        picture = Image.fromarray(np.asarray(picture, dtype=np.float32))
    return picture.resize(size, Image.Resampling.BILINEAR)


def _to_grey(path: Path, picture: Image.Image, is_label: bool) -> Image.Image:
    if is_label and picture.mode == "P" and _is_background_bright(picture):
        raise UserError(
            f"{path}: its palette's entry 0 is not the darkest colour, expected background; "
            "convert to grey"
        )
    if picture.mode in _GREY and (is_label or picture.mode not in ("1", "P")):
        return picture.convert("L") if picture.mode == "1" else picture.copy()
    colours = picture.convert("RGB")
    if is_label:
        red, green, blue = (np.asarray(band) for band in colours.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise UserError(
                f"{path}: a label in colours, expected one number per pixel; "
                "convert it to grey values"
            )
        return colours.getchannel("R")
    return colours.convert("L")


def _is_background_bright(picture: Image.Image) -> bool:
    """Say whether a palette paints entry 0, which should be background, brighter than another."""
    bright = np.asarray(picture.convert("L")).reshape(-1)
    entries = np.asarray(picture).reshape(-1)
    background = bright[entries == 0]
    return bool(background.size and bright.min() < background[0])
