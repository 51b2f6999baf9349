"""One case on disk (an image and a label, NIfTI) -> one canonical volume: oriented, on one grid, checked.

Nothing doubtful passes: a grid that does not match, an unknown label value, an empty mask or a voxel that
is not a number is a :class:`UserError` of one line that names the file.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.nifti import Scan, read_scan
from hvae_hpc.preprocess.recipe import GridConfig, IntensityConfig, LabelConfig, Recipe

_MARGIN = 12
"""Voxels kept around what resampling needs: cubic splines look far around, by less at every voxel."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A case, ready to be cut into slices.

    Attributes:
        image: (X, Y, Z) in the file's unit, columns x rows x slices.
        tumour: (X, Y, Z) bool.
        spacing_mm: (3,) along columns' index (x), rows' (y), slices' (z).
        centre_px: in-plane centre of the crop, x and y, in voxel indices.
        first_slice: index of slice 0 in the whole volume.
        window: intensities that become 0 and 1, from the whole image.
        sources: file name to SHA-256.
    """

    image: NDArray[Any]
    tumour: NDArray[np.bool_]
    spacing_mm: NDArray[np.float64]
    centre_px: tuple[float, float]
    first_slice: int
    window: tuple[float, float]
    sources: dict[str, str]


def read_volume(recipe: Recipe, image_path: Path, label_path: Path) -> Volume:
    """Read a case and bring image and label to the recipe's grid.

    Raises:
        UserError: a file cannot be believed; the line names it.
    """
    image = read_scan(image_path, recipe.grid.orientation)
    label = read_scan(label_path, recipe.grid.orientation)
    bad = np.count_nonzero(~np.isfinite(image.data))
    if bad:
        raise UserError(f"{image_path}: {bad} voxels are NaN or infinite, expected numbers; repair the file")
    mask = replace(label, data=join_labels(label, recipe.label))
    window = find_window(image, recipe.intensity)
    sources = {image_path.name: image.sha256, label_path.name: label.sha256}
    box = bounding_box(mask.data)
    if recipe.grid.spacing_mm == 0:
        _check_same_grid(image, label)
        low, high = box if recipe.grid.centre == "tumour" else ((0, 0, 0), np.array(mask.data.shape) - 1)
        return Volume(
            image=image.data,
            tumour=mask.data,
            spacing_mm=image.spacing_mm,
            centre_px=(float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2),
            first_slice=0,
            window=window,
            sources=sources,
        )
    whole = recipe.slices.choose == "all" and recipe.slices.min_px == 0
    shape, affine, first_slice = _target_grid(image, mask, box, recipe.grid, whole=whole)
    # What lies outside the image's field of view becomes 0 in [0, 1].
    outside = recipe.intensity.low if recipe.intensity.rule == "window" else 0.0
    return Volume(
        image=_resample(image, shape, affine, recipe.grid.interpolation, outside),
        tumour=_resample(mask, shape, affine, "nearest", 0.0) > 0,
        spacing_mm=np.full(3, recipe.grid.spacing_mm),
        centre_px=((shape[0] - 1) / 2, (shape[1] - 1) / 2),
        first_slice=first_slice,
        window=window,
        sources=sources,
    )


def join_labels(label: Scan, config: LabelConfig) -> NDArray[np.bool_]:
    """Join the tumour's label values to one mask.

    Raises:
        UserError: values that are not integers, or not known, or no tumour at all.
    """
    values = label.data
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        if not np.array_equal(rounded, values):
            odd = values[rounded != values].flat[0]
            raise UserError(f"{label.path}: label value {odd:g}, expected integers; resample it with nearest")
        values = rounded.astype(np.int64)
    strange = ~np.isin(values, config.known)
    if strange.any():
        found = ", ".join(str(value) for value in np.unique(values[strange])[:5])
        known = ", ".join(map(str, config.known))
        raise UserError(f"{label.path}: label value {found}, expected {known}; see label.known in the recipe")
    tumour = np.isin(values, config.tumour)
    if not tumour.any():
        raise UserError(f"{label.path}: no tumour voxel (labels {config.tumour}); leave this case out")
    return tumour


def find_window(image: Scan, config: IntensityConfig) -> tuple[float, float]:
    """Find the intensities that become 0 and 1.

    Raises:
        UserError: the image has no foreground, or it is flat.
    """
    if config.rule == "window":
        return config.low, config.high
    foreground = image.data[image.data > 0]
    if not foreground.size:
        raise UserError(f"{image.path}: no voxel is above 0; check that this is the image")
    low, high = (float(value) for value in np.percentile(foreground, [config.low, config.high]))
    if not low < high:
        raise UserError(f"{image.path}: all foreground is {low:g}; check that this is the image")
    return low, high


def bounding_box(mask: NDArray[np.bool_]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first and the last index that is True along each axis."""
    inside = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return tuple(int(index[0]) for index in inside), tuple(int(index[-1]) for index in inside)


def _check_same_grid(image: Scan, label: Scan) -> None:
    if image.data.shape != label.data.shape:
        raise UserError(
            f"{label.path}: shape {label.data.shape}, its image has {image.data.shape}; "
            "give the pair one grid, or set grid.spacing_mm in the recipe to resample"
        )
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*image.data.shape, 1]
    gap = float(np.abs((image.affine - label.affine) @ corners.T).max())
    if gap > 0.1 * float(image.spacing_mm.min()):  # headers of one grid differ by rounding only
        raise UserError(
            f"{label.path}: lies {gap:.2f} mm off its image by the headers; "
            "give the pair one grid, or set grid.spacing_mm in the recipe to resample"
        )


def _target_grid(
    image: Scan, mask: Scan, box: tuple[tuple[int, ...], tuple[int, ...]], grid: GridConfig, *, whole: bool
) -> tuple[tuple[int, int, int], NDArray[np.float64], int]:
    """Define the grid to resample to: along the label's axes, cropped in plane and to the tumour's slices.

    All lengths are mm along the label's axes from the centre of its first voxel, so slice k lies at
    k * spacing_mm whatever the crop.

    Returns:
        Shape, affine, and the index k of its first slice.
    """
    low, high = np.array(box[0]), np.array(box[1])
    size, step = mask.spacing_mm, grid.spacing_mm
    tumour_mm = (low + high) / 2 * size
    extent = np.array(image.data.shape)
    index = _apply(np.linalg.inv(image.affine), _apply(mask.affine, (low + high) / 2))
    if ((index < -0.5) | (index > extent - 0.5)).any():
        raise UserError(f"{image.path}: does not cover the tumour of {mask.path}; are both of one patient?")
    world = _apply(image.affine, (extent - 1) / 2)
    image_mm = mask.directions.T @ (world - mask.affine[:3, 3])
    centre = tumour_mm if grid.centre == "tumour" else image_mm
    columns, rows = grid.size_px[1], grid.size_px[0]
    ends = (0, mask.data.shape[2] - 1) if whole else (low[2], high[2])
    first = max(0, int(np.ceil((ends[0] - 0.5) * size[2] / step)))
    last = max(first, int(np.floor((ends[1] + 0.5) * size[2] / step)))
    start = [centre[0] - (columns - 1) / 2 * step, centre[1] - (rows - 1) / 2 * step, first * step]
    affine = np.eye(4)
    affine[:3, :3] = mask.directions * step
    affine[:3, 3] = mask.affine[:3, 3] + mask.directions @ start
    return (columns, rows, last - first + 1), affine, first


def _apply(affine: NDArray[Any], point: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(affine[:3, :3] @ point + affine[:3, 3])


def _resample(
    scan: Scan, shape: tuple[int, int, int], affine: NDArray[np.float64], interpolation: str, outside: float
) -> NDArray[np.float32]:
    import torch
    import torchio  # seconds to import; only recipes that resample pay for it

    cropped = _crop_around(scan, shape, affine)
    # torchio fills with 0 what the source does not cover, so 0 is made to mean ``outside``.
    values = np.ascontiguousarray(cropped.data, dtype=np.float32)[None] - np.float32(outside)
    source = torchio.ScalarImage(tensor=torch.from_numpy(values), affine=cropped.affine)
    resampled = torchio.Resample((shape, affine), image_interpolation=interpolation)(source)
    return np.asarray(resampled.data[0].numpy() + np.float32(outside))


def _crop_around(scan: Scan, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Scan:
    """Cut away what the target grid does not need: less to convert and to keep in memory."""
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape), 1]
    index = (np.linalg.inv(scan.affine) @ affine @ corners.T)[:3]
    low = np.clip(np.floor(index.min(axis=1)).astype(int) - _MARGIN, 0, np.array(scan.data.shape) - 1)
    high = np.clip(np.ceil(index.max(axis=1)).astype(int) + _MARGIN, low, np.array(scan.data.shape) - 1)
    moved = scan.affine.copy()
    moved[:3, 3] += scan.affine[:3, :3] @ low
    part = scan.data[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    return replace(scan, data=part, affine=moved)
