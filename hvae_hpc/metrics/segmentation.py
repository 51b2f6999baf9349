"""Measures of predicted masks against true ones, as functions of numpy arrays."""

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from hvae_hpc.frozen import frozen

Mask = NDArray[np.bool_]

TOLERANCE = 2.0
"""Of ``surface_dice_2``: mm, or px where the spacing is unknown. Another one needs another name."""
SIZES = ("small", "medium", "large")


@frozen
class MaskScores:
    """How a predicted mask agrees with the true one; all slices of a case together.

    The empty-mask rule, for each of the shares: 1 where both masks are empty, 0 where just one is.

    Attributes:
        dice: 2 |P and T| / (|P| + |T|).
        precision: |P and T| / |P|.
        recall: |P and T| / |T|.
        hausdorff_95: the 95 % Hausdorff distance, in the unit of the spacing: the larger one of
            both directions' 95th percentiles of :func:`edge_distances`, linear between ranks; 0
            where both masks are empty.
        surface_dice_2: the share of both masks' edge pixels that lie within TOLERANCE of the other
            mask's edge in their slice (Nikolov et al. 2021, doi:10.2196/26151).
        true_area: of T, summed over the slices, in mm2 or px.
        area_error: ||P| - |T|| / |T|; None where T is empty.
    """

    dice: float
    precision: float
    recall: float
    hausdorff_95: float
    surface_dice_2: float
    true_area: float
    area_error: float | None


def score_masks(prediction: Mask, truth: Mask, spacing: tuple[float, float]) -> MaskScores:
    """Score a case's predicted slices (S, H, W) or one slice (H, W).

    Args:
        prediction, truth: one shape.
        spacing: of rows and of columns, mm, or (1, 1) for distances in px.
    """
    both, predicted, true = _count(prediction, truth)
    distances = edge_distances(prediction, truth, spacing)
    near = sum(int((of_mask <= TOLERANCE).sum()) for of_mask in distances)
    return MaskScores(
        dice=_share(2 * both, predicted + true),
        precision=_share(both, predicted or true),
        recall=_share(both, true or predicted),
        hausdorff_95=max(np.percentile(d, 95).item() if d.size else 0.0 for d in distances),
        surface_dice_2=_share(near, sum(of_mask.size for of_mask in distances)),
        true_area=true * spacing[0] * spacing[1],
        area_error=abs(predicted - true) / true if true else None,
    )


def dice_by_size(scores: Collection[MaskScores]) -> dict[str, float]:
    """Return the mean Dice of the cases with a tumour, by thirds of the tumours' true areas.

    Returns:
        "dice_small", "dice_medium", "dice_large"; nothing with fewer than three such cases.
    """
    by_area = sorted((s for s in scores if s.true_area), key=lambda s: s.true_area)
    if len(by_area) < len(SIZES):
        return {}
    thirds = np.array_split([s.dice for s in by_area], len(SIZES))
    return {f"dice_{size}": float(third.mean()) for size, third in zip(SIZES, thirds, strict=True)}


def dice(prediction: Mask, truth: Mask) -> float:
    """Return the hard Dice coefficient of two masks; see :class:`MaskScores`.

    Args:
        prediction, truth: any equal shape; all slices of one case together.
    """
    both, predicted, true = _count(prediction, truth)
    return _share(2 * both, predicted + true)


def _count(prediction: Mask, truth: Mask) -> tuple[int, int, int]:
    """Return the pixels of both masks, of the prediction and of the truth."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    return int((prediction & truth).sum()), int(prediction.sum()), int(truth.sum())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def edge_distances(
    prediction: Mask, truth: Mask, spacing: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances of the prediction's edge pixels to the truth's edge, and the reverse.

    From each edge pixel to the nearest one of the other mask in the same slice. An edge pixel is
    one with a neighbour of four outside its mask or outside the image. Where only one mask has
    pixels in a slice, its edge pixels there are the image's diagonal away.

    Args:
        prediction, truth: (S, H, W) or (H, W), one shape.
        spacing: of rows and of columns, mm, or (1, 1) for px.
    """
    height, width = prediction.shape[-2:]
    predicted, true = (mask.reshape(-1, height, width) for mask in (prediction, truth))
    farthest = math.hypot(height * spacing[0], width * spacing[1])
    pairs = list(zip(predicted, true, strict=True))
    forward = [_slice_distances(mask, other, spacing, farthest) for mask, other in pairs]
    backward = [_slice_distances(mask, other, spacing, farthest) for other, mask in pairs]
    return np.concatenate(forward), np.concatenate(backward)


def _slice_distances(
    mask: Mask, other: Mask, spacing: tuple[float, float], farthest: float
) -> NDArray[np.float64]:
    """Return the distance of each edge pixel of one mask to the nearest one of the other."""
    edge, target = (outline ^ binary_erosion(outline) for outline in (mask, other))
    if not target.any():
        return np.full(int(edge.sum()), farthest)
    return distance_transform_edt(~target, sampling=spacing)[edge]
