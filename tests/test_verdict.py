"""The verdict: what it says, and that choosing the best arm does not flatter it."""

from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.arms import ArmConfig
from hvae_hpc.plan import read_plan
from hvae_hpc.results.arms_table import score_arms
from hvae_hpc.results.collect import collect
from hvae_hpc.results.verdict import Verdict, cross_estimate, judge
from hvae_hpc.runs import Run
from tests.made_up import SMALL_ARMS, fake_dice, fake_metrics, finish, make_runs, segments, write_plan, write_sweep


def verdict_of(folder: Path, partial: bool = False) -> Verdict:
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan, partial)
    (verdict,) = judge(collected, score_arms(plan, collected))
    return verdict


def test_choosing_among_equal_arms_flatters_the_plain_maximum_and_not_the_cross_estimate() -> None:
    plain, crossed = [], []
    for seed in range(200):
        random = np.random.default_rng(seed)
        cases = random.normal(size=(1, 40))  # shared by all arms, as the reference's scores are
        tables = [0.3 * random.normal(size=(10, 1)) + cases + random.normal(size=(10, 40)) for _ in range(12)]
        plain.append(max(table.mean() - cases.mean() for table in tables))
        estimate, chosen = cross_estimate([table - cases for table in tables])
        assert estimate is not None
        assert len(chosen) == 2
        crossed.append(estimate.mean)
    standard_error = np.std(crossed) / np.sqrt(200)
    assert np.mean(plain) > 0.1
    assert abs(np.mean(crossed)) < 4 * standard_error < 0.05


def test_an_arm_that_is_better_everywhere_is_chosen_by_both_halves_with_its_own_gain() -> None:
    random = np.random.default_rng(0)
    tables = [random.normal(gain, 0.1, (6, 20)) for gain in (0.0, 0.5, 0.1)]
    estimate, chosen = cross_estimate(tables)
    assert chosen == [1, 1]
    halves = [tables[1][1::2, 1::2].mean(), tables[1][::2, ::2].mean()]
    assert estimate is not None
    assert estimate.mean == pytest.approx(np.mean(halves))
    assert cross_estimate([table[:1] for table in tables]) == (None, [])
    assert cross_estimate([table[:, :1] for table in tables]) == (None, [])


def test_the_verdict_names_the_best_arm_its_gain_and_standard_augmentation(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=10)
    verdict = verdict_of(tmp_path)
    assert (verdict.best, verdict.stable, verdict.helps) == ("hvae+300", True, True)
    pairs = zip(segments(runs, "hvae+300"), segments(runs, "reference"), strict=True)
    gains = [fake_dice(arm) - fake_dice(reference) for arm, reference in pairs]
    assert verdict.gain is not None
    assert verdict.gain.mean == pytest.approx(np.mean(gains))  # all of a made-up run's cases differ alike
    assert verdict.sentence.startswith("brats2021: HVAE + 300 raises Dice by 0.")
    assert "against the reference; beyond chance; " in verdict.sentence
    assert "Standard aug. ×5" in verdict.sentence


def test_three_seeds_show_nothing_and_the_verdict_says_so(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=3)
    verdict = verdict_of(tmp_path)
    assert not verdict.helps
    assert "not beyond chance (3 seeds cannot show it among 7 arms: no p is below 1)" in verdict.sentence
    assert "no arm with synthetic pairs differs from Standard aug. ×5 beyond chance" in verdict.sentence


def test_pairs_that_harm_are_said_to(tmp_path: Path) -> None:
    arms = (SMALL_ARMS[0], ArmConfig(name="vae+100", generator="vae", n_synthetic=100))
    runs = make_runs(arms=arms, seeds=8)
    write_plan(tmp_path, runs)
    for run in runs:
        worse = {"dice": 0.3 + 0.01 * run.config.seed} if segments([run], "vae+100") else {}
        finish(tmp_path, run, {**fake_metrics(run), **worse})
    verdict = verdict_of(tmp_path)
    assert verdict.sentence.startswith("brats2021: VAE + 100 lowers Dice by 0.")
    assert verdict.helps is False
    assert "beyond chance" in verdict.sentence
    assert "Standard" not in verdict.sentence


def test_without_a_pair_of_runs_there_is_no_verdict(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return bool(segments([run], "reference"))

    write_sweep(tmp_path, skip=lost)
    verdict = verdict_of(tmp_path, partial=True)
    assert verdict.sentence == "brats2021: no arm with synthetic pairs can be compared with the reference yet."
    write_sweep(tmp_path, seeds=1)
    assert "too few seeds or cases to choose an arm" in verdict_of(tmp_path).sentence


def test_an_arm_with_shuffled_masks_is_never_the_best(tmp_path: Path) -> None:
    shuffled = ArmConfig(name="hvae-shuffled+300", generator="hvae", n_synthetic=300, shuffled=True)
    runs = make_runs(arms=(*SMALL_ARMS, shuffled))
    write_plan(tmp_path, runs)
    for run in runs:
        lucky = {"dice": 0.9} if segments([run], shuffled.name) else {}
        finish(tmp_path, run, {**fake_metrics(run), **lucky})
    assert verdict_of(tmp_path).best == "hvae+300"
