"""Cropping, choosing slices, scaling intensities."""

from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.volume import Facts, Volume
from hvae_hpc.preprocess.recipes.recipe import GridConfig, IntensityConfig, SlicesConfig
from hvae_hpc.preprocess.slices import choose_slices, cut_pairs, find_crop, scale_intensity
from tests.preprocess.scans import LPS, draw_case, read_case, save, tiny_recipe

AREAS = np.array([0, 5, 9, 9, 2, 0])


def crop_plane(volume, centre_px, columns, rows):
    cropped = np.zeros((columns, rows, *volume.shape[2:]), volume.dtype)
    of, to = find_crop(centre_px, columns, rows, volume.shape)
    cropped[to] = volume[of]
    return cropped


def make_volume(tumour, image=None, centre=None, window=(0.0, 1.0)):
    image = np.indices(tumour.shape)[0] / tumour.shape[0] if image is None else image
    return Volume(
        tumour=tumour,
        take=lambda slices: image[:, :, slices],
        spacing_mm=np.array([0.5, 2.0, 3.0]),
        centre_px=centre or ((tumour.shape[0] - 1) / 2, (tumour.shape[1] - 1) / 2),
        first_slice=10,
        sources={"image": "a", "label": "b"},
        facts=Facts(
            shape=tumour.shape, orientation="LPS", spacing_mm=(), lowest=0, highest=1, window=window
        ),
        label_path=Path("label.nii"),
    )


def test_256_pixels_are_cropped_to_240_evenly():
    volume = np.arange(256)[:, None, None] * np.ones((1, 256, 1), int)
    cropped = crop_plane(volume, (127.5, 127.5), 240, 240)
    assert cropped.shape == (240, 240, 1)
    assert (cropped[0, 0, 0], cropped[-1, 0, 0]) == (8, 247)


def test_a_crop_beyond_the_edge_is_filled_with_0_and_keeps_places():
    volume = np.arange(1, 26).reshape(5, 5, 1)
    cropped = crop_plane(volume, (0.0, 4.0), 3, 5)
    assert cropped.shape == (3, 5, 1)
    assert (cropped[0] == 0).all()
    np.testing.assert_array_equal(cropped[1:, :3, 0], volume[:2, 2:, 0])
    assert (cropped[1:, 3:] == 0).all()


def test_a_smaller_plane_is_padded_on_both_sides():
    cropped = crop_plane(np.ones((4, 2, 1)), (1.5, 0.5), 6, 6)
    np.testing.assert_array_equal(cropped[:, :, 0], np.pad(np.ones((4, 2)), ((1, 1), (2, 2))))


def test_the_largest_tumour_areas_come_first_and_equal_ones_in_order():
    assert choose_slices(AREAS, SlicesConfig(choose="largest")) == [2]
    assert choose_slices(AREAS, SlicesConfig(choose="largest", count=3)) == [2, 3, 1]
    assert choose_slices(AREAS, SlicesConfig(choose="largest", count=9, min_px=5)) == [2, 3, 1]


def test_all_slices_come_in_order_with_or_without_the_empty_ones():
    assert choose_slices(AREAS, SlicesConfig(choose="all")) == [1, 2, 3, 4]
    assert choose_slices(AREAS, SlicesConfig(choose="all", min_px=0)) == [0, 1, 2, 3, 4, 5]


def test_a_pair_shows_anterior_at_the_top_and_the_patients_left_on_the_right(tmp_path):
    image, label = draw_case()
    image[:] = np.arange(image.shape[0])[:, None, None] * 20
    image[15, 3, 3] = 900  # far left of the patient (L rises with the index), near the front
    recipe = tiny_recipe(intensity=IntensityConfig(rule="window", low=0.0, high=900.0))
    volume = read_case(recipe, save(tmp_path / "i.nii", image), save(tmp_path / "l.nii", label))
    pair, *_ = cut_pairs(volume, recipe, "c")
    row, column = np.argwhere(pair.images[0] == 1)[0]
    assert (row, column) == (3 - 1, 15 - 2)  # 18 rows and 20 columns cropped to 16
    rows, columns = np.nonzero(pair.masks[0])
    assert (rows.min() + 1, rows.max() + 1, columns.min() + 2, columns.max() + 2) == (5, 9, 6, 11)


def test_pairs_carry_slice_spacing_and_case():
    tumour = np.zeros((20, 20, 4), bool)
    tumour[8:12, 8:12, 2] = True
    pairs, *_ = cut_pairs(make_volume(tumour), tiny_recipe(), "c7")
    assert pairs.slice_index.tolist() == [
        12
    ]  # 10 slices of the whole volume lie before the first one here
    np.testing.assert_array_equal(pairs.spacing_mm, [[2.0, 0.5]])  # row, column
    assert pairs.case_ids == ("c7",)
    assert int(pairs.masks.sum()) == 16


def test_the_tumour_counts_inside_the_crop_only():
    tumour = np.zeros((40, 40, 2), bool)
    tumour[:10, :10, 0] = True  # larger, but in the corner
    tumour[18:22, 18:22, 1] = True
    assert cut_pairs(make_volume(tumour), tiny_recipe(), "c")[0].slice_index.tolist() == [11]
    assert cut_pairs(make_volume(tumour, centre=(4.5, 4.5)), tiny_recipe(), "c")[
        0
    ].slice_index.tolist() == [10]
    tumour[:, :, 1] = False
    with pytest.raises(
        UserError, match=r"label.nii: the largest tumour slice has 0 px inside the crop of 16 x 16"
    ):
        cut_pairs(make_volume(tumour), tiny_recipe(), "c")


def test_the_crop_follows_the_tumour_where_the_recipe_says_so(tmp_path):
    image, label = draw_case()
    paths = save(tmp_path / "i.nii", image), save(tmp_path / "l.nii", label)
    recipe = tiny_recipe(grid=GridConfig(size_px=(6, 8), centre="tumour"))
    mask = cut_pairs(read_case(recipe, *paths), recipe, "c")[0].masks[0]
    rows, columns = np.nonzero(
        mask
    )  # the box of rows 5..9 and columns 6..11 in the middle of 6 x 8
    assert (columns.min(), columns.max()) == (1, 6)
    assert (rows.min(), rows.max()) == (1, 5)


def test_percentiles_are_of_the_foreground_and_background_stays_0():
    rng = np.random.default_rng(0)
    image = np.zeros((30, 30), np.int16)
    image[10:, 10:] = rng.integers(100, 1000, (20, 20))
    low, high = np.percentile(image[image > 0], [1, 99])
    scaled = scale_intensity(image, (low, high))
    assert scaled.dtype == np.float32
    assert (scaled[:10] == 0).all()
    np.testing.assert_allclose(
        scaled, np.where(image > 0, np.clip((image - low) / (high - low), 0, 1), 0), atol=1e-6
    )


def test_a_window_below_0_keeps_values_below_0_as_ct_needs():
    scaled = scale_intensity(np.array([-1000.0, -100.0, 0.0, 300.0, 900.0]), (-100.0, 300.0))
    np.testing.assert_allclose(scaled, [0, 0, 0.25, 1, 1])


def test_the_window_comes_from_the_whole_volume_not_from_the_slice(tmp_path):
    image, label = draw_case()
    image[3, 3, 0] = 30000  # in a slice that is not chosen
    intensity = IntensityConfig(rule="percentile", low=0.0, high=100.0)
    recipe = tiny_recipe(intensity=intensity, accept=("faint",))
    volume = read_case(
        recipe, save(tmp_path / "i.nii", image, LPS), save(tmp_path / "l.nii", label, LPS)
    )
    assert volume.facts.window == (image[image > 0].min(), 30000)
    assert cut_pairs(volume, recipe, "c")[0].images.max() < 0.04


def test_a_slice_with_tumour_and_nothing_to_see_is_refused_and_an_empty_one_without_is_not():
    tumour = np.zeros((20, 20, 4), bool)
    tumour[8:12, 8:12, 1:3] = True
    image = np.random.default_rng(0).random(tumour.shape)
    image[:, :, 3] = 0  # above the head
    every = tiny_recipe(slices=SlicesConfig(choose="all", min_px=0))
    assert len(cut_pairs(make_volume(tumour, image), every, "c")[0]) == 4
    image[:, :, 2] = 0  # outside the field of view
    with pytest.raises(UserError, match="a slice with tumour has 1 grey value"):
        cut_pairs(make_volume(tumour, image), every, "c")
