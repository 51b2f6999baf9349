"""Resampling image and label to one grid, held against SimpleITK on the whole files."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from hvae_hpc.preprocess.read.nifti import read_scan
from hvae_hpc.preprocess.read.resample import find_target, resample_image, resample_mask
from hvae_hpc.preprocess.recipes.recipe import GridConfig
from tests.preprocess.scans import save

IMAGE = np.array([[-4.1, 0, 0, 80.0], [0, -4.1, 0, 85.0], [0, 0, 3.3, -70.0], [0, 0, 0, 1]])
LABEL = np.array([[-1.17, 0, 0, 40.0], [0, -1.17, 0, 43.0], [0, 0, 2.5, -52.0], [0, 0, 0, 1]])


def turned(affine, degrees, axes):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[np.ix_(axes, axes)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.fixture(params=["straight", "oblique image", "oblique label"])
def pair(request, tmp_path):
    rng = np.random.default_rng(3)
    image = rng.gamma(1.0, 3.0, (41, 40, 44)).astype(np.float32)
    label = np.zeros((70, 73, 40), np.uint8)
    label[25:48, 30:51, 11:30] = rng.integers(0, 2, (23, 21, 19))
    return (
        save(
            tmp_path / "i.nii.gz",
            image,
            turned(IMAGE, 12 * (request.param == "oblique image"), [0, 2]),
        ),
        save(
            tmp_path / "l.nii.gz",
            label,
            turned(LABEL, 9 * (request.param == "oblique label"), [1, 2]),
        ),
    )


def by_simpleitk(path, target, interpolator, outside):
    """Resample a whole file, uncropped, as SimpleITK reads it."""
    lps = np.diag([-1.0, -1.0, 1.0])
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in target.shape])
    resampler.SetOutputSpacing([target.step_mm] * 3)
    resampler.SetOutputDirection((lps @ target.affine[:3, :3] / target.step_mm).ravel().tolist())
    resampler.SetOutputOrigin((lps @ target.affine[:3, 3]).tolist())
    resampler.SetInterpolator(interpolator)
    resampler.SetDefaultPixelValue(outside)
    return sitk.GetArrayFromImage(resampler.Execute(sitk.ReadImage(str(path)))).transpose(2, 1, 0)


def make(pair, **changes):
    parts = {"size_px": (90, 84), "centre": "tumour", "spacing_mm": 1.0} | changes
    grid = GridConfig(**parts)
    image, label = (read_scan(path, grid.orientation) for path in pair)
    mask = type(label)(**{**vars(label), "data": label.data > 0})
    return image, mask, find_target(image, mask, grid, whole=False)


@pytest.mark.parametrize(
    ("name", "interpolator", "atol"),
    [("linear", sitk.sitkLinear, 1e-4), ("bspline", sitk.sitkBSpline, 1e-4)],
)
def test_the_image_is_that_of_the_whole_file_though_its_box_was_cut_first(
    pair, name, interpolator, atol
):
    image, _, target = make(pair)
    expected = by_simpleitk(pair[0], target, interpolator, np.nan)
    got = resample_image(image, target, range(target.shape[2]), name)
    assert np.nanstd(expected) > 1
    # A sample on the very edge of the image's field of view may fall to either side of it.
    edge = np.isnan(got) != np.isnan(expected)
    assert edge.mean() < 1e-3
    np.testing.assert_allclose(got[~edge], expected[~edge], atol=atol)


def test_the_label_takes_the_nearest_voxel(pair):
    _, mask, target = make(pair)
    expected = by_simpleitk(pair[1], target, sitk.sitkNearestNeighbor, 0) > 0
    got = resample_mask(mask, target)
    assert expected.mean() > 0.1 or expected.sum() > 5000
    assert (got != expected).mean() < 1e-4  # a sample half-way between two voxels may take either


def test_slices_made_one_by_one_are_those_made_at_once(pair):
    image, _, target = make(pair)
    whole = resample_image(image, target, range(target.shape[2]), "linear")
    some = resample_image(image, target, [7, 2, 3, 4, 20], "linear")
    np.testing.assert_allclose(some, whole[:, :, [7, 2, 3, 4, 20]], atol=1e-5)
    splines = [
        resample_image(image, target, rows, "bspline") for rows in (range(target.shape[2]), [9, 3])
    ]
    np.testing.assert_allclose(splines[1], splines[0][:, :, [9, 3]], atol=1e-4)


def test_the_tumour_lies_in_the_middle_and_in_its_slices(pair):
    image, mask, target = make(pair)
    tumour = resample_mask(mask, target)
    places = np.argwhere(tumour)
    assert (
        np.abs((places.min(0) + places.max(0))[:2] / 2 - (np.array(target.shape[:2]) - 1) / 2).max()
        <= 1
    )
    assert places[:, 2].min() <= 1
    assert target.shape[2] - 1 - places[:, 2].max() <= 1
    along = nib.affines.apply_affine(np.linalg.inv(mask.affine), target.affine[:3, 3])
    assert along[2] * mask.spacing_mm[2] == pytest.approx(
        target.first_slice * target.step_mm, abs=1e-6
    )
    assert image.data.shape != target.shape


@pytest.mark.parametrize("spacing", [0.8, 2.0])
def test_a_ball_keeps_its_volume_at_any_spacing(tmp_path, spacing):
    index = np.moveaxis(np.indices((60, 60, 40)), 0, -1) @ LABEL[:3, :3].T + LABEL[:3, 3]
    ball = np.linalg.norm(index - index[30, 30, 20], axis=-1) < 15
    pair = (
        save(
            tmp_path / "i.nii.gz",
            np.random.default_rng(0).random((41, 40, 44)).astype(np.float32),
            IMAGE,
        ),
        save(tmp_path / "l.nii.gz", ball.astype(np.uint8), LABEL),
    )
    _, mask, target = make(pair, spacing_mm=spacing)
    volume = resample_mask(mask, target).sum() * spacing**3
    assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.05)
