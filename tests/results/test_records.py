"""Columns of all runs: the same whether a file was read now or is remembered, and never those of an older file."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hvae_hpc.results import records as module
from hvae_hpc.results.collect import METRICS, collect
from hvae_hpc.results.columns import read_columns, schema_of
from hvae_hpc.results.reading import NO_STAMP, Asked, Row, read_rows
from hvae_hpc.results.records import Records, read_records
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import read_result, result_stamp
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.plan import Plan, read_plan
from tests.results.made_up import fake_metrics, finish, write_sweep


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, list[str]]:
    """A sweep that was collected once, and the ids of the runs whose metrics.json is read from then on."""
    write_sweep(tmp_path, likelihoods=True)
    monkeypatch.setattr(module, "SETTLED_NS", -(10**18))  # so young files are remembered as well
    plan = read_plan(tmp_path / "plans/small.json")
    read_records(plan, METRICS)
    read: list[str] = []

    def counting(asked: Sequence[Asked]) -> Iterator[Row | str | None]:
        read.extend(one.run_id for one in asked)
        return read_rows(asked)

    monkeypatch.setattr(module, "read_rows", counting)
    return plan, read


def forget(plan: Plan) -> None:
    for path in plan.runs_folder.glob("plans/*.records"):
        path.unlink()


def assert_same(one: Records, other: Records) -> None:
    assert one.frames.keys() == other.frames.keys()
    for stage, frame in one.frames.items():
        pd.testing.assert_frame_equal(frame, other.frames[stage])
    assert dict(one.dice) == dict(other.dice)
    assert one.faults == other.faults


def test_what_is_remembered_is_what_is_read(remembered: tuple[Plan, list[str]]) -> None:
    plan, read = remembered
    again = read_records(plan, METRICS)
    assert read == []
    forget(plan)
    anew = read_records(plan, METRICS)
    assert read == [
        run_id for stage in again.frames for run_id in plan.runs if plan.runs[run_id].stage == stage
    ]
    assert_same(again, anew)
    assert set(again.frames["segment"]["run_id"]) == set(again.dice)


def test_only_runs_from_which_others_are_made_have_a_stamp(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, _ = remembered
    parents = {parent for run_id in plan.runs for parent in plan.parents(run_id).values()}
    for frame in read_records(plan, METRICS).frames.values():
        for run_id, stamp in zip(frame["run_id"], frame["stamp"], strict=True):
            result = read_result(plan.folder(run_id), run_id)
            assert result is not None
            assert stamp == (result_stamp(result) if run_id in parents else NO_STAMP)


def test_a_run_that_becomes_a_parent_is_read_again_for_its_stamp(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, read = remembered
    judge, *others = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"]
    child = replace(plan.runs[others[0]], parents={**plan.runs[others[0]].parents, "judge": judge})
    read_records(replace(plan, runs={**plan.runs, others[0]: child}), METRICS)
    assert read == [judge]


def test_a_file_that_was_changed_in_place_is_read_again(remembered: tuple[Plan, list[str]]) -> None:
    plan, read = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    path = plan.folder(run_id) / "metrics.json"
    before, text = path.stat(), path.read_text()
    with open(path, "r+") as file:
        file.write(text.replace('"wall_s": 12.5', '"wall_s": 12.6'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, time and inode
    frame = read_records(plan, METRICS).frames["segment"].set_index("run_id")
    assert read == [run_id]
    assert frame.loc[run_id, "wall_s"] == 12.6
    assert list(frame.index) == [i for i, run in plan.runs.items() if run.stage == "segment"]
    read_records(plan, METRICS)
    assert read == [run_id]


def test_a_result_that_was_deleted_is_gone_and_comes_back(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, read = remembered
    whole = read_records(plan, METRICS)
    first, second = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"][:2]
    (plan.folder(first) / "metrics.json").unlink()
    shutil.rmtree(plan.folder(second))
    assert not {first, second} & set(read_records(plan, METRICS).dice)
    for run_id in (first, second):
        finish(plan.runs_folder, plan.runs[run_id], fake_metrics(plan.runs[run_id]))
    assert_same(read_records(plan, METRICS), whole)
    assert read == [first, second]


def test_a_file_that_cannot_be_believed_is_looked_at_every_time(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, read = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    path = plan.folder(run_id) / "metrics.json"
    path.write_text(path.read_text()[:-20])
    for _ in range(2):
        found = read_records(plan, METRICS)
        assert "not valid JSON" in found.faults[run_id]
        assert run_id not in found.dice
    assert read == [run_id, run_id]


DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda data: data[: len(data) // 2],
    lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    lambda data: data.replace(code_sha().encode(), b"0" * 12),  # of another version of the code
    lambda data: b"",
    lambda data: b"\x00" * 100,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_memory_is_ignored_and_written_anew(
    remembered: tuple[Plan, list[str]], damage: Callable[[bytes], bytes]
) -> None:
    plan, read = remembered
    whole = read_records(plan, METRICS)
    path = plan.runs_folder / "plans/small.segment.records"
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert_same(read_records(plan, METRICS), whole)
    assert read == [run_id for run_id, run in plan.runs.items() if run.stage == "segment"]
    assert path.read_bytes() == good


def test_other_metrics_than_before_are_read_anew(remembered: tuple[Plan, list[str]]) -> None:
    plan, read = remembered
    frame = read_records(plan, {**METRICS, "train": ("loss",)}).frames["train"]
    assert set(frame["loss"]) == {1.0}
    assert set(read) == set(frame["run_id"])


def test_a_copied_runs_folder_is_read_anew(
    remembered: tuple[Plan, list[str]], tmp_path: Path
) -> None:
    plan, read = remembered
    copy = replace(plan, runs_folder=tmp_path.parent / f"{tmp_path.name}-copy")
    shutil.copytree(tmp_path, copy.runs_folder)
    assert_same(read_records(copy, METRICS), read_records(plan, METRICS))
    assert len(read) == len(plan.runs)


def test_a_memory_that_cannot_be_written_is_done_without(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, _ = remembered
    forget(plan)
    (plan.runs_folder / "plans/small.segment.records").mkdir()
    assert collect(plan).missing == ()
    assert list((plan.runs_folder / "plans").glob(".*")) == []


def test_a_file_so_young_that_it_may_change_unseen_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 10**12)
    plan = read_plan(write_sweep(tmp_path) and tmp_path / "plans/small.json")
    read_records(plan, METRICS)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("plans/*.records")}
    assert (
        len(read_columns(tmp_path / "plans/small.segment.records", schema_of(METRICS["segment"])))
        == 0
    )
    assert len(sizes) == len({run.stage for run in plan.runs.values()})


def test_a_run_that_lies_in_two_folders_is_named(remembered: tuple[Plan, list[str]]) -> None:
    plan, _ = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    copy = plan.folder(run_id).with_name(f"copy-{run_id}")
    shutil.copytree(plan.folder(run_id), copy)
    reason = f"the same run lies in segment/{copy.name} as well; keep one of the two and delete the other"
    found = read_records(plan, METRICS)
    assert (found.doubled, found.faults) == ({run_id: reason}, {})
    (copy / "metrics.json").unlink()
    assert read_records(plan, METRICS).doubled == {}


def test_a_run_in_a_folder_of_another_name_is_not_said_to_be_there_twice(
    remembered: tuple[Plan, list[str]],
) -> None:
    plan, _ = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    plan.folder(run_id).rename(plan.folder(run_id).with_name(f"other-{run_id}"))
    found = read_records(plan, METRICS)
    assert (found.doubled, found.faults) == (
        {},
        {run_id: f"lies in segment/other-{run_id} instead; rename that folder"},
    )


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(loop, "cannot be read"), (os.mkfifo, "is no file"), (Path.mkdir, "is no file")],
)
def test_what_is_no_file_is_that_run_s_fault_alone(
    remembered: tuple[Plan, list[str]], make: Callable[[Path], None], reason: str
) -> None:
    plan, read = remembered
    run_id = next(run_id for run_id, run in plan.runs.items() if run.stage == "segment")
    path = plan.folder(run_id) / "metrics.json"
    path.unlink()
    make(path)
    found = read_records(plan, METRICS)
    assert found.faults.keys() == {run_id}
    assert found.faults[run_id].startswith(f"metrics.json: {reason}")
    assert read == []
    assert not read_results(plan)[run_id].done
