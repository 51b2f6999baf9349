"""Measures of a set of about a hundred images against another set, as functions of numpy arrays.

Feature vectors or masks in, a value with a 95 % interval for each measure out. The intervals come
from leaving out one case at a time (:func:`estimate`), not from resampling with replacement. A
bootstrap sample holds images twice, at distance 0 from each other, which a nearest neighbour or a
kernel's sum over pairs takes for a collapsed set. What lesions look like in their tissue is told by
five statistics per pair, without a trained network.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    center_of_mass,
    gaussian_filter,
    label,
)
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from hvae_hpc.errors import UserError
from hvae_hpc.metrics.images import Floats

Rows = NDArray[np.intp]

Z_95 = 1.959964
"""97.5 % quantile of the standard normal."""
MASK_STATISTICS = ("area", "components", "row", "column")
TISSUE = ("contrast", "lesion_mean", "lesion_sd", "lesion_edge", "texture")
SHARES = ("precision", "recall", "coverage", "duplicates", "agreement", "copies")
BOUNDS = {
    **dict.fromkeys(SHARES, (0.0, 1.0)),
    **dict.fromkeys(("density", *MASK_STATISTICS, *TISSUE), (0.0, math.inf)),
    "distinct": (1.0, math.inf),
}
"""What measures can be. An unbiased KID has no bounds."""
RIM_PX = 3
ALIKE = 0.5
"""Images count as one where their distance is below this share of the usual nearest distance."""


class Measurement(NamedTuple):
    """A measure's value and its 95 % interval, ``low <= value <= high``."""

    value: float
    low: float
    high: float


def estimate(
    measure: Callable[..., Mapping[str, float]], *cases: Sequence[str]
) -> dict[str, Measurement]:
    """Return measures of independent sets with intervals, by leaving out one case at a time.

    The variance is the delete-one jackknife's: the sum over sets of ``(G - 1) / G * sum_g (m_g -
    mean)^2``, with m_g the measure without case g of the set's G cases. For any function of
    independent cases it is too large rather than too small on average (Efron and Stein 1981), also
    for nearest neighbours and degenerate U-statistics. The interval is normal; that of a share is
    Wilson's, with the number of images that a plain share of this variance would have (Korn and
    Graubard 1998), and the number of cases where leaving one out changes nothing. It is about the
    measure's expectation at this number of images, not about its limit for many.

    Args:
        measure: takes the rows that are left of each set, returns name to value.
        cases: for each set the case of each row; rows of one case are left out together.
    """
    rows = [np.arange(len(of_set)) for of_set in cases]
    values = measure(*rows)

    variance = dict.fromkeys(values, 0.0)
    for i, of_set in enumerate(cases):
        case_of_row = np.asarray(of_set)
        names = np.unique(case_of_row)
        without = [
            measure(*rows[:i], np.flatnonzero(case_of_row != name), *rows[i + 1 :])
            for name in names
        ]
        for name in values:
            left_out = np.array([of_rest[name] for of_rest in without])
            variance[name] += (len(names) - 1) * float(left_out.var())

    fewest = min(len(set(of_set)) for of_set in cases)
    return {name: _interval(name, value, variance[name], fewest) for name, value in values.items()}


def _interval(name: str, value: float, variance: float, n_cases: int) -> Measurement:
    least, most = BOUNDS.get(name, (-math.inf, math.inf))
    centre, half = value, Z_95 * math.sqrt(variance)
    if name in SHARES:
        n = value * (1 - value) / variance if variance > 0 else n_cases
        n = n or n_cases  # a share of 0 or 1 that leaving out one case changes
        shrunk = 1 + Z_95**2 / n
        centre = (value + Z_95**2 / (2 * n)) / shrunk
        half = Z_95 * math.sqrt(value * (1 - value) / n + (Z_95 / (2 * n)) ** 2) / shrunk
    return Measurement(
        value=value,
        low=min(value, max(least, centre - half)),
        high=max(value, min(most, centre + half)),
    )


def compare_features(
    ours: Floats, real: Floats, k: int, our_cases: Sequence[str], real_cases: Sequence[str]
) -> dict[str, Measurement]:
    """Compare a set of images with real ones in a space of features.

    Args:
        ours: features (N, D) of the set.
        real: features (M, D) of real images; M about N, as nearest neighbours are the nearer the
            more there are.
        k: which nearest neighbour's distance is the radius of an image's ball.
        our_cases, real_cases: the case of each row.

    Returns:
        ``kid``: the kernel distance, :func:`unbiased_mmd` of :func:`polynomial_kernel`; 0 is
        expected of equal distributions (Binkowski et al. 2018, arXiv:1801.01401). ``precision``:
        the share of ours that lie in the ball of a real image; ``recall``: of real images in the
        ball of one of ours (Kynkaanniemi et al. 2019, arXiv:1904.06991). ``density``: in how many
        real balls one of ours lies, over k; 1 is expected of real images. ``coverage``: the share
        of real balls with one of ours in it (Naeem et al. 2020, arXiv:2002.09797). ``duplicates``:
        the share of ours that are nearer to another of ours than ``ALIKE`` times the median
        distance from a real image to its nearest (of another case). ``distinct``: the effective
        number of different images among ours at that scale, see :func:`vendi_score`.

    Raises:
        UserError: too few cases for k neighbours of other cases.
    """
    _require_neighbours("images to measure", our_cases, k)
    _require_neighbours("real images", real_cases, k)

    # Distances and kernels of all images at once; each measure takes the rows it needs.
    n = len(ours)
    features = np.concatenate([ours, real])
    distances = cdist(features, features)
    kernel = polynomial_kernel(features, features)
    case = np.array(
        [*(f"ours {name}" for name in our_cases), *(f"real {name}" for name in real_cases)]
    )
    between_cases = np.where(case[:, None] == case, np.inf, distances)

    def measure(x: Rows, y: Rows) -> dict[str, float]:
        y = y + n
        xx, xy, yx, yy = np.ix_(x, x), np.ix_(x, y), np.ix_(y, x), np.ix_(y, y)
        in_real = distances[xy] <= _radius(distances[yy], k)
        in_ours = distances[yx] <= _radius(distances[xx], k)
        alike = ALIKE * float(np.median(between_cases[yy].min(1)))
        return {
            "kid": unbiased_mmd(kernel[xx], kernel[xy], kernel[yy]),
            "precision": float(in_real.any(1).mean()),
            "recall": float(in_ours.any(1).mean()),
            "density": float(in_real.sum(1).mean()) / k,
            "coverage": float(in_real.any(0).mean()),
            "duplicates": float((between_cases[xx].min(1) < alike).mean()),
            "distinct": vendi_score(distances[xx], alike),
        }

    return estimate(measure, our_cases, real_cases)


def _require_neighbours(what: str, cases: Sequence[str], k: int) -> None:
    """Raise UserError where an image has fewer than k + 1 images of other cases beside it."""
    largest_case = max(Counter(cases).values())
    if len(cases) - largest_case < k + 1:
        raise UserError(
            f"{len(cases)} {what} of {len(set(cases))} cases are too few for "
            f"quality.nearest = {k}; lower it, or have more images or cases "
            "(quality.features = false leaves these measures out)"
        )


def _radius(distances: Floats, k: int) -> Floats:
    """Return each image's distance to its k-th nearest neighbour; the 0th is the image itself."""
    return np.partition(distances, k, axis=1)[:, k]


def polynomial_kernel(first: Floats, second: Floats) -> Floats:
    """Return ``(x.y / D + 1)^3`` of all pairs of rows (N, D) and (M, D), as (N, M)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def unbiased_mmd(xx: Floats, xy: Floats, yy: Floats) -> float:
    """Return the squared maximum mean discrepancy from kernel matrices (N, N), (N, M) and (M, M).

    Over all pairs of different images: an unbiased estimate, which may be below 0.
    """
    n, m = xy.shape
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def vendi_score(distances: Floats, scale: float) -> float:
    """Return the effective number of different images, between 1 (all equal) and N (all far apart).

    The exponential of the entropy of the eigenvalues of ``exp(-d^2 / (2 scale^2)) / N``. Source:
    Friedman and Dieng 2023, arXiv:2210.02410.

    Args:
        distances: (N, N), between all images.
        scale: images that are much nearer than this count as one.
    """
    similarity = np.exp(-0.5 * (distances / scale) ** 2) / len(distances)
    eigenvalues = np.linalg.eigvalsh(similarity)
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def describe_masks(masks: NDArray[np.bool_]) -> dict[str, Floats]:
    """Return statistics (N,) of each of the masks (N, H, W).

    ``area``, px; ``components``, 8-connected ones; ``row`` and ``column`` of the centroid, px,
    which for an empty mask are the image's centre.
    """
    centre = [(side - 1) / 2 for side in masks.shape[1:]]
    centroids = np.array([center_of_mass(mask) if mask.any() else centre for mask in masks])
    return {
        "area": masks.sum((1, 2)).astype(np.float64),
        "components": np.array([float(label(mask, np.ones((3, 3)))[1]) for mask in masks]),
        "row": centroids[:, 0],
        "column": centroids[:, 1],
    }


def compare_statistics(
    ours: Mapping[str, Floats],
    real: Mapping[str, Floats],
    our_cases: Sequence[str],
    real_cases: Sequence[str],
) -> dict[str, Measurement]:
    """Return the Wasserstein-1 distance of every statistic's two distributions.

    It is how far the values must move on average to become the real ones, in the statistic's unit.
    It is above 0 even for equal distributions: read it against that of two real sets.
    """

    def measure(x: Rows, y: Rows) -> dict[str, float]:
        return {name: float(wasserstein_distance(ours[name][x], real[name][y])) for name in ours}

    return estimate(measure, our_cases, real_cases)


def describe_tissue(
    images: NDArray[np.float32], masks: NDArray[np.bool_], cases: Sequence[str]
) -> tuple[Floats, list[str]]:
    """Return five statistics of each pair (N, H, W), and the pairs' cases.

    In units of intensity: the lesion's mean less that of its rim, ``RIM_PX`` wide; its mean; its
    standard deviation; the mean size of the gradient on its edge, per px; and the standard
    deviation of the detail finer than about 1 px (image less blurred image) in the other tissue,
    which is what is brighter than the image's mean. Pairs without a lesion, a rim or other tissue
    are left out.
    """
    statistics, kept = [], []
    for image, mask, case in zip(images.astype(np.float64), masks, cases, strict=True):
        rim = binary_dilation(mask, iterations=RIM_PX) & ~mask
        tissue = (image > image.mean()) & ~mask & ~rim
        if not (mask.any() and rim.any() and tissue.any()):
            continue

        lesion, edge = image[mask], mask ^ binary_erosion(mask)
        gradient = np.hypot(*np.gradient(image))
        detail = image - gaussian_filter(image, 1.0)
        kept.append(case)
        statistics.append(
            [
                lesion.mean() - image[rim].mean(),
                lesion.mean(),
                lesion.std(),
                gradient[edge].mean(),
                detail[tissue].std(),
            ]
        )
    return np.array(statistics), kept


def compare_tissue(
    ours: Floats, our_cases: Sequence[str], real: Floats, real_cases: Sequence[str]
) -> dict[str, Measurement]:
    """Return how far the statistics of two sets are apart, in standard deviations of the real ones.

    Args:
        ours, our_cases, real, real_cases: as :func:`describe_tissue` returns them.

    Returns:
        Wasserstein-1 distances; nothing where a set has fewer than two cases, or all real pairs
        are alike.
    """
    if min(len(set(our_cases)), len(set(real_cases))) < 2 or not real.std(0).all():
        return {}
    of_ours, of_real = (
        dict(zip(TISSUE, (values / real.std(0)).T, strict=True)) for values in (ours, real)
    )
    return compare_statistics(of_ours, of_real, our_cases, real_cases)


def average(name: str, values: Floats, cases: Sequence[str]) -> dict[str, Measurement]:
    """Return the mean of one value per image."""
    return estimate(lambda rows: {name: float(values[rows].mean())}, cases)
