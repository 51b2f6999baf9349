"""Plans: read back as written, and refused where they do not hold together."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.config.stages import STAGE_VERSIONS
from hvae_hpc.errors import UserError
from hvae_hpc.runs import done as states_module
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import RunResult, read_result
from hvae_hpc.runs.identity import make_run_id
from hvae_hpc.runs.plan import Plan, find_plans, plan_path, read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import fake_metrics, finish, make_runs, write_plan, write_sweep


def test_a_truncated_plan_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_plan(tmp_path, make_runs())
    path.write_text(path.read_text()[:1000])
    with pytest.raises(UserError, match=r"small\.json: not valid JSON"):
        read_plan(path)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "plans/none.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema 3, expected 4; give the sweep command again"),
        ({"runs": 7}, "has no list of runs"),
        ({"runs": [7]}, r"runs\[0\]: got 7, expected a table of run_id, stage"),
        ({"code": "abc"}, "unknown key 'code'"),
        ({"data": {}}, "reads 'brats2021', expected one of"),
        (
            {"data": {"brats2021": {"content_hash": "e" * 64}}},
            "reads other data than the plan's brats2021",
        ),
    ],
)
def test_a_wrong_plan_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_plan(write_plan(tmp_path, make_runs(), changes=changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a"}, r"runs\[0\]: unknown key 'name'"),
        ({"stage": "segmnt"}, r"runs\[0\]\.stage: got 'segmnt'"),
        ({"run_id": "../../0123456"}, "expected 12 hexadecimal digits"),
        ({"run_id": 7}, r"runs\[0\]\.run_id: got 7, expected str"),
        ({"config": {"lr": 1.0}}, "unknown key 'lr'"),
    ],
)
def test_a_wrong_run_in_a_plan_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    runs = read_entries(tmp_path)
    with pytest.raises(UserError, match=message):
        read_plan(write_plan(tmp_path, make_runs(), changes={"runs": [{**runs[0], **changes}]}))


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """Return the runs of a made-up plan, as they stand in its file."""
    entries: list[dict[str, Any]] = json.loads(write_plan(folder, make_runs()).read_text())["runs"]
    return entries


def test_a_run_that_stands_twice_in_a_plan_is_refused(tmp_path: Path) -> None:
    entries = read_entries(tmp_path)
    with pytest.raises(UserError, match="is in the plan twice"):
        read_plan(write_plan(tmp_path, make_runs(), changes={"runs": [*entries, entries[3]]}))


def test_a_folder_without_plans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plan of a sweep in it"):
        find_plans(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_plans(tmp_path / "nowhere")


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
    monkeypatch.setattr(states_module, "SETTLED_NS", 0)
    plan = read_plan(tmp_path / "plans/small.json")
    assert all(result.done for result in read_results(plan).values())
    read: list[str] = []

    def counting(folder: Path, run_id: str) -> RunResult | None:
        read.append(run_id)
        return read_result(folder, run_id)

    monkeypatch.setattr(states_module, "read_result", counting)
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
    assert all(result.result is None for result in results.values())
    assert [path.stem for path in find_plans(plan.runs_folder)] == ["small"]


def test_results_that_are_asked_for_are_always_read(remembered: tuple[Plan, list[str]]) -> None:
    plan, read = remembered
    results = read_results(plan, whole=True)
    assert read == list(plan.runs)
    assert {i: result.result.run_id for i, result in results.items() if result.result} == {
        i: i for i in plan.runs
    }
    assert {i: result.stamp for i, result in results.items()} == {
        i: result.stamp for i, result in read_results(plan).items()
    }


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
    assert results[generate].reason == "what it was made from was made anew, or is gone"


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
    return re.sub(r"states \d+", "states 3", text)


@pytest.mark.parametrize(
    "damage", [_cut, _lie, _other_version, lambda text: "{}", lambda text: "\x00" * 100]
)
def test_a_damaged_memory_is_ignored_and_written_anew(
    remembered: tuple[Plan, list[str]], damage: Callable[[str], str]
) -> None:
    plan, read = remembered
    path = plan.runs_folder / "plans/small.states"
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
    path = plan.runs_folder / "plans/small.states"
    path.unlink()
    path.mkdir()
    assert all(result.done for result in read_results(plan).values())
    assert list((plan.runs_folder / "plans").glob(".*")) == []


def test_a_file_so_young_that_it_may_change_unseen_is_not_remembered(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    read_results(read_plan(tmp_path / "plans/small.json"))
    assert not (tmp_path / "plans/small.states").exists()


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    runs = make_runs(seeds=5)
    plan = read_plan(write_plan(tmp_path, runs))
    assert list(plan.runs.values()) == runs
    assert [run.run_id for run in plan.runs.values()] == list(plan.runs)


def test_a_parent_that_does_not_stand_before_its_run_is_refused(tmp_path: Path) -> None:
    entries = read_entries(tmp_path)
    with pytest.raises(UserError, match="that does not stand before it"):
        read_plan(write_plan(tmp_path, make_runs(), changes={"runs": entries[::-1]}))


def test_runs_of_two_versions_of_a_stage_do_not_stand_in_one_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, path = make_runs(), plan_path(tmp_path, "small")
    entries = read_entries(tmp_path)
    monkeypatch.setitem(STAGE_VERSIONS, "segment", STAGE_VERSIONS["segment"] + 1)
    assert [*read_plan(path).runs] == [entry["run_id"] for entry in entries]  # all of them older

    first = next(i for i, run in enumerate(runs) if run.stage == "segment")
    newer = Run(stage="segment", config=runs[first].config, parents=runs[first].parents)
    entries[first]["run_id"] = newer.run_id
    with pytest.raises(
        UserError, match="mixes runs of stage segment by two versions of the program"
    ):
        read_plan(write_plan(tmp_path, runs, changes={"runs": entries}))


def test_a_plan_from_before_a_setting_was_added_is_read(tmp_path: Path) -> None:
    entries, new = read_entries(tmp_path), dict[str, str]()
    for entry in entries:
        if entry["stage"] == "train":
            del entry["config"]["model"]["mask_weight"]  # as if it had been added later
        entry["parents"] = {role: new.get(of, of) for role, of in entry["parents"].items()}
        version = STAGE_VERSIONS[entry["stage"]]
        run_id = make_run_id(entry["stage"], version, entry["config"], entry["parents"])
        new[entry["run_id"]] = entry["run_id"] = run_id
    plan = read_plan(write_plan(tmp_path, make_runs(), changes={"runs": entries}))
    assert list(plan.runs) == list(new.values())
