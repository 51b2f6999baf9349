"""Label files -> the tumour mask: grey levels, scaled integers and values that nobody expected."""

import re

import nibabel as nib
import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.recipes.recipe import LabelConfig
from tests.preprocess.scans import LPS, draw_case, read_case, read_remedy, save, tiny_recipe

ANY = LabelConfig(tumour="any")


def find_tumour(folder, label, config=ANY, header=None):
    """Return the mask of a label array as a case with it is read."""
    image, _ = draw_case()
    paths = save(folder / "i.nii", image), folder / "l.nii"
    nib.save(nib.Nifti1Image(label, LPS, header), paths[1])
    return read_case(tiny_recipe(label=config), *paths).tumour


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_integers_that_a_header_scales_are_what_they_stand_for(tmp_path, kind):
    _, label = draw_case()
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    find_tumour(tmp_path, label.astype(float), header=header)
    stored = nib.load(tmp_path / "l.nii").get_fdata()
    assert (stored != np.rint(stored)).any()  # nibabel scales floats into a header of integers

    config = LabelConfig(tumour=(1, 4), known=(0, 1, 2, 4))
    mask = find_tumour(tmp_path, label.astype(float), config, header)
    np.testing.assert_array_equal(mask, (label == 1) | (label == 4))


def test_noise_about_0_is_no_tumour(tmp_path):
    _, label = draw_case()
    noisy = label + np.float32(0.004) * np.where(np.indices(label.shape)[0] % 2, 1, -1)
    np.testing.assert_array_equal(find_tumour(tmp_path, noisy), label > 0)


@pytest.mark.parametrize("value", [1.02, 0.98, 0.5, 254.9])
def test_a_value_that_misses_an_integer_is_printed_in_full(tmp_path, value):
    _, label = draw_case()
    label = label.astype(float)
    label[7, 6, 3] = value
    with pytest.raises(UserError, match=f"label value {value}, expected integers"):
        find_tumour(tmp_path, label)


GREY = {
    "JPEG": lambda mask, rng: np.clip(255.0 * mask + rng.normal(0, 6, mask.shape), 0, 255).astype(
        np.uint8
    ),
    "slight noise": lambda mask, rng: (
        np.where(mask, 254, 1).astype(np.uint8) + rng.integers(0, 2, mask.shape).astype(np.uint8)
    ),
    "an image": lambda mask, rng: (mask * 900 + rng.integers(0, 90, mask.shape)).astype(np.int16),
    "shares": lambda mask, rng: (mask * rng.uniform(0.6, 1, mask.shape)).astype(np.float32),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_levels_are_refused_and_the_printed_threshold_takes_them(tmp_path, name):
    _, label = draw_case()
    grey = GREY[name](label > 0, np.random.default_rng(0))
    with pytest.raises(UserError) as caught:
        find_tumour(tmp_path, grey)
    assert "\n" not in str(caught.value)
    config = read_remedy(re.search(r"for a mask in grey \[label\] ([^(]*)", str(caught.value))[1])
    np.testing.assert_array_equal(find_tumour(tmp_path, grey, config), label > 0)


@pytest.mark.parametrize(
    "values", [(255,), (1,), (1, 2, 3), (85, 170, 255), tuple(range(1, 33)), (7,)]
)
def test_classes_are_no_grey_levels(tmp_path, values):
    _, label = draw_case()
    inside = label > 0
    label[inside] = np.resize(values, inside.sum())
    np.testing.assert_array_equal(find_tumour(tmp_path, label), inside)


def test_lesions_with_numbers_of_their_own_are_taken_by_a_threshold_of_1(tmp_path):
    _, label = draw_case()
    inside = label > 0
    label[inside] = 1 + np.arange(inside.sum()) % 40
    with pytest.raises(UserError, match=r"threshold = 20 \(threshold = 1 takes every value\)"):
        find_tumour(tmp_path, label)
    mask = find_tumour(tmp_path, label, LabelConfig(tumour="any", threshold=1))
    np.testing.assert_array_equal(mask, inside)


def test_values_as_close_as_grey_levels_pass_where_the_recipe_knows_them(tmp_path):
    _, label = draw_case()
    label[label > 0] = 254
    label[0, 0, 0] = 255
    known = LabelConfig(tumour="any", known=(0, 254, 255))
    np.testing.assert_array_equal(find_tumour(tmp_path, label, known), label > 0)


def test_a_border_that_nobody_judged_is_named_without_a_hint_that_makes_it_tumour(tmp_path):
    _, label = draw_case()
    label[0, 0, 0] = 255
    with pytest.raises(UserError, match=r"value 255, expected 0, 1, 2, 4; see label.known"):
        find_tumour(tmp_path, label, LabelConfig(tumour=(1, 2, 4)))


def test_a_mask_below_its_threshold_is_named_with_it(tmp_path):
    with pytest.raises(UserError, match=r"no tumour voxel by .*threshold = 128"):
        find_tumour(tmp_path, draw_case()[1], LabelConfig(tumour="any", threshold=128))


def test_a_threshold_does_not_take_what_is_no_number(tmp_path):
    label = draw_case()[1].astype(np.float32)
    label[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="label values are NaN or infinite; repair the file"):
        find_tumour(tmp_path, label, LabelConfig(tumour="any", threshold=0.5))


def test_a_channel_of_a_4d_label_is_the_mask(tmp_path):
    _, label = draw_case()
    channels = np.stack([label == 0, label == 2, label > 0], axis=3).astype(np.uint8)
    with pytest.raises(UserError, match=r"label\.channel"):
        find_tumour(tmp_path, channels)
    mask = find_tumour(tmp_path, channels, LabelConfig(tumour="any", channel=1))
    np.testing.assert_array_equal(mask, label == 2)
    with pytest.raises(UserError, match=r"with a channel 3 \(.*label\.channel\)"):
        find_tumour(tmp_path, channels, LabelConfig(tumour="any", channel=3))
