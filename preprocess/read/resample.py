"""Image and label on grids of their own -> one grid, for the slices that are needed alone.

The grid lies along the label's axes, so labels are looked up (nearest voxel) and never mixed; the
image is cut to what the grid can see and then interpolated by SimpleITK.
"""

from collections.abc import Sequence

import numpy as np

from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.preprocess.read.scan import LPS_TO_RAS, Affine, Array, Image, Mask, Scan, find_corners
from hvae_hpc.preprocess.recipes.recipe import GridConfig

_MARGIN = 12
"""Voxels kept around what interpolation needs: a cubic spline's reach fades by 0.27 a voxel."""


@frozen
class Target:
    """A grid to resample to.

    Attributes:
        shape: columns, rows, slices.
        affine: (4, 4) from its voxel index to the world (RAS+), mm.
        step_mm: side of its voxels.
        start_mm: (3,) place of its first voxel, from the label's first voxel along the label's
            axes.
        first_slice: number of its first slice, counted from the label's first one in steps.
    """

    shape: tuple[int, ...]
    affine: Affine
    step_mm: float
    start_mm: Affine
    first_slice: int


def bounding_box(mask: Mask) -> Array:
    """Return (2, 3): the first and the last index that is True along each axis; all for none."""
    if not mask.any():
        mask = np.ones_like(mask)
    inside = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return np.array([[index[end] for index in inside] for end in (0, -1)])


def find_target(image: Scan, mask: Scan, grid: GridConfig, *, whole: bool) -> Target:
    """Define the grid: along the label's axes, cropped in plane and to the tumour's slices.

    All lengths are mm along the label's axes from the centre of its first voxel, so slice k lies at
    k * spacing_mm whatever the crop.

    Args:
        image: for its middle.
        mask: the tumour on the label's grid.
        grid: the recipe's.
        whole: take all of the label's slices, also those without tumour.

    Raises:
        UserError: the image does not cover the tumour.
    """
    low, high = bounding_box(mask.data)
    size, step = mask.spacing_mm, grid.spacing_mm
    extent = np.array(image.data.shape)
    middle = (low + high) / 2
    index = _apply(np.linalg.inv(image.affine), _apply(mask.affine, middle))
    if ((index < -0.5) | (index > extent - 0.5)).any():
        raise UserError(
            f"{image.path}: does not cover the tumour of {mask.path}; are both of one patient?"
        )

    # In plane: around the tumour, or around the image's middle.
    rows, columns = grid.size_px
    centre = middle * size
    if grid.centre == "image":
        world = _apply(image.affine, (extent - 1) / 2)
        centre = mask.directions.T @ (world - mask.affine[:3, 3])

    # Along the slices: all steps that lie within the tumour's slices, or within all.
    ends = (0, mask.data.shape[2] - 1) if whole else (low[2], high[2])
    first = max(0, int(np.ceil((ends[0] - 0.5) * size[2] / step)))
    last = max(first, int(np.floor((ends[1] + 0.5) * size[2] / step)))

    start = np.array(
        [centre[0] - (columns - 1) / 2 * step, centre[1] - (rows - 1) / 2 * step, first * step]
    )
    affine = np.eye(4)
    affine[:3, :3] = mask.directions * step
    affine[:3, 3] = mask.affine[:3, 3] + mask.directions @ start
    shape = (columns, rows, last - first + 1)
    return Target(shape=shape, affine=affine, step_mm=step, start_mm=start, first_slice=first)


def resample_mask(mask: Scan, target: Target) -> Mask:
    """Look up the nearest voxel of the label for each of the target's; False outside of it."""
    # Slices first: they lie in memory one by one, in the file and in what is returned.
    looked_up = mask.data.T
    resampled = np.zeros(target.shape[::-1], bool)
    inside = []
    for axis in (2, 1, 0):
        mm = target.start_mm[axis] + np.arange(target.shape[axis]) * target.step_mm
        index = np.floor(mm / mask.spacing_mm[axis] + 0.5).astype(int)
        reached = np.flatnonzero((index >= 0) & (index < mask.data.shape[axis]))
        looked_up = looked_up.take(index[reached], axis=2 - axis)
        inside.append(slice(reached[0], reached[-1] + 1) if reached.size else slice(0))
    resampled[tuple(inside)] = looked_up
    return resampled.T


def resample_image(image: Scan, target: Target, slices: Sequence[int], interpolation: str) -> Image:
    """Interpolate the image at some of the target's slices.

    Args:
        image: on its own grid.
        target: the grid.
        slices: indices of its slices.
        interpolation: "linear" or "bspline" (cubic).

    Returns:
        (columns, rows, len(slices)); NaN where the image does not reach.
    """
    rising, places = np.unique(slices, return_inverse=True)
    planes = list[Image]()
    for run in np.split(rising, np.flatnonzero(np.diff(rising) > 1) + 1):  # neighbours, at once
        block = _interpolate(image, target, int(run[0]), len(run), interpolation)
        planes += [block[:, :, place] for place in range(len(run))]
    return np.stack([planes[place] for place in places], axis=2)


def _interpolate(image: Scan, target: Target, first: int, count: int, interpolation: str) -> Image:
    import SimpleITK as sitk  # only recipes that resample pay for it

    shape = (*target.shape[:2], count)
    affine = target.affine.copy()
    affine[:3, 3] = _apply(target.affine, np.array([0, 0, first]))
    voxels, origin = _crop_around(image, shape, affine)

    source = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T, dtype=np.float32))
    source.SetSpacing(image.spacing_mm.tolist())
    source.SetDirection((LPS_TO_RAS @ image.directions).ravel().tolist())
    source.SetOrigin((LPS_TO_RAS @ origin).tolist())
    resampled = sitk.Resample(
        source,
        shape,
        sitk.Transform(),
        {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline}[interpolation],
        (LPS_TO_RAS @ affine[:3, 3]).tolist(),
        [target.step_mm] * 3,
        (LPS_TO_RAS @ target.affine[:3, :3] / target.step_mm).ravel().tolist(),
        np.nan,
    )
    return np.asarray(sitk.GetArrayFromImage(resampled)).T


def _crop_around(image: Scan, shape: tuple[int, ...], affine: Affine) -> tuple[Array, Affine]:
    """Cut away what the grid does not need: less to convert and to keep in memory.

    Returns:
        The voxels, and the world's place of the first one.
    """
    corners = find_corners([side - 1 for side in shape])
    index = (np.linalg.inv(image.affine) @ affine @ corners)[:3]
    last = np.array(image.data.shape) - 1
    low = np.clip(np.floor(index.min(axis=1)).astype(int) - _MARGIN, 0, last)
    high = np.clip(np.ceil(index.max(axis=1)).astype(int) + _MARGIN, low, last)
    part = image.data[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    return part, _apply(image.affine, low)


def _apply(affine: Array, point: Array) -> Affine:
    return affine[:3, :3] @ point + affine[:3, 3]
