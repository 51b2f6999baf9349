"""Mean, standard deviation and intervals against numpy's, against formulas and by simulation."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import permutation_test, ttest_1samp

from hvae_hpc.results.statistics import (
    Block,
    Summary,
    bootstrap_mean,
    crossed_t_test,
    effect_size,
    holm,
    paired_p,
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


def scores(
    runs: int, cases: int, seed: int, of_run: float = 1.0, of_case: float = 1.0, rest: float = 1.0
) -> Scores:
    """Draw scores with mean 0 and random effects of run, of case and of both together."""
    random = np.random.default_rng(seed)
    return (
        of_run * random.normal(size=(runs, 1))
        + of_case * random.normal(size=(1, cases))
        + rest * random.normal(size=(runs, cases))
    )


def block(table: Scores, first: int = 0) -> Block:
    """Name the cases of a split by numbers from one on."""
    return Block(table, [f"case-{first + i}" for i in range(table.shape[1])])


def test_the_bootstrap_s_mean_is_the_mean_and_its_interval_holds_it() -> None:
    table = scores(10, 40, 0)
    found = bootstrap_mean([block(table)])
    assert found.mean == pytest.approx(table.mean())
    assert found.low < found.mean < found.high
    assert bootstrap_mean([block(table)]) == found
    assert bootstrap_mean([block(table + 3)]).low == pytest.approx(found.low + 3)


def test_scores_that_differ_by_run_alone_are_as_many_observations_as_runs() -> None:
    by_run, by_case = scores(10, 100, 1, of_case=0, rest=0), scores(10, 100, 1, of_run=0, rest=0)
    for table, n, values in ((by_run, 10, by_run[:, 0]), (by_case, 100, by_case[0])):
        found = bootstrap_mean([block(table)])
        # The bootstrap's standard error of a mean is sd / sqrt(n) with ddof 0; 4,000
        # draws know it to some percent.
        assert (found.high - found.low) / (2 * 1.96) == pytest.approx(
            values.std() / np.sqrt(n), rel=0.1
        )


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    for of_case, rest in ((1.0, 1.0), (0.3, 2.0)):
        tables = [scores(10, 60, seed, of_case=of_case, rest=rest) for seed in range(80)]
        covered = np.mean(
            [
                found.low < 0 < found.high
                for found in (bootstrap_mean([block(table)]) for table in tables)
            ]
        )
        assert 0.84 < covered < 0.99  # treated as 600 observations it would be about a third


def test_splits_are_averaged_and_their_spread_is_not_drawn() -> None:
    one, other = scores(5, 30, 2), scores(5, 30, 3) + 10
    a, b = block(one), block(other, first=30)
    both = bootstrap_mean([a, b])
    assert both.mean == pytest.approx((one.mean() + other.mean()) / 2)
    widths = [found.high - found.low for found in map(bootstrap_mean, ([a], [b], [a, b]))]
    assert widths[2] == pytest.approx(np.hypot(widths[0], widths[1]) / 2, rel=0.1)


def test_equal_scores_have_an_interval_of_no_width() -> None:
    found = bootstrap_mean([block(np.full((4, 7), 0.25))])
    assert (found.low, found.mean, found.high) == pytest.approx((0.25, 0.25, 0.25))


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


@pytest.mark.parametrize(("of_run", "of_case", "rest"), [(0.3, 0.3, 1.0), (0.6, 1.0, 0.1)])
def test_under_no_difference_the_test_alarms_as_rarely_as_it_says(
    of_run: float, of_case: float, rest: float
) -> None:
    tables = [scores(9, 25, seed, of_run, of_case, rest) for seed in range(200)]
    assert np.mean([paired_p([block(table)]) < 0.05 for table in tables]) < 0.065
    error = np.sqrt(of_run**2 / 9 + of_case**2 / 25 + rest**2 / 225)
    shifted = [table + 4 * error for table in tables[:40]]
    assert np.mean([paired_p([block(table)]) < 0.05 for table in shifted]) > 0.8


def test_the_crossed_t_test_is_the_plain_one_where_only_runs_or_only_cases_differ() -> None:
    by_run, by_case = (
        scores(6, 40, 1, of_case=0, rest=0) + 0.5,
        scores(6, 40, 1, of_run=0, rest=0) + 0.2,
    )
    assert crossed_t_test([block(by_run)]) == pytest.approx(ttest_1samp(by_run[:, 0], 0).pvalue)
    assert crossed_t_test([block(by_case)]) == pytest.approx(ttest_1samp(by_case[0], 0).pvalue)
    halves = [block(by_run[:3]), block(by_run[3:])]  # of two splits on the same cases
    assert crossed_t_test(halves) == pytest.approx(ttest_1samp(by_run[:, 0], 0).pvalue)
    assert (
        crossed_t_test([block(np.zeros((3, 4)))]),
        crossed_t_test([block(np.ones((3, 4)))]),
    ) == (1.0, 0.0)
    assert crossed_t_test([block(np.ones((1, 4)))]) == 1.0


def test_the_crossed_t_test_s_variance_is_that_of_means_of_new_runs_and_cases() -> None:
    tables = [scores(8, 30, seed, 0.4, 1.2, 1.0) for seed in range(300)]
    spread = np.std([table.mean() for table in tables])
    p_values = [crossed_t_test([block(table)]) for table in tables]
    assert np.std([table.mean() for table in tables]) == pytest.approx(
        np.sqrt(0.16 / 8 + 1.44 / 30 + 1 / 240), rel=0.1
    )
    assert np.mean([p < 0.317 for p in p_values]) == pytest.approx(
        np.mean([abs(table.mean()) > spread for table in tables]), abs=0.06
    )


def splits_of(
    seed: int, splits: int = 5, runs: int = 3, of_all: int = 80, tested: int = 40
) -> list[Block]:
    """Draw scores, with mean 0, of runs on several draws of test cases from the same ones, which differ much."""
    random = np.random.default_rng(seed)
    of_case = random.normal(size=of_all)
    found = []
    for _ in range(splits):
        cases = random.choice(of_all, tested, replace=False)
        table = (
            of_case[cases]
            + 0.3 * random.normal(size=(runs, 1))
            + 0.5 * random.normal(size=(runs, tested))
        )
        found.append(Block(table, [f"case-{case}" for case in cases]))
    return found


def test_a_case_in_several_splits_is_one_observation() -> None:
    drawn = [splits_of(seed) for seed in range(80)]
    covered = np.mean([found.low < 0 < found.high for found in map(bootstrap_mean, drawn)])
    assert covered > 0.88  # 0.73 where a case counts in each split again
    assert np.mean([paired_p(blocks) < 0.05 for blocks in drawn]) < 0.08
    (same,) = [block(scores(4, 20, 5))]
    assert effect_size([same, same]) == pytest.approx(effect_size([same]))


def test_holm_is_the_step_down_of_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    p_values = np.random.default_rng(0).random(9)
    for adjusted, level in ((holm(list(p_values)), level) for level in (0.05, 0.2, 0.5)):
        rejected: set[int] = (
            set()
        )  # by Holm's own words: the smallest first, until one is not below level / those left
        for rank, index in enumerate(np.argsort(p_values)):
            if p_values[index] > level / (9 - rank):
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_the_effect_size_is_that_of_the_cases_means() -> None:
    table = scores(6, 50, 3) + 1
    of_cases = table.mean(0)
    assert effect_size([block(table)]) == pytest.approx(
        ttest_1samp(of_cases, 0).statistic / np.sqrt(50)
    )
    assert effect_size([block(np.full((3, 4), 0.1))]) is None
    assert effect_size([block(np.zeros((3, 1)))]) is None
