"""Set measures against double loops, known distances of Gaussians, hand-made sets, and a generator that repeats itself."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import comb

from hvae_hpc.errors import UserError
from hvae_hpc.metrics.image_sets import (
    Measurement,
    average,
    compare_features,
    compare_statistics,
    describe_masks,
    polynomial_kernel,
    unbiased_mmd,
    vendi_score,
)


def names(n: int) -> list[str]:
    return [f"c{i}" for i in range(n)]


def compare(ours: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    found = compare_features(ours, real, k, names(len(ours)), names(len(real)))
    assert all(one.low <= one.value <= one.high for one in found.values())
    return {name: one.value for name, one in found.items()}


def kid(ours: np.ndarray, real: np.ndarray) -> float:
    return unbiased_mmd(
        *(polynomial_kernel(a, b) for a, b in ((ours, ours), (ours, real), (real, real)))
    )


def gaussians(random: np.random.Generator, n: int, d: int = 1, shift: float = 0.0) -> np.ndarray:
    return random.normal(shift, 1, (n, d))


def test_kid_is_the_double_loop_over_all_pairs() -> None:
    random = np.random.default_rng(0)
    x, y = gaussians(random, 7, 3), gaussians(random, 5, 3, 0.4)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3)

    xx = sum(k(a, b) for a, b in itertools.permutations(x, 2)) / (7 * 6)
    yy = sum(k(a, b) for a, b in itertools.permutations(y, 2)) / (5 * 4)
    xy = sum(k(a, b) for a in x for b in y) / (7 * 5)
    assert kid(x, y) == pytest.approx(xx + yy - 2 * xy)
    assert compare(x, y, 3)["kid"] == pytest.approx(kid(x, y))


def true_kid(d: int, shift: float) -> float:
    """Return the kernel distance of N(shift, 1) and N(0, 1) in d dimensions, from the moments of x.y."""

    def mean_kernel(a: float, b: float) -> float:
        p, q, r = (
            a * b,
            (a**2 + 1) * (b**2 + 1),
            (a**3 + 3 * a) * (b**3 + 3 * b),
        )  # moments of a product of coordinates
        first, second = d * p, d * q + d * (d - 1) * p**2
        third = d * r + 3 * d * (d - 1) * q * p + d * (d - 1) * (d - 2) * p**3
        return third / d**3 + 3 * second / d**2 + 3 * first / d + 1

    return mean_kernel(shift, shift) + mean_kernel(0, 0) - 2 * mean_kernel(shift, 0)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kid_of_few_images_is_right_on_average(shift: float) -> None:
    random = np.random.default_rng(1)
    values = [kid(gaussians(random, 10, 2, shift), gaussians(random, 14, 2)) for _ in range(4000)]
    error = np.std(values) / math.sqrt(len(values))
    assert np.mean(values) == pytest.approx(true_kid(2, shift), abs=4 * error)
    assert error < 0.1


def test_neighbourhoods_of_hand_made_sets() -> None:
    real = np.array([[0.0], [1.0], [2.0], [10.0]])  # nearest neighbours at 1, 1, 1 and 8
    ours = np.array([[0.5], [1.5], [30.0]])  # at 1, 1 and 28.5
    found = compare(ours, real, 1)
    assert found["precision"] == pytest.approx(2 / 3)  # 30 is in no ball
    assert (
        found["recall"] == 1.0
    )  # 10 is in the wide ball around 30, which is why coverage was invented
    assert found["density"] == pytest.approx((2 + 2) / 3)
    assert found["coverage"] == pytest.approx(3 / 4)  # the ball of 10 begins at 2
    assert (
        found["duplicates"] == 0.0
    )  # the real ones lie 1 apart, ours 1 or more; alike is half of that
    assert compare(np.array([[0.5], [0.9], [30.0]]), real, 1)["duplicates"] == pytest.approx(2 / 3)


def test_a_set_against_itself_and_against_one_far_away() -> None:
    x = gaussians(np.random.default_rng(2), 30, 4)
    same = compare(x, x.copy(), 3)
    assert (same["precision"], same["recall"], same["coverage"]) == (1.0, 1.0, 1.0)
    assert same["density"] == pytest.approx(
        4 / 3
    )  # each point, and the three neighbours whose balls it is in
    away = compare(x + 100, x, 3)
    assert (away["precision"], away["recall"], away["density"], away["coverage"]) == (
        0.0,
        0.0,
        0.0,
        0.0,
    )
    assert away["kid"] > 1e6
    assert away["distinct"] == pytest.approx(
        same["distinct"]
    )  # how different ours are has nothing to do with where


def test_density_and_coverage_of_equal_distributions_are_what_they_must_be() -> None:
    random, n, k = np.random.default_rng(3), 25, 4
    found = [compare(gaussians(random, n, 5), gaussians(random, n, 5), k) for _ in range(60)]
    density, coverage = (np.array([one[name] for one in found]) for name in ("density", "coverage"))
    assert density.mean() == pytest.approx(1, abs=4 * density.std() / math.sqrt(60))
    # Naeem et al. 2020: that none of n others is nearer than the k-th of n - 1 is a matter of
    # ranks alone.
    expected = 1 - comb(n - 1, k) / comb(2 * n - 1, k)
    assert coverage.mean() == pytest.approx(expected, abs=4 * coverage.std() / math.sqrt(60))
    assert np.mean([one["duplicates"] for one in found]) < 0.05


def test_a_generator_that_makes_one_or_two_pictures_is_called_out() -> None:
    random = np.random.default_rng(4)
    real = gaussians(random, 50, 6)
    for pictures in (1, 2):
        ours = np.repeat(gaussians(random, pictures, 6), 50 // pictures, axis=0)
        found = compare(ours + random.normal(0, 0.01, ours.shape), real, 5)
        assert found["duplicates"] == 1.0
        assert found["distinct"] == pytest.approx(pictures, abs=0.02)
        assert found["coverage"] < 0.5
    honest = compare(gaussians(random, 50, 6), real, 5)
    assert honest["duplicates"] < 0.1
    assert honest["distinct"] > 30


def test_slices_of_one_case_are_no_duplicates_and_are_left_out_together() -> None:
    random = np.random.default_rng(5)
    middle = gaussians(random, 20, 6)
    slices = np.repeat(middle, 2, axis=0) + random.normal(0, 0.01, (40, 6))
    cases = [f"c{i // 2}" for i in range(40)]
    by_case = compare_features(slices, slices, 5, cases, cases)
    assert by_case["duplicates"].value == 0.0
    assert compare_features(slices, middle, 5, names(40), names(20))["duplicates"].value == 1.0
    values = gaussians(random, 20)[:, 0]
    twice = average("x", np.repeat(values, 2), cases)["x"]
    once = average("x", values, names(20))["x"]
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_the_vendi_score_counts_pictures() -> None:
    points = np.array([0.0, 0.0, 50.0, 50.0, 100.0, 100.0])
    assert vendi_score(np.abs(points[:, None] - points), 1.0) == pytest.approx(3)
    assert vendi_score(np.zeros((6, 6)), 1.0) == pytest.approx(1)


def test_the_interval_of_a_mean_is_the_textbook_s() -> None:
    values = gaussians(np.random.default_rng(6), 25)[:, 0]
    found = average("x", values, names(25))["x"]
    half = 1.959964 * values.std(ddof=1) / 5
    assert (found.low, found.value, found.high) == pytest.approx(
        (values.mean() - half, values.mean(), values.mean() + half)
    )


def test_the_interval_of_a_share_is_wilson_s_and_never_empty() -> None:
    def share(hits: int) -> Measurement:
        return average("copies", np.array([1.0] * hits + [0.0] * (100 - hits)), names(100))[
            "copies"
        ]

    # Wilson 1927 for 10 of 100; the jackknife divides by 99 where a plain share divides by 100.
    assert (share(10).low, share(10).high) == pytest.approx((0.0552, 0.1744), abs=2e-3)
    assert (share(0).low, share(0).high) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert (share(100).low, share(100).high) == pytest.approx((0.9630, 1.0), abs=1e-4)


def test_intervals_hold_the_truth_in_95_of_100_draws_or_about() -> None:
    random, ids = np.random.default_rng(7), names(40)
    found = [
        compare_features(gaussians(random, 40, 8, 0.5), gaussians(random, 40, 8), 5, ids, ids)
        for _ in range(60)
    ]
    # KID's expectation is known; that of the others at 40 images is estimated from all draws.
    truth = {name: float(np.mean([one[name].value for one in found])) for name in found[0]} | {
        "kid": true_kid(8, 0.5)
    }
    held = {
        name: np.mean([one[name].low <= truth[name] <= one[name].high for one in found])
        for name in truth
    }
    assert min(held.values()) >= 0.85, held  # 0.95 less three and a half standard errors
    widths = {name: np.mean([one[name].high - one[name].low for one in found]) for name in truth}
    spreads = {name: np.std([one[name].value for one in found]) for name in truth}
    assert all(widths[name] < 2.5 * 3.92 * spreads[name] for name in truth), (
        widths,
        spreads,
    )  # and are not just wide


def test_too_few_images_for_the_neighbours_are_refused() -> None:
    x = gaussians(np.random.default_rng(9), 6)
    with pytest.raises(
        UserError,
        match=r"6 images to measure of 6 cases are too few for quality.nearest = 5; lower it",
    ):
        compare_features(x, x, 5, names(6), names(6))
    with pytest.raises(UserError, match="6 real images of 2 cases are too few"):
        compare_features(x, x, 3, names(6), ["a", "a", "a", "a", "b", "b"])


def test_masks_are_described_by_area_parts_and_centre() -> None:
    masks = np.zeros((3, 8, 12), bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 0, 0] = masks[1, 1, 1] = masks[1, 6, 6] = (
        True  # corner to corner is one part of 8-connected pixels
    )
    found = describe_masks(masks)
    assert found["area"].tolist() == [8, 3, 0]
    assert found["components"].tolist() == [1, 2, 0]
    assert found["row"].tolist() == pytest.approx([1.5, 7 / 3, 3.5])
    assert found["column"].tolist() == pytest.approx(
        [3.5, 7 / 3, 5.5]
    )  # an empty mask's: the image's centre


def test_masks_that_are_moved_or_grown_are_apart_by_that() -> None:
    masks = np.zeros((6, 16, 16), bool)
    for i in range(6):
        masks[i, 4 : 6 + i, 3:7] = True
    moved = np.roll(masks, 5, axis=2)
    found = compare_statistics(describe_masks(moved), describe_masks(masks), names(6), names(6))
    assert [found[name].value for name in ("area", "components", "row", "column")] == pytest.approx(
        [0, 0, 0, 5]
    )
    grown = masks.copy()
    grown[:, 15, 15] = True
    found = compare_statistics(describe_masks(grown), describe_masks(masks), names(6), names(6))
    assert (found["area"].value, found["components"].value) == pytest.approx((1, 1))
    assert all(one.low >= 0 for one in found.values())
