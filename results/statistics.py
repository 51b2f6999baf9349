"""Mean and standard deviation with their count: what the ± of every table and figure is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


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
