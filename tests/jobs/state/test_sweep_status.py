"""The status of sweeps: what is left, how far runs are, and how little SLURM is asked."""

import time
from pathlib import Path

import pytest

from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state import sweep_status as sweep_status_module
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import SweepStatus, make_sweep_status, read_sweep_statuses
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.plan import Plan
from tests.jobs.queues import Queue, in_queue, log, make_plan, queue_of, submit
from tests.results.made_up import SMALL_ARMS, fake_metrics, finish, make_runs


@pytest.fixture(autouse=True)
def _no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a SLURM that this machine may have; the tests that want one bring their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("PATH", "/usr/sbin-without-slurm")


def look(plan: Plan, queue: Queue | None = None) -> SweepStatus:
    return make_sweep_status(plan, Submissions(plan.runs_folder), queue)


def fake_clients(folder: Path, monkeypatch: pytest.MonkeyPatch, **clients: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in clients.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_only_the_logs_of_runs_that_run_are_read_for_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=3, sources=())
    plan = make_plan(tmp_path, runs)
    ids = [run.run_id for run in runs]
    name = submit(plan, [[run_id] for run_id in ids])
    finish(tmp_path, runs[0], fake_metrics(runs[0]))
    for i, run_id in enumerate(ids):
        log(plan, run_id, {"event": "started", "job_id": f"12_{i}"})
    read: list[Path] = []

    def counting(folder: Path) -> list[dict[str, object]]:
        read.append(folder)
        return read_log(folder)

    monkeypatch.setattr(sweep_status_module, "read_log", counting)
    look(plan, queue_of(in_queue(name, [1], "RUNNING")))
    assert read == [plan.folder(ids[1])]


def test_hours_left_count_what_is_left_of_what_runs(tmp_path: Path) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=3, sources=())
    plan = make_plan(tmp_path, runs)
    name = submit(plan, [[run.run_id] for run in runs])
    finish(tmp_path, runs[0], fake_metrics(runs[0]))  # took 12.5 s
    log(plan, runs[1].run_id, {"event": "started", "job_id": "12_1"}, {"images_seen": 160})
    totals = look(
        plan, queue_of(in_queue(name, [1], "RUNNING"), in_queue(name, [2], "PENDING"))
    ).totals
    assert totals["gpu_hours_left"] == pytest.approx(1.5 * 12.5 / 3600)
    assert totals["cpu_hours_left"] == pytest.approx(4 * 1.5 * 12.5 / 3600)
    assert totals["measured"] == 1


def test_a_folder_that_was_moved_is_read_where_it_is(tmp_path: Path) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=())
    make_plan(tmp_path / "old", runs)
    finish(tmp_path / "old", runs[0], fake_metrics(runs[0]))
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_sweep_statuses(tmp_path / "new")[0].totals["done"] == 1


def test_a_slurm_that_does_not_answer_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    submit(plan, [list(plan.runs)])
    fake_clients(
        tmp_path / "bin",
        monkeypatch,
        sbatch="exit 1",
        squeue="exec sleep 30",
    )
    monkeypatch.setattr(sweep_status_module, "STATUS_PATIENCE_S", 0.5)
    began = time.monotonic()
    assert "squeue did not answer within" in read_sweep_statuses(tmp_path)[0].note
    assert time.monotonic() - began < 10


def test_an_answer_from_before_the_last_sbatch_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    row = "12|0|PENDING|Priority|2026-01-02T03:04:05|small|hvae_hpc:small-abc:0"
    fake_clients(
        tmp_path / "bin",
        monkeypatch,
        sbatch="exit 1",
        squeue=f"echo x >> {tmp_path}/count; echo '{row}'",
    )
    slurm.read_queue(time.time() - 60)
    submit(plan, [list(plan.runs)], at=time.time())
    for _ in range(2):
        assert read_sweep_statuses(tmp_path)[0].totals["waiting"] == 1
    assert (tmp_path / "count").read_text() == "x\nx\n"
