"""2D pictures that cannot be packed."""

import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.preprocess.bad_input.spoil import (
    Bad,
    as_parameters,
    check_bad_case,
    check_bad_folder,
    with_bytes,
    with_picture,
    without,
)


def two_pages(raw: Path) -> None:
    with Image.open(raw / "images" / "case1.tif") as picture:
        picture.save(raw / "images" / "case1.tif", save_all=True, append_images=[picture.copy()])


def break_second_page(content: bytes) -> bytes:
    """Let a TIFF's list of pages lead to a page that has no entries."""
    first = int.from_bytes(content[4:8], "little")
    following = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    return (
        content[:following]
        + len(content).to_bytes(4, "little")
        + content[following + 4 :]
        + bytes(6)
    )


def in_colours(mask: Image.Image) -> Image.Image:
    left = Image.new("L", (mask.width // 2, mask.height))
    half = mask.copy()
    half.paste(left)
    return Image.merge("RGB", [mask, half, half])


def with_void(mask: Image.Image) -> Image.Image:
    """Return a palette as Pascal VOC has it: 1 is the object, 255 its border."""
    entries = np.asarray(mask) // 255
    entries[0] = 255
    picture = Image.fromarray(entries, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, *[9] * 759, 224, 224, 192])
    return picture


def with_alpha(mask: Image.Image) -> Image.Image:
    """Return white all over; the mask is what is opaque, as some tools draw it."""
    white = Image.new("L", mask.size, 255)
    return Image.merge("RGBA", [white, white, white, mask])


def blurred(mask: Image.Image) -> Image.Image:
    return mask.resize((6, 8)).resize(mask.size, Image.Resampling.BICUBIC)


def promise_pixels(content: bytes) -> bytes:
    """Let a PNG's header promise more than its pixels, checksum and all."""
    header = b"IHDR" + struct.pack(">II", 60000, 60000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def ask_for_jpeg_labels(raw: Path) -> None:
    (raw.parent / "pictures.toml").write_text(
        'extends = "pictures"\nlayout = {label = "masks/{case}.jpg"}\n'
    )


PICTURE, MASK = "images/case1.png", "masks/case1.png"
bad_picture = partial(Bad, recipe="pictures", file=PICTURE)


PICTURES: dict[str, list[Bad]] = {
    "2D pictures": [
        bad_picture(
            wrong="a PNG cut short",
            spoil=with_bytes(PICTURE, lambda content: content[:100]),
            line="<file>: not a sound picture (PNG, TIFF, BMP, GIF, JPEG); copy it again",
        ),
        bad_picture(
            wrong="not an image",
            spoil=with_bytes(PICTURE, lambda _: b"hello"),
            line="<file>: not a sound picture (PNG, TIFF, BMP, GIF, JPEG); copy it again",
        ),
        bad_picture(
            wrong="a picture of 0 bytes",
            spoil=with_bytes(PICTURE, lambda _: b""),
            line="<file>: not a sound picture (PNG, TIFF, BMP, GIF, JPEG); copy it again",
        ),
        bad_picture(
            wrong="a picture of one colour",
            spoil=with_picture(PICTURE, lambda pixels: pixels.point(lambda _: 9)),
            line="<file>: every voxel is 9; check that this is the image",
        ),
        bad_picture(
            wrong="a picture of 12 bits for a window of 8 or 16",
            spoil=with_picture(
                PICTURE,
                lambda pixels: Image.fromarray(
                    np.asarray(pixels).astype(np.uint16) * 10 + np.uint16(300)
                ),
            ),
            line="the image fills 3.9% of the intensity window 0 to 65535: values reach 2850; say "
            '[intensity] high = 4095 in the recipe; or say accept = ["faint"] at the head of the recipe',
        ),
        bad_picture(
            wrong="several pages in a TIFF",
            spoil=two_pages,
            file="images/case1.tif",
            recipe="pages",
            line="<file>: holds 2 pages, expected one picture; split it",
        ),
        bad_picture(
            wrong="a TIFF with a broken second page",
            spoil=with_bytes("images/case1.tif", break_second_page),
            file="images/case1.tif",
            recipe="pages",
            line="<file>: not a sound picture (...); copy it again",
        ),
        bad_picture(
            wrong="a label in colours",
            spoil=with_picture(MASK, in_colours),
            file=MASK,
            line="<file>: a label in colours [...], expected black and one colour; "
            "say [label] channel = 0 for its red, 1 for green or 2 for blue",
        ),
        bad_picture(
            wrong="a mask of a palette with a void border",
            spoil=with_picture(MASK, with_void),
            file=MASK,
            line="<file>: a label in colours [...], expected black and one colour; "
            "say which entries are tumour: [label] tumour = [1], known = [0, 1, 255]",
        ),
        bad_picture(
            wrong="a mask in the alpha channel alone",
            spoil=with_picture(MASK, with_alpha),
            file=MASK,
            line="<file>: is transparent in parts, expected an opaque picture; "
            "save it without its alpha channel, or of a mask say [label] channel = 3 if its alpha is the mask, or 0 if its red is",
        ),
        bad_picture(
            wrong="an image that is transparent in parts",
            spoil=with_picture(PICTURE, lambda grey: Image.merge("LA", [grey, grey])),
            line="<file>: is transparent in parts, expected an opaque picture; "
            "save it without its alpha channel, or of a mask say [label] channel = 3 if its alpha is the mask, or 0 if its red is",
        ),
        bad_picture(
            wrong="a mask with grey levels",
            spoil=with_picture(MASK, blurred),
            file=MASK,
            line="<file>: label values ... lie as close as grey levels, expected classes; "
            'say label.tumour in the recipe, or for a mask in grey [label] tumour = "any", '
            "threshold = ... (threshold = 1 takes every value)",
        ),
        bad_picture(
            wrong="another format under the name .png",
            spoil=with_picture(PICTURE, Image.Image.copy, "ppm"),
            line="<file>: not a sound picture (PNG, TIFF, BMP, GIF, JPEG); copy it again",
        ),
        bad_picture(
            wrong="more pixels than any picture has",
            spoil=with_bytes(PICTURE, promise_pixels),
            line="<file>: 60000 x 60000 px, expected at most 67108864 in all; "
            "scale it down, or cut it into tiles",
        ),
        bad_picture(
            wrong="a mask of another size",
            spoil=with_picture(MASK, lambda mask: mask.resize((24, 32))),
            file=MASK,
            line="<file>: shape (24, 32, 1), case1.png has (12, 16, 1); give them one grid, or of volumes set grid.spacing_mm in the recipe to resample",
        ),
        bad_picture(
            wrong="the mask is missing",
            spoil=without(MASK),
            line="<file> has no label (masks/{case}*.png); add it, or remove the case",
        ),
        bad_picture(
            wrong="a mask's picture is missing",
            spoil=without(PICTURE),
            file=MASK,
            line="<file> has no image (images/{case}.png); add it, or remove the case",
        ),
        bad_picture(
            wrong="a recipe with JPEG labels",
            spoil=ask_for_jpeg_labels,
            whole=True,
            line="pictures.toml: layout.label is JPEG, which blurs label values; "
            'say [label] tumour = "any", threshold = 128',
        ),
    ],
}


@pytest.mark.parametrize(
    "bad", as_parameters(bad for bads in PICTURES.values() for bad in bads if not bad.whole)
)
def test_a_bad_picture_is_named_in_one_line_and_the_good_ones_are_kept(
    bad, good, here, run, recwarn
):
    check_bad_case(bad, good, here, run, recwarn)


@pytest.mark.parametrize(
    "bad", as_parameters(bad for bads in PICTURES.values() for bad in bads if bad.whole)
)
def test_a_recipe_that_cannot_be_packed_is_one_line_and_nothing_is_written(bad, good, here, run):
    check_bad_folder(bad, good, here, run)
