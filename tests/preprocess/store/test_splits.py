"""Draws of cases."""

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.splits import draw_split

CASES = [f"case{number:03d}" for number in range(100)]


def test_the_draw_is_the_same_on_every_machine_and_python():
    # Written down once: a change here changes every run id of every study.
    split = draw_split([f"c{number}" for number in range(8)], train=3, test=2, seed=0)
    assert split.train == ("c4", "c3", "c6")
    assert split.test == ("c5", "c2")


def test_the_order_of_the_cases_does_not_matter():
    assert draw_split(CASES, 40, 40, seed=3) == draw_split(CASES[::-1], 40, 40, seed=3)


def test_no_case_is_in_both_parts_and_both_are_full():
    split = draw_split(CASES, 60, 40, seed=1)
    assert len(split.train) == 60
    assert len(split.test) == 40
    assert set(split.train) | set(split.test) == set(CASES)


@pytest.mark.parametrize("seed", range(5))
def test_one_more_case_moves_at_most_one_case_out_of_each_part(seed):
    before, after = draw_split(CASES, 40, 40, seed), draw_split([*CASES, "new"], 40, 40, seed)
    assert len(set(before.train) - set(after.train)) <= 1
    assert len(set(before.test) - set(after.test)) <= 1


def test_every_case_is_drawn_for_training_equally_often():
    cases, draws = CASES[:20], 400
    drawn = [draw_split(cases, 10, 5, seed).train for seed in range(draws)]
    counts = [sum(case in train for train in drawn) for case in cases]
    assert min(counts) > 150  # 200 expected, standard deviation 10
    assert max(counts) < 250


def test_another_seed_is_another_draw():
    assert draw_split(CASES, 40, 40, seed=0) != draw_split(CASES, 40, 40, seed=1)


def test_too_few_cases_are_told_with_got_and_wanted():
    with pytest.raises(
        UserError, match=r"has 100 cases, the split asks for 101 \(61 to train, 40 to test\)"
    ):
        draw_split(CASES, 61, 40, seed=0)


def test_the_split_that_is_offered_has_cases_to_judge_pairs_in_both_parts():
    with pytest.raises(UserError, match=r"or give split = \{train = 13, test = 7\}"):
        draw_split(CASES[:20], 150, 50, seed=0)


def test_a_case_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        draw_split(["a", "b", "a"], 1, 1, seed=0)
