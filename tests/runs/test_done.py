"""Which runs are done: hostile files get one line each, and what is kept is what is read."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.runs import done
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import RunResult, read_result, result_stamp
from hvae_hpc.runs.plan import Plan, find_plans, read_plan
from tests.results.made_up import fake_metrics, finish, folder_of, segments, write_sweep


def test_what_was_made_from_another_making_of_its_parent_is_not_done(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    plan = read_plan(tmp_path / "plans/small.json")
    assert all(result.done for result in read_results(plan).values())
    train = next(run for run in runs if run.stage == "train")
    finish(tmp_path, train, {"loss": 2.0})
    results = read_results(plan)
    assert results[train.run_id].done
    hanging = {
        run.run_id
        for run in runs
        if run.config.data == train.config.data
        and f"-{train.config.generator}" in run.label
        and run is not train
    }
    assert {run_id for run_id, result in results.items() if not result.done} == hanging
    assert fake_metrics(train) == {"loss": 1.0}


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, list[str]]:
    """A sweep that is done and was looked at once, and the ids of the runs whose metrics.json is read from then on."""
    write_sweep(tmp_path)
    monkeypatch.setattr(done, "SETTLED_NS", 0)
    plan = read_plan(tmp_path / "plans/small.json")
    assert all(result.done for result in read_results(plan).values())
    read: list[str] = []

    def counting(folder: Path, run_id: str) -> RunResult | None:
        read.append(run_id)
        return read_result(folder, run_id)

    monkeypatch.setattr(done, "read_result", counting)
    return plan, read


def test_a_metrics_file_that_did_not_change_is_not_read_again(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, read = remembered
    results = read_results(plan)
    assert read == []
    assert all(
        result.done and result.wall_s == 12.5 and result.attempt == 1 for result in results.values()
    )
    assert [path.stem for path in find_plans(plan.runs_folder)] == ["small"]


def test_a_file_that_was_changed_in_place_is_read_again(remembered: tuple[Plan, list[str]]) -> None:
    plan, read = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    path = plan.folder(run_id) / "metrics.json"
    before, text = path.stat(), path.read_text()
    assert text.count('"wall_s": 12.5') == 1
    with open(path, "r+") as file:
        file.write(text.replace('"wall_s": 12.5', '"wall_s": 12.6'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, time and inode
    assert read_results(plan)[run_id].wall_s == 12.6
    assert read == [run_id]


def test_a_truncated_file_is_never_taken_for_done(remembered: tuple[Plan, list[str]]) -> None:
    plan, _ = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    path = plan.folder(run_id) / "metrics.json"
    path.write_text(path.read_text()[:-20])
    for _ in range(2):
        results = read_results(plan)
        assert "not valid JSON" in results[run_id].reason
        assert [i for i, result in results.items() if not result.done] == [run_id]


def test_a_parent_that_is_made_anew_takes_along_what_hangs_on_it_also_from_memory(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, read = remembered
    train = next(run for run in plan.runs.values() if run.stage == "train")
    finish(plan.runs_folder, train, {"loss": 2.0})
    results = read_results(plan)
    assert read == [train.run_id]
    assert results[train.run_id].done
    generate = next(i for i in plan.runs if train.run_id in plan.parents(i).values())
    assert results[generate].reason == "what it was made from was made again, or is gone"


def test_a_result_that_was_deleted_is_gone(remembered: tuple[Plan, list[str]]) -> None:
    plan, _ = remembered
    first, second = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"][:2]
    (plan.folder(first) / "metrics.json").unlink()
    shutil.rmtree(plan.folder(second))
    results = read_results(plan)
    assert not results[first].done
    assert not results[second].done


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _lie(text: str) -> str:
    return text.replace("12.5", "99.5", 1)


def _other_version(text: str) -> str:
    return text.replace(done.CACHE_TITLE, "hvae_hpc results 0")


@pytest.mark.parametrize(
    "damage", [_cut, _lie, _other_version, lambda text: "{}", lambda text: "\x00" * 100]
)
def test_a_damaged_memory_is_ignored_and_written_anew(
    remembered: tuple[Plan, list[str]], damage: Callable[[str], str]
) -> None:
    plan, read = remembered
    path = plan.runs_folder / "plans/small.cache"
    good = path.read_text()
    path.write_text(damage(good))
    assert all(result.done and result.wall_s == 12.5 for result in read_results(plan).values())
    assert read == list(plan.runs)
    assert path.read_text() == good


def test_a_copied_runs_folder_is_read_anew(
    remembered: tuple[Plan, list[str]], tmp_path: Path
) -> None:
    plan, read = remembered
    copy = replace(plan, runs_folder=tmp_path.parent / f"{tmp_path.name}-copy")
    shutil.copytree(tmp_path, copy.runs_folder)
    assert all(result.done for result in read_results(copy).values())
    assert read == list(plan.runs)


def test_a_memory_that_cannot_be_written_is_done_without(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, _ = remembered
    path = plan.runs_folder / "plans/small.cache"
    path.unlink()
    path.mkdir()
    assert all(result.done for result in read_results(plan).values())
    assert list((plan.runs_folder / "plans").glob(".*")) == []


def test_a_file_so_young_that_it_may_change_unseen_is_not_remembered(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    read_results(read_plan(tmp_path / "plans/small.json"))
    assert not (tmp_path / "plans/small.cache").exists()


def _with(**changes: Any) -> Callable[[str], str]:
    """Return what replaces values of a metrics.json, by "outer__inner" names."""

    def spoil(text: str) -> str:
        data = json.loads(text)
        for name, value in changes.items():
            place, names = data, name.split("__")
            for outer in names[:-1]:
                place = place[outer]
            place[names[-1]] = value
        return json.dumps(data)

    return spoil


HOSTILE: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "empty": (lambda text: "", "not valid JSON"),
    "cut short": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "two of them": (lambda text: text + text, "not valid JSON"),
    "not text": (lambda text: b"\xff\xfe" + text.encode(), "not valid JSON"),
    "a list": (lambda text: f"[{text}]", "expected a table"),
    "only a number": (lambda text: "7", "expected a table"),
    "deeply nested": (lambda text: "[" * 100_000, "not valid JSON"),
    "another schema": (_with(schema=9), "schema 9, expected 1"),
    "no schema": (lambda text: text.replace('"schema": 1,', ""), "schema None, expected 1"),
    "another run": (_with(run_id="0" * 12), "is run 000000000000"),
    "another stage": (_with(stage="train"), "is of stage 'train', expected 'segment'"),
    "other data": (
        _with(parents__data="0" * 64),
        "made from other runs or data than the plan names",
    ),
    "another parent": (
        _with(parents__generate="0" * 12),
        "made from other runs or data than the plan names",
    ),
    "an unknown key": (_with(extra=1), "unknown key 'extra'"),
    "a missing key": (
        lambda text: text.replace('"metrics":', '"metric":'),
        "did you mean 'metrics'?",
    ),
    "NaN": (_with(metrics__dice=float("nan")), "NaN is not a number"),
    "infinity": (_with(metrics__dice=float("inf")), "Infinity is not a number"),
    "a number too large for a double": (
        lambda text: text.replace('"wall_s": 12.5', '"wall_s": 1e999'),
        "got inf",
    ),
    "a word for a number": (_with(metrics__dice="0.5"), "got '0.5', expected float"),
    "true for a number": (_with(metrics__dice=True), "got True, expected float"),
    "a case that is a number": (_with(per_case__case00=0.5), "got 0.5, expected a table"),
    "half a surrogate pair": (_with(run_id="\ud800"), "expected"),
    "an integer too large for a double": (
        lambda text: text.replace('"wall_s": 12.5', '"wall_s": 1' + "0" * 400),
        "expected a finite number",
    ),
    "a count too large for a double": (
        lambda text: text.replace('"attempt": 1', '"attempt": 1' + "0" * 400),
        "cannot be used",
    ),
    "nested just so deeply that it is read": (
        lambda text: text.replace(
            '"details": {', '"details": {"a": ' + "[" * 960 + "]" * 960 + ", "
        ),
        "",
    ),
    "bytes that are no text, where nobody looks": (
        lambda text: text.encode().replace(b'"data": "brats2021"', b'"data": "brats\xff"'),
        "not valid JSON",
    ),
    "a config that is a number": (_with(config=7), "got 7, expected a table"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_gets_one_line(tmp_path: Path, what: str) -> None:
    run = segments(write_sweep(tmp_path, seeds=1), "hvae+100")[0]
    path, (spoil, reason) = tmp_path / folder_of(run) / "metrics.json", HOSTILE[what]
    spoilt = spoil(path.read_text())
    path.write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
    result = read_results(read_plan(tmp_path / "plans/small.json"))[run.run_id]
    if not reason and result.done:  # it may be read, or not, but nothing breaks
        return
    assert not result.done
    assert result.reason.startswith("metrics.json")
    assert reason in result.reason
    assert result.reason.isprintable()
    assert len(result.reason) < 300


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [loop, os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_that_run_s_fault_alone(
    remembered: tuple[Plan, list[str]], make: Callable[[Path], None]
) -> None:
    plan, read = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    path = plan.folder(run_id) / "metrics.json"
    path.unlink()
    make(path)
    results = read_results(plan)
    assert results[run_id].reason.startswith("metrics.json: cannot be read (")
    assert [i for i, result in results.items() if not result.done] == [run_id]
    assert read in ([], [run_id])


def test_what_is_kept_is_what_is_read(remembered: tuple[Plan, list[str]]) -> None:
    plan, read = remembered
    kept = read_results(plan)
    (plan.runs_folder / "plans/small.cache").unlink()
    assert read == []
    assert read_results(plan) == kept
    assert read == list(plan.runs)


def test_a_summary_has_the_numbers_of_the_file(tmp_path: Path) -> None:
    run = segments(write_sweep(tmp_path, seeds=1), "hvae+100")[0]
    result = read_result(tmp_path / folder_of(run), run.run_id)
    assert result
    summary = read_results(read_plan(tmp_path / "plans/small.json"))[run.run_id]
    assert summary.stamp == result_stamp(result)
    assert summary.metrics == result.metrics
    assert summary.case_dice == {case: each["dice"] for case, each in result.per_case.items()}
    assert (summary.wall_s, summary.energy_j, summary.hausdorff_unit) == (12.5, None, "mm")


def spoil_one(folder: Path, spoil: Callable[[str], str]) -> tuple[done.ResultSummary, ...]:
    """Return what is known of a run before and after its metrics.json was changed."""
    run = segments(write_sweep(folder, seeds=1), "hvae+100")[0]
    plan, path = read_plan(folder / "plans/small.json"), folder / folder_of(run) / "metrics.json"
    before = read_results(plan)[run.run_id]
    path.write_text(spoil(path.read_text()))
    return before, read_results(plan)[run.run_id]


def test_control_characters_of_a_file_do_not_reach_a_table(tmp_path: Path) -> None:
    _, result = spoil_one(tmp_path, _with(provenance__device="GPU \x1b[2J\ud800" + 200 * "x"))
    assert result.device.startswith("GPU \\x1b[2J\\ud800xxx")
    assert len(result.device) == done.LONGEST_TEXT


def reverse_cases(text: str) -> str:
    data = json.loads(text)
    return json.dumps({**data, "per_case": dict(reversed(data["per_case"].items()))})


def test_cases_in_another_order_are_the_same_cases(tmp_path: Path) -> None:
    before, after = spoil_one(tmp_path, reverse_cases)
    assert list(after.case_dice.items()) == list(before.case_dice.items())


def add_surface_dice(text: str) -> str:
    data = json.loads(text)
    for numbers in data["per_case"].values():
        numbers["surface_dice"] = 0.25
    return json.dumps(data)


def test_other_numbers_per_case_are_taken(tmp_path: Path) -> None:
    before, after = spoil_one(tmp_path, add_surface_dice)
    assert after.case_dice == before.case_dice
