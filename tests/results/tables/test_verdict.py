"""The verdict: its first sentence in every situation, and what is compared with what."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.augmentations import CarveMixConfig
from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.gain import Gain
from hvae_hpc.results.scores import ArmScores, score_arms
from hvae_hpc.results.statistics import Comparison
from hvae_hpc.results.tables.verdict import answer, judge
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import (
    SMALL_ARMS,
    fake_metrics,
    finish,
    make_runs,
    segments,
    write_plan,
    write_sweep,
)

REFERENCE = ArmConfig(name="reference")
STANDARD = ArmConfig(name="standard-x5", n_standard=80)
HVAE = ArmConfig(name="hvae+300", generator="hvae", n_synthetic=300)
VAE = ArmConfig(name="vae+100", generator="vae", n_synthetic=100)
ON_TOP = ArmConfig(
    name="standard-x5+hvae-aggregated+300", n_standard=80, generator="hvae-aggregated", n_synthetic=300
)  # fmt: skip


def verdict_of(folder: Path) -> tuple[str, str]:
    """Return the answer and what it rests on."""
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    first, rest = judge(plan, collected, score_arms(plan, collected))
    return first, rest


def heights(
    folder: Path, arms: dict[ArmConfig, float], seeds: int = 10, noisy: ArmConfig | None = None
) -> tuple[str, str]:
    """Return the verdict on arms of given mean Dice, with a little noise by seed, and one with much."""
    runs = make_runs(arms=tuple(arms), seeds=seeds)
    write_plan(folder, runs)
    random = np.random.default_rng(0)
    for run in runs:
        of_run = {}
        if run.stage == "segment":
            sd = 0.1 if run.config.arm == noisy else 0.002
            of_run = {"dice": arms[run.config.arm] + sd * random.normal()}
        finish(folder, run, {**fake_metrics(run), **of_run})
    return verdict_of(folder)


def scores_of(arm: ArmConfig) -> ArmScores:
    """Return the scores of an arm as far as the answer looks at them."""
    scores = object.__new__(ArmScores)
    object.__setattr__(scores, "arm", arm)
    return scores


def gain_of(
    low: float, high: float, free: ArmConfig = STANDARD, pairs: ArmConfig = HVAE, seeds: int = 10
) -> Gain:
    mean = 0.024 if np.isinf(low) else (low + high) / 2
    difference = Comparison(
        mean=mean, low=low, high=high, p=0.5, standard_error=0.01, freedom=9,
        not_covered=("split", "training"),
    )  # fmt: skip
    return Gain(
        pairs=scores_of(pairs), free=scores_of(free), low=low, high=high, difference=difference,
        splits=1, with_pairs={}, seeds=seeds, above=9, first=6,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (
            gain_of(0.031, 0.055),
            "Yes: 300 HVAE pairs raise Dice by at least 0.031 over Standard aug. ×5 alone, "
            "the best otherwise (95 % sure), for 3.2 GPU-hours.",
        ),
        (
            gain_of(0.012, 0.055, pairs=ON_TOP),
            "Yes: 300 HVAE aggregated pairs on Standard aug. ×5 raise Dice by at least 0.012 over "
            "it alone, the best otherwise (95 % sure), for 3.2 GPU-hours.",
        ),
        (
            gain_of(-0.012, 0.015),
            "No need: Standard aug. ×5 alone equals 300 HVAE pairs within 0.02 Dice (95 % sure); "
            "these cost 3.2 GPU-hours.",
        ),
        (
            gain_of(0.001, 0.015, free=REFERENCE),
            "No need: training on real pairs alone equals 300 HVAE pairs within 0.02 Dice "
            "(95 % sure); these cost 3.2 GPU-hours.",
        ),
        (
            gain_of(-0.05, 0.018),
            "No need: none of the pairs tried raises Dice by 0.02 over Standard aug. ×5 alone "
            "(95 % sure); the best of these cost 3.2 GPU-hours.",
        ),
        (
            gain_of(-0.01, 0.04),
            "Undecided: 300 HVAE pairs change Dice by -0.010 to +0.040 (95 %) against Standard "
            "aug. ×5 alone; about 19 more splits would decide.",
        ),
        (
            gain_of(-0.01, 0.04, pairs=ON_TOP),
            "Undecided: 300 HVAE aggregated pairs on Standard aug. ×5 change Dice by -0.010 to "
            "+0.040 (95 %) against it alone; about 19 more splits would decide.",
        ),
        (
            gain_of(-0.06, -0.012),
            "No: Standard aug. ×5 alone beats all pairs that were tried by at least 0.012 Dice "
            "(95 % sure); the best of these cost 3.2 GPU-hours.",
        ),
        (
            gain_of(-np.inf, np.inf, seeds=1),
            "Too early: too few U-Net seeds (1) to tell; 300 HVAE pairs look best, at +0.024 Dice "
            "against Standard aug. ×5 alone. Run four or more.",
        ),
        (
            gain_of(-0.7, 0.6, seeds=3),
            "Too early: too few U-Net seeds (3) to tell; 300 HVAE pairs look best, at -0.050 Dice "
            "against Standard aug. ×5 alone. Run four or more.",
        ),
    ],
)
def test_the_first_sentence_says_in_few_words_what_to_do(gain: Gain, expected: str) -> None:
    said = answer(gain, 0.02, "3.2 GPU-hours")
    assert said == expected
    assert len(re.findall(r"\S*\w\S*", said)) < 27


def test_the_smallest_effect_of_interest_is_the_plan_s(tmp_path: Path) -> None:
    arms = {REFERENCE: 0.5, HVAE: 0.53}
    first, _ = heights(tmp_path, arms)
    assert re.match(r"brats2021: Yes: 300 HVAE pairs raise Dice by at least 0\.02\d ", first)
    write_plan(tmp_path, make_runs(arms=tuple(arms), seeds=10), changes={"smallest_effect": 0.05})
    first, rest = verdict_of(tmp_path)
    assert first.startswith(
        "brats2021: No need: training on real pairs alone equals 300 HVAE pairs"
    )
    assert "Against Reference alone, equivalent: HVAE + 300." in rest


def test_the_best_arm_without_pairs_is_what_pairs_must_beat(tmp_path: Path) -> None:
    arms = {REFERENCE: 0.5, STANDARD: 0.56, HVAE: 0.53, VAE: 0.48}
    first, rest = heights(tmp_path, arms)
    assert first.startswith(
        "brats2021: No: Standard aug. ×5 alone beats all pairs that were tried by at"
    )
    assert "Of the arms without synthetic pairs, Standard aug. ×5 is best." in rest
    assert "HVAE + 300 is above it for 0 of 10 seeds, and above all arms for 0. Taken" in rest
    assert rest.count("better with 0 % probability") == 1
    assert "Against Reference alone, better: HVAE + 300; worse: VAE + 100." in rest
    assert (
        "This covers other U-Net seeds and other test cases, but not other splits or other" in rest
    )


def test_what_an_arm_gains_by_its_copies_is_not_credited_to_its_pairs(tmp_path: Path) -> None:
    both = replace(VAE, name="standard-x5+vae+100", n_standard=80)
    first, rest = heights(tmp_path, {REFERENCE: 0.5, STANDARD: 0.6, VAE: 0.48, both: 0.56})
    assert first.startswith(
        "brats2021: No: Standard aug. ×5 alone beats all pairs that were tried by at"
    )
    assert "Against Standard aug. ×5 alone, worse: Standard aug. ×5 + VAE + 100." in rest


def test_pairs_on_top_of_free_augmentation_may_be_the_best(tmp_path: Path) -> None:
    both = replace(VAE, name="standard-x5+vae+100", n_standard=80)
    first, _ = heights(tmp_path, {REFERENCE: 0.5, STANDARD: 0.55, VAE: 0.52, both: 0.6})
    assert first.startswith("brats2021: Yes: 100 VAE pairs on Standard aug. ×5 raise Dice by at ")


def test_an_arm_below_the_free_one_is_not_named_for_being_steady(tmp_path: Path) -> None:
    arms = {REFERENCE: 0.5, HVAE: 0.56, VAE: 0.49}
    first, rest = heights(tmp_path, arms, noisy=HVAE)
    assert first.startswith("brats2021: Undecided: 300 HVAE pairs change Dice by -")
    assert "HVAE + 300 is above it for" in rest


def test_arms_with_more_real_cases_are_not_compared_with_others(tmp_path: Path) -> None:
    more = ArmConfig(name="real-300", n_cases=300)
    both = replace(VAE, name="real-300+vae+100", n_cases=300)
    first, rest = heights(tmp_path, {REFERENCE: 0.5, VAE: 0.55, more: 0.6, both: 0.66})
    assert first.startswith("brats2021: Yes: 100 VAE pairs raise Dice by at least 0.04")
    assert "Real" not in rest


def test_stored_mixed_pairs_are_no_synthetic_ones(tmp_path: Path) -> None:
    arms = (REFERENCE, HVAE, ArmConfig(name="carvemix+100", generator="carvemix", n_synthetic=100))
    runs = make_runs(arms=arms, seeds=6, sources=())
    mixed = [
        replace(run, config=replace(run.config, mixing=CarveMixConfig()))
        if isinstance(run.config, GenerateConfig) and run.config.generator == "carvemix"
        else run
        for run in runs
    ]
    (made,) = [run for run in mixed if run not in runs]
    mixed = [
        replace(run, parents={**run.parents, "generate": made.run_id})
        if run.stage == "segment" and run.config.arm == arms[2]
        else run
        for run in mixed
    ]
    write_plan(tmp_path, mixed)
    random = np.random.default_rng(0)
    for run in mixed:
        dice = {
            "dice": 0.5 + 0.1 * (run in segments(mixed, "carvemix+100")) + 0.002 * random.normal()
        }
        finish(tmp_path, run, {**fake_metrics(run), **(dice if run.stage == "segment" else {})})
    first, rest = verdict_of(tmp_path)
    assert first.startswith("brats2021: No: CarveMix + 100 alone beats all pairs that were tried")
    assert "Of the arms without synthetic pairs, CarveMix + 100 is best." in rest


def test_an_arm_with_one_lucky_seed_does_not_take_a_partial_verdict(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return bool(segments([run], "hvae+300")) and run.config.seed > 0

    write_sweep(tmp_path, skip=lost, seeds=10)
    first, rest = verdict_of(tmp_path)
    assert "300 HVAE" not in first
    assert "better: 5 arms" in rest


def test_arms_of_as_many_but_other_seeds_are_not_compared(tmp_path: Path) -> None:
    lost = {"reference": 0, "hvae+300": 3, "standard-x5": 3}
    runs = make_runs(arms=(REFERENCE, HVAE, STANDARD), seeds=5, sources=())
    write_plan(tmp_path, runs)
    for run in runs:
        seed, dice = getattr(run.config, "seed", 0), {}
        if run.stage == "segment":  # seeds differ by more than arms
            arm = run.config.arm
            if lost[arm.name] == seed:
                continue
            dice = {"dice": 0.4 + 0.1 * seed + 0.0301 * (arm == HVAE)}
        finish(tmp_path, run, {**fake_metrics(run), **dice})
    first, rest = verdict_of(tmp_path)
    assert first.startswith(
        "brats2021: Yes: 300 HVAE pairs raise Dice by at least 0.03 over Standard"
    )
    assert "Reference" not in rest


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_show_nothing_and_the_verdict_says_so(tmp_path: Path, seeds: int) -> None:
    write_sweep(tmp_path, seeds=seeds)
    first, rest = verdict_of(tmp_path)
    said = f"brats2021: Too early: too few U-Net seeds ({seeds}) to tell; 300 HVAE pairs "
    assert first.startswith(said)
    gains = re.search(r"gains (\S+) to (\S+) over it", rest)
    assert gains
    assert all(abs(float(end)) <= 1 for end in gains.groups())


def test_without_an_arm_to_compare_with_there_is_no_verdict(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=SMALL_ARMS[2:])
    assert verdict_of(tmp_path) == (
        "brats2021: No answer: no arm with synthetic pairs is done beside one without.",
        "Both kinds need the same splits and seeds.",
    )


def test_an_arm_with_shuffled_masks_is_never_the_best(tmp_path: Path) -> None:
    shuffled = ArmConfig(name="hvae-shuffled+300", generator="hvae", n_synthetic=300, shuffled=True)
    first, rest = heights(tmp_path, {REFERENCE: 0.5, HVAE: 0.53, shuffled: 0.9})
    assert first.startswith("brats2021: Yes: 300 HVAE pairs raise")
    assert "shuffled" not in rest


@pytest.mark.parametrize(
    ("mean", "error", "splits", "said"),
    [
        (-0.02, 0.016, 3, "about 12 more splits"),  # 15 in all: 3 (0.016 / (0.02 / 2.5))^2 is
        # 12, and by Student's t of 14 degrees of freedom 12 (2.145 / 1.96)^2 = 14.4
        (0.0, 0.016, 3, "about 12 more splits"),  # to be equivalent
        (0.01, 0.016, 3, "about 48 more splits"),  # the hardest mean
        (0.03, 0.01, 2, "about 2 more splits"),  # not 1: with 3 the spread is hardly known
        # One split: 0.016^2 + 0.02^2 + 0.01^2, of which splits and trainings are assumed.
        (0.02, 0.016, 1, "about 14 more splits"),
    ],
)
def test_so_many_more_splits_decide_as_the_standard_error_says(
    mean: float, error: float, splits: int, said: str
) -> None:
    gain = gain_of(mean - 0.05, mean + 0.05)
    difference = replace(gain.difference, mean=mean, standard_error=error)
    assert said in answer(gain._replace(difference=difference, splits=splits), 0.02, "")
