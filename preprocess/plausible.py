"""Does a case look like an image with a tumour? What does not is a finding, and is refused.

A finding is a fact of the pixels with a likely reason: a wrong unit, an inverted mask, a label in
the image's place. Each kind has a name, and a recipe's ``accept`` lets it pass by that name. The
limits were set on real scans (84 FLAIR, 36 PET), none of which is refused; docs/RECIPES.md says how
far these are from the limits.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.scan import Array, Image, Mask
from hvae_hpc.preprocess.read.volume import Facts, Volume
from hvae_hpc.preprocess.recipes.recipe import Recipe

_MOST_OUTSIDE = 0.05
_MOST_CLIPPED = 0.5
_MOST_COVERED = 0.95
_LEAST_RANGE = 0.15
_FEWEST_LEVELS = 8
_MOST_ALIKE = 0.99
_MOST_BLACK = 0.2
"""Of a volume's tumour, where the image has its background. Real scans have none."""
_AIR_HU = -200
"""No MRI or PET goes below, and every CT with air in it does."""
_ADDED_HU = 1024
"""What some files add to a CT's values, so that none is below 0."""
_WINDOWS = (1, 255, 1023, 4095, 16383, 65535)
"""Highest values of pictures: of floats, and of 8 to 16 bits."""


def judge_case(looked: Iterable[tuple[str, bool, str]], recipe: Recipe) -> tuple[str, ...]:
    """Return the names of what is implausible about a case, all of them accepted.

    Args:
        looked: what :func:`look_at_case` says of it.
        recipe: says what is accepted.

    Raises:
        UserError: something is implausible, and the recipe does not accept it.
    """
    findings = {name: line for name, holds, line in looked if holds}
    for name, line in findings.items():
        if name not in recipe.accept:
            names = ", ".join(f'"{each}"' for each in findings)
            raise UserError(f"{line}; or say accept = [{names}] at the head of the recipe")
    return tuple(findings)


def look_at_case(
    images: Image,
    scaled: Image,
    tumour: Mask,
    areas: Array,
    volume: Volume,
    recipe: Recipe,
) -> Iterator[tuple[str, bool, str]]:
    """Yield what may be found: its name, whether it holds, and what to say.

    Images are (X, Y, n), a case's slices inside the crop, in their own unit and NaN outside the
    field of view; scaled, the same in [0, 1]; tumour, their masks; areas, (n,) of these in px. The
    slice with the largest tumour stands for all.
    """
    facts, (low, high) = volume.facts, volume.facts.window
    window, reason = f"the intensity window {low:g} to {high:g}", _guess_reason(facts, recipe)
    largest = areas.argmax()
    image, shown, mask = images[:, :, largest], scaled[:, :, largest], tumour[:, :, largest]

    # Unit and window.
    by_percentiles = recipe.intensity.rule == "percentile"
    line = f"the image's lowest value is {facts.lowest:g}: {reason}"
    yield "hounsfield", by_percentiles and _is_in_hu(facts, recipe), line

    above, below = _share(image[image > low] > high), _share(image[mask] < low)
    line = (
        f"{above:.0%} of the image lies above {window}, {below:.0%} of the tumour below: {reason}"
    )
    yield "clipped", max(above, below) > _MOST_CLIPPED, line

    filled = float(np.ptp(np.percentile(shown, [0.1, 99.9])))  # but for odd pixels
    yield "faint", filled < _LEAST_RANGE, f"the image fills {filled:.1%} of {window}: {reason}"

    flat = (np.ptp(scaled, axis=(0, 1)) == 0) & (areas > 0)
    levels = 1 if flat.any() else len(np.unique(shown))
    line = (
        f"a slice with tumour has {levels} grey value(s) in {window}: {reason}, or is it a label?"
    )
    yield "levels", levels < _FEWEST_LEVELS, line

    # The mask and its image.
    with np.errstate(invalid="ignore", divide="ignore"):  # of a flat one, which is no copy
        alike = np.corrcoef(shown.ravel(), mask.ravel())[0, 1]
    same = alike > _MOST_ALIKE or volume.sources["image"] == volume.sources["label"]
    yield "same", same, "image and label are the same picture; check the recipe's patterns"

    covered = _share(mask[(image > low) | mask])
    corners = bool(volume.tumour[[0, 0, -1, -1], [0, -1, 0, -1]].all(axis=0).any())
    line = f"the mask covers {covered:.0%} of the image, or all four corners"
    yield "mask", corners or covered > _MOST_COVERED, f"{line}; is it inverted, or of the body?"

    values = images[tumour]
    outside = _share(np.isnan(values))
    black = 0.0 if recipe.layout.planar else _share(values == facts.lowest)
    line = f"{max(outside, black):.0%} of the tumour lies outside the image's field of view"
    is_outside = outside > _MOST_OUTSIDE or black > _MOST_BLACK
    yield "outside", is_outside, f"{line}; are both of one patient?"


def _is_in_hu(facts: Facts, recipe: Recipe) -> bool:
    is_ct = recipe.modality.upper() == "CT" and facts.highest > _ADDED_HU
    return is_ct or facts.lowest <= _AIR_HU


def _guess_reason(facts: Facts, recipe: Recipe) -> str:
    """Say what an image looks like where it does not suit its window, and what to do."""
    low, high = facts.window
    by_window = recipe.intensity.rule == "window"
    if _is_in_hu(facts, recipe) and (low > _AIR_HU or not by_window):
        added = 0 if facts.lowest < 0 else _ADDED_HU
        remedy = f'rule = "window", low = {added - 100}, high = {added + 300}'
        unit = f"HU + {added}" if added else "HU"
        return f"CT in {unit}? Say [intensity] {remedy} (soft tissue) in the recipe"
    if recipe.modality.upper() in ("PET", "PT"):
        looks = "like Bq/ml" if facts.highest > high else "normalised"
        return f"PET looks {looks}, SUV expected; convert it to SUV"
    fitting = next((value for value in _WINDOWS if value >= facts.highest), high)
    if recipe.layout.planar and by_window and fitting != high:
        return f"values reach {facts.highest:g}; say [intensity] high = {fitting} in the recipe"
    return f"values are {facts.lowest:g} to {facts.highest:g}; set [intensity] in the recipe"


def _share(chosen: Mask) -> float:
    return float(chosen.mean()) if chosen.size else 0.0
