"""A case's label files -> its one tumour mask; values that nobody expected are refused."""

import functools
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.scan import Array, Mask, Scan
from hvae_hpc.preprocess.recipes.recipe import Recipe

_ROUNDING = 0.01
"""Integers that a header scales come back as 0.99999998 or, from 8 bits, 1.0039."""
_CLASSES = 32
"""Labels with this many classes exist. Values that lie closer together are grey levels."""


def join_labels(labels: Sequence[Scan], recipe: Recipe, known: tuple[int, ...]) -> Mask:
    """Join the tumour's label values, and several label files, to one mask (X, Y, Z).

    Raises:
        UserError: values that are not integers, or not known, or that look like grey levels.
    """
    # Two by two: a stack of all would lose the file's order, which is quick.
    return functools.reduce(np.logical_or, (_find_tumour(label, recipe, known) for label in labels))


def _find_tumour(label: Scan, recipe: Recipe, known: tuple[int, ...]) -> Mask:
    wanted, threshold = recipe.label.tumour, recipe.label.threshold
    data, inside = label.data, label.values[label.values != 0]  # most voxels are 0
    if not np.isfinite(inside).all():
        raise UserError(f"{label.path}: label values are NaN or infinite; repair the file")
    if threshold is not None:
        return data >= threshold

    if inside.dtype.kind == "f":
        whole = np.rint(inside)
        odd = inside[np.abs(inside - whole) > _ROUNDING]
        if odd.size:
            raise UserError(
                f"{label.path}: label value {odd[0]}, expected integers; "
                f"resample it with nearest{_advise_threshold(inside)}"
            )
        data, inside = np.rint(data), whole[whole != 0]
    values = [int(value) for value in np.unique(inside)]
    _check_values(label, values, known)

    if wanted == "any" or set(values) <= set(wanted):
        return data != 0
    return functools.reduce(np.logical_or, (data == value for value in wanted))


def _check_values(label: Scan, values: Sequence[int], known: tuple[int, ...]) -> None:
    """Refuse values that are not known or, where all are, lie as close as grey levels."""
    strange = [value for value in values if value < 0 or (known and value not in known)]
    if strange:
        expected = ", ".join(map(str, known)) or "whole numbers from 0"
        raise UserError(
            f"{label.path}: label value {_shown(strange)}, expected {expected}; "
            "see label.known in the recipe, or the labels in dataset.json"
        )

    gap = min((high - low for low, high in pairwise([0, *values])), default=1)
    if not known and gap * _CLASSES < max(values, default=0):
        raise UserError(
            f"{label.path}: label values {_shown(values)} lie as close as grey levels, expected "
            f"classes; say label.tumour in the recipe{_advise_threshold(values)} "
            "(threshold = 1 takes every value)"
        )


def _shown(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (f" ... {values[-1]}" if values[5:] else "")


def _advise_threshold(values: Sequence[int] | Array) -> str:
    """Return what a recipe says where the brighter half of the grey levels is tumour."""
    half = np.abs(values).max() / 2
    return f', or for a mask in grey [label] tumour = "any", threshold = {half:g}'
