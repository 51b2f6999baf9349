"""The largest of several t-values: what one of them must reach where all arms are looked at.

Dunnett (1955) compares several arms with one control, whose chance they share. His table is for
equal arms. Here each arm has its own degrees of freedom, and the joint chance is a t-copula: arms
depend on one another through a correlation, and through the part of their standard errors that was
estimated together.
"""

import math

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
HIGHEST_CORRELATION = 0.99
MOST_FREEDOM = 1000.0
"""More degrees of freedom make no difference."""


class MaxT:
    """The largest of ``n`` absolute t-values that have one correlation and one standard error.

    ``P(max <= q) = E[(Phi((q s + a z) / b) - Phi((a z - q s) / b))^n]``, with ``a^2`` the
    correlation, ``b^2 = 1 - a^2``, z standard normal, and ``s^2`` chi-squared over its freedom.

    Args:
        n: how many arms.
        correlation: of two arms; below 0 counts as 0.
        freedom: degrees of freedom of what the standard errors share.
    """

    def __init__(self, n: int, correlation: float, freedom: float) -> None:
        # Not scipy.stats, whose import takes a second.
        from scipy.special import gammaincinv

        self.n = n
        self.freedom = min(freedom, MOST_FREEDOM)
        half = self.freedom / 2
        squared = min(max(correlation, 0.0), HIGHEST_CORRELATION)

        # Both integrals as sums over even steps, s^2 on a logarithmic scale.
        z = np.linspace(-7, 7, 57)
        low, high = np.log(gammaincinv(half, np.array([1e-13, 1 - 1e-13])) / half)
        log_s2 = np.linspace(low, high, 61)
        log_density = half * (log_s2 - np.exp(log_s2))
        weights = np.exp(-(z**2) / 2)[:, None] * np.exp(log_density - log_density.max())

        self._weights = weights / weights.sum()
        self._shift = math.sqrt(squared / (1 - squared)) * z[:, None]
        self._scale = np.exp(log_s2 / 2) / math.sqrt(1 - squared)

    def adjust(self, p: float) -> float:
        """Return the chance that any of the arms has a p as small, if none differs."""
        from scipy.special import ndtr, stdtrit

        if self.n == 1:
            return p
        size = -float(stdtrit(self.freedom, p / 2)) * self._scale
        inside = ndtr(self._shift + size) - ndtr(self._shift - size)
        above = -np.expm1(self.n * np.log(np.maximum(inside, np.finfo(float).tiny)))
        # No sum of rounded numbers may make it less than the p of one arm.
        return max(p, min(1.0, float((self._weights * above).sum())))

    def level(self) -> float:
        """Return the p of one arm that adjusts to 0.05."""
        low, high = 0.0, LEVEL
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.adjust(middle) >= LEVEL else (middle, high)
        return high


def mean_correlation(correlations: NDArray[np.float64]) -> float:
    """Return the mean correlation of two different arms, from the matrix of all; 0 for one."""
    n = len(correlations)
    others = correlations[~np.eye(n, dtype=bool)]
    return float(others.mean()) if n > 1 else 0.0
