"""The verdict: what it says, and that choosing the best arm does not flatter it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.scores import ArmScores, score_arms
from hvae_hpc.results.statistics import Estimate
from hvae_hpc.results.tables.verdict import (
    _describe_chance,
    _describe_gain,
    cross_estimate,
    judge,
)
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import (
    SMALL_ARMS,
    fake_dice,
    fake_metrics,
    finish,
    make_runs,
    segments,
    write_plan,
    write_sweep,
)


def verdict_of(folder: Path) -> str:
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    (verdict,) = judge(collected, score_arms(plan, collected))
    return verdict


def to_table(scores: NDArray[np.float64], split: int = 0) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([[split], range(len(scores))], names=["split_seed", "seed"])
    return pd.DataFrame(scores, index, [f"case{c:02}" for c in range(scores.shape[1])])


def test_choosing_among_equal_arms_flatters_the_plain_maximum_and_not_the_cross_estimate() -> None:
    plain, crossed = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        tables = {
            f"arm{i}": 0.3 * random.normal(size=(10, 1)) + random.normal(size=(10, 40))
            for i in range(12)
        }
        plain.append(max(table.mean() for table in tables.values()))
        estimate, chosen = cross_estimate({name: to_table(table) for name, table in tables.items()})
        assert estimate is not None
        assert len(chosen) == 2
        crossed.append(estimate.mean)
    standard_error = np.std(crossed) / np.sqrt(60)
    assert np.mean(plain) > 0.1
    assert abs(np.mean(crossed)) < 4 * standard_error < 0.08


def test_an_arm_that_is_better_everywhere_is_chosen_by_both_halves_with_its_own_gain() -> None:
    random = np.random.default_rng(0)
    tables = {gain: random.normal(gain, 0.1, (6, 20)) for gain in (0.0, 0.5, 0.1)}
    estimate, chosen = cross_estimate(
        {str(gain): to_table(table) for gain, table in tables.items()}
    )
    assert chosen == ("0.5", "0.5")
    halves = [tables[0.5][1::2, 1::2].mean(), tables[0.5][::2, ::2].mean()]
    assert estimate is not None
    assert estimate.mean == pytest.approx(np.mean(halves))
    for few in (tables[0.5][:3], tables[0.5][:, :1]):
        assert cross_estimate({"a": to_table(few)}) == (None, ())


def test_no_case_that_chooses_also_estimates_in_another_split() -> None:
    # An arm whose whole gain is one case: the half that has it chooses the arm, and the other
    # half finds nothing.
    lucky = np.zeros((4, 6))
    lucky[:, 2] = 1.0
    other = np.full((4, 6), 0.01)
    # The second split has not all of the first one's cases, so that a case's place differs.
    splits = {
        name: pd.concat(
            [to_table(scores, split=0), to_table(scores, split=1).drop(columns="case00")]
        )
        for name, scores in (("lucky", lucky), ("other", other))
    }
    estimate, chosen = cross_estimate(splits)
    assert chosen == ("lucky", "other")
    assert estimate is not None
    assert estimate.mean < 0.2  # by place it would be a third


def test_the_verdict_names_the_best_arm_its_gain_and_standard_augmentation(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=10)
    verdict = verdict_of(tmp_path)
    pairs = zip(segments(runs, "hvae+300"), segments(runs, "reference"), strict=True)
    gains = [fake_dice(arm) - fake_dice(reference) for arm, reference in pairs]
    # All of a made-up run's cases differ alike.
    assert verdict.startswith(f"brats2021: HVAE + 300 raises Dice by {np.mean(gains):.3f} [")
    assert "against the reference; beyond chance; " in verdict
    assert "Standard aug. ×5" in verdict


def heights(folder: Path, arms: dict[ArmConfig, float], seeds: int = 10) -> str:
    """Return the verdict on arms of given mean Dice, with a little noise by seed."""
    runs = make_runs(arms=tuple(arms), seeds=seeds)
    write_plan(folder, runs)
    random = np.random.default_rng(0)
    for run in runs:
        mine = (
            {"dice": arms[run.config.arm] + 0.002 * random.normal()}
            if run.stage == "segment"
            else {}
        )
        finish(folder, run, {**fake_metrics(run), **mine})
    return verdict_of(folder)


def test_what_an_arm_gains_by_its_copies_is_not_credited_to_its_pairs(tmp_path: Path) -> None:
    both = {"generator": "hvae", "n_synthetic": 100}
    verdict = heights(
        tmp_path,
        {
            ArmConfig(name="reference"): 0.5,
            ArmConfig(name="standard-x5", n_standard=80): 0.55,
            ArmConfig(name="hvae+100", **both): 0.48,
            ArmConfig(name="standard-x5+hvae+100", n_standard=80, **both): 0.54,
        },
    )
    assert verdict.startswith("brats2021: HVAE + 100 lowers Dice by 0.02")
    assert "Standard aug. ×5 + HVAE + 100 against Standard aug. ×5 alone: -0.0" in verdict
    assert "better for 0 of 10 seeds; " in verdict or verdict.endswith("better for 0 of 10 seeds.")
    assert "none is better than Standard aug. ×5; worse: HVAE + 100" in verdict


def test_pairs_on_top_of_more_real_cases_are_told_by_both_arms_labels(tmp_path: Path) -> None:
    more = ArmConfig(name="real-300", n_cases=300)
    both = ArmConfig(name="real-300+hvae+100", n_cases=300, generator="hvae", n_synthetic=100)
    hvae = ArmConfig(name="hvae+100", generator="hvae", n_synthetic=100)
    verdict = heights(
        tmp_path, {ArmConfig(name="reference"): 0.5, hvae: 0.52, more: 0.6, both: 0.61}
    )
    assert "Real, 300 cases + HVAE + 100 against Real, 300 cases alone: +0.0" in verdict


def test_a_gain_is_not_named_after_an_arm_that_the_halves_did_not_choose() -> None:
    best = ArmScores(
        data="d", arm=ArmConfig(name="vae+100", generator="vae", n_synthetic=100), n=10, n_expected=10, seeds=10, dice=None,
        versus="reference", difference=None, better=9, paired=10, p_seeds=0.3, effect=None,
        others={}, unit="",
    )  # fmt: skip
    said = _describe_gain(
        best,
        Estimate(mean=0.04, low=0.01, high=0.06),
        [ArmConfig(name="hvae+100", generator="hvae", n_synthetic=100)],
    )
    assert said.startswith(
        "VAE + 100 looks best; what halves of the data choose (HVAE + 100) changes Dice by +0.040"
    )


def test_where_the_halves_do_not_show_what_the_test_over_all_does_both_are_said(
    tmp_path: Path,
) -> None:
    write_sweep(tmp_path, seeds=10)
    plan = read_plan(tmp_path / "plans/small.json")
    (best,) = [s for s in score_arms(plan, collect(plan)) if s.arm.name == "hvae+300"]
    assert _describe_chance(best, Estimate(mean=0.04, low=0.02, high=0.06)) == "beyond chance"
    assert "though these halves alone do not show it" in _describe_chance(
        best, Estimate(mean=0.02, low=-0.01, high=0.05)
    )
    unclear = replace(best, difference=replace(best.difference, p=0.2))
    assert _describe_chance(unclear, None) == "not beyond chance (p = 0.2)"


def test_an_arm_with_one_lucky_seed_does_not_take_a_partial_verdict(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return bool(segments([run], "hvae+300")) and run.config.seed > 0

    write_sweep(tmp_path, skip=lost, seeds=10)
    assert verdict_of(tmp_path).startswith("brats2021: VAE + 300 ")


def test_three_seeds_show_nothing_and_the_verdict_says_so(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=3)
    verdict = verdict_of(tmp_path)
    assert verdict.startswith(
        "brats2021: of the arms that add nothing but synthetic pairs HVAE + 300 looks best: +0."
    )
    assert "since the same runs chose the arm" in verdict


def test_pairs_that_harm_are_said_to(tmp_path: Path) -> None:
    arms = (SMALL_ARMS[0], ArmConfig(name="vae+100", generator="vae", n_synthetic=100))
    runs = make_runs(arms=arms, seeds=8)
    write_plan(tmp_path, runs)
    for run in runs:
        worse = {"dice": 0.3 + 0.01 * run.config.seed} if segments([run], "vae+100") else {}
        finish(tmp_path, run, {**fake_metrics(run), **worse})
    verdict = verdict_of(tmp_path)
    assert verdict.startswith("brats2021: VAE + 100 lowers Dice by 0.")
    assert "beyond chance" in verdict
    assert "Standard" not in verdict


def test_without_a_pair_of_runs_there_is_no_verdict(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return bool(segments([run], "reference"))

    write_sweep(tmp_path, skip=lost)
    verdict = verdict_of(tmp_path)
    assert (
        verdict == "brats2021: no arm with synthetic pairs can be compared with the reference yet."
    )
    write_sweep(tmp_path, seeds=1)
    assert "HVAE + 300 looks best" in verdict_of(tmp_path)


def test_an_arm_with_shuffled_masks_is_never_the_best(tmp_path: Path) -> None:
    shuffled = ArmConfig(name="hvae-shuffled+300", generator="hvae", n_synthetic=300, shuffled=True)
    runs = make_runs(arms=(*SMALL_ARMS, shuffled))
    write_plan(tmp_path, runs)
    for run in runs:
        lucky = {"dice": 0.9} if segments([run], shuffled.name) else {}
        finish(tmp_path, run, {**fake_metrics(run), **lucky})
    assert " HVAE + 300 looks best" in verdict_of(tmp_path)
