"""Mean, standard deviation and intervals against numpy's, against formulas and by simulation."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_t, permutation_test, t, ttest_1samp

from hvae_hpc.results.statistics import (
    Block,
    Summary,
    compare,
    divide_variance,
    draw_largest,
    estimate_mean,
    find_level,
    pool,
    sign_flip_test,
    summarise,
)

Scores = NDArray[np.float64]


def test_the_sd_has_ddof_1() -> None:
    assert summarise([1.0, 2.0, 4.0]) == Summary(n=3, mean=7 / 3, sd=pytest.approx(np.sqrt(7 / 3)))


def test_a_single_value_has_no_sd() -> None:
    assert summarise([0.5]) == Summary(n=1, mean=0.5, sd=None)


def test_nothing_or_a_nan_has_no_summary() -> None:
    assert summarise([]) is None
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


def draw(
    seed: int,
    arms: int = 1,
    splits: int = 1,
    shape: tuple[int, int, int] = (1, 6, 30),
    sds: tuple[float, float, float] = (0.0, 1.0, 1.0),
    of_split: float = 0.0,
    tested: int = 0,
) -> dict[str, list[Block]]:
    """Draw differences of arms to one comparator, with mean 0.

    Args:
        shape: trainings, seeds and cases of each split.
        sds: of the effects of training, seed and case; the rest has 1.
        of_split: sd of the effect of a split.
        tested: different cases in all; 0 where all splits have the same.
    """
    random = np.random.default_rng(seed)
    trainings, seeds, n_cases = shape
    of_training, of_seed, of_case = sds
    of_all = of_case * random.normal(size=(arms + 1, 1, 1, tested or n_cases))
    blocks = {f"arm-{arm}": list[Block]() for arm in range(arms)}
    for _ in range(splits):
        cases = random.choice(of_all.shape[-1], n_cases, replace=False)
        table = (
            of_split * random.normal(size=(arms + 1, 1, 1, 1))
            + of_training * random.normal(size=(arms + 1, trainings, 1, 1))
            + of_seed * random.normal(size=(arms + 1, 1, seeds, 1))
            + of_all[..., cases]
            + random.normal(size=(arms + 1, *shape))
        )
        for arm, of_arm in enumerate(blocks.values()):
            scores = (table[arm + 1] - table[0]) / np.sqrt(2)
            of_arm.append(Block(scores, [f"case-{case}" for case in cases], trainings > 1))
    return blocks


def block(runs: Scores) -> Block:
    """Make a block of (seeds, cases)."""
    return Block(runs[None], [f"case-{i}" for i in range(runs.shape[1])])


def test_one_arm_is_the_plain_t_test_where_only_seeds_or_only_cases_differ() -> None:
    random = np.random.default_rng(1)
    by_seed = np.repeat(random.normal(0.5, 1, (6, 1)), 40, axis=1)
    by_case = np.repeat(random.normal(0.2, 1, (1, 40)), 6, axis=0)
    for table, values in ((by_seed, by_seed[:, 0]), (by_case, by_case[0])):
        plain, ours = ttest_1samp(values, 0), estimate_mean([block(table)])
        assert ours.p == pytest.approx(plain.pvalue, rel=1e-3)
        interval = plain.confidence_interval()
        assert (ours.low, ours.high) == pytest.approx(tuple(interval), rel=1e-3)
        assert ours.freedom == pytest.approx(len(values) - 1)


def test_what_does_not_vary_is_certain_and_what_was_not_repeated_is_unknown() -> None:
    zeros, ones = estimate_mean([block(np.zeros((3, 4)))]), estimate_mean([block(np.ones((3, 4)))])
    assert (zeros.p, zeros.low, zeros.high) == pytest.approx((1, 0, 0), abs=1e-6)
    assert (ones.p, ones.low, ones.high) == pytest.approx((0, 1, 1), abs=1e-6)
    single = estimate_mean([block(np.ones((1, 1)))])
    assert (single.p, single.low, single.high) == (1.0, -np.inf, np.inf)
    assert compare({}) == {}


@pytest.mark.parametrize(
    ("splits", "shape", "has_generator", "missing"),
    [
        (1, (1, 6, 9), False, ("split",)),
        (1, (1, 6, 9), True, ("split", "training")),
        (1, (2, 1, 9), True, ("split", "seed")),
        (1, (2, 3, 1), True, ("split", "case")),
        (2, (1, 1, 9), True, ()),
    ],
)
def test_what_was_not_repeated_is_named(
    splits: int, shape: tuple[int, int, int], has_generator: bool, missing: tuple[str, ...]
) -> None:
    (blocks,) = draw(0, splits=splits, shape=shape).values()
    made = [each._replace(has_trainings=has_generator) for each in blocks]
    assert estimate_mean(made).not_covered == missing


@pytest.mark.parametrize(
    "design",
    [
        {"shape": (1, 8, 20)},
        {"shape": (3, 8, 20), "sds": (1.0, 1.0, 1.0)},
        {"splits": 4, "shape": (2, 3, 20), "of_split": 0.7, "tested": 40},
        {"splits": 4, "shape": (1, 3, 20), "of_split": 0.7},
        {"splits": 6, "shape": (1, 2, 20), "sds": (0.0, 0.1, 0.1), "of_split": 0.1, "tested": 40},
    ],
)
def test_the_standard_error_is_that_of_means_that_are_drawn_anew(design: dict[str, Any]) -> None:
    results = [estimate_mean(draw(seed, **design)["arm-0"]) for seed in range(250)]
    spread = np.std([each.mean for each in results])
    error = np.sqrt(np.mean([each.standard_error**2 for each in results]))
    assert error == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("shape", [(1, 8, 30), (2, 5, 30)])
def test_interval_and_p_agree_and_all_arms_together_rarely_alarm(
    shape: tuple[int, int, int],
) -> None:
    sds = (float(shape[0] > 1), 1.0, 1.0)
    drawn = [compare(draw(seed, arms=15, shape=shape, sds=sds)) for seed in range(80)]
    for each in (each for of_sweep in drawn for each in of_sweep.values()):
        assert (each.p < 0.05) is not (each.low <= 0 <= each.high)
    alarms = [any(each.p < 0.05 for each in of_sweep.values()) for of_sweep in drawn]
    assert np.mean(alarms) < 0.1  # 0.4 where each arm is tested alone


def test_arms_of_one_design_lend_each_other_what_three_splits_cannot_tell() -> None:
    alike = draw(3, arms=15, splits=3, shape=(2, 4, 30), of_split=1.0)
    together, alone = compare(alike)["arm-0"], estimate_mean(alike["arm-0"])
    assert together.mean == alone.mean
    assert alone.freedom < 3 < together.freedom


def test_arms_without_a_generator_do_not_hide_the_chance_of_its_training() -> None:
    varied = draw(3, arms=10, splits=6, shape=(1, 2, 30), of_split=1.0)
    varied = {arm: [b._replace(has_trainings=True) for b in of] for arm, of in varied.items()}
    steady = draw(4, arms=8, splits=6, shape=(1, 2, 30), of_split=0.05)
    steady = {
        f"free {arm}": [b._replace(scores=b.scores / 3) for b in of] for arm, of in steady.items()
    }
    together, apart = compare(varied | steady), compare(varied)
    for arm in varied:  # one pool for all made these a fifth too small
        assert together[arm].standard_error == pytest.approx(apart[arm].standard_error)


def test_splits_that_are_alike_by_chance_do_not_pass_for_many_degrees_of_freedom() -> None:
    (blocks,) = draw(3, splits=3, shape=(2, 4, 30), sds=(0.5, 0.5, 0.2)).values()
    alike = [each._replace(scores=each.scores - each.scores.mean()) for each in blocks]
    (training, seed, case, rest), freedoms = divide_variance(alike)

    # Were 3 splits known not to differ, only their cases would count: the same 30 in all.
    least = (training + seed - rest) / 3
    freedom = (least + case - rest) ** 2 / (
        least**2 / 2 + case**2 / freedoms[2] + rest**2 / freedoms[3]
    )
    assert estimate_mean(alike).freedom == pytest.approx(freedom, rel=0.03)
    assert freedom < 0.2 * freedoms[2]


def test_the_largest_of_equal_t_values_is_dunnett_s() -> None:
    for n, freedom, q in ((2, 10, 2.6), (5, 4, 3.0), (9, 60, 2.9)):
        correlated = multivariate_t(shape=0.5 * np.eye(n) + 0.5, df=freedom, seed=0)
        inside = correlated.cdf(np.full(n, q), lower_limit=np.full(n, -q))
        largest = draw_largest(n, 0.5, freedom)
        assert np.mean(largest > q) == pytest.approx(1 - inside, abs=0.008)
        needed = -t.ppf(find_level(largest, freedom) / 2, freedom)
        assert np.mean(largest > needed) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_the_sign_flip_test_is_scipy_s(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    exact = permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(differences) == pytest.approx(exact.pvalue)


def test_five_seeds_cannot_reach_5_percent_and_six_can() -> None:
    assert sign_flip_test(np.array([1.0, 2, 3, 4, 5])) == 2 / 2**5
    assert sign_flip_test(np.arange(1.0, 7)) == 2 / 2**6 < 0.05 < 2 / 2**5
    assert sign_flip_test(np.zeros(4)) == 1.0


def test_many_differences_are_flipped_at_random_close_to_the_exact_test() -> None:
    differences = np.random.default_rng(4).normal(0.35, 1, 40)
    assert sign_flip_test(differences) == sign_flip_test(differences)
    assert sign_flip_test(differences) == pytest.approx(
        ttest_1samp(differences, 0).pvalue, abs=0.01
    )
