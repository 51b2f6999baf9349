"""A 2D picture (PNG, TIFF, BMP, GIF, JPEG) -> a scan of one slice, or one line on what is wrong."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.scan import Scan, read_source
from hvae_hpc.preprocess.recipes.recipe import LabelConfig

Image.MAX_IMAGE_PIXELS = None  # Pillow's own bound, which warns; ours is an error
_MOST_PX = 2**26
_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")
"""Pillow looks at the content alone: a file called a.png must not start one of its 40 readers."""
_EXIF_ORIENTATION = 274
_GREY = ("1", "L", "I;16", "I;16B", "I", "F")
"""Pillow's modes of one number per pixel; the entries of a palette ("P") are none."""
_ALPHA = 3
_TRANSPARENT = (
    "is transparent in parts, expected an opaque picture; save it without its alpha channel, "
    "or of a mask say [label] channel = 3 if its alpha is the mask, or 0 if its red is"
)
_JPEG_NOISE = 16
"""JPEG keeps colours coarsely: grey values come back with channels this far apart."""


def read_picture(
    path: Path,
    fit: tuple[int, ...] | None,
    label: LabelConfig | None,
    channel: int | None = None,
) -> Scan:
    """Read a picture as a scan of one slice.

    Colours become grey (ITU-R 601: 0.299 R + 0.587 G + 0.114 B).

    Args:
        path: the file.
        fit: rows and columns to scale it into, its sides in proportion; None keeps its own pixels.
        label: how a label is to be read; its scaling takes the nearest pixel. None for an image.
        channel: red (0), green or blue of an image; None makes colours grey.

    Raises:
        UserError: missing, damaged, too large, of several pages, turned, or a label in colours.
    """
    content, digest = read_source(path)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            _check_form(path, opened)
            opened.load()
            picture = _to_numbers(path, opened, label, channel)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow has a dozen kinds for a damaged file
        raise UserError(
            f"{path}: not a sound picture ({', '.join(_FORMATS)}); copy it again"
        ) from error

    shape = (*picture.size, 1)
    if fit is not None:
        picture = _scale_into(picture, fit, is_label=label is not None)
    pixels = np.asarray(picture)
    return Scan(
        path=path,
        sha256=digest,
        data=pixels.T[:, :, None],
        values=pixels.reshape(-1),
        affine=np.full((4, 4), np.nan),
        stored="",
        shape=shape,
    )


def _check_form(path: Path, picture: Image.Image) -> None:
    if picture.width * picture.height > _MOST_PX:
        raise UserError(
            f"{path}: {picture.width} x {picture.height} px, expected at most {_MOST_PX} in all; "
            "scale it down, or cut it into tiles"
        )
    pages = getattr(picture, "n_frames", 1)
    if pages != 1:
        raise UserError(f"{path}: holds {pages} pages, expected one picture; split it")
    may_be_turned = picture.format in ("JPEG", "PNG")  # Pillow itself turns a TIFF upright
    if may_be_turned and picture.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1):
        raise UserError(
            f"{path}: is turned by its EXIF orientation, expected none; save it upright"
        )


def _scale_into(picture: Image.Image, fit: tuple[int, ...], *, is_label: bool) -> Image.Image:
    """Scale a picture, its sides in proportion, to the largest that fits rows and columns."""
    scale = min(fit[0] / picture.height, fit[1] / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if is_label:
        return picture.resize(size, Image.Resampling.NEAREST)
    if picture.mode != "L":  # Pillow's filters work on 8 bits and on floats
        picture = Image.fromarray(np.asarray(picture, dtype=np.float32))
    return picture.resize(size, Image.Resampling.BILINEAR)


def _to_numbers(
    path: Path, picture: Image.Image, label: LabelConfig | None, channel: int | None
) -> Image.Image:
    """Return one number per pixel: an image's grey or channel, or a label's values."""
    has_alpha = _has_alpha(picture)
    if label and label.channel is not None and (has_alpha or label.channel != _ALPHA):
        return picture.convert("RGBA").getchannel(label.channel)
    if has_alpha:
        raise UserError(f"{path}: {_TRANSPARENT}")
    if picture.mode in _GREY:
        return picture.convert("L") if picture.mode == "1" else picture.copy()
    colours = picture.convert("RGB")
    if label:
        return _to_label(path, picture, colours, label)
    return colours.convert("L") if channel is None else colours.getchannel(channel)


def _to_label(
    path: Path, picture: Image.Image, colours: Image.Image, label: LabelConfig
) -> Image.Image:
    """Return the values of a label in colours."""
    if picture.mode == "P" and label.tumour != "any":
        black = np.asarray(colours.convert("L")) == 0
        if np.asarray(picture)[black].any():
            raise UserError(
                f"{path}: its palette has black elsewhere than at entry 0, expected background "
                "there; convert it to grey"
            )
        return picture.copy()  # its entries
    red, green, blue = colours.split()
    apart = [np.asarray(ImageChops.difference(red, other)).max() for other in (green, blue)]
    if max(apart) <= (0 if label.threshold is None else _JPEG_NOISE):
        return colours.convert("L")
    return _to_mask(path, picture, colours)


def _has_alpha(picture: Image.Image) -> bool:
    """Say whether some pixels are more transparent than others."""
    if not picture.has_transparency_data:
        return False
    least, most = picture.convert("RGBA").getchannel("A").getextrema()
    if least == most:
        picture.info.pop("transparency", None)  # of a palette's Pillow warns when it is converted
    return least != most


def _to_mask(path: Path, picture: Image.Image, colours: Image.Image) -> Image.Image:
    """Return 255 where a picture of black and one colour is not black."""
    shown = [colour for _, colour in colours.getcolors(256) or []]
    if len(shown) == 2 and (0, 0, 0) in shown:
        return Image.fromarray(np.asarray(colours).any(axis=2) * np.uint8(255))

    remedy = "say [label] channel = 0 for its red, 1 for green or 2 for blue"
    if picture.mode == "P":
        entries = sorted({0, *np.unique(np.asarray(picture)).tolist()})
        remedy = f"say which entries are tumour: [label] tumour = {entries[1:2]}, known = {entries}"
    raise UserError(
        f"{path}: a label in colours {shown[:5] or 'of over 256'}, "
        f"expected black and one colour; {remedy}"
    )
