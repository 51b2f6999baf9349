"""Runs of an element side by side: how many, what becomes of each, and how they leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.worker import element, signals
from hvae_hpc.jobs.worker import side_by_side as together
from hvae_hpc.jobs.worker.gpu_meter import Memory
from hvae_hpc.jobs.worker.local_pool import Worker
from hvae_hpc.jobs.worker.run import Report
from hvae_hpc.jobs.worker.side_by_side import Together, has_room, images_per_s, next_number
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import append_log, read_log, read_result
from hvae_hpc.runs.lease import is_held
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run
from tests.jobs.worker.test_element import (
    fake_scontrol,
    long_training,
    start,
    submitted,
    wait_for,
)
from tests.jobs.worker.test_run import make_plan, run_named


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The runs of a tiny sweep on one data set."""
    return make_plan(tmp_path)


def with_resources(plan: Plan, **changes: object) -> Plan:
    return replace(plan, resources=dict.fromkeys(CONFIGS, Resources(**changes)))


@pytest.mark.parametrize(
    ("rates", "room", "number"),
    [
        ({}, False, 1),
        ({1: 100}, True, 2),
        ({1: 100}, False, 1),
        ({1: 100, 2: 180}, True, 3),
        ({1: 100, 2: 180}, False, 2),
        ({1: 100, 2: 109}, True, 1),
        ({1: 100, 2: 90}, True, 1),
        ({1: 100, 2: 180, 3: 190}, True, 2),
    ],
)
def test_one_more_is_tried_as_long_as_the_last_one_paid_and_there_is_room(
    rates: dict[int, float], room: bool, number: int
) -> None:
    assert next_number(rates, room) == number


def test_only_what_all_runs_logged_while_all_of_them_trained_counts(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"

    def log(folder: Path, at: float, **record: object) -> None:
        folder.mkdir(exist_ok=True)
        append_log(folder, {**record, "time": at})

    log(one, 100, event="training", images_seen=0)
    for at, seen in ((110, 800), (120, 1600), (130, 2000)):
        log(one, at, images_seen=seen, loss=1.0)
    assert images_per_s([one], 0) == 60
    assert images_per_s([one], 115) == 40
    assert images_per_s([one], 125) is None
    log(two, 118, event="training", images_seen=0)
    assert images_per_s([one, two], 0) is None
    log(two, 125, images_seen=100)
    assert images_per_s([one, two], 0) is None
    log(two, 135, images_seen=300)
    assert images_per_s([one, two], 0) == 40 + 20


def test_there_is_room_for_cores_and_for_both_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def memory_mib(self) -> float:
            return 1000.0

    def room(n: int, memory: Memory | None = None, **changes: float) -> bool:
        monkeypatch.setattr(together, "device_memory", lambda: memory)
        resources = Resources(**{"cpus": 4, "memory_gb": 16.0, **changes})
        return has_room(resources, [Fake()] * n)

    assert room(1, Memory(10_000, 20_000))
    assert not room(1, Memory(10_000, 14_000))
    assert room(2, Memory(20_000, 16_000))
    assert not room(1)  # NVML does not tell
    assert not room(1, Memory(10_000, 20_000), cpus=1)
    assert not room(1, Memory(10_000, 20_000), threads=3)
    assert not room(1, Memory(10_000, 20_000), memory_gb=2.0)


ANSWERS = """
import json, os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for line in sys.stdin:
    run_id, at_once = line.split()
    print(f"{run_id} {at_once}", file=open(sys.argv[1], "a"), flush=True)
    state = {states}.get(run_id, "done")
    if state == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while not Path(sys.argv[1] + ".go").exists() and state != "at once":
        time.sleep(0.01)
    state = "done" if state == "at once" else state
    print(json.dumps(dict(run_id=run_id, state=state, message="", wall_s=1.0)), flush=True)
"""


class FakeWorker(Worker):
    """Notes what it is given, and answers as it was told."""

    def __init__(self, notes: Path, states: dict[str, str]) -> None:
        script = ANSWERS.replace("{states}", repr(states))
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", script, str(notes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run_id, self.started = None, 0.0


def made_up(plan: Plan, n: int, **changes: object) -> tuple[Plan, list[str]]:
    """Return a plan of n seeds of an arm, and their ids."""
    run = plan.runs[run_named(plan, "segment", "reference")]
    runs = [
        Run(stage="segment", config=replace(run.config, seed=seed), parents=run.parents)
        for seed in range(n)
    ]
    plan = with_resources(replace(plan, runs={run.run_id: run for run in runs}), **changes)
    for each in runs:
        plan.folder(each.run_id).mkdir(parents=True)
    return plan, [each.run_id for each in runs]


def test_the_number_grows_while_it_pays_and_then_stays(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ids = made_up(plan, 9, at_once=0, gpus=1)
    notes, told = tmp_path / "notes", list[Report]()
    all_rates = {1: 100.0, 2: 180.0, 3: 185.0}

    def rates(folders: list[Path], since: float) -> float:
        if len(folders) == 3:
            Path(f"{notes}.go").touch()  # from here on they end
        return all_rates[len(folders)]

    monkeypatch.setattr(together, "images_per_s", rates)
    monkeypatch.setattr(together, "has_room", lambda resources, busy: True)
    group = Together(plan, ids, lambda: FakeWorker(notes, {}), told.append)
    group.run()
    assert [group.reports[run_id].state for run_id in ids] == ["done"] * 9
    assert sorted(report.run_id for report in told) == sorted(ids)
    given = [int(line.split()[1]) for line in notes.read_text().splitlines()]
    assert given[:-1] == [1, 2, 3] + [2] * 5
    assert given[-1] in (1, 2)  # alone, where the two before it ended at once
    assert (
        "1 at once: 100 images/s, 2 at once: 180 images/s, 3 at once: 185 images/s; goes on with 2"
        in (capsys.readouterr().out)
    )
    assert group.workers == [] or all(worker.process.poll() is not None for worker in group.workers)


def test_where_fewer_runs_are_left_each_is_one_of_those(plan: Plan, tmp_path: Path) -> None:
    plan, ids = made_up(plan, 2, at_once=4)
    Path(f"{tmp_path / 'notes'}.go").touch()
    Together(plan, ids, lambda: FakeWorker(tmp_path / "notes", {}), lambda report: None).run()
    assert sorted((tmp_path / "notes").read_text().splitlines()) == sorted(
        f"{run_id} 2" for run_id in ids
    )


def test_what_fails_or_dies_beside_others_is_left_to_be_done_alone(
    plan: Plan, tmp_path: Path
) -> None:
    plan, ids = made_up(plan, 5, at_once=2)
    Path(f"{tmp_path / 'notes'}.go").touch()
    states = {ids[0]: "failed", ids[1]: "dies", ids[2]: "busy", ids[3]: "blocked"}
    group = Together(plan, ids, lambda: FakeWorker(tmp_path / "notes", states), lambda report: None)
    group.run()
    assert {run_id: report.state for run_id, report in group.reports.items()} == {
        ids[3]: "blocked",
        ids[4]: "done",
    }
    logged = [read_log(plan.folder(run_id)) for run_id in ids]
    assert [[entry["event"] for entry in log] for log in logged] == [
        ["again"],
        ["again"],
        [],
        [],
        [],
    ]
    assert "its process died (SIGKILL)" in logged[1][0]["reason"]


def test_what_dies_alone_has_failed(plan: Plan, tmp_path: Path) -> None:
    plan, ids = made_up(plan, 2, at_once=0, gpus=1)
    states = {ids[0]: "dies", ids[1]: "at once"}
    group = Together(plan, ids, lambda: FakeWorker(tmp_path / "notes", states), lambda report: None)
    group.run()
    assert [group.reports[run_id].state for run_id in ids] == ["failed", "done"]
    assert read_log(plan.folder(ids[0]))[-1]["event"] == "failed"


def test_runs_side_by_side_are_those_that_are_made_one_after_the_other(
    plan: Plan, tmp_path: Path
) -> None:
    ids = [run_named(plan, "train", name) for name in ("vae", "lsgan")]
    results = {}
    for at_once in (1, 2):
        each = with_resources(
            replace(plan, runs_folder=tmp_path / f"runs-{at_once}"), at_once=at_once
        )
        assert element.run_element(submitted(each, *ids), 0) == 0
        results[at_once] = [read_result(each.folder(run_id), run_id) for run_id in ids]
    for alone, beside in zip(results[1], results[2], strict=True):
        assert alone is not None
        assert beside is not None
        assert beside.metrics == alone.metrics
        assert (alone.provenance.at_once, beside.provenance.at_once) == (1, 2)
        assert beside.provenance.job_id == "7_0"


def two_trainings(plan: Plan) -> tuple[Plan, list[str]]:
    plan, first = long_training(plan)
    run = plan.runs[first]
    other = replace(run, config=replace(run.config, seed=1))
    return with_resources(replace(plan, runs={first: run, other.run_id: other}), at_once=2), [
        first,
        other.run_id,
    ]


def test_all_runs_save_and_leave_when_the_element_is_told(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    plan, ids = two_trainings(plan)
    process = start(submitted(plan, *ids, minutes=1), {})
    for run_id in ids:
        wait_for(plan, run_id, "images_seen")
    process.send_signal(signal.SIGUSR2)
    deadline = time.time() + 60
    while not calls.exists():
        assert time.time() < deadline
        time.sleep(0.1)
    assert not any(is_held(plan.folder(run_id)) for run_id in ids)  # before it is sent back
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (element.LEFT_EARLY, "")
    assert out.count("saved and left") == 2
    for run_id in ids:
        assert list(plan.folder(run_id).glob("checkpoint-*.pt"))
        assert [record["event"] for record in read_log(plan.folder(run_id))[-2:]] == [
            "stopped",
            "left",
        ]


def test_an_element_that_is_killed_takes_its_processes_along(plan: Plan) -> None:
    plan, ids = two_trainings(plan)
    process = start(submitted(plan, *ids), {})
    for run_id in ids:
        wait_for(plan, run_id, "images_seen")
    process.kill()
    process.communicate()
    deadline = time.time() + 60
    while any(is_held(plan.folder(run_id)) for run_id in ids):  # they save first
        assert time.time() < deadline
        time.sleep(0.1)
    assert all(list(plan.folder(run_id).glob("checkpoint-*.pt")) for run_id in ids)


def test_a_run_whose_process_is_killed_beside_others_is_done_alone_by_the_same_element(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_SEEN", [])
    ids = [run_named(plan, "train", name) for name in ("vae", "lsgan")]
    plan = with_resources(plan, at_once=2)
    killed = list[int]()
    give_out: Callable[..., None] = Together._give_out

    def kill_one(group: Together, selector: object) -> None:
        give_out(group, selector)
        if not killed:
            killed.append(group.workers[1].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Together, "_give_out", kill_one)
    assert element.run_element(submitted(plan, *ids), 0) == 0
    assert killed
    results = read_results(plan)
    assert all(results[run_id].done for run_id in ids)
    events = [
        [entry["event"] for entry in read_log(plan.folder(run_id)) if "event" in entry]
        for run_id in ids
    ]
    assert events[0] == ["started", "training"]
    assert events[1][-3:] == ["again", "started", "training"]


def test_runs_are_made_one_after_the_other_unless_somebody_asks(plan: Plan) -> None:
    assert not Resources().side_by_side
    assert not Resources(at_once=0).side_by_side  # no GPU to measure on
    assert not Resources(at_once=0, gpus=1, device="cpu").side_by_side
    assert not Resources(at_once=2, gpus=2).side_by_side  # a run of several processes has them all
    assert Resources(at_once=0, gpus=1).side_by_side
    assert Resources(at_once=3).side_by_side
    with pytest.raises(ValueError, match="at_once is -1"):
        Resources(at_once=-1)
