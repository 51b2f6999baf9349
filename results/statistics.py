"""Mean and standard deviation with their count, and intervals: what the ± and the brackets of every table are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000


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
    return Estimate(mean=float(np.mean([scores.mean() for scores in blocks])), low=float(low), high=float(high))
