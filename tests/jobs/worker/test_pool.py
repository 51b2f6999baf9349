"""Runs in a pool of workers: what becomes of each, and how an element's workers leave."""

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
from hvae_hpc.jobs.worker.pool import Pool, Worker
from hvae_hpc.jobs.worker.run import Report
from hvae_hpc.runs.folder import read_log, read_result
from hvae_hpc.runs.lease import is_held
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run
from tests.jobs.worker.test_element import (
    _in_slurm,  # noqa: F401 (a fixture for each test)
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


ANSWERS = """
import json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for line in sys.stdin:
    run_id = line.strip()
    print(run_id, os.getpid(), file=open(sys.argv[1], "a"), flush=True)
    state = {states}.get(run_id, "done")
    if state == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    report = dict(run_id=run_id, state="failed" if state == "loses" else state, message="")
    print(json.dumps(report | dict(wall_s=1.0, gpu_lost=state == "loses")), flush=True)
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
        self._orders, self._answers = self.process.stdin, self.process.stdout
        self.run_id, self.started, self.death = None, 0.0, {}


def made_up(plan: Plan, n: int) -> tuple[Plan, list[str]]:
    """Return a plan of n seeds of an arm, and their ids."""
    run = plan.runs[run_named(plan, "segment", "reference")]
    runs = [
        Run(stage="segment", config=replace(run.config, seed=seed), parents=run.parents)
        for seed in range(n)
    ]
    return replace(plan, runs={run.run_id: run for run in runs}), [run.run_id for run in runs]


def make_up_answers(
    plan: Plan, ids: list[str], size: int, notes: Path, states: dict[str, str]
) -> tuple[dict[str, Report], list[Report]]:
    """Return the reports of a pool of such workers, and those that it told of."""
    told = list[Report]()
    pool = Pool(plan, size, lambda: FakeWorker(notes, states), told.append)
    reports = pool.make(ids)
    assert pool.workers == []
    return reports, told


def test_workers_make_one_run_after_the_other(plan: Plan, tmp_path: Path) -> None:
    plan, ids = made_up(plan, 5)
    reports, told = make_up_answers(plan, ids, 2, tmp_path / "notes", {})
    assert {run_id: report.state for run_id, report in reports.items()} == dict.fromkeys(
        ids, "done"
    )
    assert sorted(report.run_id for report in told) == sorted(ids)
    lines = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert sorted(run_id for run_id, _ in lines) == sorted(ids)
    assert len({worker for _, worker in lines}) == 2


def test_a_worker_that_dies_is_replaced_and_its_run_reported_with_the_cause(
    plan: Plan, tmp_path: Path
) -> None:
    plan, ids = made_up(plan, 5)
    states = {ids[0]: "failed", ids[1]: "dies", ids[2]: "busy", ids[3]: "blocked"}
    reports, _ = make_up_answers(plan, ids, 2, tmp_path / "notes", states)
    assert [reports[run_id].state for run_id in ids] == [
        "failed",
        "failed",
        "busy",
        "blocked",
        "done",
    ]
    logged = [read_log(plan.folder(run_id)) for run_id in ids]
    assert [[entry["event"] for entry in log] for log in logged] == [[], ["died"], [], [], []]
    assert "its process died (SIGKILL)" in logged[1][0]["reason"]
    assert logged[1][0]["signal"] == "SIGKILL"


def test_a_worker_that_lost_its_gpu_gets_no_other_run(plan: Plan, tmp_path: Path) -> None:
    plan, ids = made_up(plan, 4)
    reports, _ = make_up_answers(plan, ids, 1, tmp_path / "notes", {ids[0]: "loses"})
    assert [reports[run_id].state for run_id in ids] == ["failed", "done", "done", "done"]
    workers = [line.split()[1] for line in (tmp_path / "notes").read_text().splitlines()]
    assert workers[0] not in workers[1:]
    assert len(set(workers)) == 2


def test_runs_beside_each_other_are_those_made_alone_also_where_one_is_killed(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_SEEN", [])
    ids = [run_named(plan, "train", name) for name in ("vae", "lsgan")]
    killed = list[int]()
    give_out: Callable[[Pool], None] = Pool._give_out

    def kill_one(pool: Pool) -> None:
        give_out(pool)
        if not killed:
            killed.append(pool.workers[1].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Pool, "_give_out", kill_one)
    results = {}
    for at_once in (1, 2):
        each = replace(plan, runs_folder=tmp_path / f"runs-{at_once}")
        each = with_resources(each, at_once=at_once)
        assert element.run_element(submitted(each, *ids), 0) == 0
        results[at_once] = [read_result(each.folder(run_id), run_id) for run_id in ids]
        events = [
            [entry["event"] for entry in read_log(each.folder(run_id)) if "event" in entry]
            for run_id in ids
        ]
    assert killed
    assert events[0] == ["started", "training"]
    assert events[1][-4:] == ["died", "again", "started", "training"]  # alone, by the same element
    for alone, beside in zip(results[1], results[2], strict=True):
        assert alone is not None
        assert beside is not None
        assert beside.metrics == alone.metrics
        assert beside.provenance.job_id == "7_0"
    assert [result and result.provenance.at_once for result in results[2]] == [2, 1]


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


def test_at_once_is_a_number() -> None:
    assert Resources().at_once == 1
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"at_once is {number}, expected more than 0"):
            Resources(at_once=number)
