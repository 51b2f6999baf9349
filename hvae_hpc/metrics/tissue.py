"""What lesions look like in their tissue: five statistics per pair, and no trained network."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from hvae_hpc.metrics.image_sets import TISSUE, Measurement, compare_statistics
from hvae_hpc.metrics.images import Floats

RIM_PX = 3


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
                *(lesion.mean() - image[rim].mean(), lesion.mean(), lesion.std()),
                *(gradient[edge].mean(), detail[tissue].std()),
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
