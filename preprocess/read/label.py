"""A case's label files -> its one tumour mask; values that nobody expected are refused."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.scan import Scan
from hvae_hpc.preprocess.recipes.recipe import Recipe

_ROUNDING = 0.01
"""Integers that a header scales come back as 0.99999998 or, from 8 bits, 1.0039."""
_CLASSES = 32
"""Labels with this many classes exist. Values that lie closer together are grey levels."""


def join_labels(
    labels: Sequence[Scan], recipe: Recipe, known: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Join the tumour's label values, and several label files, to one mask (X, Y, Z).

    Raises:
        UserError: values that are not integers, or not known, or that look like grey levels.
    """
    tumour = np.zeros_like(labels[0].data, dtype=bool)  # in the file's order, which is quick
    for label in labels:
        tumour |= _find_tumour(label, recipe, known)
    return tumour


def _find_tumour(label: Scan, recipe: Recipe, known: tuple[int, ...]) -> NDArray[np.bool_]:
    wanted, threshold = recipe.label.tumour, recipe.label.threshold
    if threshold is not None:
        if not np.isfinite(label.values).all():
            raise UserError(f"{label.path}: has values that are no numbers; repair the file")
        return np.asarray(label.data >= threshold)

    data = label.data
    inside = label.values[label.values != 0]  # most voxels are 0, and need no further look
    if inside.dtype.kind == "f":
        whole = _round(label, inside, wanted)
        if (whole != inside).any():
            data = np.rint(data)
        inside = whole[whole != 0]
    values = _distinct(inside)
    _check_values(label, values, recipe, known)

    if wanted == "any" or set(values) <= set(wanted):
        return np.asarray(data != 0)
    tumour = data == wanted[0]
    for value in wanted[1:]:
        tumour |= data == value
    return np.asarray(tumour)


def _round(label: Scan, values: NDArray[Any], wanted: object) -> NDArray[Any]:
    """Return the integers that values stand for."""
    whole = np.rint(values)
    with np.errstate(invalid="ignore"):  # infinity less itself
        odd = values[~(np.abs(values - whole) <= _ROUNDING)]
    if odd.size:
        is_mask = wanted == "any" and bool((np.isfinite(values) & (values > 0)).all())
        advice = _advise_threshold(values) if is_mask else ""
        raise UserError(
            f"{label.path}: label value {odd[0]}, expected integers; "
            f"resample it with nearest{advice}"
        )
    return whole


def _distinct(values: NDArray[Any]) -> list[int]:
    if values.dtype in (np.uint8, np.uint16):  # counting is quicker than sorting
        return [int(value) for value in np.flatnonzero(np.bincount(values))]
    return [int(value) for value in np.unique(values)]


def _check_values(
    label: Scan, values: Sequence[int], recipe: Recipe, known: tuple[int, ...]
) -> None:
    """Refuse values above 0 that are not known or, where all are, lie as close as grey levels."""
    strange = [value for value in values if value < 0 or (known and value not in known)]
    if strange:
        shown = ", ".join(map(str, strange[:5]))
        expected = ", ".join(map(str, known)) or "whole numbers from 0"
        said_by_recipe = recipe.label.known or not recipe.layout.index
        where = (
            "label.known in the recipe" if said_by_recipe else f"labels in {recipe.layout.index}"
        )
        advice = _advise_threshold(values) if len(values) > _CLASSES else ""
        raise UserError(
            f"{label.path}: label value {shown}, expected {expected}; see {where}{advice}"
        )

    gap = min((high - low for low, high in pairwise([0, *values])), default=1)
    if not known and gap * _CLASSES < max(values, default=0):
        shown = ", ".join(map(str, values[:5])) + (f" ... {values[-1]}" if values[5:] else "")
        raise UserError(
            f"{label.path}: label values {shown} lie as close as grey levels, expected classes; "
            f"say label.tumour in the recipe{_advise_threshold(values)}"
        )


def _advise_threshold(values: Sequence[int] | NDArray[Any]) -> str:
    """Return what a recipe says where the brighter half of the grey levels is tumour."""
    half = np.max(values) / 2
    return f', or for a mask in grey label = {{tumour = "any", threshold = {half:g}}}'
