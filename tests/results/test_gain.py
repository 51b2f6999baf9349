"""Bounds of what the best pairs gain: choosing does not flatter."""

import numpy as np
import pytest

from hvae_hpc.results.gain import bound_gain, conclude, subtract_blocks
from hvae_hpc.results.statistics import Block


def draw_arms(
    seed: int, means: list[float], seeds: int = 6, cases: int = 30
) -> dict[str, list[Block]]:
    """Draw arms of given means whose seeds, cases and rest differ by chance."""
    random = np.random.default_rng([seed, len(means)])

    def draw(mean: float) -> list[Block]:
        scores = 0.01 * random.normal(size=(1, seeds, 1)) + 0.04 * random.normal(size=(1, 1, cases))
        scores = mean + scores + 0.04 * random.normal(size=(1, seeds, cases))
        return [Block(scores, [f"case{i}" for i in range(cases)])]

    return {f"arm{i}": draw(mean) for i, mean in enumerate(means)}


def test_null_sweeps_of_fifteen_arms_say_neither_yes_nor_no() -> None:
    for seed in range(4):
        _, lows, highs = bound_gain(draw_arms(seed, [0.5] * 11), draw_arms(seed, [0.5] * 4))
        assert max(lows.values()) < 0 < min(highs.values())


def test_the_bounds_hold_the_true_gain_and_find_a_large_one() -> None:
    pairs, free = [0.5] * 10 + [0.62], [0.5, 0.5, 0.51, 0.52]
    bounds = [bound_gain(draw_arms(seed, pairs), draw_arms(seed, free)) for seed in range(4)]
    assert all(lows["arm10"] < 0.1 < highs["arm3"] for _, lows, highs in bounds)
    assert all(min(highs["arm0"], highs["arm1"]) > 0.12 for _, _, highs in bounds)
    assert all(max(lows, key=lows.__getitem__) == "arm10" for _, lows, _ in bounds)
    assert all(lows["arm10"] > 0 for _, lows, _ in bounds)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.001, 0.05, "better"),
        (0.001, 0.019, "equivalent"),
        (-0.019, 0.019, "equivalent"),
        (-0.05, -0.001, "worse"),
        (-0.001, 0.05, "undecided"),
        (-0.05, 0.019, "undecided"),
    ],
)
def test_every_interval_has_one_conclusion(low: float, high: float, said: str) -> None:
    assert conclude(low, high, 0.02) == said


def test_differences_of_an_arm_with_two_trainings_are_of_each_to_the_free_arm() -> None:
    cases = ["a", "b"]
    pairs = [Block(np.arange(8.0).reshape(2, 2, 2), cases, True)]
    free = [Block(np.ones((1, 2, 2)), cases)]
    (difference,) = subtract_blocks(pairs, free)
    assert difference.scores.tolist() == (pairs[0].scores - 1).tolist()
    assert difference.has_trainings


def test_of_two_generators_as_many_trainings_count_as_both_have_by_now() -> None:
    two, three = (Block(np.ones((n, 2, 2)), ["a", "b"], True) for n in (2, 3))
    for one, other in ((two, three), (three, two)):
        (difference,) = subtract_blocks([one], [other])
        assert difference.scores.tolist() == np.zeros((2, 2, 2)).tolist()
