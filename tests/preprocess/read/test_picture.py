"""2D pictures: what their pixels become."""

import numpy as np
import pytest
from PIL import Image

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.read.picture import read_picture
from hvae_hpc.preprocess.recipes.recipe import load_recipe
from hvae_hpc.preprocess.store.reader import read_dataset

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
    picture = read_picture(write(tmp_path / name, pixels), None, is_label=False)
    expected = pixels if pixels.ndim == 2 else pixels[:, :, 0]
    np.testing.assert_array_equal(picture.data[:, :, 0].T, expected)
    assert picture.shape == (44, 30, 1)
    assert sorted(picture.values) == sorted(expected.ravel())


def test_colours_become_grey_by_their_brightness_to_the_eye(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    grey = read_picture(write(tmp_path / "a.png", pixels), None, is_label=False).data[:, 0, 0]
    np.testing.assert_allclose(grey, [255 * 0.299, 255 * 0.587, 255 * 0.114], atol=1)


def test_a_palettes_entries_are_label_values_and_one_bit_is_0_and_1(tmp_path):
    values = (GREY % 4).astype(np.uint8)
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0, 0, 0, 250] + [0] * 756)
    palette.save(tmp_path / "p.png")
    label = read_picture(tmp_path / "p.png", None, is_label=True)
    np.testing.assert_array_equal(label.data[:, :, 0].T, values)
    Image.fromarray(GREY > 99).save(tmp_path / "b.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "b.png", None, is_label=True).data[:, :, 0].T > 0, GREY > 99
    )


def test_scaling_keeps_proportions_places_and_mean(tmp_path):
    row, column = np.indices((120, 200))
    disc = ((row - 40) ** 2 + (column - 150) ** 2 < 20**2).astype(np.uint8) * 255
    smooth = (60 + 100 * row / 120).astype(np.float32)
    image = (
        read_picture(write(tmp_path / "i.tif", smooth), (64, 64), is_label=False).data[:, :, 0].T
    )
    label = read_picture(write(tmp_path / "l.png", disc), (64, 64), is_label=True).data[:, :, 0].T
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
        read_picture(tmp_path / "a.tif", None, is_label=False)


def test_a_picture_that_viewers_turn_is_refused_and_an_upright_one_is_not(tmp_path):
    for turned in (1, 3, 6):
        exif = Image.Exif()
        exif[274] = turned
        Image.fromarray(GREY).save(tmp_path / f"{turned}.jpg", exif=exif)
    read_picture(tmp_path / "1.jpg", None, is_label=False)
    for turned in (3, 6):
        with pytest.raises(UserError, match="is turned by its EXIF orientation"):
            read_picture(tmp_path / f"{turned}.jpg", None, is_label=False)


def test_a_palette_that_paints_entry_0_white_is_refused_as_a_label(tmp_path):
    palette = Image.fromarray((GREY > 250).astype(np.uint8), mode="P")
    palette.putpalette([255, 255, 255, 0, 0, 0] + [0] * 762)
    palette.save(tmp_path / "p.png")
    with pytest.raises(UserError, match="entry 0 is not the darkest"):
        read_picture(tmp_path / "p.png", None, is_label=True)
