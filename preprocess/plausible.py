"""Does a case look like an image with a tumour? What does not is a finding, and is refused.

A finding is a fact of the pixels with a likely reason: a wrong unit, an inverted mask, a label in
the image's place. Each kind has a name, and a recipe's ``accept`` lets it pass by that name. The
limits were set on real scans (84 FLAIR, 36 PET), none of which is refused; docs/RECIPES.md says how
far these are from the limits.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.volume import Facts, Volume
from hvae_hpc.preprocess.recipes.recipe import Recipe

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_MOST_OUTSIDE = 0.05
_MOST_CLIPPED = 0.5
_MOST_COVERED = 0.95
_LEAST_RANGE = 0.15
_FEWEST_LEVELS = 8
_MOST_ALIKE = 0.99
_AIR_HU = -500
"""No MRI or PET goes below, and every CT with air in it does."""
_WINDOWS = (1, 255, 1023, 4095, 16383, 65535)
"""Highest values of pictures: of floats, and of 8 to 16 bits."""


def judge_case(
    images: Image,
    scaled: Image,
    tumour: Mask,
    areas: NDArray[np.int_],
    volume: Volume,
    recipe: Recipe,
) -> tuple[str, ...]:
    """Look at a case's slices inside the crop; the one with the largest tumour stands for all.

    Args:
        images: (X, Y, n) in their own unit; NaN outside the field of view.
        scaled: the same in [0, 1].
        tumour: the masks there.
        areas: (n,) of the masks, px.
        volume: where they come from.
        recipe: says what is expected, and what is accepted.

    Returns:
        Names of what is implausible, all of them accepted.

    Raises:
        UserError: something is implausible, and the recipe does not accept it.
    """
    has_flat = ((scaled.min(axis=(0, 1)) == scaled.max(axis=(0, 1))) & (areas > 0)).any()
    outside = _share(np.isnan(images[tumour]))
    largest = areas.argmax()
    image, shown, mask = images[:, :, largest], scaled[:, :, largest], tumour[:, :, largest]
    looked = (
        *_look_at_intensity(image, shown, mask, bool(has_flat), volume.facts, recipe),
        *_look_at_mask(image, shown, mask, outside, volume),
    )
    findings = {name: line for name, holds, line in looked if holds}
    for name, line in findings.items():
        if name not in recipe.accept:
            names = ", ".join(f'"{each}"' for each in findings)
            raise UserError(f"{line}; or say accept = [{names}] at the head of the recipe")
    return tuple(findings)


def _look_at_intensity(
    image: Image, scaled: Image, mask: Mask, has_flat: bool, facts: Facts, recipe: Recipe
) -> Iterator[tuple[str, bool, str]]:
    """Yield the findings about unit and window: name, whether it holds, and what to say."""
    low, high = facts.window
    window = f"the intensity window {low:g} to {high:g}"
    reason = _guess_reason(facts, recipe)
    by_percentiles = recipe.intensity.rule == "percentile"
    line = f"the image's lowest value is {facts.lowest:g}: {reason}"
    yield "hounsfield", by_percentiles and facts.lowest <= _AIR_HU, line

    above, below = _share(image[image > low] > high), _share(image[mask] < low)
    clipped = f"{above:.0%} of the image lies above {window}: {reason}"
    if below > above:
        clipped = f"{below:.0%} of the tumour lies below {window}: {reason}"
    yield "clipped", max(above, below) > _MOST_CLIPPED, clipped

    filled = _find_range(scaled)
    yield "faint", filled < _LEAST_RANGE, f"the image fills {filled:.1%} of {window}: {reason}"

    levels = 1 if has_flat else len(np.unique(scaled))
    line = f"a slice with tumour has {levels} grey value(s) in {window}; is it a label?"
    yield "levels", levels < _FEWEST_LEVELS, line


def _look_at_mask(
    image: Image, scaled: Image, mask: Mask, outside: float, volume: Volume
) -> Iterator[tuple[str, bool, str]]:
    """Yield the findings about the mask and its image, as above."""
    with np.errstate(invalid="ignore", divide="ignore"):  # of a flat one, which is no copy
        alike = np.corrcoef(scaled.ravel(), mask.ravel())[0, 1]
    same = alike > _MOST_ALIKE or volume.sources["image"] == volume.sources["label"]
    yield "same", same, "image and label are the same picture; check the recipe's patterns"

    covered = _share(mask[(image > volume.facts.window[0]) | mask])
    corners = bool(volume.tumour[[0, 0, -1, -1], [0, -1, 0, -1]].all(axis=0).any())
    covers = "all four corners" if corners else f"{covered:.0%}"
    line = f"the mask covers {covers} of the image; is it inverted, or of the whole body?"
    yield "mask", corners or covered > _MOST_COVERED, line

    line = f"{outside:.0%} of the tumour lies outside the image's field of view"
    yield "outside", outside > _MOST_OUTSIDE, f"{line}; are both of one patient?"


def _find_range(scaled: Image) -> float:
    """Return which share of [0, 1] an image fills, but for a thousandth of it at either end."""
    shares = np.cumsum(np.bincount((scaled * 255).astype(np.uint8).reshape(-1))) / scaled.size
    darkest, brightest = np.searchsorted(shares, [0.001, 0.999])
    return float(brightest - darkest) / 255


def _guess_reason(facts: Facts, recipe: Recipe) -> str:
    """Say what an image looks like where it does not suit its window, and what to do."""
    low, high = facts.window
    by_window = recipe.intensity.rule == "window"
    if facts.lowest <= _AIR_HU and (low > _AIR_HU or not by_window):
        remedy = 'rule = "window", low = -100, high = 300'
        return f"CT in HU? Say [intensity] {remedy} (soft tissue) in the recipe"
    if recipe.modality.upper() in ("PET", "PT"):
        looks = "like Bq/ml" if facts.highest > high else "normalised"
        return f"PET looks {looks}, SUV expected; convert it to SUV"
    fitting = next((value for value in _WINDOWS if value >= facts.highest), high)
    if recipe.layout.planar and by_window and fitting != high:
        return f"values reach {facts.highest:g}; say [intensity] high = {fitting} in the recipe"
    return f"values are {facts.lowest:g} to {facts.highest:g}; set [intensity] in the recipe"


def _share(chosen: Mask) -> float:
    return float(chosen.mean()) if chosen.size else 0.0
