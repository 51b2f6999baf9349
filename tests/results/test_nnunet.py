"""nnU-Net's evaluation of exported pairs is joined to our Dice, case by case."""

import csv
import json
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.results.__main__ import main
from hvae_hpc.results.collect import collect
from hvae_hpc.results.nnunet import build_nnunet, read_nnunet
from hvae_hpc.results.scores import dice_of, score_arms
from hvae_hpc.results.tables.table import Table
from hvae_hpc.runs.plan import plan_path, read_plan
from tests.results import made_up


def evaluation(folder: Path, dice: dict[str, float]) -> Path:
    """Write what nnUNetv2_evaluate_folder writes."""
    folder.mkdir(exist_ok=True)
    cases = [
        {
            "metrics": {"1": {"Dice": value, "IoU": value, "TP": 3.0}},
            "prediction_file": f"/elsewhere/predictions/{name}.nii.gz",
            "reference_file": f"/elsewhere/labelsTs/{name}.nii.gz",
        }
        for name, value in dice.items()
    ]
    content = {"foreground_mean": {}, "mean": {"1": {"Dice": 0.5}}, "metric_per_case": cases}
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def build(runs: Path, theirs: Path) -> Table:
    plan = read_plan(plan_path(runs, "small"))
    return build_nnunet(theirs, "small", score_arms(plan, collect(plan)))


def test_slices_are_averaged_and_an_empty_case_that_was_left_empty_counts_1(tmp_path: Path) -> None:
    dice = {"test-0000-a_b": 0.5, "test-0001-a_b": 0.9, "real-0002-c": float("nan"), "other": 0.1}
    assert read_nnunet(evaluation(tmp_path, dice)).to_dict() == {"a_b": pytest.approx(0.7), "c": 1}


def test_each_arm_stands_beside_nnunet_on_the_same_cases(tmp_path: Path) -> None:
    runs, sweep = tmp_path / "runs", "small"
    made_up.write_sweep(runs)
    theirs = evaluation(tmp_path / "them", {"test-0000-case00": 0.9, "test-0001-case03": 0.1})
    assert main([str(runs), "--nnunet", str(theirs)]) == 0
    rows = list(csv.DictReader((runs / "results" / sweep / "nnunet.csv").open()))
    assert {(row["case"], row["nnunet"]) for row in rows} == {("case00", "0.9"), ("case03", "0.1")}

    collected = collect(read_plan(plan_path(runs, sweep)))
    ours = dice_of(collected, rows[0]["data"], rows[0]["arm"]).mean()
    assert float(rows[0]["dice"]) == pytest.approx(ours["case00"])
    table = build(runs, theirs)
    assert len(table.rows) == len(rows) // 2
    mean = (ours["case00"] + ours["case03"]) / 2
    shown = ("2", f"{mean:.3f}", "0.500", f"{0.5 - mean:+.3f}")
    assert table.rows[0][2:] == shown

    # What is said of an earlier time does not stay.
    assert main([str(runs)]) == 0
    assert not (runs / "results" / sweep / "nnunet.csv").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "summary.json: cannot be read .*No such file.*expected what nnUNetv2_eval"),
        ("[1, 2", "expected what nnUNetv2_evaluate_folder"),
        ('{"metric_per_case": [{"metrics": {}}]}', "KeyError"),
        (
            '{"metric_per_case": [{"reference_file": "x", "metrics": {"1": {"Dice": 7}}}]}',
            "Dice from 7.0 to 7.0",
        ),
        ('{"metric_per_case": []}', "none of its 0 cases that an export named"),
    ],
)
def test_what_is_no_evaluation_of_exported_pairs_is_an_error_in_one_line(
    text: str | None, says: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    made_up.write_sweep(tmp_path / "runs")
    with pytest.raises(UserError, match=says) as raised:
        build(tmp_path / "runs", tmp_path)
    assert "\n" not in str(raised.value)


def test_the_evaluation_of_other_cases_is_refused(tmp_path: Path) -> None:
    made_up.write_sweep(tmp_path / "runs")
    theirs = evaluation(tmp_path / "them", {"test-0000-somebody": 0.9})
    with pytest.raises(UserError, match=r"none of its 1 cases .* is a test case of sweep small"):
        build(tmp_path / "runs", theirs)
