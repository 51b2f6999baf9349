"""What lesions look like in their tissue: five statistics per pair, and no trained network."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from hvae_hpc.metrics.image_sets import (
    TISSUE_STATISTICS,
    Floats,
    Measurement,
    compare_statistics,
)

RIM_PX = 3


def describe_tissue(images: NDArray[np.float32], masks: NDArray[np.bool_]) -> dict[str, Floats]:
    """Return statistics (N,) of pairs (N, H, W), in units of intensity.

    ``contrast``: the lesion's mean less that of its rim, ``RIM_PX`` wide; ``lesion_mean`` and
    ``lesion_sd``; ``rim_gradient``: the mean size of the gradient on the lesion's edge, per px;
    ``texture``: the standard deviation of the detail finer than 1 px (image less blurred image) in
    the rest of the tissue, which is what is brighter than the image's mean. All are NaN where a
    pair has no lesion, no rim or no other tissue.
    """
    pairs = zip(images.astype(np.float64), masks, strict=True)
    values = np.array([_describe_pair(image, mask) for image, mask in pairs])
    return dict(zip(TISSUE_STATISTICS, values.T, strict=True))


def _describe_pair(image: Floats, mask: NDArray[np.bool_]) -> tuple[float, ...]:
    rim = binary_dilation(mask, iterations=RIM_PX) & ~mask
    tissue = (image > image.mean()) & ~mask & ~rim
    if not (mask.any() and rim.any() and tissue.any()):
        return (np.nan,) * len(TISSUE_STATISTICS)

    lesion, edge = image[mask], mask ^ binary_erosion(mask)
    gradient = np.hypot(*np.gradient(image))
    detail = image - gaussian_filter(image, 1.0)
    return (
        lesion.mean() - image[rim].mean(),
        lesion.mean(),
        lesion.std(),
        gradient[edge].mean(),
        detail[tissue].std(),
    )


def compare_tissue(
    ours: dict[str, Floats],
    real: dict[str, Floats],
    our_cases: Sequence[str],
    real_cases: Sequence[str],
) -> dict[str, Measurement]:
    """Return how far the statistics of two sets are apart, in standard deviations of the real ones.

    Args:
        ours, real: as :func:`describe_tissue` returns them; pairs that are NaN do not count.
        our_cases, real_cases: the case of each pair.

    Returns:
        Wasserstein-1 distances; nothing where fewer than two cases of a set count, or where all
        real ones are alike.
    """
    (ours, our_cases), (real, real_cases) = (
        _keep_described(*of_set) for of_set in ((ours, our_cases), (real, real_cases))
    )
    if min(len(set(our_cases)), len(set(real_cases))) < 2:
        return {}
    scales = {name: float(values.std()) for name, values in real.items()}
    if not all(scales.values()):
        return {}
    ours, real = ({name: of[name] / scales[name] for name in scales} for of in (ours, real))
    return compare_statistics(ours, real, our_cases, real_cases)


def _keep_described(
    statistics: dict[str, Floats], cases: Sequence[str]
) -> tuple[dict[str, Floats], list[str]]:
    """Return the statistics and cases of the pairs that have them."""
    rows = np.flatnonzero(np.isfinite(statistics["contrast"])).tolist()
    return {name: of[rows] for name, of in statistics.items()}, [cases[row] for row in rows]
