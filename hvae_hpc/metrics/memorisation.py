"""Does a generator copy its training set? Nearest training images, against those of real images.

A plain distance is fooled by blur, which brings an image nearer to everything. So an image is
judged by a ratio: its distance to the nearest training image over the mean distance to the next
nearest, each of another case. It is near 1 for a new patient and for an average of several. It is
near 0 for a copy, also one that was shifted, flipped, blurred a little, or changed in noise,
brightness or contrast. Images are compared at about 40 px a side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from hvae_hpc.errors import UserError

FALSE_ALARMS = 0.05
"""Share of new real images that may be flagged, and of honest generators called copying."""
HALF = 0.5
"""A copy's ratio is below this in any case: half as far from one patient as from the next."""
SHIFT_PX = 3
"""Shifts are searched up to this, in rows and in columns."""
COMPARED_PX = 40
NEXT = 3
"""Cases that the nearest one is compared with. More than one: a patient may be there twice."""


class Copies(NamedTuple):
    """What was found of N images.

    Attributes:
        distance: (N,) to the nearest training image, the least over flip and shifts: sqrt(2 - 2 r)
            of the correlation coefficient r; 0 for the same image, 1.41 for one that has nothing to
            do with it.
        nearest: (N,) index of that training image.
        score: (N,) distance over the mean distance to the next nearest cases, 0 to 1.
        threshold: of the score, from the held-out images.
        flagged: (N,) score below threshold: a copy.
        p_value: probability of as many flagged images or more, if they were as new as the held-out
            ones.
    """

    distance: NDArray[np.float64]
    nearest: NDArray[np.int64]
    score: NDArray[np.float64]
    threshold: float
    flagged: NDArray[np.bool_]
    p_value: float

    @property
    def copying(self) -> bool:
        """Whether the generator copies: more images are flagged than chance explains."""
        return self.p_value < FALSE_ALARMS


def find_copies(
    images: NDArray[np.float32],
    train: NDArray[np.float32],
    held_out: NDArray[np.float32],
    train_cases: Sequence[str],
    held_out_cases: Sequence[str],
) -> Copies:
    """Compare images with the training images, and the outcome with that of held-out real images.

    Let k = floor(0.05 (R + 1)), at least 1. The threshold is the k-th lowest of the R held-out
    scores (split conformal prediction), but at most 0.5. A new real image falls below it with
    probability k / (R + 1) at most, whatever the data: 5 % or less from 19 held-out images on; with
    fewer, half the ratio is the only other guard. The number of flagged images among N that are as
    new as these follows the beta-binomial law of (N, k, R + 1 - k), or is lower.

    Args:
        images: (N, H, W) in [0, 1], of a generator.
        train: (T, H, W), all that it was trained on.
        held_out: (R, H, W), of cases that are not in train.
        train_cases, held_out_cases: T and R case ids. Of a held-out case with several images the
            lowest score counts, so that R above is the number of cases: images of one patient are
            not as many observations.

    Raises:
        UserError: images of another size, too small ones, or less than two training cases or one
            held-out image.

    Source:
        Such ratios: Carlini et al. 2023, Yoon et al. 2023. The threshold: split conformal
        prediction, Vovk et al. 2005.
    """
    names, cases = np.unique(train_cases, return_inverse=True)
    _require_enough(images, train, held_out, len(names))

    # Score all images: distance to the nearest case over that to the next nearest ones.
    distances = _measure(np.concatenate([images, held_out]), train)
    by_case = np.stack([distances[:, cases == case].min(1) for case in range(len(names))], 1)
    by_case.sort(axis=1)
    # Where all images are one, the score is 0.
    scores = by_case[:, 0] / np.maximum(by_case[:, 1 : 1 + NEXT].mean(1), 1e-12)
    ours, real = scores[: len(images)], scores[len(images) :]

    # The threshold is an order statistic of the held-out cases' scores.
    case_ids = np.array(held_out_cases)
    real = np.array([real[case_ids == case].min() for case in np.unique(case_ids)])
    real.sort()
    k = max(1, int(FALSE_ALARMS * (len(real) + 1)))
    threshold = min(HALF, float(real[k - 1]))
    flagged = ours < threshold

    return Copies(
        distance=distances[: len(images)].min(1),
        nearest=distances[: len(images)].argmin(1),
        score=ours,
        threshold=threshold,
        flagged=flagged,
        p_value=float(betabinom.sf(flagged.sum() - 1, len(images), k, len(real) + 1 - k)),
    )


def _require_enough(
    images: NDArray[np.float32],
    train: NDArray[np.float32],
    held_out: NDArray[np.float32],
    train_cases: int,
) -> None:
    """Raise UserError where the images' sizes differ or are too small, or there are too few."""
    sizes = {images.shape[1:], train.shape[1:], held_out.shape[1:]}
    if len(sizes) > 1 or min(images.shape[1:]) < 4 * SHIFT_PX:
        raise UserError(
            f"images of {sorted(sizes)} px; expected one size of {4 * SHIFT_PX} px or more for all"
        )
    if train_cases < 2 or not len(images) or not len(held_out):
        raise UserError(
            f"{len(images)} images, {train_cases} training cases, {len(held_out)} held-out images; "
            "expected 1, 2 and 1 or more to tell copies from new images"
        )


def _measure(images: NDArray[np.float32], train: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N, T) distances of images' middles to the nearest window of each training image."""
    height, width = images.shape[1:]
    rows, columns = height - 2 * SHIFT_PX, width - 2 * SHIFT_PX
    block = max(1, round(min(height, width) / COMPARED_PX))
    shifts = [(y, x) for y in range(2 * SHIFT_PX + 1) for x in range(2 * SHIFT_PX + 1)]

    def window(stack: NDArray[np.float32], y: int, x: int) -> NDArray[np.float32]:
        return _standardise(stack[:, y : y + rows, x : x + columns], block)

    ours = window(images, SHIFT_PX, SHIFT_PX)
    correlations = np.empty((len(images), len(train)))
    for i, image in enumerate(train):
        both = np.stack([image, image[:, ::-1]])
        windows = np.concatenate([window(both, y, x) for y, x in shifts])
        correlations[:, i] = (ours @ windows.T).max(1)
    return np.sqrt(np.maximum(2 - 2 * correlations, 0))


def _standardise(images: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Average (n, H, W) over blocks; return (n, pixels) with mean 0 and norm 1, or 0 if empty."""
    height, width = (side // block for side in images.shape[1:])
    cropped = images[:, : height * block, : width * block]
    blocks = cropped.reshape(len(images), height, block, width, block)
    pixels = blocks.mean((2, 4)).reshape(len(images), -1)
    pixels -= pixels.mean(1, keepdims=True)
    norm = np.linalg.norm(pixels, axis=1, keepdims=True)
    return np.asarray(np.divide(pixels, norm, out=np.zeros_like(pixels), where=norm > 1e-4))
