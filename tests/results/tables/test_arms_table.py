"""The table of arms: paired differences, their intervals, and what is compared with what."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.augmentations import JoinedConfig, NNUNetConfig
from hvae_hpc.config.model import MovesConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.labels import arm_label
from hvae_hpc.results.scores import reference_of, score_arms, supported_best
from hvae_hpc.results.statistics import sign_flip_test
from hvae_hpc.results.tables.arms import build_arms
from hvae_hpc.results.tables.build import sweep_remarks
from hvae_hpc.results.tables.table import Table
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


def table_of(folder: Path) -> Table:
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    table = build_arms(plan, score_arms(plan, collected))
    assert table is not None
    return replace(table, remarks=tuple(sweep_remarks(plan, collected)))


def rows_of(table: Table) -> dict[str, dict[str, str]]:
    return {row["arm"]: row for row in csv.DictReader(io.StringIO(table.to_csv()))}


def test_the_difference_is_the_mean_of_those_of_equal_seeds(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    table = table_of(tmp_path)
    rows = rows_of(table)
    reference, hvae = (
        [fake_dice(run) for run in segments(runs, arm)] for arm in ("reference", "hvae+300")
    )
    differences = np.array(hvae) - np.array(reference)
    assert float(rows["hvae+300"]["dice"]) == pytest.approx(np.mean(hvae))
    assert float(rows["hvae+300"]["difference"]) == pytest.approx(differences.mean())
    assert float(rows["hvae+300"]["difference_low"]) < differences.min()
    assert (rows["hvae+300"]["better"], rows["hvae+300"]["paired"]) == (
        str((differences > 0).sum()),
        "3",
    )
    assert rows["hvae+300"]["versus"] == "reference"
    assert (rows["reference"]["versus"], rows["reference"]["difference"]) == ("", "")


def test_u_nets_that_found_nothing_are_named(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    assert not any("Dice 0" in note for note in table_of(tmp_path).remarks)
    for run in segments(runs, "hvae+300")[1:]:
        finish(tmp_path, run, {**fake_metrics(run), "dice": 0.0})
    (note,) = [note for note in table_of(tmp_path).remarks if "Dice 0" in note]
    assert note.startswith(
        "Dice 0 on every test case: brats2021 hvae+300 seed 1, brats2021 hvae+300 seed 2. Such"
    )


def test_u_nets_that_find_nothing_are_named_whatever_cases_without_a_tumour_score(
    tmp_path: Path,
) -> None:
    for run in segments(write_sweep(tmp_path), "hvae+300"):
        is_empty = run.config.seed == 1
        finish(tmp_path, run, {**fake_metrics(run), "dice_with_tumour": 0.5 * (not is_empty)})
    (note,) = [note for note in table_of(tmp_path).remarks if "Dice 0" in note]
    assert note.startswith(
        "Dice 0 on every test case with a tumour: brats2021 hvae+300 seed 1. Such"
    )


def test_runs_are_paired_by_seed_whatever_is_missing(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return run in [
            *segments([run], "reference"),
            *segments([run], "vae+300"),
        ] and run.config.seed == (0 if segments([run], "reference") else 2)

    runs = write_sweep(tmp_path, skip=lost)
    row = rows_of(table_of(tmp_path))["vae+300"]
    left = [fake_dice(segments(runs, arm)[1]) for arm in ("vae+300", "reference")]
    assert (row["n"], row["n_expected"], row["paired"]) == ("2", "3", "1")
    assert float(row["difference"]) == pytest.approx(left[0] - left[1])


def test_several_trainings_of_a_generator_are_averaged_and_not_taken_for_more_seeds(
    tmp_path: Path,
) -> None:
    arm = ArmConfig(name="hvae+100", generator="hvae", n_synthetic=100)
    runs = make_runs(arms=(SMALL_ARMS[0], arm, replace(arm, generator_seed=1)), seeds=2)
    write_plan(tmp_path, runs)
    dice = {}
    for i, run in enumerate(runs):
        dice[run.run_id] = 0.5 + 0.01 * i
        finish(
            tmp_path,
            run,
            {**fake_metrics(run), **({"dice": dice[run.run_id]} if run.stage == "segment" else {})},
        )
    row = rows_of(table_of(tmp_path))["hvae+100"]
    of_arm, reference = segments(runs, "hvae+100"), segments(runs, "reference")
    assert (len(of_arm), row["n"], row["paired"]) == (4, "4", "2")
    expected = np.mean([dice[run.run_id] for run in of_arm]) - np.mean(
        [dice[run.run_id] for run in reference]
    )
    assert float(row["difference"]) == pytest.approx(expected)
    assert "but not other splits: there was one of each." in table_of(tmp_path).notes[0]


def test_arms_of_a_budget_are_compared_with_the_reference_of_that_budget() -> None:
    versus = {
        name: reference_of(ArmConfig(name=name))
        for name in ("copies-x5", "copies-x5@epochs", "hvae+1@steps")
    }
    assert versus == {
        "copies-x5": "reference", "copies-x5@epochs": "reference@epochs", "hvae+1@steps": "reference@steps",
    }  # fmt: skip


def test_only_arms_of_the_sweep_s_own_budget_are_set_in_bold(tmp_path: Path) -> None:
    names = ("reference", "copies-x2", "reference@epochs", "copies-x5@epochs")
    arms = tuple(ArmConfig(name=name, n_copies=20 if "copies" in name else 0) for name in names)
    runs = make_runs(arms=arms, seeds=10)
    write_plan(tmp_path, runs)
    height = dict(zip(names, (0.5, 0.6, 0.55, 0.8), strict=True))
    for run in runs:
        mine = (
            {"dice": height[run.config.arm.name] + 0.001 * run.config.seed}
            if run.stage == "segment"
            else {}
        )
        finish(tmp_path, run, {**fake_metrics(run), **mine})
    plan = read_plan(tmp_path / "plans/small.json")
    scores = score_arms(plan, collect(plan))
    assert supported_best(scores) == {"brats2021": "copies-x2"}
    assert {s.arm.name: s.versus for s in scores}["copies-x5@epochs"] == "reference@epochs"


def test_the_caption_says_what_intervals_do_not_cover(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=3)
    one_split = "other splits or other trainings of the generator: there was one of each."
    assert (
        f"They cover other U-Net seeds and other test cases, but not {one_split}"
        in (table_of(tmp_path).notes[0])
    )
    write_sweep(tmp_path, seeds=1)
    table = table_of(tmp_path)
    assert f"cover other test cases, but not other U-Net seeds or {one_split}" in table.notes[0]
    assert {row[table.columns.index("p")] for row in table.rows} == {"", "—"}


def test_interval_and_p_agree_for_every_arm_and_a_sign_flip_stands_beside_them(
    tmp_path: Path,
) -> None:
    runs = write_sweep(tmp_path, seeds=8)
    rows = rows_of(table_of(tmp_path))
    assert rows.pop("reference")["p"] == ""
    for arm, row in rows.items():
        inside = float(row["difference_low"]) <= 0 <= float(row["difference_high"])
        assert inside is (float(row["p"]) >= 0.05)
        pairs = zip(segments(runs, arm), segments(runs, "reference"), strict=True)
        by_seed = np.array([fake_dice(one) - fake_dice(other) for one, other in pairs])
        assert float(row["p_seeds"]) == pytest.approx(sign_flip_test(by_seed))


def test_an_arm_without_runs_has_dashes(tmp_path: Path) -> None:
    write_sweep(tmp_path, skip=lambda run: bool(segments([run], "vae+100")))
    table = table_of(tmp_path)
    (row,) = [row for row in table.rows if row[1] == "VAE + 100"]
    assert tuple(row) == ("brats2021", "VAE + 100", "0/3", "—", "—", "—", "")


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        (ArmConfig(name="reference@steps"), "Reference, equal steps"),
        (ArmConfig(name="copies-x5", n_copies=80), "Copies ×5"),
        (ArmConfig(name="real-300", n_cases=300), "Real, 300 cases"),
        (ArmConfig(name="moved", moves=MovesConfig()), "Moved in every step"),
        (
            ArmConfig(
                name="nnunet+moved", moves=JoinedConfig(parts=(NNUNetConfig(), MovesConfig()))
            ),
            "nnU-Net's augmentation + Moved in every step",
        ),
        (
            ArmConfig(
                name="standard-x5+hvae-aggregated+300",
                n_standard=80,
                generator="hvae-aggregated",
                n_synthetic=300,
            ),
            "Standard aug. ×5 + HVAE aggregated + 300",
        ),
        (
            ArmConfig(name="hvae-shuffled+100", generator="hvae", n_synthetic=100, shuffled=True),
            "HVAE, masks shuffled + 100",
        ),
        (
            ArmConfig(name="vae-only+100", generator="vae", n_synthetic=100, alone=True),
            "Only VAE + 100",
        ),
        (
            ArmConfig(name="hvae-gan-hmc+100", generator="hvae-gan-hmc", n_synthetic=100),
            "HVAE-GAN hmc + 100",
        ),
        (
            ArmConfig(name="mine-a-hmc+100", generator="mine-a-hmc", n_synthetic=100),
            "Mine-a hmc + 100",
        ),
        (
            ArmConfig(name="mine-first+100", generator="mine", n_synthetic=100, first_share=0.5),
            "First mine + 100",
        ),
    ],
)
def test_arms_have_names_for_people(arm: ArmConfig, label: str) -> None:
    assert arm_label(arm) == label
