"""Means, standard deviations, intervals and tests: what the ± and the brackets of tables are.

The tests and the bootstrap are our own where scipy has none that draws runs and cases at once.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
INTERVAL = [(1 - 0.95) / 2, (1 + 0.95) / 2]
EXACT_UP_TO = 14
"""Up to so many differences, all ways to flip their signs are tried; of more, 2^14 random ways."""


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class Block(NamedTuple):
    """Scores of several runs on the test cases of one split.

    Attributes:
        scores: (runs, cases).
        cases: their names; the same case may be in several splits.
    """

    scores: NDArray[np.float64]
    cases: Sequence[str]


def bootstrap_mean(blocks: Sequence[Block]) -> Estimate:
    """Return the mean of scores with the 95 % interval of a two-way bootstrap.

    Runs and cases are drawn with replacement, each independently of the other (Owen 2007): ten
    seeds that share 100 test cases are not 1,000 observations. For two arms give the differences of
    paired runs, case by case. With many runs the interval is a little wide, since the noise of
    single cases in single runs counts three times. With few runs it is too narrow, since their
    variance is taken for (n - 1) / n of what it is. It is no test then.

    Args:
        blocks: one per split; a case is drawn for all splits that it is in. The splits themselves
            are not drawn again.
    """
    random = np.random.default_rng(0)
    places, n_cases = _places(blocks)

    # How often each run of each split, and each case, is drawn: (resamples, runs or cases).
    counts = [len(block.scores) for block in blocks]
    of_runs = [random.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in counts]
    of_cases = random.multinomial(n_cases, np.full(n_cases, 1 / n_cases), RESAMPLES)

    means = np.zeros(RESAMPLES)
    for block, runs, index in zip(blocks, of_runs, places, strict=True):
        cases = of_cases.take(index, axis=1)
        # Of a small split it may be that no case was drawn: then all of them count once.
        cases = np.where(cases.any(1, keepdims=True), cases, 1)
        shares = cases / cases.sum(1, keepdims=True)
        means += np.einsum("bc,bc->b", runs @ block.scores, shares) / len(blocks)

    low, high = np.quantile(means, INTERVAL)
    mean = _mean(blocks)
    # Where all scores are alike, rounding may put the ends on one side of the mean.
    return Estimate(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def _mean(blocks: Sequence[Block]) -> float:
    return float(np.mean([block.scores.mean() for block in blocks]))


def _places(blocks: Sequence[Block]) -> tuple[list[NDArray[np.int64]], int]:
    """Return for each split which of all different cases its cases are, and their number."""
    numbers: dict[str, int] = {}
    places = [
        np.array([numbers.setdefault(case, len(numbers)) for case in block.cases])
        for block in blocks
    ]
    return places, len(numbers)


def _shares(blocks: Sequence[Block]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each run, and each different case, adds to the mean; either sums up to it."""
    places, n_cases = _places(blocks)
    of_cases = np.zeros(n_cases)
    for block, index in zip(blocks, places, strict=True):
        of_cases[index] += block.scores.mean(0) / (len(block.cases) * len(blocks))
    of_runs = [block.scores.mean(1) / (len(block.scores) * len(blocks)) for block in blocks]
    return np.concatenate(of_runs), of_cases


def sign_flip_test(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of paired differences that are symmetric about 0.

    The signs of the differences are flipped. It is exact for up to 14 of them: with n, no p is
    below 2 / 2^n, which is 1/16 for 5. Of more, 2^14 random ways are taken, and the one that was
    seen among them.
    """
    n = len(differences)
    if n <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        sums = signs @ differences
    else:
        # Some ways at a time: all signs of thousands of cases would take a gigabyte.
        random, parts = np.random.default_rng(0), 16
        ways = (random.choice([-1.0, 1.0], size=(2**EXACT_UP_TO // parts, n)) for _ in range(parts))
        sums = np.concatenate([signs @ differences for signs in ways])
        sums[0] = differences.sum()

    sizes = np.abs(sums)
    # Ways that are the same but for rounding must not fall on both sides of what was seen.
    return float((sizes >= sizes[0] * (1 - 1e-9)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979).

    By the adjusted ones, the whole family has a false alarm as rarely as a single test.
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def paired_p(blocks: Sequence[Block]) -> float:
    """Return the p-value of two arms being alike: the largest of three tests.

    Two tests flip signs, one over runs and one over cases. A difference that holds for other cases
    but comes from one run's lucky initial weights is none, nor is the reverse. Each of the two
    ignores the other's chance: alone they would alarm in 8 to 13 % of comparisons of arms that are
    alike. The third is a t-test with the variance of both.

    Args:
        blocks: differences of paired runs, one per split.
    """
    of_runs, of_cases = _shares(blocks)
    return max(sign_flip_test(of_runs), sign_flip_test(of_cases), crossed_t_test(blocks))


def crossed_t_test(blocks: Sequence[Block]) -> float:
    """Return the two-sided p-value of a mean of 0, where runs and cases are both drawn by chance.

    The mean's variance is that of the runs' means, plus that of the cases' means, less that of the
    rest, which both contain; it is no less than either alone. Its degrees of freedom are
    Satterthwaite's (1946; a quasi-F after Clark 1973). Splits are as different as the means of
    their runs.

    Args:
        blocks: one per split, at least two runs and two cases in all.
    """
    # Not scipy.stats, whose import takes a second.
    from scipy.special import stdtr

    mean, (of_runs, of_cases) = _mean(blocks), _shares(blocks)
    n_runs, n_cases = len(of_runs), len(of_cases)
    if min(n_runs, n_cases) < 2:
        return 1.0

    # Cases around the mean of their split; what neither run nor case explains, and its freedom.
    centred = np.zeros(n_cases)
    rest, rest_freedom = 0.0, 0
    for block, index in zip(blocks, _places(blocks)[0], strict=True):
        scores = block.scores - block.scores.mean()
        runs, cases = scores.shape
        centred[index] += scores.mean(0) / (cases * len(blocks))
        free = (runs - 1) * (cases - 1)
        residuals = scores - scores.mean(1, keepdims=True) - scores.mean(0)
        rest += float((residuals**2).sum()) / (runs * cases * max(1, free) * len(blocks) ** 2)
        rest_freedom += free

    # Each run around its share of the mean.
    counts = [len(block.scores) for block in blocks]
    weights = np.concatenate([np.full(n, 1 / (n * len(blocks))) for n in counts])
    by_runs = float(((of_runs - mean * weights) ** 2).sum()) * n_runs / (n_runs - 1)
    by_cases = float((centred**2).sum()) * n_cases / (n_cases - 1)

    variance = max(by_runs + by_cases - rest, by_runs, by_cases)
    if variance == 0:
        return float(mean == 0)
    parts = ((by_runs, n_runs - 1), (by_cases, n_cases - 1), (rest, rest_freedom))
    freedom = variance**2 / sum(part**2 / n for part, n in parts if n)
    return float(2 * stdtr(freedom, -abs(mean) / math.sqrt(variance)))


def effect_size(blocks: Sequence[Block]) -> float | None:
    """Return Cohen's d of paired cases: mean over standard deviation (ddof 1) of their differences.

    A case's difference is its mean over runs and splits. None where all are alike.
    """
    by_case = dict[str, list[float]]()
    for block in blocks:
        for case, mean in zip(block.cases, block.scores.mean(0).tolist(), strict=True):
            by_case.setdefault(case, []).append(mean)
    means = np.array([np.mean(of_case) for of_case in by_case.values()])
    spread = float(means.std(ddof=1)) if means.size > 1 else 0.0
    return float(means.mean()) / spread if spread > 0 else None
