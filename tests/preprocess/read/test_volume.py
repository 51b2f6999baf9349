"""A case on disk -> one canonical volume, resampled or not."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.find_cases import CaseFiles
from hvae_hpc.preprocess.read.volume import read_volume
from hvae_hpc.preprocess.recipes.recipe import (
    GridConfig,
    IntensityConfig,
    LabelConfig,
    SlicesConfig,
    load_recipe,
)
from hvae_hpc.preprocess.slices import cut_pairs
from tests.preprocess.scans import LPS, draw_case, read_case, save, tiny_recipe, whole_image

PET = np.array([[-4.0, 0, 0, 31.0], [0, -4.0, 0, 37.0], [0, 0, 3.0, -55.0], [0, 0, 0, 1]])
CT = np.array([[-1.5, 0, 0, 20.0], [0, -1.5, 0, 25.0], [0, 0, 2.5, -50.0], [0, 0, 0, 1]])
"""The coarse grid of an image and the fine one of its label, LPS, with origins of their own."""


def world(affine, shape):
    """Return x, y, z of every voxel, mm, RAS."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)


def pet_recipe(centre="tumour", interpolation="linear", **changes):
    parts = {
        "grid": GridConfig(
            size_px=(32, 40), centre=centre, spacing_mm=1.0, interpolation=interpolation
        ),
        "intensity": IntensityConfig(rule="window", low=0.0, high=10.0),
        "label": LabelConfig(tumour=(1, 2), known=(0, 1, 2)),
    }
    return tiny_recipe(**{**parts, **changes})


def save_pet_case(folder, image_of, centre=(-2.0, 4.0, -18.0), radius=9.0, label_affine=CT):
    """Write a PET-like image, a function of x, y, z, and the label of a ball; all mm, RAS."""
    image = image_of(*world(PET, (22, 22, 26))).astype(np.float32)
    x, y, z = world(label_affine, (44, 42, 28))
    ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2
    return save(folder / "pt.nii.gz", image, PET), save(
        folder / "label.nii.gz", ball.astype(np.uint8), label_affine
    )


def test_labels_are_joined_to_one_mask(tmp_path):
    image, label = draw_case()
    paths = save(tmp_path / "i.nii", image), save(tmp_path / "l.nii", label)
    volume = read_case(tiny_recipe(), *paths)
    np.testing.assert_array_equal(volume.tumour, label > 0)
    np.testing.assert_array_equal(whole_image(volume), image)
    core = read_case(tiny_recipe(label=LabelConfig(tumour=(1, 4), known=(0, 1, 2, 4))), *paths)
    np.testing.assert_array_equal(core.tumour, (label == 1) | (label == 4))


def unknown_label(image, label):
    label[0, 0, 0] = 3
    return image, label


def fraction_label(image, label):
    label = label.astype(np.float32)
    label[6, 5, 2] = 0.5
    return image, label


def nan_label(image, label):
    label = label.astype(np.float32)
    label[6, 5, 2] = np.nan
    return image, label


def nan_image(image, label):
    image = image.astype(np.float32)
    image[3, 3, 3] = np.nan
    return image, label


def infinite_image(image, label):
    image = image.astype(np.float32)
    image[3, 3, 3] = np.inf
    return image, label


def image_beyond_32_bits(image, label):
    return np.where(image == 0, -1e270, image), label


@pytest.mark.parametrize(
    ("spoil", "named", "message"),
    [
        (unknown_label, "l.nii", "label value 3, expected 0, 1, 2, 4"),
        (fraction_label, "l.nii", "label value 0.5, expected integers"),
        (nan_label, "l.nii", "label values are NaN or infinite"),
        (nan_image, "i.nii", "voxels that are NaN or infinite: 1"),
        (infinite_image, "i.nii", "voxels that are NaN or infinite: 1"),
        (image_beyond_32_bits, "i.nii", "voxels that are NaN or infinite: "),
        (lambda image, label: (image, label * 0), "l.nii", "no tumour voxel"),
        (
            lambda image, label: (image, label[:-1]),
            "l.nii",
            r"shape \(19, 18, 6\), i.nii has \(20, 18, 6\)",
        ),
        (lambda image, label: (image * 0, label), "i.nii", "every voxel is 0"),
        (lambda image, label: (-image, label), "i.nii", "no voxel is above 0"),
        (
            lambda image, label: ((image > 0).astype(np.int16), label),
            "i.nii",
            "all foreground is 1",
        ),
    ],
)
def test_a_bad_case_is_one_line_that_names_the_file(tmp_path, spoil, named, message):
    image, label = spoil(*draw_case())
    paths = save(tmp_path / "i.nii", image), save(tmp_path / "l.nii", label)
    with pytest.raises(UserError, match=message) as caught:
        read_case(tiny_recipe(), *paths)
    assert str(caught.value).startswith(str(tmp_path / named))
    assert "\n" not in str(caught.value)


def test_a_label_that_lies_elsewhere_is_refused_and_rounding_is_not(tmp_path):
    image, label = draw_case()
    shifted, rounded = LPS.copy(), LPS.copy()
    shifted[0, 3], rounded[0, 3] = 2.0, 1e-4
    path = save(tmp_path / "i.nii", image)
    read_case(tiny_recipe(), path, save(tmp_path / "l.nii", label, rounded))
    with pytest.raises(UserError, match=r"lies 2.00 mm off i.nii"):
        read_case(tiny_recipe(), path, save(tmp_path / "l.nii", label, shifted))


@pytest.mark.parametrize("spacing_mm", [0.0, 1.0])
def test_a_pair_with_two_places_is_refused_until_one_is_written_over_the_other(
    tmp_path, spacing_mm
):
    image, label = draw_case()
    recipe = tiny_recipe(grid=GridConfig(size_px=(16, 16), centre="image", spacing_mm=spacing_mm))
    atlas = LPS.copy()
    atlas[:3, 3] = [10, -6, 0]
    paths = tmp_path / "i.nii", save(tmp_path / "l.nii", label)
    scan = nib.Nifti1Image(image, LPS)
    scan.set_qform(LPS, 1)
    scan.set_sform(atlas, 4)
    nib.save(scan, paths[0])
    with pytest.raises(
        UserError, match=r"i.nii: its sform and qform lie 10.00 mm apart, unlike those of l.nii"
    ):
        read_case(recipe, *paths)

    scan.set_sform(scan.get_qform())  # the label was drawn by the qform
    nib.save(scan, paths[0])
    volume = read_case(recipe, *paths)
    inside = whole_image(volume)[volume.tumour]
    np.testing.assert_allclose(np.sort(inside), np.sort(image[label > 0]), rtol=1e-5)


@pytest.mark.parametrize("spacing_mm", [0.0, 1.0])
def test_two_places_of_an_image_and_its_label_alike_are_no_fault(tmp_path, spacing_mm):
    recipe = tiny_recipe(grid=GridConfig(size_px=(16, 16), centre="image", spacing_mm=spacing_mm))
    atlas = LPS.copy()
    atlas[:3, 3] = [10, -6, 0]
    paths = tmp_path / "i.nii", tmp_path / "l.nii"
    for path, voxels in zip(paths, draw_case(), strict=True):
        scan = nib.Nifti1Image(voxels, LPS)
        scan.set_qform(LPS, 1)
        scan.set_sform(atlas, 4)
        nib.save(scan, path)
    assert read_case(recipe, *paths).tumour.any()


def test_slices_of_unlike_sizes_are_refused_and_a_slice_without_tumour_is_not(tmp_path):
    recipe = load_recipe("lgg_kaggle")
    for number, shape in enumerate(((8, 6), (8, 6), (6, 8))):
        pixels = np.arange(48, dtype=np.uint8).reshape(shape)
        Image.fromarray(pixels).save(tmp_path / f"p_{number}.tif")
        Image.fromarray(255 * (pixels > 40 * number).astype(np.uint8)).save(
            tmp_path / f"p_{number}_mask.tif"
        )
    paths = [(tmp_path / f"p_{n}.tif", (tmp_path / f"p_{n}_mask.tif",)) for n in range(3)]

    def read(numbers):
        images, labels = zip(*(paths[number] for number in numbers), strict=True)
        files = CaseFiles(case_id="p", patient="p", images=images, labels=labels)
        return read_volume(own, files, ())

    own = replace(recipe, grid=replace(recipe.grid, fit="crop"))
    volume = read([0, 1])
    assert volume.tumour.sum(axis=(0, 1)).tolist() == [47, 7]
    assert volume.facts.shape == (6, 8, 2)
    with pytest.raises(UserError, match=r"p_2.tif: shape \(8, 6, 1\), p_0.tif has \(6, 8, 1\);"):
        read([0, 1, 2])


def test_image_and_label_of_unlike_orientation_meet(tmp_path):
    image, label = draw_case()
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    paths = save(tmp_path / "i.nii", image), save(tmp_path / "l.nii", label[::-1], LPS @ flip)
    np.testing.assert_array_equal(read_case(tiny_recipe(), *paths).tumour, label > 0)


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
def test_a_gradient_in_mm_comes_through_resampling_exactly(tmp_path, interpolation):
    # Linear in place: any interpolation that puts samples where they belong reproduces it.
    ramp = lambda x, y, z: 50 + 0.3 * x + 0.2 * y + 0.1 * z  # noqa: E731
    paths = save_pet_case(tmp_path, ramp)
    volume = read_case(pet_recipe(interpolation=interpolation), *paths)
    assert volume.tumour.shape[:2] == (40, 32)
    # The crop's middle is the middle of the ball's bounding box, slice k lies k mm above the
    # label's first.
    inside = np.argwhere(nib.load(paths[1]).get_fdata() > 0)
    middle = CT[:3, :3] @ ((inside.min(0) + inside.max(0)) / 2) + CT[:3, 3]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = [middle[0] + 19.5, middle[1] + 15.5, CT[2, 3] + volume.first_slice]
    expected = ramp(*world(affine, volume.tumour.shape))
    np.testing.assert_allclose(
        whole_image(volume), expected, atol=2e-2 if interpolation == "bspline" else 1e-3
    )


def test_a_ball_keeps_its_size_in_mm_and_lies_in_the_middle(tmp_path):
    paths = save_pet_case(tmp_path, lambda x, y, z: x * 0.1 + 5, radius=12.0)
    recipe = pet_recipe()
    volume = read_case(recipe, *paths)
    assert abs(int(volume.tumour.sum()) / (4 / 3 * np.pi * 12**3) - 1) < 0.05  # voxels are mm^3
    assert volume.tumour.shape[2] == pytest.approx(24, abs=3)  # the tumour's slices and no more
    mask = cut_pairs(volume, recipe, "c")[0].masks[0]
    assert abs(mask.sum() / (np.pi * 12**2) - 1) < 0.05
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() - 15.5) <= 0.5
    assert abs(columns.mean() - 19.5) <= 0.5


def test_resampling_agrees_with_simpleitk_on_the_files(tmp_path):
    rng = np.random.default_rng(0)
    paths = save_pet_case(tmp_path, lambda x, y, z: rng.random(x.shape) * 10)
    volume = read_case(pet_recipe(), *paths)
    moving, label = (sitk.ReadImage(str(path)) for path in paths)
    inside = np.argwhere(nib.load(paths[1]).get_fdata() > 0)
    middle = label.TransformContinuousIndexToPhysicalPoint(
        ((inside.min(0) + inside.max(0)) / 2).tolist()
    )
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in volume.tumour.shape])
    resampler.SetOutputSpacing([1.0, 1.0, 1.0])
    resampler.SetOutputOrigin(
        [middle[0] - 19.5, middle[1] - 15.5, label.GetOrigin()[2] + volume.first_slice]
    )
    resampler.SetInterpolator(sitk.sitkLinear)
    expected = sitk.GetArrayFromImage(resampler.Execute(moving)).transpose(2, 1, 0)
    np.testing.assert_allclose(whole_image(volume), expected, atol=1e-4)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    expected = sitk.GetArrayFromImage(resampler.Execute(label)).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.tumour, expected > 0)


@pytest.mark.parametrize("low", [0.0, -200.0])
def test_what_the_image_does_not_cover_becomes_0(tmp_path, low):
    moved = CT + np.eye(4, k=3) * 12  # 12 mm along x
    paths = save_pet_case(
        tmp_path, lambda x, y, z: x * 1e-4 + 5, centre=(20.0, 4.0, -18.0), label_affine=moved
    )
    recipe = pet_recipe(intensity=IntensityConfig(rule="window", low=low, high=10.0))
    image = cut_pairs(read_case(recipe, *paths), recipe, "c")[0].images[0]
    # The image ends at x = 31 mm + half a voxel, 33 mm; the crop's left edge lies at about 20
    # + 20 mm.
    assert (image[:, :4] == 0).all()
    assert (image[:, 10:] > 0.4).all()


def test_all_slices_of_the_label_are_kept_where_the_recipe_asks_for_healthy_ones(tmp_path):
    paths = save_pet_case(tmp_path, lambda x, y, z: x * 1e-4 + 5)
    volume = read_case(pet_recipe(slices=SlicesConfig(choose="all", min_px=0)), *paths)
    assert volume.first_slice == 0
    assert volume.tumour.shape[2] == pytest.approx(28 * 2.5, abs=2)
    assert not volume.tumour[:, :, 0].any()


def test_a_crop_about_the_image_does_not_move_with_the_tumour(tmp_path):
    volumes = [
        read_case(
            pet_recipe(centre="image"),
            *save_pet_case(tmp_path / name, lambda x, y, z: 50 + x + y, centre=place),
        )
        for name, place in (("a", (-2.0, 4.0, -18.0)), ("b", (2.0, -1.0, -18.0)))
    ]
    np.testing.assert_allclose(
        whole_image(volumes[0])[:, :, 0], whole_image(volumes[1])[:, :, 0], atol=1e-4
    )


def test_an_oblique_label_keeps_places_in_the_world(tmp_path):
    angle = np.deg2rad(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    paths = save_pet_case(
        tmp_path,
        lambda x, y, z: np.hypot(x + 2, y - 4),
        label_affine=turn @ CT,
        centre=(-2, 4, -18),
    )
    image = whole_image(read_case(pet_recipe(), *paths))[:, :, 0]
    # The image is the distance from the ball's axis: lowest where the ball is, in the middle
    # of the crop.
    assert np.abs(np.array(np.unravel_index(image.argmin(), image.shape)) - [19.5, 15.5]).max() <= 2


def test_an_image_of_another_place_is_refused(tmp_path):
    away = CT.copy()
    away[2, 3] += 500
    paths = save_pet_case(
        tmp_path, lambda x, y, z: x * 1e-4 + 5, centre=(-2.0, 4.0, 482.0), label_affine=away
    )
    with pytest.raises(UserError, match=r"pt.nii.gz: does not cover the tumour of .*label.nii.gz"):
        read_case(pet_recipe(), *paths)
