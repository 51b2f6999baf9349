"""Mean and standard deviation with their count, and intervals: what the ± and the brackets of every table are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
EXACT_UP_TO = 14
"""Differences whose signs are flipped in all ways; of more, in as many random ways as these have."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A sample's size, mean and standard deviation (ddof 1), which is None for a single value."""

    n: int
    mean: float
    sd: float | None


def summarise(values: Iterable[float]) -> Summary:
    """Return size, mean and standard deviation (ddof 1) of at least one finite number."""
    array = np.asarray(list(values), dtype=float)
    assert array.size > 0, "a summary of nothing"
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
    squares = sum((part.n - 1) * (part.sd or 0.0) ** 2 + part.n * (part.mean - mean) ** 2 for part in parts)
    return Summary(n=n, mean=mean, sd=math.sqrt(squares / (n - 1)))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(blocks: Sequence[NDArray[np.float64]], level: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean of scores of several runs on the same cases, with the interval of a two-way bootstrap.

    Runs and cases are drawn with replacement, each independently of the other (Owen 2007): ten seeds that share 100
    test cases are not 1,000 observations. For two arms give the differences of paired runs, case by case. With many
    runs the interval is a little wide, since the noise of single cases in single runs counts three times; with few it
    is narrow in what it says of runs, whose variance it takes for (n - 1) / n of what it is: no test then.

    Args:
        blocks: one matrix (runs, cases) per split of the cases; the splits themselves are not drawn again.
        level: of the interval.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for scores in blocks:
        runs, cases = (random.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in scores.shape)
        means += np.einsum("bc,bc->b", runs @ scores, cases) / len(blocks)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.mean([scores.mean() for scores in blocks]))
    # Where all scores are alike, rounding may put the ends on one side of the mean.
    return Estimate(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def sign_flip_test(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Return the two-sided p-value of paired differences being symmetric about 0, by flipping their signs.

    Exact for up to 14 differences: with n of them no p is below 2 / 2^n, which is 1/16 for 5. Of more than that, a
    random 2^14 of the ways are taken, the one that was seen among them.
    """
    n = len(differences)
    if n <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(2**EXACT_UP_TO, n))
        signs[0] = 1.0
    means = np.abs(signs @ differences)
    # Ways that are the same but for rounding must not fall on both sides of what was seen.
    return float((means >= means[0] * (1 - 1e-9)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979): by them the whole family has one false alarm as rarely."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def paired_p(blocks: Sequence[NDArray[np.float64]]) -> float:
    """Return the p-value of two arms being alike: the larger of two sign-flip tests, over runs and over cases.

    A difference that holds for other cases but is one of lucky initial weights, or the reverse, is thus none.

    Args:
        blocks: differences of paired runs (runs, cases), one matrix per split.
    """
    over_runs = np.concatenate([block.mean(1) for block in blocks])
    over_cases = np.concatenate([block.mean(0) for block in blocks])
    return max(sign_flip_test(over_runs), sign_flip_test(over_cases))


def effect_size(blocks: Sequence[NDArray[np.float64]]) -> float | None:
    """Return Cohen's d of paired cases: mean over standard deviation (ddof 1) of the cases' mean differences."""
    of_cases = np.concatenate([block.mean(0) for block in blocks])
    spread = float(of_cases.std(ddof=1)) if of_cases.size > 1 else 0.0
    return float(of_cases.mean()) / spread if spread > 0 else None
