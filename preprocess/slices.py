"""A volume -> 2D pairs: crop in plane, choose slices, scale intensities to [0, 1].

A pair's rows are the volume's second axis and its columns the first. For "LPS" volumes that is the
radiological view: anterior at the top, the patient's left on the viewer's right.
"""

from collections.abc import Sequence

import numpy as np

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.plausible import judge_case, look_at_case
from hvae_hpc.preprocess.read.scan import Array, Image
from hvae_hpc.preprocess.read.volume import Volume
from hvae_hpc.preprocess.recipes.recipe import Recipe, SlicesConfig
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.runs.identity import content_hash


def cut_pairs(volume: Volume, recipe: Recipe, case_id: str) -> tuple[Pairs, int, tuple[str, ...]]:
    """Cut a case's volume into pairs.

    Returns:
        The pairs, how many tumour pixels of their slices the crop cut off, and the names of what
        is implausible but accepted.

    Raises:
        UserError: no slice has enough tumour inside the crop, or the pairs are implausible.
    """
    rows, columns = recipe.grid.size_px
    of, to = find_crop(volume.centre_px, columns, rows, volume.tumour.shape)
    inside = volume.tumour[of]
    areas = np.array([np.count_nonzero(plane) for plane in inside.T])
    chosen = choose_slices(areas, recipe.slices)
    if not chosen:
        raise UserError(
            f"{volume.label_path}: the largest tumour slice has {areas.max()} px inside the crop "
            f"of {rows} x {columns}, expected at least {recipe.slices.min_px}; "
            "leave the case out or enlarge grid.size_px"
        )

    # Scaled before it is padded: 0 HU is not black.
    taken = volume.take(chosen)[of]
    seen = scale_intensity(taken, volume.facts.window)
    tumour, count = inside[:, :, chosen], len(chosen)
    looked = look_at_case(taken, seen, tumour, areas[chosen], volume, recipe)
    accepted = judge_case(looked, recipe)
    images = np.zeros((count, rows, columns), np.float32)
    images.T[to] = seen
    masks = np.zeros((count, rows, columns), np.uint8)
    masks.T[to] = tumour

    pairs = Pairs(
        images=images,
        masks=masks,
        case_ids=(case_id,) * count,
        slice_index=np.array(chosen, np.int32) + np.int32(volume.first_slice),
        spacing_mm=np.tile(volume.spacing_mm[[1, 0]], (count, 1)),
        source_sha256=(content_hash(volume.sources),) * count,
    )
    whole_area = np.count_nonzero(volume.tumour[:, :, chosen])
    return pairs, int(whole_area) - int(areas[chosen].sum()), accepted


def choose_slices(areas: Array, config: SlicesConfig) -> list[int]:
    """Return the indices of the slices to take, given each slice's tumour area (Z,), px.

    Of equal areas the lower index wins.
    """
    enough = np.flatnonzero(areas >= config.min_px).tolist()
    if config.choose == "all":
        return enough
    return sorted(enough, key=lambda index: -areas[index])[: config.count]


def find_crop(
    centre_px: tuple[float, float], columns: int, rows: int, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
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
        low, high = (min(max(end, 0), length) for end in (start, start + size))
        of.append(slice(low, high))
        to.append(slice(low - start, high - start))
    return tuple(of), tuple(to)


def scale_intensity(image: Array, window: tuple[float, float]) -> Image:
    """Map window[0] to 0 and window[1] to 1, clip to [0, 1].

    A percentile's window lies above the background, which becomes 0.

    Args:
        image: any shape, in the unit of the window; NaN, outside its field of view, becomes 0.
        window: low, high.
    """
    low, high = window
    scaled = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(np.nan_to_num(scaled, copy=False), 0, 1)
