"""Does a generator copy its training set? Nearest training images, against those of real images.

A plain distance is fooled by blur, which brings an image nearer to everything. So an image is
judged by a ratio: its distance to the nearest training image over the mean distance to the next
nearest, each of another case. It is near 1 for a new patient and for an average of several. It is
near 0 for a copy, also one that was shifted, mirrored left to right, blurred, or changed in noise,
brightness or contrast. Copies that were turned, or mirrored top to bottom, are not found. Images
are compared at about 40 px a side.

A smooth generator could hide copies in its blur. So training images are blurred as well, by several
widths, and the lowest ratio counts. Of FLAIR images of 240 px this flags all copies with a blur of
12 px or less (standard deviation), and 95 % of those with 16 px. Without it, it was 35 % at 5 px.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial.distance import cdist
from scipy.stats import betabinom

from hvae_hpc.errors import UserError
from hvae_hpc.metrics.images import Floats, Images

FALSE_ALARMS = 0.05
"""Share of new real images that may be flagged, and of honest generators called copying."""
HALF = 0.5
"""A copy's ratio is below this in any case: half as far from one patient as from the next."""
SHIFT_PX = 3
"""Shifts are searched up to this, in rows and in columns."""
COMPARED_PX = 40
BLURS = (0.0, 1 / 60, 1 / 30, 1 / 20)
"""Standard deviations of the blur under which images are compared, in sides of the image."""
NEXT = 3
"""Cases that the nearest one is compared with. More than one: a patient may be there twice."""


class Features(NamedTuple):
    """What a judge sees: (N, D) of generated, (T, D) of training and (R, D) of held-out images."""

    images: Floats
    train: Floats
    held_out: Floats


class Copies(NamedTuple):
    """What was found of N images.

    Attributes:
        nearest: (N,) index of the training image by which the score is lowest.
        distance: (N,) to that image, without further blur, the least over flip and shifts:
            sqrt(2 - 2 r) of the correlation coefficient r; 0 for the same image, 1.41 for one that
            has nothing to do with it.
        score: (N,) distance over the mean distance to the next nearest cases, 0 to 1; the lowest
            of all blurs, and of the features where there are some.
        threshold: of the score, from real images that the generator did not see.
        flagged: (N,) score below threshold: a copy.
        p_value: probability of as many flagged images or more, if they were as new as those.
    """

    nearest: NDArray[np.int64]
    distance: Floats
    score: Floats
    threshold: float
    flagged: NDArray[np.bool_]
    p_value: float

    @property
    def copying(self) -> bool:
        """Whether the generator copies: more images are flagged than chance explains."""
        return self.p_value < FALSE_ALARMS


def find_copies(
    images: Images,
    train: Images,
    held_out: Images | None,
    train_cases: Sequence[str],
    held_out_cases: Sequence[str] = (),
    features: Features | None = None,
) -> Copies:
    """Compare images with training images, and the outcome with that of held-out real images.

    Let k = floor(0.05 (R + 1)), at least 1. The threshold is the k-th lowest of the R held-out
    scores (split conformal prediction), but at most 0.5. A new real image falls below it with
    probability k / (R + 1) at most: 5 % or less from 19 held-out images on. The number of flagged
    ones among N that are as new follows the beta-binomial law of (N, k, R + 1 - k), or is lower.

    Args:
        images: (N, H, W) in [0, 1], of a generator.
        train: (T, H, W), all that it was trained on.
        held_out: (R, H, W), of cases that are not in train; None compares each training case with
            the others instead, which keeps these probabilities about.
        train_cases, held_out_cases: T and R case ids. Of a held-out case with several images the
            lowest score counts, so that R above is the number of cases.
        features: of all these images, to compare them by as well; not where held_out is None.

    Raises:
        UserError: images of another size or too small, or too few images or cases.

    Source:
        Such ratios: Carlini et al. 2023, Yoon et al. 2023. The threshold: Vovk et al. 2005.
    """
    n = len(images)
    real = train if held_out is None else held_out
    case_ids = np.array(train_cases if held_out is None else held_out_cases)
    cases = np.unique(train_cases, return_inverse=True)[1]
    _require_enough(images, train, real, cases.max() + 1, fewest=3 if held_out is None else 2)
    distances = _measure_blurred(np.concatenate([images, real]), train)
    if features is not None:
        both = np.concatenate([features.images, features.held_out])
        distances = np.concatenate([distances, cdist(both, features.train)[None]])
    if held_out is None:
        distances[:, n:][:, cases[:, None] == cases] = np.inf

    # The lowest score of all comparisons counts.
    by_view = np.stack([_score(of_view, cases, held_out is None) for of_view in distances])
    nearest = distances[by_view.argmin(0)[:n], np.arange(n)].argmin(1)
    score, of_real = np.split(by_view.min(0), [n])

    # The threshold is an order statistic of the held-out cases' scores.
    of_cases = sorted(float(of_real[case_ids == case].min()) for case in np.unique(case_ids))
    k = max(1, int(FALSE_ALARMS * (len(of_cases) + 1)))
    threshold = min(HALF, of_cases[k - 1])
    flagged = score < threshold
    return Copies(
        nearest=nearest,
        distance=distances[0, np.arange(n), nearest],
        score=score,
        threshold=threshold,
        flagged=flagged,
        p_value=float(betabinom.sf(flagged.sum() - 1, n, k, len(of_cases) + 1 - k)),
    )


def _require_enough(
    images: Images,
    train: Images,
    held_out: Images,
    train_cases: int,
    fewest: int,
) -> None:
    """Raise UserError where the images' sizes differ or are too small, or there are too few."""
    sizes = {images.shape[1:], train.shape[1:], held_out.shape[1:]}
    if len(sizes) > 1 or min(images.shape[1:]) < 4 * SHIFT_PX:
        raise UserError(
            f"images of {sorted(sizes)} px; expected one size of {4 * SHIFT_PX} px or more for all"
        )
    if train_cases < fewest or not len(images) or not len(held_out):
        raise UserError(
            f"{len(images)} images, {train_cases} training cases, {len(held_out)} held-out images; "
            f"expected 1, {fewest} and 1 or more to tell copies from new images"
        )


def _score(distances: Floats, cases: NDArray[np.int64], in_turn: bool) -> Floats:
    """Return the distance to the nearest case over the mean one to the next (N,).

    Args:
        in_turn: rows may have their own case, infinitely far; so the farthest one never counts.
    """
    by_case = np.stack([distances[:, cases == case].min(1) for case in range(cases.max() + 1)], 1)
    by_case.sort(axis=1)
    next_ones = by_case[:, 1 : min(1 + NEXT, by_case.shape[1] - in_turn)]
    # Where all images are one, the score is 0.
    return by_case[:, 0] / np.maximum(next_ones.mean(1), 1e-12)


def _measure_blurred(images: Images, train: Images) -> Floats:
    """Return distances (views, N, T), first without blur, then with each of the training images.

    Images are compared as they are, for they may be blurred already, and blurred as well: so are
    the held-out ones, and an honest smooth generator makes images like these.
    """
    views = []
    side = min(images.shape[1:])
    for blur in BLURS:
        sigma = (0, blur * side, blur * side)
        blurred = gaussian_filter(train, sigma)
        views.append(_measure(images, blurred))
        if blur:
            views.append(_measure(gaussian_filter(images, sigma), blurred))
    return np.stack(views)


def _measure(images: Images, train: Images) -> Floats:
    """Return (N, T) distances of images' middles to the nearest window of each training image."""
    shape = images.shape[1:]
    block = max(1, round(min(shape) / COMPARED_PX))
    rows, columns = ((side - 2 * SHIFT_PX) // block for side in shape)
    shifts = [(y, x) for y in range(2 * SHIFT_PX + 1) for x in range(2 * SHIFT_PX + 1)]

    def window(means: Images, y: int, x: int) -> Images:
        """Return blocks (n, pixels) from a corner on, of means around pixels.

        They have mean 0 and norm 1, or are 0 if empty.
        """
        y, x = y + block // 2, x + block // 2
        pixels = means[:, y::block, x::block][:, :rows, :columns].reshape(len(means), -1)
        pixels = pixels - pixels.mean(1, keepdims=True)
        norm = np.linalg.norm(pixels, axis=1, keepdims=True)
        return np.divide(pixels, norm, out=np.zeros_like(pixels), where=norm > 1e-4)

    ours = window(uniform_filter(images, (1, block, block)), SHIFT_PX, SHIFT_PX)
    correlations = np.empty((len(images), len(train)))
    for i, image in enumerate(train):
        both = uniform_filter(np.stack([image, image[:, ::-1]]), (1, block, block))
        windows = np.concatenate([window(both, y, x) for y, x in shifts])
        correlations[:, i] = (ours @ windows.T).max(1)
    return np.sqrt(np.maximum(2 - 2 * correlations, 0))
