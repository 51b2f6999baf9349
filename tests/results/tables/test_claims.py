"""The table of claims: the paper's own numbers, ours beside them, and what was not tested."""

import json
from pathlib import Path

import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.scores import score_arms
from hvae_hpc.results.tables.build import sweep_remarks
from hvae_hpc.results.tables.claims import build_claims
from hvae_hpc.results.tables.table import Table
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import (
    PAPER_ARMS,
    SMALL_ARMS,
    fake_dice,
    fake_metrics,
    finish,
    make_runs,
    segments,
    write_plan,
    write_sweep,
)


def table_of(folder: Path) -> Table | None:
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    return build_claims(plan, collected, score_arms(plan, collected))


def rows_of(folder: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    table = table_of(folder)
    assert table is not None
    return {(row[0], row[1]): row[2:] for row in table.rows}


def test_the_paper_s_column_is_what_its_tables_say(tmp_path: Path) -> None:
    write_sweep(tmp_path, data=("brats2021", "hecktor2022"), arms=PAPER_ARMS, seeds=2)
    paper = {key: row[0] for key, row in rows_of(tmp_path).items()}
    assert paper["brats2021", "the best HVAE arm gains over the reference"] == "+26.9 %"
    assert paper["hecktor2022", "the best HVAE arm gains over the reference"] == "+61.3 %"
    assert (
        paper["brats2021", "the best HVAE arm is above standard augmentation ×5"]
        == "0.803 against 0.800"
    )
    assert (
        paper["brats2021", "the HVAE arms vary by about 2 % Dice (sd at most 0.03)"]
        == "0.020 to 0.090"
    )
    assert paper["brats2021", "LSGAN: Dice falls beyond +200"] == "0.703 > 0.685 > 0.667"
    assert paper["brats2021", "HVAE: Dice falls beyond +300"] == "0.803 > 0.760"
    assert paper["hecktor2022", "SSIM: HVAE > VAE > LSGAN"] == "0.839 / 0.826 / 0.726"
    assert not any(data == "hecktor2022" and "falls" in claim for data, claim in paper)


def test_phantoms_support_no_claim_and_tables_say_what_they_are(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    assert table_of(tmp_path) is not None
    path = tmp_path / "plans/small.json"
    data = json.loads(path.read_text())
    data["data"]["brats2021"]["made_up"] = "yes"
    path.write_text(json.dumps(data))
    assert table_of(tmp_path) is None
    plan = read_plan(path)
    [remark] = sweep_remarks(plan, collect(plan))
    assert remark == "Made-up cases: brats2021. They say nothing about patients."


def test_the_gains_of_the_paper_s_text_are_named_beside_those_of_its_tables(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    table = table_of(tmp_path)
    assert table is not None
    assert "26.8 % for BRATS; 61.1 % for HECKTOR" in table.notes[0]


def with_dice(folder: Path, dice: dict[str, float]) -> dict[tuple[str, str], tuple[str, ...]]:
    runs = make_runs(arms=PAPER_ARMS, seeds=2)
    write_plan(folder, runs)
    for run in runs:
        mine = (
            {"dice": dice.get(run.config.arm.name, fake_dice(run))}
            if run.stage == "segment"
            else {}
        )
        finish(folder, run, {**fake_metrics(run), **mine})
    return rows_of(folder)


@pytest.mark.parametrize(("x5", "holds"), [(0.85, "does not hold"), (0.75, "holds")])
def test_a_claim_holds_or_does_not_by_our_means(tmp_path: Path, x5: float, holds: str) -> None:
    dice = {"reference": 0.5, "standard-x5": x5, "hvae+300": 0.8, "hvae+500": 0.81}
    rows = with_dice(tmp_path, dice)
    best = max(fake_dice(run) for run in segments(make_runs(arms=PAPER_ARMS, seeds=2), "hvae+200"))
    assert best < 0.81
    found = rows["brats2021", "the best HVAE arm is above standard augmentation ×5"]
    assert found[1:] == (f"0.810 against {x5:.3f}", holds)
    assert rows["brats2021", "the best HVAE arm gains over the reference"][1:] == (
        "+62.0 %",
        "holds",
    )
    assert rows["brats2021", "HVAE: Dice falls beyond +300"][1:] == (
        "0.800, 0.810",
        "does not hold",
    )


def test_doses_that_the_paper_does_not_have_count_for_the_best_arm(tmp_path: Path) -> None:
    arms = (SMALL_ARMS[0], ArmConfig(name="hvae+40", generator="hvae", n_synthetic=40))
    write_sweep(tmp_path, arms=arms)
    rows = rows_of(tmp_path)
    assert rows["brats2021", "the best HVAE arm gains over the reference"][2] == "holds"
    assert rows["brats2021", "HVAE: Dice falls beyond +300"][1:] == ("—", "not tested")


def test_what_has_no_run_was_not_tested_and_other_data_has_no_claims(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return bool(segments([run], "standard-x5"))

    write_sweep(tmp_path, skip=lost)
    rows = rows_of(tmp_path)
    assert rows["brats2021", "the best HVAE arm is above standard augmentation ×5"][1:] == (
        "—",
        "not tested",
    )
    write_sweep(tmp_path, data=("lgg",))
    assert table_of(tmp_path) is None
