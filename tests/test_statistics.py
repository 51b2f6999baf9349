"""Mean and standard deviation against numpy's and against hand-made cases."""

import numpy as np
import pytest

from hvae_hpc.results.statistics import Summary, pool, summarise


def test_the_sd_has_ddof_1() -> None:
    assert summarise([1.0, 2.0, 4.0]) == Summary(n=3, mean=7 / 3, sd=pytest.approx(np.sqrt(7 / 3)))


def test_a_single_value_has_no_sd() -> None:
    assert summarise([0.5]) == Summary(n=1, mean=0.5, sd=None)


def test_nothing_or_a_nan_has_no_summary() -> None:
    with pytest.raises(AssertionError):
        summarise([])
    with pytest.raises(AssertionError):
        summarise([0.5, float("nan")])


def test_pooling_parts_equals_the_summary_of_all_their_values() -> None:
    values = np.random.default_rng(0).normal(13, 2, 24)
    parts = [summarise(part) for part in (values[:10], values[10:11], values[11:])]
    pooled, whole = pool(parts), summarise(values)
    assert pooled.n == whole.n
    assert (pooled.mean, pooled.sd) == pytest.approx((whole.mean, whole.sd), rel=1e-12)


def test_one_part_is_passed_on_untouched() -> None:
    one = Summary(n=10, mean=13.1, sd=0.04)
    assert pool([one]) is one
