"""A volume -> 2D pairs: crop in plane, choose slices, scale intensities to [0, 1].

A pair's rows are the volume's second axis and its columns the first. For "LPS" volumes that is the
radiological view: anterior at the top, the patient's left on the viewer's right.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.volume import Volume
from hvae_hpc.preprocess.recipes.recipe import Recipe, SlicesConfig
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.runs.identity import content_hash


def cut_pairs(volume: Volume, recipe: Recipe, case_id: str) -> tuple[Pairs, int]:
    """Cut a case's volume into pairs.

    Returns:
        The pairs, and how many tumour pixels of their slices the crop cut off.

    Raises:
        UserError: no slice has enough tumour inside the crop, or the image there is flat after
            scaling.
    """
    rows, columns = recipe.grid.size_px
    of, to = find_crop(volume.centre_px, columns, rows, volume.tumour.shape)
    inside = volume.tumour[of]
    areas = np.array([np.count_nonzero(inside[:, :, index]) for index in range(inside.shape[2])])
    chosen = choose_slices(areas, recipe.slices)
    if not chosen:
        raise UserError(
            f"{volume.label_path}: the largest tumour slice has {areas.max()} px inside the crop "
            f"of {rows} x {columns}, expected at least {recipe.slices.min_px}; "
            "leave the case out or enlarge grid.size_px"
        )

    # Scaled before it is padded: 0 HU is not black.
    seen = scale_intensity(volume.take(chosen), volume.facts.window)[of]
    _check_contrast(seen, areas[chosen] > 0, volume.facts.window)
    count = len(chosen)
    images = np.zeros((columns, rows, count), np.float32)
    images[to] = seen
    masks = np.zeros((columns, rows, count), np.uint8)
    masks[to] = inside[:, :, chosen]

    pairs = Pairs(
        images=np.ascontiguousarray(images.T),
        masks=np.ascontiguousarray(masks.T),
        case_ids=(case_id,) * count,
        slice_index=np.asarray(chosen, dtype=np.int32) + np.int32(volume.first_slice),
        spacing_mm=np.tile(volume.spacing_mm[[1, 0]], (count, 1)),
        source_sha256=(content_hash(volume.sources),) * count,
    )
    whole_area = np.count_nonzero(volume.tumour[:, :, chosen])
    return pairs, int(whole_area) - int(areas[chosen].sum())


def _check_contrast(
    images: NDArray[np.float32], has_tumour: NDArray[np.bool_], window: tuple[float, float]
) -> None:
    """Refuse slices (X, Y, n) of one value: all of them, or one that has tumour."""
    flat = images.min(axis=(0, 1)) == images.max(axis=(0, 1))
    if flat.all() or (flat & has_tumour).any():
        raise UserError(
            f"every pixel of the image's slices becomes {float(images[0, 0, np.argmax(flat)]):g} "
            f"in the intensity window {window[0]:g} to {window[1]:g}; "
            "is the image in the recipe's unit?"
        )


def choose_slices(areas: NDArray[np.int_], config: SlicesConfig) -> list[int]:
    """Return the indices of the slices to take, given each slice's tumour area (Z,), px.

    Of equal areas the lower index wins.
    """
    enough = [int(index) for index in np.flatnonzero(areas >= config.min_px)]
    if config.choose == "all":
        return enough
    return sorted(enough, key=lambda index: (-int(areas[index]), index))[: config.count]


def find_crop(
    centre_px: tuple[float, float], columns: int, rows: int, shape: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Find which part of a plane a crop shows, and where.

    Args:
        centre_px: x and y; a crop that cannot be centred on it to the voxel lies half a voxel
            lower.
        columns, rows: size of the crop along x and y.
        shape: of the volume; x and y come first.

    Returns:
        The part of the plane, and its place in the crop, as slices of x and y. What a crop shows
        beyond the plane stays 0.
    """
    of, to = [], []
    for centre, size, length in zip(centre_px, (columns, rows), shape, strict=False):
        start = int(np.floor(centre - (size - 1) / 2))
        low, high = max(start, 0), min(start + size, length)
        of.append(slice(low, max(low, high)))
        to.append(slice(low - start, max(low, high) - start))
    return (of[0], of[1]), (to[0], to[1])


def scale_intensity(image: NDArray[Any], window: tuple[float, float]) -> NDArray[np.float32]:
    """Map window[0] to 0 and window[1] to 1, clip to [0, 1].

    A percentile's window lies above 0, so its background of 0 stays 0.

    Args:
        image: any shape, in the unit of the window.
        window: low, high.
    """
    low, high = window
    return np.asarray(
        np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    )
