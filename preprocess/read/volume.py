"""One case on disk -> one volume: oriented, on one grid, checked, and read no further than needed.

Nothing doubtful passes. A grid that does not match, an unknown label value, an empty mask or a
voxel that is not a number is a :class:`UserError` of one line that names the file. The tumour is
known for the whole volume; the image is brought to the grid for the chosen slices alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hvae_hpc.config.loader import dump
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.preprocess.read.find_cases import CaseFiles, by_role
from hvae_hpc.preprocess.read.itk import ENDINGS, read_itk
from hvae_hpc.preprocess.read.label import join_labels
from hvae_hpc.preprocess.read.nifti import read_scan
from hvae_hpc.preprocess.read.picture import read_picture
from hvae_hpc.preprocess.read.resample import (
    bounding_box,
    find_target,
    resample_image,
    resample_mask,
)
from hvae_hpc.preprocess.read.scan import Affine, Array, Mask, Scan
from hvae_hpc.preprocess.recipes.recipe import IntensityConfig, LabelConfig, Recipe

_8_BITS, _16_BITS = 255.0, 65535.0
_ONE_GRID = "give them one grid, or of volumes set grid.spacing_mm in the recipe to resample"

_INFINITE = 1e38
"""Pairs have 32 bits, which hold no more."""


@frozen
class Facts:
    """What a case's image is like in its file.

    Attributes:
        shape: columns, rows, slices, in the recipe's orientation.
        orientation: the file's own, as "LPS"; "" for 2D files.
        spacing_mm: along columns, rows, slices; () where unknown.
        lowest, highest: of all its voxels.
        window: intensities that became 0 and 1.
    """

    shape: tuple[int, ...]
    orientation: str
    spacing_mm: tuple[float, ...]
    lowest: float
    highest: float
    window: tuple[float, float]


@frozen
class Volume:
    """A case, ready to be cut into slices.

    Attributes:
        tumour: (X, Y, Z) bool, columns x rows x slices.
        take: slice indices -> the image there, (X, Y, n), in the file's unit; NaN outside its
            field of view.
        spacing_mm: (3,) along columns' index (x), rows' (y), slices' (z); NaN where unknown.
        centre_px: in-plane centre of the crop, x and y, in voxel indices.
        first_slice: index of slice 0 in the whole volume.
        sources: role of a file ("image", "label") to its SHA-256.
        facts: for the summary.
        label_path: for messages.
    """

    tumour: Mask
    take: Callable[[Sequence[int]], Array]
    spacing_mm: Affine
    centre_px: tuple[float, float]
    first_slice: int
    sources: dict[str, str]
    facts: Facts
    label_path: Path


def read_volume(recipe: Recipe, files: CaseFiles, known: tuple[int, ...]) -> Volume:
    """Read a case and bring image and label to the recipe's grid.

    Args:
        recipe: what the data set is.
        files: of the case.
        known: values that a label file may hold; () for any whole number from 0.

    Raises:
        UserError: a file cannot be believed; the line names it.
    """
    pairs = zip(files.images, files.labels, strict=True)
    slices = [_read_slice(recipe, *pair) for pair in pairs]
    image = _stack([image for image, _ in slices])
    labels = [label for _, labels in slices for label in labels]
    if recipe.intensity.rule == "percentile":
        image = sink_background(image)
    facts = _describe(image, recipe)
    tumour = _join([join_labels(labels, recipe, known) for _, labels in slices])
    if not tumour.any() and "empty" not in recipe.accept:
        rule = ", ".join(f"{name} = {value}" for name, value in dump(recipe.label).items())
        raise UserError(
            f"{labels[0].path}: no tumour voxel by the recipe's [label] {rule}; leave this case out"
        )
    if not recipe.layout.planar and recipe.grid.spacing_mm == 0:
        _check_same_grid(image, labels[0])

    volume = Volume(
        tumour=tumour,
        take=lambda slices: image.data[:, :, slices],
        spacing_mm=image.spacing_mm if facts.spacing_mm else np.full(3, np.nan),
        centre_px=_find_centre(tumour, recipe.grid.centre),
        first_slice=0,
        sources=by_role([image.sha256 for image, _ in slices], [label.sha256 for label in labels]),
        facts=facts,
        label_path=labels[0].path,
    )
    return _resample(volume, image, labels[0], recipe) if recipe.grid.spacing_mm else volume


def _read_slice(
    recipe: Recipe, image_path: Path, label_paths: Sequence[Path]
) -> tuple[Scan, list[Scan]]:
    """Read an image and its labels; a volume's image may lie on another grid than they do."""
    image = _read_file(image_path, recipe, None)
    labels = [_read_file(path, recipe, recipe.label) for path in label_paths]
    for label in labels:
        _check_same_grid(image if recipe.layout.planar else labels[0], label)
    return image, labels


def _read_file(path: Path, recipe: Recipe, label: LabelConfig | None) -> Scan:
    grid, channel = recipe.grid, (label or recipe.layout).channel
    if recipe.layout.planar:
        return read_picture(path, grid.size_px if grid.fit == "scale" else None, label, channel)
    read = read_itk if path.suffix.lower() in ENDINGS else read_scan
    return read(path, grid.orientation, channel)


def _stack(images: Sequence[Scan]) -> Scan:
    """Make one scan of a case's slices; a volume is one already."""
    first = images[0]
    for image in images:
        _check_same_grid(first, image)
    if len(images) == 1:
        return first
    data = _join([image.data for image in images])
    return replace(first, data=data, values=data.reshape(-1), shape=(*first.shape[:2], len(images)))


def _join(slices: Sequence[Array]) -> Array:
    return slices[0] if len(slices) == 1 else np.concatenate(slices, axis=2)


def _resample(volume: Volume, image: Scan, label: Scan, recipe: Recipe) -> Volume:
    """Bring a volume to cubic voxels along the label's axes, cropped around the tumour's slices."""
    _check_forms(image, label)
    mask = replace(label, data=volume.tumour)
    whole = recipe.slices.choose == "all" and recipe.slices.min_px == 0
    target = find_target(image, mask, recipe.grid, whole=whole)
    tumour = resample_mask(mask, target)
    return replace(
        volume,
        tumour=tumour,
        take=lambda slices: resample_image(image, target, slices, recipe.grid.interpolation),
        spacing_mm=np.full(3, recipe.grid.spacing_mm),
        centre_px=_find_centre(tumour, "image"),  # the target lies around the recipe's centre
        first_slice=target.first_slice,
    )


def _describe(image: Scan, recipe: Recipe) -> Facts:
    """Look at all of the image's voxels.

    Raises:
        UserError: some are no numbers, or all are one number, or none is foreground.
    """
    lowest, highest = float(image.lowest), float(image.values.max())
    if not (lowest > -_INFINITE and highest < _INFINITE):  # a NaN makes both NaN
        bad = np.count_nonzero(~(np.abs(image.values) < _INFINITE))
        raise UserError(
            f"{image.path}: voxels that are NaN or infinite: {bad}, expected none; repair the file"
        )
    if lowest == highest:
        raise UserError(f"{image.path}: every voxel is {lowest:g}; check that this is the image")
    if highest <= 0 and recipe.intensity.rule == "percentile":
        raise UserError(f"{image.path}: no voxel is above 0; check that this is the image")
    unknown = recipe.grid.spacing == "unknown" or recipe.layout.planar
    return Facts(
        shape=image.shape,
        orientation=image.stored,
        spacing_mm=() if unknown else tuple(round(float(side), 4) for side in image.spacing_mm),
        lowest=lowest,
        highest=highest,
        window=find_window(image, recipe.intensity),
    )


def sink_background(image: Scan) -> Scan:
    """Give the background of a signed image, such as a z-scored one, its lowest value.

    A masked image has a background of exactly 0, which is a grey in the midst of others. Where at
    most a tenth of the voxels are 0, they are tissue.
    """
    if not image.lowest < 0 or np.mean(image.values == 0) <= 0.1:
        return image
    values, data = (
        np.where(voxels == 0, image.lowest, voxels) for voxels in (image.values, image.data)
    )
    return replace(image, values=values, data=data)


def find_window(image: Scan, config: IntensityConfig) -> tuple[float, float]:
    """Find the intensities that become 0 and 1.

    A picture's window of 8 bits is one of 16 bits where the picture has grey values beyond.

    Raises:
        UserError: all of the image's foreground is one value.
    """
    if config.rule == "window":
        is_picture = not image.stored
        wider = is_picture and config.high == _8_BITS < image.values.max() <= _16_BITS
        return config.low, _16_BITS if wider else config.high
    foreground = image.values[image.values > min(0, image.lowest)]
    low, high = find_percentiles(foreground, (config.low, config.high))
    if not low < high:
        raise UserError(f"{image.path}: all foreground is {low:g}; check that this is the image")
    return low, high


def find_percentiles(values: Array, which: Sequence[float]) -> list[float]:
    """Return ``numpy.percentile(values, which)``.

    Small integers from 0 are counted, which is five times as fast.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2 or values.min() < 0:
        return np.percentile(values, which).tolist()
    below = np.cumsum(np.bincount(values))
    place = (len(values) - 1) * np.asarray(which) / 100
    first, last = (
        np.searchsorted(below, rounded(place), side="right") for rounded in (np.floor, np.ceil)
    )
    return (first + (last - first) * (place - np.floor(place))).tolist()


def _find_centre(tumour: Mask, centre: str) -> tuple[float, float]:
    if centre == "image":
        return (tumour.shape[0] - 1) / 2, (tumour.shape[1] - 1) / 2
    x, y, _ = bounding_box(tumour).mean(axis=0)
    return x, y


def _check_same_grid(image: Scan, label: Scan) -> None:
    """Refuse a label on another grid than its image. Of pictures the shape alone is known."""
    if label.shape != image.shape:
        raise UserError(
            f"{label.path}: shape {label.shape}, {image.path.name} has {image.shape}; {_ONE_GRID}"
        )
    _check_forms(image, label)
    if gap := image.lies_off(label.affine):
        raise UserError(
            f"{label.path}: lies {gap:.2f} mm off {image.path.name} by the headers; {_ONE_GRID}"
        )


def _check_forms(image: Scan, label: Scan) -> None:
    """Refuse a pair on two grids that lies otherwise by the qforms than by the sforms.

    Nobody knows by which of them the label was drawn. On one grid its voxels are the image's.
    """
    if not image.lies_off(label.affine):
        return
    for scan, other in ((image, label), (label, image)):
        gap = scan.lies_off(scan.to_qform @ scan.affine)
        if gap and scan.lies_off(scan.affine + (scan.to_qform - other.to_qform) @ scan.affine):
            raise UserError(
                f"{scan.path}: its sform and qform lie {gap:.2f} mm apart, "
                f"unlike those of {other.path.name}; "
                "write the right one over the other (nibabel: set_sform, set_qform)"
            )
