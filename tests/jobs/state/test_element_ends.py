"""How lost elements ended: sacct is asked once for all, only where there is one, and never twice for an element."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from hvae_hpc.jobs.slurm.client import read_queue
from hvae_hpc.jobs.state import run_status
from hvae_hpc.jobs.state.run_status import RunStatus, RunStatuses, explain_lost, read_statuses
from hvae_hpc.jobs.state.submissions import ENDS_FILE, Submissions
from hvae_hpc.runs.done import read_results
from tests.jobs.queues import make_plan, submit
from tests.minislurm.minislurm import MiniSlurm
from tests.minislurm.test_minislurm import wait_until
from tests.results.made_up import SMALL_ARMS, make_runs

LOST = {f"run{i}": RunStatus("lost", f"12_{i}", "ended without a result") for i in range(4)}
SACCT = """12_0|NODE_FAIL|1:0|n1
12_1|CANCELLED by 1000|0:0|None assigned
12_2|FAILED|137:0|n[2-3]
12_[3-9,12%2]|CANCELLED by 0|0:0|None assigned
"""


@pytest.fixture
def sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up sacct that says what the returned file holds, and adds its arguments to ``calls``."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sacct").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat {tmp_path}/answer\n'
    )
    (tmp_path / "bin/sacct").chmod(0o755)
    (tmp_path / "answer").write_text(SACCT)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(run_status, "POLL_S", 0.0)
    return tmp_path / "answer"


def explain(folder: Path, statuses: dict[str, RunStatus]) -> dict[str, RunStatus]:
    plan = make_plan(folder, [])
    submissions = Submissions(folder)
    sweep = RunStatuses(plan=plan, results={}, statuses=statuses, submissions=submissions)
    return dict(explain_lost(sweep, patience_s=5.0).statuses)


def reasons(folder: Path, statuses: dict[str, RunStatus] = LOST) -> list[str]:
    explained = explain(folder, statuses)
    return [status.reason.partition(": ")[2] for status in explained.values()]


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def test_the_state_becomes_part_of_the_reason_by_one_call_ever(tmp_path: Path, sacct: Path) -> None:
    for _ in range(3):
        assert reasons(tmp_path) == [
            *(
                "NODE_FAIL on n1",
                "CANCELLED by 1000",
                "FAILED, exit code 137 on n[2-3]",
                "CANCELLED by 0",
            )
        ]
    assert len(calls(tmp_path)) == 1
    assert "--jobs 12 " in calls(tmp_path)[0]


def test_nobody_is_asked_about_what_is_not_lost(tmp_path: Path, sacct: Path) -> None:
    statuses = {
        "a": RunStatus("failed", "12_0", "own fault"),
        "b": RunStatus("lost", "", "ended without a result"),
        "c": RunStatus("waiting", "12_1", "Priority"),
    }
    assert explain(tmp_path, statuses) == statuses
    assert calls(tmp_path) == []


@pytest.mark.parametrize(("hours", "asked"), [(0, 3), (48, 1)])
def test_an_element_that_accounting_does_not_know_is_asked_for_while_it_is_young(
    tmp_path: Path, sacct: Path, hours: float, asked: int
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    submit(plan, [list(plan.runs)], job="99", at=time.time() - 3600 * hours)
    for _ in range(3):
        assert reasons(tmp_path, {"a": RunStatus("lost", "99_0", "ended without a result")}) == [""]
    assert len(calls(tmp_path)) == asked


def test_an_element_that_accounting_believes_to_run_is_asked_for_again(
    tmp_path: Path, sacct: Path
) -> None:
    sacct.write_text("12_0|RUNNING|0:0|n1\n")
    statuses = {"run0": LOST["run0"]}
    assert reasons(tmp_path, statuses) == [""]
    sacct.write_text("12_0|TIMEOUT|0:0|n1\n")
    assert reasons(tmp_path, statuses) == ["TIMEOUT on n1"]


def test_it_is_not_asked_all_the_time(
    tmp_path: Path, sacct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_status, "POLL_S", 60.0)
    sacct.write_text("12_0|RUNNING|0:0|n1\n")
    for _ in range(3):
        reasons(tmp_path, {"run0": LOST["run0"]})
    assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage", ["", "[1", '{"asked_at": 1}', "[]", "{}", '{"asked_at": 1, "ends": null}']
)
def test_a_damaged_memory_is_asked_anew(tmp_path: Path, sacct: Path, damage: str) -> None:
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / ENDS_FILE).write_text(damage)
    assert reasons(tmp_path)[0] == "NODE_FAIL on n1"
    assert (
        json.loads((tmp_path / "submissions" / ENDS_FILE).read_text())["ends"]["12_3"]
        == "CANCELLED by 0"
    )


def test_no_sacct_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reasons(tmp_path) == [""] * 4


def lose_one(slurm: MiniSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunStatus:
    """Submit two elements, end one that runs from outside, and return how its run stands."""
    for name, value in slurm.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(run_status, "POLL_S", 0.0)
    plan = make_plan(folder, make_runs(arms=SMALL_ARMS[:1], seeds=2, sources=()))
    first, second = plan.runs
    options = ["--comment=hvae_hpc:small-abc:0", "--array=0-1", "--mem=100", "--output=/dev/null"]
    job = slurm.client("sbatch", "--parsable", *options, "--wrap=sleep 60").strip()
    submit(plan, [[first], [second]], job=job, at=time.time())
    wait_until(
        lambda: slurm.client("squeue", "-h", "-j", f"{job}_1", "-o", "%T").strip() == "RUNNING"
    )
    slurm.client("scancel", f"{job}_1")
    wait_until(lambda: slurm.client("squeue", "-h", "-j", f"{job}_1").strip() == "")
    submissions, statuses = Submissions(folder), {}
    queue = read_queue(not_before=time.time())
    try:
        for _ in range(20):  # slurmdbd takes its time
            sweep = read_statuses(plan, read_results(plan), submissions, queue)
            statuses = explain_lost(sweep).statuses
            if ":" in statuses[second].reason or not slurm.config.accounting:
                break
            time.sleep(0.5)
    finally:
        slurm.client("scancel", job)
        wait_until(lambda: set(slurm.status().values()) == {"idle"})
    assert statuses[first].kind in ("waiting", "running")
    return statuses[second]


@pytest.mark.needs_accounting
def test_a_real_accounting_says_who_cancelled(
    strict_slurm: MiniSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = lose_one(strict_slurm, tmp_path, monkeypatch)
    assert status.kind == "lost"
    said = re.fullmatch(r"ended before its log began: CANCELLED by (\d+) on n[1-4]", status.reason)
    assert said
    assert int(said[1]) == os.geteuid()


def test_a_real_slurm_without_accounting_is_not_an_error(
    minislurm: MiniSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = lose_one(minislurm, tmp_path, monkeypatch)
    assert status[0::2] == ("lost", "ended before its log began")
