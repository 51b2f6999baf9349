"""Measures of masks and images: plain functions of numpy arrays, the same ones in every stage."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

MASK = NDArray[np.bool_]
FLOAT = NDArray[np.floating]
PSNR_OF_EQUAL_IMAGES = 100.0
"""dB; what two equal images get, whose ratio would be infinite."""


@dataclass(frozen=True, kw_only=True)
class MaskScores:
    """How a predicted mask agrees with the true one; all slices of a case together.

    The empty-mask rule, for each of the shares: 1 where both masks are empty, 0 where just one is.

    Attributes:
        dice: 2 |P and T| / (|P| + |T|).
        precision: |P and T| / |P|.
        recall: |P and T| / |T|.
        hausdorff_95: see :func:`hausdorff_95`, in the unit of the spacing.
    """

    dice: float
    precision: float
    recall: float
    hausdorff_95: float


def score_masks(prediction: MASK, truth: MASK, spacing: tuple[float, float]) -> MaskScores:
    """Score a case's predicted slices (S, H, W) or one slice (H, W).

    Args:
        prediction, truth: one shape.
        spacing: of rows and of columns, mm, or (1, 1) for distances in px.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    both, found, there = (int(mask.sum()) for mask in (prediction & truth, prediction, truth))
    return MaskScores(
        dice=_share(2 * both, found + there),
        precision=_share(both, found) if found else _share(0, there),
        recall=_share(both, there) if there else _share(0, found),
        hausdorff_95=hausdorff_95(prediction, truth, spacing),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def dice(prediction: MASK, truth: MASK) -> float:
    """Return the hard Dice coefficient of two masks; see :class:`MaskScores`.

    Args:
        prediction, truth: any equal shape; all slices of one case together.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    return _share(2 * int((prediction & truth).sum()), int(prediction.sum()) + int(truth.sum()))


def hausdorff_95(prediction: MASK, truth: MASK, spacing: tuple[float, float]) -> float:
    """Return the 95 % Hausdorff distance of two masks' edges, within slices.

    From each edge pixel of one mask to the nearest edge pixel of the other in the same slice; of
    all these distances the 95th percentile (linear between ranks); the larger of the two
    directions. An edge pixel is one with a neighbour of four outside its mask or outside the image.
    Where only one mask has pixels in a slice, its edge pixels there are the image's diagonal away;
    0 where both masks are empty.

    Args:
        prediction, truth: (S, H, W) or (H, W), one shape.
        spacing: of rows and of columns, mm, or (1, 1) for px.
    """
    shape = prediction.shape[-2:]
    slices = list(zip(prediction.reshape(-1, *shape), truth.reshape(-1, *shape), strict=True))
    farthest = math.hypot(shape[0] * spacing[0], shape[1] * spacing[1])
    directed = []
    for here, there in ((0, 1), (1, 0)):
        distances = [_edge_distances(pair[here], pair[there], spacing, farthest) for pair in slices]
        together = np.concatenate(distances)
        directed.append(float(np.percentile(together, 95)) if together.size else 0.0)
    return max(directed)


def _edge_distances(
    mask: MASK, other: MASK, spacing: tuple[float, float], farthest: float
) -> NDArray[np.float64]:
    """Return the distance of each edge pixel of one mask to the nearest one of the other."""
    edge, target = (outline ^ binary_erosion(outline) for outline in (mask, other))
    if not target.any():
        return np.full(int(edge.sum()), farthest)
    return np.asarray(distance_transform_edt(~target, sampling=spacing)[edge])


def psnr(first: FLOAT, second: FLOAT) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio 10 log10(1 / MSE), dB, of images in [0, 1].

    Args:
        first, second: (..., H, W).

    Returns:
        (...,) float64; 100 dB for equal images.
    """
    mse = ((first.astype(np.float64) - second) ** 2).mean((-2, -1))
    return np.asarray(10 * np.log10(1 / np.maximum(mse, 10 ** (-PSNR_OF_EQUAL_IMAGES / 10))))


def ssim(first: FLOAT, second: FLOAT) -> NDArray[np.float64]:
    """Return the structural similarity of images in [0, 1] (Wang et al. 2004).

    Gaussian window with sigma 1.5 px cut at 3.5 sigma, K1 = 0.01, K2 = 0.03, population
    covariances, mean over the pixels whose window lies inside: the original's choices.

    Args:
        first, second: (..., H, W), at least 11 px on each side.

    Returns:
        (...,) float64 in [-1, 1].
    """
    if min(first.shape[-2:]) < 11:
        raise ValueError(
            f"images of {first.shape[-2:]} px, expected at least 11 px: the window has no room"
        )
    x, y = first.astype(np.float64), second.astype(np.float64)

    def blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
        sigma = (0.0,) * (image.ndim - 2) + (1.5, 1.5)
        return np.asarray(gaussian_filter(image, sigma, truncate=3.5))

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return np.asarray(similarity[..., 5:-5, 5:-5].mean((-2, -1)))
