"""2D pictures: what their pixels become."""

import numpy as np
import pytest
from PIL import Image

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.read.picture import read_picture
from hvae_hpc.preprocess.recipes.recipe import LabelConfig, load_recipe
from hvae_hpc.preprocess.store.reader import read_dataset
from tests.preprocess.scans import read_remedy

ANY, ENTRIES = LabelConfig(tumour="any"), LabelConfig(tumour=(1,))
GREY = np.random.default_rng(0).integers(0, 256, (30, 44)).astype(np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.png", GREY),
        ("a.tif", GREY),
        ("a.bmp", GREY),
        ("a.png", GREY.astype(np.uint16) * 250),
        ("a.tiff", GREY.astype(np.uint16) * 250),
        ("a.tif", GREY.astype(np.float32) / 7),
        ("a.png", np.repeat(GREY[:, :, None], 3, axis=2)),
    ],
)
def test_pixels_come_as_they_are_columns_first(tmp_path, name, pixels):
    picture = read_picture(write(tmp_path / name, pixels), None, label=None)
    expected = pixels if pixels.ndim == 2 else pixels[:, :, 0]
    np.testing.assert_array_equal(picture.data[:, :, 0].T, expected)
    assert picture.shape == (44, 30, 1)
    assert sorted(picture.values) == sorted(expected.ravel())


def test_colours_become_grey_by_their_brightness_to_the_eye(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    grey = read_picture(write(tmp_path / "a.png", pixels), None, label=None).data[:, 0, 0]
    np.testing.assert_allclose(grey, [255 * 0.299, 255 * 0.587, 255 * 0.114], atol=1)


def with_palette(entries, colours, path):
    picture = Image.fromarray(np.asarray(entries, np.uint8), mode="P")
    picture.putpalette([level for colour in colours for level in colour])
    picture.save(path)
    return path


def read_label(path, label=ANY):
    return read_picture(path, None, label).data[:, :, 0].T


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (128, 0, 0), (10, 200, 10)
MASK = GREY > 200


@pytest.mark.parametrize(
    ("entries", "colours"),
    [
        (MASK, [BLACK, RED]),
        (MASK, [BLACK, WHITE]),
        (1 + MASK, [GREEN, BLACK, WHITE]),  # entry 0 is not used
        (~MASK, [WHITE, BLACK]),  # the order is turned round
    ],
)
@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_palettes_mask_is_what_one_sees(tmp_path, entries, colours, ending):
    label = read_label(with_palette(entries, colours, tmp_path / f"p.{ending}"))
    np.testing.assert_array_equal(label > 0, MASK)


def test_a_palettes_entries_are_the_values_that_a_recipe_lists(tmp_path):
    values = (GREY % 4).astype(np.uint8)
    path = with_palette(values, [BLACK, RED, GREEN, (0, 0, 250)], tmp_path / "p.png")
    np.testing.assert_array_equal(read_label(path, ENTRIES), values)
    with pytest.raises(UserError, match="a label in colours") as caught:
        read_label(path)
    printed = read_remedy(str(caught.value).split("say which entries are tumour: [label] ")[1])
    assert printed == LabelConfig(tumour=(1,), known=(0, 1, 2, 3))
    np.testing.assert_array_equal(read_label(path, printed), values)
    with_palette(~MASK, [WHITE, BLACK], path)
    with pytest.raises(UserError, match="has black elsewhere than at entry 0"):
        read_label(path, ENTRIES)


def test_one_bit_is_a_mask(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_label(tmp_path / "b.png") > 0, MASK)


def test_a_mask_in_one_colour_is_read_and_of_several_the_channel_that_is_asked_for(tmp_path):
    other = GREY < 50
    pixels = np.stack([MASK * 200, other * 90, MASK * 0], axis=2).astype(np.uint8)
    path = write(tmp_path / "a.png", pixels)
    for channel, mask in enumerate((MASK, other)):
        label = read_label(path, LabelConfig(tumour="any", channel=channel))
        np.testing.assert_array_equal(label > 0, mask)
    write(path, pixels * np.uint8([1, 0, 0]))
    np.testing.assert_array_equal(read_label(path) > 0, MASK)


WHOLE = np.full_like(GREY, 255)
SEEN = MASK.astype(np.uint8) * 255


@pytest.mark.parametrize(
    "bands", [(SEEN, SEEN, SEEN, WHOLE), (SEEN, SEEN, SEEN, 0 * SEEN), (SEEN, WHOLE)]
)
def test_an_alpha_channel_that_says_nothing_is_left_out(tmp_path, bands):
    path = write(tmp_path / "a.png", np.stack(bands, axis=2))
    np.testing.assert_array_equal(read_label(path) > 0, MASK)


@pytest.mark.parametrize("level", [0, 255])
def test_a_mask_in_the_alpha_channel_alone_is_refused_until_asked_for(tmp_path, level):
    flat = np.full_like(GREY, level)
    path = write(tmp_path / "a.png", np.stack([flat, flat, flat, SEEN], axis=2))
    with pytest.raises(UserError, match=r"say \[label\] channel = 3 if its alpha is the mask"):
        read_label(path)
    alpha = LabelConfig(tumour="any", channel=3)
    np.testing.assert_array_equal(read_label(path, alpha) > 0, MASK)
    np.testing.assert_array_equal(read_label(write(path, SEEN), alpha), SEEN)  # has no alpha


def test_a_transparent_entry_of_a_palette_is_an_alpha_channel_too(tmp_path, recwarn):
    picture = Image.fromarray(MASK.astype(np.uint8), mode="P")
    picture.putpalette([*BLACK, *WHITE])
    picture.save(tmp_path / "p.png", transparency=bytes([255, 255]))
    np.testing.assert_array_equal(read_label(tmp_path / "p.png") > 0, MASK)
    assert not recwarn.list
    picture.putpalette([*WHITE, *WHITE])
    picture.save(tmp_path / "p.png", transparency=0)
    with pytest.raises(UserError, match="is transparent in parts"):
        read_label(tmp_path / "p.png")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_mask_is_read_with_a_threshold(tmp_path, mode):
    rows, columns = np.indices(GREY.shape)
    mask = (rows - 15) ** 2 + (columns - 20) ** 2 < 81
    path = tmp_path / "m.jpg"
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(path, quality=60)
    label = read_label(path, LabelConfig(tumour="any", threshold=128))
    assert len(np.unique(label)) > 10
    np.testing.assert_array_equal(label >= 128, mask)


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_no_orientation_is_passed_over(tmp_path, ending):
    """Pillow turns a TIFF upright, and a picture that it leaves as it is, is refused."""
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees for looking at
    path = tmp_path / f"a.{ending}"
    Image.fromarray(GREY).save(path, exif=exif)
    if ending == "tif":
        np.testing.assert_array_equal(read_label(path, ENTRIES), np.rot90(GREY, -1))
    else:
        with pytest.raises(UserError, match="is turned by its EXIF orientation"):
            read_label(path)


def test_scaling_keeps_proportions_places_and_mean(tmp_path):
    row, column = np.indices((120, 200))
    disc = ((row - 40) ** 2 + (column - 150) ** 2 < 20**2).astype(np.uint8) * 255
    smooth = (60 + 100 * row / 120).astype(np.float32)
    image = read_picture(write(tmp_path / "i.tif", smooth), (64, 64), label=None).data[:, :, 0].T
    label = read_picture(write(tmp_path / "l.png", disc), (64, 64), label=ANY).data[:, :, 0].T
    assert image.shape == label.shape == (38, 64)  # 120 x 200 at 0.32
    assert image.mean() == pytest.approx(smooth.mean(), rel=0.01)
    np.testing.assert_allclose(np.argwhere(label).mean(axis=0), [40 * 0.32, 150 * 0.32], atol=0.7)
    assert (label > 0).sum() == pytest.approx(np.pi * (20 * 0.32) ** 2, rel=0.06)
    assert set(np.unique(label)) == {0, 255}


def test_pictures_of_several_sizes_pack_with_all_their_masks_joined(tmp_path):
    rng = np.random.default_rng(1)
    for number, size in enumerate([(300, 200), (100, 256), (256, 256)]):
        write(
            tmp_path / f"raw/images/case {number}.png", rng.integers(0, 256, size).astype(np.uint8)
        )
        for part in range(number + 1):
            mask = np.zeros(size, np.uint8)
            mask[10 + 20 * part : 20 + 20 * part, 30:60] = 255
            write(tmp_path / f"raw/masks/case {number}{'_' * part}{part or ''}.png", mask)
    manifest = pack(load_recipe("pictures"), tmp_path / "raw", tmp_path / "out", workers=1)
    assert [case.case_id for case in manifest.cases] == ["case 0", "case 1", "case 2"]
    assert [sorted(case.sources) for case in manifest.cases][2] == [
        "image",
        "label",
        "label_2",
        "label_3",
    ]
    assert manifest.cases[2].tumour_px == (3 * 10 * 30,)
    pairs = read_dataset(tmp_path / "out", ["case 2", "case 1"])
    assert np.isnan(pairs.spacing_mm).all()
    assert manifest.cases[0].spacing_mm == ()
    assert pairs.masks[0, 10:20, 30:60].all()
    assert pairs.images[1, :70].max() == 0  # 100 rows of 256 columns: padded above and below
    assert pairs.images[1, 78:178].std() > 0.1


def test_two_pages_are_not_a_picture(tmp_path):
    Image.fromarray(GREY).save(
        tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(GREY)]
    )
    with pytest.raises(UserError, match="holds 2 pages"):
        read_picture(tmp_path / "a.tif", None, label=None)


def test_a_picture_that_viewers_turn_is_refused_and_an_upright_one_is_not(tmp_path):
    for turned in (1, 3, 6):
        exif = Image.Exif()
        exif[274] = turned
        Image.fromarray(GREY).save(tmp_path / f"{turned}.jpg", exif=exif)
    read_picture(tmp_path / "1.jpg", None, label=None)
    for turned in (3, 6):
        with pytest.raises(UserError, match="is turned by its EXIF orientation"):
            read_picture(tmp_path / f"{turned}.jpg", None, label=None)


def test_pictures_of_8_and_of_16_bits_pack_to_the_same_images(tmp_path):
    mask = (GREY > 128).astype(np.uint8)
    for name, pixels in (("a", GREY), ("b", GREY.astype(np.uint16) * 257)):
        write(tmp_path / f"raw/images/{name}.png", pixels)
        write(tmp_path / f"raw/masks/{name}.png", mask)
    (tmp_path / "ours.toml").write_text(
        'extends = "pictures"\naccept = ["repeated"]\ngrid = {size_px = [32, 48], fit = "crop"}\n'
    )
    pack(load_recipe(str(tmp_path / "ours.toml")), tmp_path / "raw", tmp_path / "out", workers=1)
    pairs = read_dataset(tmp_path / "out", ["a", "b"])
    np.testing.assert_allclose(pairs.images[0], pairs.images[1], atol=1e-6)
    assert pairs.images.max() == 1


def test_a_postscript_called_png_starts_no_ghostscript(tmp_path, monkeypatch):
    started = tmp_path / "started"
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\necho started >> {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=":")
    postscript = tmp_path / "a.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\nshowpage\n")
    with pytest.raises(UserError, match="not a sound picture"):
        read_picture(postscript, None, label=None)
    assert not started.exists()

    # Pillow itself would start it.
    with pytest.raises(OSError), Image.open(postscript) as picture:
        picture.load()
    assert started.exists()
