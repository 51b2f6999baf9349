"""``hvae-hpc status``: one screen that a person understands, or one JSON object; on a real SLURM one squeue for all."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvae_hpc.cli import main as hvae_hpc
from hvae_hpc.jobs.commands import status
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import (
    SweepStatus,
    make_sweep_status,
    read_our_queue,
    read_sweep_statuses,
)
from hvae_hpc.jobs.sweeps.costs import duration
from hvae_hpc.runs.plan import Plan
from tests.jobs.queues import Queue, in_queue, log, make_plan, queue_of, submit
from tests.minislurm.minislurm import MiniSlurm
from tests.results.made_up import PAPER_ARMS, SMALL_ARMS, fake_metrics, finish, make_runs

PYTHON = [sys.executable, "-m", "hvae_hpc.cli"]


@pytest.fixture(autouse=True)
def _no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a SLURM that this machine may have; the tests that want one bring their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("PATH", "/usr/sbin-without-slurm")


def look(plan: Plan, queue: Queue | None = None) -> SweepStatus:
    return make_sweep_status(plan, Submissions(plan.runs_folder), queue)


def show(plan: Plan, queue: Queue | None = None) -> str:
    return "\n".join(status.render(look(plan, queue)))


def one(plan: Plan, stage: str, label: str) -> str:
    return next(i for i, run in plan.runs.items() if run.stage == stage and run.label == label)


def test_the_paper_s_sweep_in_full_trouble_fits_on_a_screen(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path, make_runs(data=("brats2021", "hecktor2022"), arms=PAPER_ARMS, seeds=10)
    )
    segments = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"]
    train = one(plan, "train", "brats2021-lsgan-s0")
    log(plan, train, {"event": "failed", "reason": "loss became nan"})
    name = submit(plan, [[run_id] for run_id in segments[:40]])
    for i, run_id in enumerate(segments[:10]):
        log(
            plan,
            run_id,
            {"event": "started", "job_id": f"12_{i}", "host": "n1"},
            {"images_seen": 160},
        )
    queue = queue_of(
        in_queue(name, range(10), "RUNNING"), in_queue(name, range(10, 39), "PENDING", "Priority")
    )
    lines = show(plan, queue).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines[:24])) <= 104
    text = "\n".join(lines)
    for arm in PAPER_ARMS:
        assert sum(line.startswith(f"  {arm.name} ") for line in lines) == 1, arm
    assert (
        "0 of 342 runs done, 10 running, 29 waiting, 1 lost, 1 failed, 42 blocked, 259 open" in text
    )
    assert "waiting for others of higher priority (29)" in text
    assert "failed (non-finite loss): train brats2021-lsgan-s0: loss became nan" in lines
    assert (
        f"blocked: generate brats2021-lsgan-s0 and 41 more: needs train brats2021-lsgan-s0 ({train}), failed"
        in lines
    )
    assert "next: the same sweep command makes these runs again" in lines
    assert "... and 2 more at work" in lines


def test_the_table_has_only_columns_that_say_something_and_is_aligned(tmp_path: Path) -> None:
    runs = make_runs(
        data=("brats2021", "hecktor2022"), arms=SMALL_ARMS[:3], seeds=2, sources=("vae",)
    )
    plan = make_plan(tmp_path, runs)
    for run in runs:
        if run.config.data == "brats2021":
            finish(tmp_path, run, fake_metrics(run))
    lines = show(plan).splitlines()
    assert lines[2:9] == [
        "               brats2021  hecktor2022  open",
        "train           1/1 done     0/1 done     1",
        "generate        1/1 done     0/1 done     1",
        "quality         1/1 done     0/1 done     1",
        "segment         6/6 done     0/6 done     6",
        "  reference     2/2 done     0/2 done     2",
        "  standard-x5   2/2 done     0/2 done     2",
    ]
    assert not any(line != line.rstrip() for line in lines)


def test_a_sweep_that_is_done_says_where_its_tables_come_from(tmp_path: Path) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=())
    plan = make_plan(tmp_path, runs)
    finish(tmp_path, runs[0], fake_metrics(runs[0]))
    text = show(plan)
    assert "1 of 1 runs done\n" in text
    assert f"python -m hvae_hpc.results {tmp_path}" in text
    assert "next:" not in text
    assert "left:" not in text


def test_progress_and_time_left_are_of_the_present_attempt(tmp_path: Path) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=())
    plan = make_plan(tmp_path, runs)  # 320 images
    run_id, element = runs[0].run_id, {"job_id": "12_0", "host": "n3"}
    name = submit(plan, [[run_id]])
    log(
        plan,
        run_id,
        {"event": "started", "time": -9000, **element},
        {"images_seen": 32, "time": -5000},
    )
    log(plan, run_id, {"event": "started", "time": -100, "at": 32, **element})
    log(plan, run_id, {"event": "resumed", "images_seen": 32, "time": -40})
    queue = queue_of(in_queue(name, [0], "RUNNING"))
    early = look(plan, queue).progress[run_id]
    assert early[:3] == (0.1, None, "n3")
    log(plan, run_id, {"images_seen": 64, "time": -30}, {"images_seen": 128, "time": -10})
    share, seconds_left, *_ = look(plan, queue).progress[run_id]
    assert share == 0.4
    assert seconds_left == pytest.approx((320 - 128) * 30 / 96 - 10, abs=2)
    assert "segment  brats2021-reference-s0  on n3  40 %  50 s left" in show(plan, queue)


def test_the_pace_is_shown_beside_the_usual_one_and_a_slow_run_is_named_with_its_node(
    tmp_path: Path,
) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=7, sources=())
    plan = make_plan(tmp_path, runs)
    usual, shared, slow, silent = [run.run_id for run in runs[3:]]
    for run in runs[:3]:  # 320 images in 12.5 s
        finish(tmp_path, run, fake_metrics(run), device="NVIDIA H200")
    for run_id, at_once, images, node, silence_s in (
        (usual, 1, 256, "node1", 0),
        (shared, 2, 128, "n2", 0),
        (slow, 1, 40, "n3", 0),
        (silent, 1, 256, "n4", 120),
    ):
        begins = {"event": "started", "job_id": "", "host": node, "at_once": at_once, "time": -100}
        log(plan, run_id, begins, {"images_seen": 0, "time": -10 - silence_s})
        log(plan, run_id, {"images_seen": images, "time": -silence_s})

    progress = look(plan).progress
    paces = {run_id: each.images_per_s for run_id, each in progress.items()}
    assert paces == pytest.approx(
        {usual: 25.6, shared: 25.6, slow: 4.0, silent: 256 / 120}, rel=0.02
    )
    assert progress[slow].usual_images_per_s == pytest.approx(25.6, rel=0.02)

    lines = show(plan).splitlines()
    (row,) = [line for line in lines if "on node1" in line]
    assert row.endswith("25.6 images/s (usual 25.6)")
    named = [line for line in lines if line.startswith("slow: ")]
    assert named == [
        f"slow: segment {plan.runs[run_id].label}: {pace} images/s, usual are 25.6; look at node {node}"
        for run_id, pace, node in ((slow, "4.0", "n3"), (silent, "2.1", "n4"))
    ]


def test_where_no_run_of_its_kind_is_finished_the_others_at_work_tell_the_usual_pace(
    tmp_path: Path,
) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=3, sources=())
    plan = make_plan(tmp_path, runs)
    for run, images in zip(runs, (200, 220, 10), strict=True):
        log(plan, run.run_id, {"event": "started", "job_id": "", "host": "n1", "time": -30})
        log(plan, run.run_id, {"images_seen": 0, "time": -10}, {"images_seen": images, "time": 0})
    (named,) = [line for line in show(plan).splitlines() if line.startswith("slow: ")]
    assert "brats2021-reference-s2: 1.0 images/s, usual are 20.0; look at node n1" in named


def test_a_run_that_logs_no_images_is_timed_by_its_like(tmp_path: Path) -> None:
    runs = make_runs(data=("brats2021", "hecktor2022"), arms=(), seeds=1, sources=("real", "mean"))
    plan = make_plan(tmp_path, runs)
    real = one(plan, "quality", "brats2021-real-s0")
    log(plan, real, {"event": "started", "time": -5, "host": "here", "job_id": ""}, {"time": 0})
    assert look(plan).progress[real][:2] == (None, None)
    assert "quality  brats2021-real-s0  on here" in show(plan)


def test_troubles_are_grouped_by_reason_and_few_lines(tmp_path: Path) -> None:
    runs = make_runs(arms=PAPER_ARMS[:4], seeds=10, sources=())
    plan = make_plan(tmp_path, runs)
    for i, run in enumerate(runs):
        reason = f"{plan.folder(run.run_id)}/metrics.json: odd" if i < 20 else f"reason {i}"
        log(plan, run.run_id, {"event": "failed", "reason": reason})
    lines = [line for line in show(plan).splitlines() if line.startswith(("failed", "..."))]
    assert (
        lines[0]
        == "failed (bad input): segment brats2021-reference-s0 and 19 more: metrics.json: odd"
    )
    assert len(lines) == 9
    assert lines[-1] == "... and 13 more, for other reasons"


def test_json_holds_everything_under_stable_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=2, sources=()))
    first, second = plan.runs
    log(plan, first, {"event": "started", "host": "here", "job_id": ""}, {"images_seen": 160})
    assert status.main([str(tmp_path), "--json", "--watch"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["schema", "time", "queue_asked_at", "note", "sweeps"]
    assert said["schema"] == 2
    (sweep,) = said["sweeps"]
    assert list(sweep) == ["sweep", "runs_folder", "totals", "runs"]
    kinds = ["done", "running", "waiting", "lost", "failed", "blocked", "open"]
    assert list(sweep["totals"]) == ["runs", *kinds, "measured", "gpu_hours_left", "cpu_hours_left"]
    assert [run["run_id"] for run in sweep["runs"]] == [first, second]
    names = [
        "run_id",
        "stage",
        "label",
        "kind",
        "element",
        "reason",
        "progress",
        "seconds_left",
        "host",
        "images_per_s",
        "usual_images_per_s",
    ]
    names.append("failure")
    assert list(sweep["runs"][0]) == names
    assert sweep["runs"][0]["progress"] == 0.5
    assert sweep["runs"][1] == {
        "run_id": second,
        "stage": "segment",
        "label": "brats2021-reference-s1",
        "kind": "open",
        "element": "",
        "reason": "",
        "progress": None,
        "seconds_left": None,
        "host": "",
        "images_per_s": None,
        "usual_images_per_s": None,
        "failure": "",
    }


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3569, "59 min"),
        (3599, "1 h 0 min"),
        (4320, "1 h 12 min"),
        (183600, "2 d 3 h"),
    ],
)
def test_times_are_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_several_sweeps_are_shown_or_the_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=())
    make_plan(tmp_path, runs, "a")
    make_plan(tmp_path, runs, "b")
    status.main([str(tmp_path)])
    assert [
        line.split()[1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("sweep ")
    ] == ["a", "b"]
    status.main([str(tmp_path), "--sweep", "b"])
    assert "sweep a" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["hvae-hpc", "status", str(tmp_path), "--sweep", "c"])
    assert hvae_hpc() == 2
    assert "has no sweep 'c', expected one of a, b" in capsys.readouterr().err


def test_without_slurm_the_own_files_tell_and_it_is_said(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    assert read_our_queue(Submissions(tmp_path)) == (
        None,
        "",
    )  # nothing was submitted: nothing to say
    submit(plan, [list(plan.runs)])
    (sweep_status,) = read_sweep_statuses(tmp_path)
    assert sweep_status.totals["waiting"] == 1
    assert (
        "the queue is not known, this is from the runs' own files alone: there is no SLURM here"
        in "\n".join(status.render(sweep_status))
    )


def fake_clients(folder: Path, monkeypatch: pytest.MonkeyPatch, **clients: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in clients.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_it_starts_without_what_it_does_not_need() -> None:
    heavy = {"torch", "numpy", "pandas", "matplotlib", "submitit", "h5py"}
    check = f"import sys; from hvae_hpc.jobs.commands import status, logs, cancel; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd="/")


def test_watching_on_a_pipe_prints_once(tmp_path: Path) -> None:
    make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    done = subprocess.run(
        [*PYTHON, "status", str(tmp_path), "--watch"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.count("sweep small") == 1
    assert "\033" not in done.stdout


def test_watching_on_a_terminal_ends_well_on_ctrl_c(tmp_path: Path) -> None:
    make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*PYTHON, "status", str(tmp_path), "--watch"])
    said, end = b"", time.monotonic() + 60
    while b"open" not in said:
        assert time.monotonic() < end, said
        if select.select([terminal], [], [], 0.2)[0]:
            said += os.read(terminal, 65536)
    os.write(terminal, b"\x03")
    try:
        while chunk := os.read(terminal, 65536):
            said += chunk
    except OSError:  # the other end of the terminal was closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = said.decode()
    assert text.startswith("\033[H\033[2Jsweep small")
    assert "Traceback" not in text


COUNTING = """#!/bin/sh
echo x >> {count}
exec {real} "$@"
"""


def test_many_that_look_within_a_minute_ask_a_real_slurm_once(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "runs", make_runs(arms=SMALL_ARMS[:2], seeds=5, sources=()))
    submit(plan, [list(plan.runs)])
    environment = {**minislurm.environment(), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    (tmp_path / "bin").mkdir()
    real = shutil.which("squeue", path=os.defpath + ":/usr/local/bin")
    (tmp_path / "bin/squeue").write_text(COUNTING.format(count=tmp_path / "count", real=real))
    (tmp_path / "bin/squeue").chmod(0o755)
    environment["PATH"] = f"{tmp_path}/bin:{os.defpath}:/usr/local/bin"
    command = [*PYTHON, "status", str(tmp_path / "runs"), "--json"]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    many = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in many]
    assert {process.returncode for process in many} == {0}
    assert len({one["queue_asked_at"] for one in said}) == 1
    assert [one["sweeps"][0]["totals"]["lost"] for one in said] == [10] * 4
    assert (tmp_path / "count").read_text() == "x\n"


def test_two_clusters_do_not_share_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_clients(tmp_path / "bin", monkeypatch, squeue=f"echo x >> {tmp_path}/count")
    for name in ("one", "other", "one"):  # one home folder, two login nodes
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        slurm.read_queue(time.time() - 60)
    assert (tmp_path / "count").read_text() == "x\nx\n"
