"""Means, standard deviations, intervals and tests: what the ± and the brackets of tables are.

One model gives intervals and p: crossed random effects of splits, trainings, seeds and cases.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.frozen import frozen

Scores = NDArray[np.float64]
LEVEL = 0.05
SOURCES = ("training", "seed", "case")
"""The axes of a block's scores."""
PARTS = ("split", *SOURCES)
PRIORS, ROUNDS = 2.0 ** np.arange(-1, 13), 30
"""Degrees of freedom of a prior that are tried, and rounds in which its scale settles."""
DRAWS, MOST_FREEDOM, TINY = 19_999, 1000.0, 1e-18
EXACT_UP_TO = 14
"""Up to so many differences, all ways to flip their signs are tried; of more, 2^14 random ways."""


@frozen
class Summary:
    """A sample's size, mean and standard deviation (ddof 1), which is None for a single value."""

    n: int
    mean: float
    sd: float | None


def summarise(values: Iterable[float]) -> Summary | None:
    """Return size, mean and standard deviation (ddof 1) of finite numbers; None of none."""
    array = np.asarray(list(values), dtype=float)
    if not array.size:
        return None
    assert np.isfinite(array).all(), "collect() lets only finite values through"
    sd = float(array.std(ddof=1)) if array.size > 1 else None
    return Summary(n=array.size, mean=float(array.mean()), sd=sd)


def pool(parts: Iterable[Summary]) -> Summary:
    """Return the summary of all values together, given the summaries of at least one part.

    ``n = sum n_i``, ``mean = sum n_i mean_i / n``,
    ``(n - 1) sd^2 = sum (n_i - 1) sd_i^2 + n_i (mean_i - mean)^2``.
    """
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    mean = sum(part.n * part.mean for part in parts) / n
    squares = sum(
        (part.n - 1) * (part.sd or 0.0) ** 2 + part.n * (part.mean - mean) ** 2 for part in parts
    )
    return Summary(n=n, mean=mean, sd=math.sqrt(squares / (n - 1)))


class Block(NamedTuple):
    """Scores of several runs on the test cases of one split.

    Attributes:
        scores: (generator trainings, U-Net seeds, cases); an arm without generator has one.
        cases: their names; the same case may be in several splits.
        has_trainings: whether the arm has a generator.
        seeds: of the U-Nets, with the split's.
    """

    scores: Scores
    cases: Sequence[str]
    has_trainings: bool = False
    seeds: Sequence[object] = ()


@frozen
class Comparison:
    """A mean with its 95 % interval and p, which agree: p is below 0.05 where 0 is outside.

    Attributes:
        mean, low, high: the mean and the ends of its interval.
        p: two-sided, of a mean of 0. It and the interval allow for all arms that were compared.
        standard_error: of the mean; infinite where nothing was repeated.
        freedom: degrees of freedom of the standard error.
        not_covered: which of "split", "training", "seed" and "case" were not repeated. The interval
            says nothing about another one.
    """

    mean: float
    low: float
    high: float
    p: float
    standard_error: float
    freedom: float
    not_covered: tuple[str, ...]


def estimate_mean(blocks: Sequence[Block]) -> Comparison:
    """Return the mean of one arm's scores, with the interval and p of one arm alone."""
    return compare({"": blocks})[""]


def compare(differences: Mapping[str, Sequence[Block]]) -> dict[str, Comparison]:
    """Return each arm's mean difference, with intervals and p that allow for all arms.

    Splits, generator trainings and U-Net seeds within a split, and cases are drawn by chance
    (crossed random effects). The variance of a mean is a sum of mean squares, and its degrees of
    freedom are Satterthwaite's (1946). Arms lend each other the variance of their draws
    (:func:`_pool`). The largest t of all arms decides (Dunnett 1955).

    Args:
        differences: each arm's scores less those of its comparator, a block per split.
    """
    # Not scipy.stats, whose import takes a second.
    from scipy.special import stdtr, stdtrit

    if not differences:
        return {}
    of_arms = list(differences.values())
    means = np.array([split_means(blocks).mean() for blocks in of_arms])
    of_parts, of_freedoms, least = zip(*map(_list_parts, of_arms), strict=True)
    parts, freedoms = np.array(of_parts), np.array(of_freedoms)
    covered = np.column_stack([[len(blocks) > 1 for blocks in of_arms], freedoms[:, :3]])
    correlation, squared = _correlate([blocks[0] for blocks in of_arms])

    # An arm without a generator lacks the chance of its training: it lends others nothing.
    common = np.zeros_like(means)
    trained = np.array([blocks[0].has_trainings for blocks in of_arms])
    for kind in trained, ~trained:
        pooled = _pool(parts[kind, 1], freedoms[kind, 1], squared[kind][:, kind])
        parts[kind, 1], freedoms[kind, 1], common[kind] = pooled

    # No part is known to be 0 for sure.
    variances = np.maximum(_add(parts), TINY)
    errors = np.sqrt(np.where(freedoms[:, 1:3].any(1), variances, np.inf))
    # Few splits that are alike by chance must not pass for the many degrees of freedom of cases.
    weights = np.column_stack([parts[:, 0], np.maximum(parts[:, 1], np.mean(least)), parts[:, 2:]])
    squares = (weights**2 / np.maximum(freedoms, 1)).sum(1)
    freedom = np.maximum(_add(weights), TINY) ** 2 / np.maximum(squares, TINY**2)
    freedom[np.isinf(errors)] = 1

    # Each arm's p and interval as if alone, then by the largest t of all arms (a t-copula).
    shared = 2 / max(2 / MOST_FREEDOM, float(((parts[:, 1] / variances) ** 2 * common).mean()))
    largest = draw_largest(len(means), correlation, shared)
    p = 2 * stdtr(freedom, -abs(means) / errors)
    above = DRAWS - np.searchsorted(largest, -stdtrit(shared, p / 2))
    p = np.maximum(p, (above + 1) / (DRAWS + 1)) if len(means) > 1 else p
    half = -stdtrit(freedom, find_level(largest, shared) / 2) * errors
    return {
        arm: Comparison(
            mean=float(means[i]),
            low=float(means[i] - half[i]),
            high=float(means[i] + half[i]),
            p=float(p[i]),
            standard_error=float(errors[i]),
            freedom=float(freedom[i]),
            not_covered=tuple(
                name for name, free in zip(PARTS, covered[i], strict=True) if not free
            ),
        )
        for i, arm in enumerate(differences)
    }


def split_means(blocks: Sequence[Block]) -> Scores:
    """Return the mean of every split."""
    return np.array([block.scores.mean() for block in blocks])


def divide_variance(blocks: Sequence[Block]) -> tuple[Scores, Scores]:
    """Return what each source adds to the variance of a split's mean, by mean squares.

    A source's part is the variance of its means (ddof 1) over their number. Each part includes the
    rest once. So the variance of the mean is the sum of the parts, less the rest for each source
    but one.

    Returns:
        For SOURCES and the rest, the mean over splits, and degrees of freedom of all splits. Both
        are 0 for what was not repeated.
    """
    of_splits = []
    for block in blocks:
        rest = block.scores - block.scores.mean()
        variances, freedoms = [], []
        for axis, n in enumerate(rest.shape):
            means = rest.mean(tuple({0, 1, 2} - {axis}), keepdims=True)
            rest = rest - means
            variances.append((means**2).sum() / (n * max(1, n - 1)))
            freedoms.append(n - 1)
        freedoms.append(rest.size - 1 - sum(freedoms))
        variances.append((rest**2).sum() / (rest.size * max(1, freedoms[-1])))
        of_splits.append((variances, freedoms))
    table = np.array(of_splits, dtype=float)
    return table[:, 0].mean(0), table[:, 1].sum(0)


def share_cases(blocks: Sequence[Block]) -> float:
    """Return what part of the variance of cases two splits have in common."""
    cases = [set(block.cases) for block in blocks]
    common = [len(one & other) / (len(one) * len(other)) for one, other in combinations(cases, 2)]
    return float(np.mean(common) / np.mean([1.0 / len(of_split) for of_split in cases]))


def _add(parts: Scores) -> Scores:
    """Return the variances of means: chance may make a sum less than one of its parts."""
    return np.maximum(parts[:, :3].sum(1) - parts[:, 3], parts[:, :3].max(1))


def _list_parts(blocks: Sequence[Block]) -> tuple[Scores, Scores, float]:
    """Return the parts of the variance of an arm's mean, and their degrees of freedom.

    They are of trainings, of draws (splits, or the runs of one split), of cases, and what ``_add``
    subtracts. A part that does not exist, or lies within splits, is 0 with a freedom of 1.

    Returns:
        The parts; their freedoms; and the least part of splits: what trainings and seeds alone
        would make of it, by the scores within splits.
    """
    (training, seed, case, rest), freedoms = divide_variance(blocks)
    if len(blocks) == 1:
        twice = rest * max(0, np.count_nonzero(freedoms[:3]) - 1)
        if freedoms[:2].all() and seed + training > 0:
            # Two trainings tell little alone, so they are pooled as a part of the draws.
            squares = seed**2 / freedoms[1] + training**2 / freedoms[0]
            seed, training = seed + training, 0.0
            freedoms[1] = seed**2 / squares
        freedoms[0] = freedoms[0] if blocks[0].has_trainings else 1
        return np.array([training, seed, case, twice]), freedoms, 0.0

    # Splits do not differ by the cases that they share: these are left for the part of cases.
    means, share = split_means(blocks), share_cases(blocks)
    of_cases, free = max(0.0, case - rest), freedoms[2]
    if of_cases:
        free = of_cases**2 / (case**2 / freedoms[2] + rest**2 / max(1, freedoms[3]))
    parts = np.array([0.0, means.var(ddof=1) / len(means), share * of_cases, 0.0])
    least = (training + seed - rest * freedoms[:2].all()) / len(means)
    return parts, np.array([1, len(means) - 1, free, 1]), least


def _correlate(blocks: Sequence[Block]) -> tuple[float, Scores]:
    """Return the mean correlation of two arms over cases, and the squares of all (arms, arms).

    Where cases cannot tell, these are 0 and 1, which make no p too small.

    Args:
        blocks: each arm's first split, of which the first training counts.
    """
    n = len(blocks)
    if n == 1 or any(block.cases != blocks[0].cases for block in blocks):
        return 0.0, np.ones((n, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlations = np.corrcoef([block.scores[0].mean(0) for block in blocks])
    mean = (np.nan_to_num(correlations).sum() - n) / (n * (n - 1))
    return float(np.clip(mean, 0, 1)), np.nan_to_num(correlations**2, nan=1.0)


def _pool(own: Scores, freedoms: Scores, squared: Scores) -> tuple[Scores, Scores, float]:
    """Return arms' variances drawn to a common one, as far as they look alike (Smyth 2004).

    The true variances are taken as draws of a scaled inverse chi-squared distribution, so that
    estimates over its scale have an F distribution. Its scale and degrees of freedom are the
    likeliest. A pooled variance is the mean of the scale and of the arm's own, weighted by the
    degrees of freedom of each.

    Args:
        own: (arms,), variances.
        freedoms: (arms,), theirs.
        squared: (arms, arms), squared correlations. The scale has so much of the chance of one
            arm's variance as their mean says, from 1 / number of arms to 1.

    Returns:
        The variances, their freedoms, and the relative variance that all have in common.
    """
    from scipy.special import betaln

    if len(own) < 2 or not own.all() or not freedoms.all():
        return own, freedoms, 0.0
    priors = PRIORS[:, None]
    scales = np.full_like(priors, own.mean())
    for _ in range(ROUNDS):
        weights = (freedoms + priors) / (freedoms * own / scales + priors)
        scales = (weights * own).mean(1, keepdims=True)
    ratios = freedoms / priors / scales
    logs = freedoms * np.log(ratios) - (freedoms + priors) * np.log1p(ratios * own)
    best = int((logs / 2 - betaln(freedoms / 2, priors / 2)).mean(1).argmax())

    weight = PRIORS[best] / (PRIORS[best] + freedoms)
    common = weight**2 * squared.mean() * 2 / freedoms
    pooled = weight * scales[best] + (1 - weight) * own
    return pooled, 2 / (2 / (PRIORS[best] + freedoms) + common), float(common.mean())


def draw_largest(n_arms: int, correlation: float, freedom: float) -> Scores:
    """Return many draws, sorted, of the largest absolute t of arms of which none differs.

    Args:
        n_arms: how many.
        correlation: of two of them.
        freedom: degrees of freedom of what their standard errors share.
    """
    chi_squared = np.random.default_rng(1).chisquare(freedom, DRAWS)
    return np.sort(_draw_normal(n_arms, correlation) / np.sqrt(chi_squared / freedom))


@lru_cache(maxsize=4)
def _draw_normal(n_arms: int, correlation: float) -> Scores:
    """Return draws of the largest absolute value of correlated normal ones."""
    normal = np.random.default_rng(0).normal(size=(DRAWS, n_arms + 1))
    values = math.sqrt(correlation) * normal[:, :1] + math.sqrt(1 - correlation) * normal[:, 1:]
    return abs(values).max(1)


def find_level(largest: Scores, freedom: float) -> float:
    """Return the p that one arm needs, given the largest t of all; at most 0.05."""
    from scipy.special import stdtr

    return min(LEVEL, 2 * float(stdtr(freedom, -largest[1 - round(LEVEL * (DRAWS + 1))])))


def sign_flip_test(differences: Scores) -> float:
    """Return the two-sided p-value of paired differences that are symmetric about 0.

    The signs of the differences are flipped. It is exact for up to 14 of them: with n, no p is
    below 2 / 2^n, which is 1/16 for 5. Of more, 2^14 random ways are taken, and the one that was
    seen among them.
    """
    n = len(differences)
    if n <= EXACT_UP_TO:
        ways = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        ways = np.random.default_rng(0).integers(2, size=(2**EXACT_UP_TO, n))
        ways[0] = 0
    sizes = abs((1.0 - 2.0 * ways) @ differences)
    # Ways that are the same but for rounding must not fall on both sides of what was seen.
    return float((sizes >= sizes[0] * (1 - 1e-9)).mean())
