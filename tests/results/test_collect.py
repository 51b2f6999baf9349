"""Rows: of every run that is done, and of no other."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.metrics.image_sets import SHARES
from hvae_hpc.results.collect import BOUNDS, collect
from hvae_hpc.results.labels import generators_of
from hvae_hpc.results.write import write_results
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import METRICS
from hvae_hpc.runs.plan import read_plan
from tests.results.made_up import (
    GENERATORS,
    SMALL_ARMS,
    fake_dice,
    fake_metrics,
    finish,
    folder_of,
    make_runs,
    segments,
    write_plan,
    write_sweep,
)


def test_every_done_segment_run_is_one_row_with_its_numbers(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    collected = collect(read_plan(tmp_path / "plans/small.json"))
    assert len(collected.segment) == len(SMALL_ARMS) * 3
    run = segments(runs, "vae+300")[2]
    row = collected.segment.set_index("run_id").loc[run.run_id]
    assert row["dice"] == fake_dice(run)
    assert list(row[["data", "arm", "generator"]]) == ["brats2021", "vae+300", "vae"]
    counts = [
        "n_synthetic",
        "n_standard",
        "seed",
        "split_seed",
        "test_cases",
        "median_dice",
        "wall_s",
    ]
    assert list(row[counts]) == [300, 0, 2, 0, 12, fake_dice(run), 12.5]
    assert collected.missing == ()
    assert collected.costs["code_sha"].value_counts().to_dict() == {"abc": len(runs)}


def test_every_done_quality_run_is_one_row(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    quality = collect(read_plan(tmp_path / "plans/small.json")).quality.set_index("source")
    assert sorted(quality.index) == sorted([*GENERATORS, "real", "mean"])
    assert quality.loc["vae", "psnr_mean"] == 13 + 1 / 7
    assert quality.loc["vae", "n"] == 10


def test_generators_stand_in_the_papers_order(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    assert generators_of(read_plan(tmp_path / "plans/small.json")) == ("lsgan", "vae", "hvae")


def test_a_missing_run_is_refused_by_name_with_what_to_do(tmp_path: Path) -> None:
    runs = make_runs()
    lost = segments(runs, "hvae+100")[1]
    write_sweep(tmp_path, skip=lambda run: run.run_id == lost.run_id)
    with pytest.raises(UserError) as error:
        write_results(tmp_path, "small")
    first, *rest = str(error.value).splitlines()
    assert f"1 of {len(runs)} runs" in first
    assert first.endswith("run the sweep command again, or add --partial")
    assert rest[:-1] == [f"  {folder_of(lost)}: no metrics.json yet"]


def test_a_long_list_of_missing_runs_is_cut_with_a_count(tmp_path: Path) -> None:
    runs = make_runs()
    write_plan(tmp_path, runs)
    with pytest.raises(UserError) as error:
        write_results(tmp_path, "small")
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert lines[-2] == f"  ... and {len(runs) - 9} more"


def test_partial_takes_a_sweep_of_which_nothing_is_done(tmp_path: Path) -> None:
    runs = make_runs()
    write_plan(tmp_path, runs)
    collected = collect(read_plan(tmp_path / "plans/small.json"))
    assert (len(collected.segment), len(collected.quality), len(collected.costs)) == (0, 0, 0)
    assert len(collected.missing) == len(runs)


def test_partial_keeps_what_is_there_and_lists_the_rest(tmp_path: Path) -> None:
    lost = segments(make_runs(), "reference")[0]
    write_sweep(tmp_path, skip=lambda run: run.run_id == lost.run_id)
    collected = collect(read_plan(tmp_path / "plans/small.json"))
    assert collected.missing == (f"{folder_of(lost)}: no metrics.json yet",)
    assert not collected.results[lost.run_id].done
    assert len(collected.segment) == len(SMALL_ARMS) * 3 - 1


def _truncate(text: str) -> str:
    return text[: len(text) // 2]


def _other_schema(text: str) -> str:
    return text.replace('"schema": 1', '"schema": 9')


def _nan(text: str) -> str:
    data = json.loads(text)
    data["metrics"]["dice"] = float("nan")
    return json.dumps(data)


def _no_dice(text: str) -> str:
    data = json.loads(text)
    del data["metrics"]["dice"]
    return json.dumps(data)


def _no_cases(text: str) -> str:
    return json.dumps({**json.loads(text), "per_case": {}})


def _with_case(numbers: dict[str, float]) -> Callable[[str], str]:
    """Return what replaces the numbers of one case."""

    def spoil(text: str) -> str:
        data = json.loads(text)
        data["per_case"]["case00"] = numbers
        return json.dumps(data)

    return spoil


def _other_mean(text: str) -> str:
    data = json.loads(text)
    data["metrics"]["dice"] = 0.123
    return json.dumps(data)


def _anothers(text: str) -> str:
    return json.dumps({**json.loads(text), "run_id": "0" * 12})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_truncate, "not valid JSON"),
        (_other_schema, "schema 9, expected 1"),
        (_nan, "NaN is not a number"),
        (_no_dice, "dice is missing"),
        (_no_cases, "per_case has no finite dice"),
        (_with_case({"precision": 0.5}), "no finite dice for every case"),
        (_with_case({"dice": 1e90}), "to 1e+90, expected 0 to 1"),
        (_with_case({"dice": -0.1}), "dice from -0.1 to"),
        (_other_mean, "dice is 0.123, expected its cases' mean"),
        (_anothers, "is run 000000000000"),
    ],
)
def test_a_metrics_file_that_cannot_be_believed_counts_as_missing(
    tmp_path: Path, spoil: Callable[[str], str], reason: str
) -> None:
    runs = write_sweep(tmp_path, seeds=1)
    run = segments(runs, "reference")[0]
    path = tmp_path / folder_of(run) / METRICS
    path.write_text(spoil(path.read_text()))
    collected = collect(read_plan(tmp_path / "plans/small.json"))
    (line,) = collected.missing
    assert line.startswith(f"{folder_of(run)}: metrics.json: ")
    assert reason in line
    assert "\n" not in line
    assert run.run_id not in set(collected.segment["run_id"])


def test_two_versions_of_the_code_are_counted(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=1)
    finish(tmp_path, runs[-1], fake_metrics(runs[-1]), code_sha="def")
    collected = collect(read_plan(tmp_path / "plans/small.json"))
    assert collected.costs["code_sha"].value_counts().to_dict() == {"abc": len(runs) - 1, "def": 1}


def test_a_single_draw_has_no_sd_whatever_the_file_says(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=1)
    run = next(run for run in runs if run.stage == "quality")
    one_draw = {"psnr_mean": 13.0, "psnr_sd": 0.0, "ssim_mean": 0.6, "ssim_sd": 0.0, "n": 1.0}
    finish(tmp_path, run, {**fake_metrics(run), **one_draw})
    quality = collect(read_plan(tmp_path / "plans/small.json")).quality
    assert np.isnan(quality.set_index("run_id").loc[run.run_id, "psnr_sd"])


def test_a_run_on_other_test_cases_than_its_like_is_named_and_left_out(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    odd = segments(runs, "vae+100")[1]
    path = tmp_path / folder_of(odd) / METRICS
    data = json.loads(path.read_text())
    data["per_case"]["case99"] = data["per_case"].pop("case03")
    path.write_text(json.dumps(data))
    plan = read_plan(tmp_path / "plans/small.json")
    reason = f"{folder_of(odd)}: metrics.json: other test cases than its like (case03); delete the folder"
    collected = collect(plan)
    assert reason in collected.missing
    assert len(collected.segment) == len(SMALL_ARMS) * 3 - 1
    assert not collected.results[odd.run_id].done


def test_a_quality_run_without_the_measures_that_it_was_asked_for_is_missing(
    tmp_path: Path,
) -> None:
    run = next(run for run in write_sweep(tmp_path, seeds=1) if run.stage == "quality")
    finish(
        tmp_path, run, {name: value for name, value in fake_metrics(run).items() if name != "kid"}
    )
    (line,) = collect(read_plan(tmp_path / "plans/small.json")).missing
    assert line.startswith(f"{folder_of(run)}: metrics.json: kid is missing")


def test_runs_that_do_not_count_have_no_say_in_which_test_cases_are_usual(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=5)
    plan = read_plan(tmp_path / "plans/small.json")
    for run in segments(runs, "vae+100") + segments(runs, "vae+300") + segments(runs, "hvae+100"):
        path = tmp_path / folder_of(run) / METRICS
        data = json.loads(path.read_text())
        data["per_case"]["case99"] = data["per_case"].pop("case03")
        data["parent_results"] = dict.fromkeys(data["parent_results"], "0" * 12)
        path.write_text(json.dumps(data))
    for run in (
        segments(runs, "standard-x5") + segments(runs, "lsgan+100") + segments(runs, "lsgan+300")
    ):
        (tmp_path / folder_of(run) / METRICS).unlink()
    left = segments(runs, "reference") + segments(runs, "hvae+300")
    assert set(collect(plan).segment["run_id"]) == {run.run_id for run in left}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hausdorff_95", -5.0, "0 to 1e+06"),
        ("dice", 1.5, "0 to 1"),
        ("recall", 1e90, "0 to 1"),
        ("processes", 0, "1 to 1e+06"),
        ("wall_s", -1.0, "0 to 1e+12"),
    ],
)
def test_an_impossible_number_is_named(
    tmp_path: Path, name: str, value: float, expected: str
) -> None:
    run = segments(write_sweep(tmp_path, seeds=1), "reference")[0]
    path = tmp_path / folder_of(run) / METRICS
    data = json.loads(path.read_text())
    data["metrics" if name in data["metrics"] else "provenance"][name] = value
    path.write_text(json.dumps(data))
    (line,) = collect(read_plan(tmp_path / "plans/small.json")).missing
    assert (
        line
        == f"{folder_of(run)}: metrics.json: {name} is {value:g}, expected {expected}; delete the folder"
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ssim_mean", 7.0, "-1 to 1"),
        ("coverage", 1.5, "0 to 1"),
        ("psnr_sd", -3.0, "0 to 1e+06"),
        ("psnr_mean", 1e90, "-1e+12 to 1e+12"),
    ],
)
def test_an_impossible_measure_is_named(
    tmp_path: Path, name: str, value: float, expected: str
) -> None:
    run = next(run for run in write_sweep(tmp_path, seeds=1) if run.stage == "quality")
    path = tmp_path / folder_of(run) / METRICS
    data = json.loads(path.read_text())
    data["metrics"][name] = value
    path.write_text(json.dumps(data))
    (line,) = collect(read_plan(tmp_path / "plans/small.json")).missing
    assert (
        line
        == f"{folder_of(run)}: metrics.json: {name} is {value:g}, expected {expected}; delete the folder"
    )


def test_the_bounds_of_shares_are_those_of_who_measures_them() -> None:
    """The tables do not import the measures, which takes a second of scipy."""
    assert {name: BOUNDS["quality"][name] for name in SHARES} == dict.fromkeys(SHARES, (0, 1))


def test_of_runs_that_shared_a_device_each_has_its_share_of_time_and_the_memory_of_all(
    tmp_path: Path,
) -> None:
    run = segments(write_sweep(tmp_path, seeds=1), "reference")[0]
    path = tmp_path / folder_of(run) / METRICS
    data = json.loads(path.read_text())
    data["provenance"] |= {"at_once": 4, "spent_s": 30.0, "gpu": {"energy_j": 8.0}}
    path.write_text(json.dumps(data))
    plan = read_plan(tmp_path / "plans/small.json")
    costs = collect(plan).costs.set_index("run_id").loc[run.run_id]
    assert list(costs[["wall_s", "spent_s", "energy_j", "peak_memory_mib"]]) == [
        12.5 / 4,
        7.5,
        2.0,
        400.0,
    ]
    assert read_results(plan)[run.run_id].peak_memory_mib == 400.0


def test_what_a_file_says_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    first, second = segments(write_sweep(tmp_path), "reference")[:2]
    for run, said in ((first, "x\n  segment/fake: all is well\x1b[2J"), (second, "y" * 10**6)):
        path = tmp_path / folder_of(run) / METRICS
        path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": said}))
    for line in collect(read_plan(tmp_path / "plans/small.json")).missing:
        assert line.isprintable()
        assert len(line) < 700


def test_a_plan_without_runs_has_no_rows(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=(), sources=())
    collected = collect(read_plan(tmp_path / "plans/small.json"))
    assert collected.missing == ()
    assert [len(rows) for rows in (collected.segment, collected.quality, collected.costs)] == [
        0,
        0,
        0,
    ]
