"""An array's first elements: they go ahead, and where they fail alike, the rest does not begin."""

import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.failures.canary import canaries_ahead, why_held
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm.client import Queued
from hvae_hpc.jobs.state.run_status import read_statuses
from hvae_hpc.jobs.state.submissions import Job, Submissions, note_job
from hvae_hpc.jobs.submit.prepare import prepare
from hvae_hpc.jobs.worker import element
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import METRICS, append_log, read_log
from hvae_hpc.runs.plan import Array, Plan, read_plan, write_plan
from tests.jobs.failures.test_retry import CLUSTER
from tests.jobs.queues import in_queue, log, queue_of
from tests.jobs.submit.test_apply import SITE, call, make_project, plan_of
from tests.jobs.submit.test_prepare import wait_until_empty
from tests.jobs.worker.test_local_sweep import makings
from tests.minislurm.minislurm import MiniSlurm
from tests.minislurm.test_minislurm import wait_until
from tests.results.made_up import folder_of
from tests.tiny import make_data_set

HELD = r"held: the first 2 of [46] elements failed alike \(bad input.*\): segment tiny-reference-s0 \([0-9a-f]{12}\): "


def begun(project: Path) -> int:
    return sum(
        record.get("event") == "started"
        for path in project.glob("runs/*/*/")
        for record in read_log(path)
    )


def test_an_array_with_a_throttle_needs_no_gate() -> None:
    array = Array(name="a", stage="segment", elements=(("a",),) * 6, canaries=3)
    ahead = []
    for throttle in (0, 2, 5, 6):
        resources = {"segment": Resources(array_parallelism=throttle)}
        names: dict[str, Any] = {"sweep": "a", "runs_folder": Path(), "code_sha": ""}
        ahead += canaries_ahead(
            Plan(**names, data={}, resources=resources, runs={}, arrays=(array,))
        )
    assert ahead == [3, 0, 0, 3]


def count_calls(folder: Path, slurm: MiniSlurm) -> str:
    """Return a PATH on which each call of SLURM's clients is noted, in the folder's file "calls"."""
    path = slurm.environment()["PATH"]
    (folder / "bin").mkdir()
    for name in ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue"):
        client = folder / "bin" / name
        real = shutil.which(name, path=path)
        client.write_text(f'#!/bin/sh\necho {name} >> {folder}/calls\nexec {real} "$@"\n')
        client.chmod(0o755)
    return f"{folder}/bin:{path}"


def begin_rest(slurm: MiniSlurm, project: Path) -> None:
    """Let the rest of the array begin as soon as its canaries are over, five minutes early."""
    *_, canaries, rest, _ = Submissions(project / "runs").jobs
    wait_until(lambda: not slurm.client("squeue", "-h", "-j", canaries.job), 120)
    slurm.client("scontrol", "update", f"JobId={rest.job}", "Dependency=")
    wait_until_empty(slurm)


def test_where_the_first_fail_alike_the_rest_is_held_until_the_same_command_is_given_again(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    tell = '[tables]\non_end = ["sh", "-c", "env | grep ^HVAE_HPC_"]\n'
    project = make_project(tmp_path, seeds=4, site=SITE + tell)
    (tmp_path / "admin.toml").write_text("[caps]\ncanary = 2\npoll_s = 1\n")
    site = {"HVAE_HPC_SITE": str(tmp_path / "admin.toml"), "PATH": count_calls(tmp_path, minislurm)}
    minislurm.client("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    try:
        done = call(project, minislurm, "--partition", "gpu", **site)
        assert "submitted 4 runs in 3 jobs" in done.stdout, done.stdout + done.stderr
        said = "canaries:   2 elements of 1 array go ahead, the rest begins 5 min after them"
        assert said in done.stdout
        (project / "shards/tiny").rename(project / "good")
        make_data_set(project / "shards", "tiny", seed=7)
        (tmp_path / "calls").unlink()
    finally:
        minislurm.client("scontrol", "update", "PartitionName=gpu", "State=UP")
    begin_rest(minislurm, project)
    assert begun(project) == 2
    calls = (tmp_path / "calls").read_text().split()
    assert calls.count("squeue") == 1  # of the last job, for on_end
    assert len(calls) <= 2, calls
    (told,) = project.glob("runs/submissions/on_end-*.log")
    assert {"HVAE_HPC_FAILED=2", "HVAE_HPC_BLOCKED=2"} <= {*told.read_text().splitlines()}
    shown = subprocess.run(
        [sys.executable, "-m", "hvae_hpc.cli", "status", str(project / "runs"), "--costs"],
        capture_output=True, text=True, check=True, env={**minislurm.environment(), **site},
    ).stdout  # fmt: skip
    assert re.search(f"blocked: segment tiny-reference-s2 and 1 more: {HELD}", shown), shown
    assert "spent: " in shown
    missing = (project / "runs/results/tiny/missing.txt").read_text()
    assert len(re.findall(f": blocked: {HELD}", missing)) == 2
    assert missing.count(": failed: ") == 2

    shutil.rmtree(project / "shards/tiny")
    (project / "good").rename(project / "shards/tiny")
    first = next(iter(plan_of(project).runs.values()))  # alone it fails again, which is not alike
    shutil.rmtree(project / "runs" / folder_of(first))
    (project / "runs" / folder_of(first)).write_text("not a folder")
    again = call(project, minislurm, "--partition", "gpu", **site)
    said = again.stdout + again.stderr
    assert re.search(f"taken up: 2 runs that were {HELD}", again.stdout), said
    assert "submitted 4 runs in 3 jobs" in again.stdout
    begin_rest(minislurm, project)
    assert len(makings(project)) == 3
    assert len(list(project.glob("runs/submissions/on_end-*.log"))) == 2
    assert begun(project) == 4  # but for the one whose folder was removed, which cannot be made


@pytest.fixture
def six(tmp_path: Path) -> tuple[Plan, Path]:
    """A submission of six elements, two of them canaries, whose data changed since, on nodes without SLURM's clients."""
    plan = plan_of(make_project(tmp_path, seeds=6))
    make_data_set(tmp_path / "shards", "tiny", seed=7)
    path = plan.runs_folder / "submissions/tiny-1/plan.json"
    elements = tuple((run_id,) for run_id in plan.runs)
    write_plan(
        replace(plan, arrays=(Array(name="a", stage="segment", elements=elements, canaries=2),)),
        path,
    )
    for job, places in (("7", (0, 1)), ("8", (2, 3, 4, 5))):
        note_job(plan.runs_folder, Job("tiny-1", 0, job, places, 0.0))
    return plan, path


def run(path: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run an element here as SLURM would."""
    variables = {"SLURM_ARRAY_JOB_ID": "7" if place < 2 else "8", "SLURM_ARRAY_TASK_ID": str(place)}
    for name, value in {
        **variables,
        "SLURM_JOB_ID": "9",
        "SLURMD_NODENAME": f"n{place}",
        "PATH": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    return element.run_element(path, 0)


def read_kinds(plan: Plan, *rows: Queued) -> list[str]:
    submissions = Submissions(plan.runs_folder)
    sweep = read_statuses(plan, read_results(plan), submissions, queue_of(*rows))
    return [status.kind for status in sweep.statuses.values()]


def test_the_rest_ends_where_it_begins_and_the_same_command_submits_it_again(
    six: tuple[Plan, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, path = six
    assert [run(path, place, monkeypatch) for place in (0, 1, 2)] == [1, 1, 1]
    assert re.match(HELD, capsys.readouterr().out.splitlines()[-1])
    assert begun(plan.runs_folder.parent) == 2
    waits = in_queue("tiny-1", (3, 4, 5), "PENDING", job="8")
    assert read_kinds(plan, waits) == ["failed"] * 2 + ["blocked"] + ["waiting"] * 3
    assert [run(path, place, monkeypatch) for place in (3, 4, 5)] == [1, 1, 1]
    assert read_kinds(plan) == ["failed"] * 2 + ["blocked"] * 4

    monkeypatch.setattr("hvae_hpc.jobs.slurm.client.read_queue", lambda **_: queue_of())
    monkeypatch.setattr("hvae_hpc.jobs.submit.prepare.sbatch_text", lambda *_, **__: "")
    resources = {stage: replace(r, partition="gpu") for stage, r in plan.resources.items()}
    plan, site = replace(plan, resources=resources), replace(read_site(None), cluster=CLUSTER)
    prepared = prepare(plan, site, [])
    assert len(prepared.run_ids) == 6
    assert re.match(f"taken up: 4 runs that were {HELD}", prepared.notes[0])
    # Bad input is never retried, and what it holds is not either.
    assert prepare(plan, site, [], scope="new", retries=1).run_ids == []


def test_canaries_that_were_killed_are_found_by_the_rest_and_one_that_is_at_work_is_waited_for(
    six: tuple[Plan, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, path = six
    killed = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed"
    for place in (0, 1):
        (path.parent / f"7_{place}_0_log.out").write_text(
            f"element 7_{place} begins, after 0 restarts\n{killed * place}\n"
        )
    assert run(path, 2, monkeypatch) == 1
    assert begun(plan.runs_folder.parent) == 1  # of one canary nothing is known yet
    (path.parent / "7_0_0_log.out").write_text(f"element 7_0 begins, after 0 restarts\n{killed}\n")
    capsys.readouterr()
    assert run(path, 3, monkeypatch) == 1
    assert "failed alike (out of memory (host))" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(path, 4, monkeypatch) == 1
    assert begun(plan.runs_folder.parent) == 2  # who was at work before goes on


def test_one_good_canary_lets_all_begin_whatever_follows(
    six: tuple[Plan, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, path = six
    shards = Path(next(iter(plan.data.values()))["folder"]).parent
    assert run(path, 0, monkeypatch) == 1
    make_data_set(shards, "tiny", seed=0)
    assert run(path, 1, monkeypatch) == 0
    make_data_set(shards, "tiny", seed=7)
    assert run(path, 2, monkeypatch) == 1
    assert begun(plan.runs_folder.parent) == 3


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Plan, Path]:
    """A submission of three elements of two runs each, two of them canaries, whose data changed since."""
    plan = plan_of(make_project(tmp_path, seeds=6))
    make_data_set(tmp_path / "shards", "tiny", seed=7)
    path, ids = plan.runs_folder / "submissions/tiny-1/plan.json", list(plan.runs)
    elements = tuple(zip(ids[::2], ids[1::2], strict=True))
    write_plan(
        replace(plan, arrays=(Array(name="a", stage="segment", elements=elements, canaries=2),)),
        path,
    )
    for job, places in (("7", (0, 1)), ("8", (2,))):
        note_job(plan.runs_folder, Job("tiny-1", 0, job, places, 1.0))
    return read_plan(path), path


def say(plan: Plan, number: int, *events: str, job: str = "", ago: float = 0.0) -> None:
    """Write what a run says of itself, some seconds ago; as a run of its canary unless told otherwise."""
    run_id = list(plan.runs)[number]
    plan.folder(run_id).mkdir(parents=True, exist_ok=True)
    for event in events:
        said = {"event": event, "job_id": job or f"7_{number // 2}", "time": time.time() - ago}
        append_log(plan.folder(run_id), {**said, "reason": "x", "errors": ["UserError"]})


def held(plan: Plan, path: Path, place: int = 2) -> str:
    return why_held(path, plan, 0, place)


def test_a_canary_one_of_whose_runs_may_be_made_yet_has_not_failed(
    pairs: tuple[Plan, Path],
) -> None:
    plan, path = pairs
    for number in (0, 1, 2):
        say(plan, number, "started", "failed")
    assert not held(plan, path)  # the last run is yet to begin
    say(plan, 3, "started")
    assert not held(plan, path)
    for event in ("failed", "again"):  # beside another, and is to be done again alone
        say(plan, 3, event)
    assert not held(plan, path)
    say(plan, 3, "started", "blocked")
    assert held(plan, path)


def test_a_canary_that_was_killed_is_over_whatever_its_runs_had_to_say(
    pairs: tuple[Plan, Path],
) -> None:
    plan, path = pairs
    for number in (0, 1, 2):
        say(plan, number, "started", "failed")
    log = path.parent / "7_1_0_log.out"
    log.write_text(
        "element 7_1 begins, after 0 restarts\nslurmstepd: error: *** JOB 7 ON n CANCELLED AT x ***\n"
    )
    assert not held(plan, path)
    log.write_text(
        f"{log.read_text()}slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\n"
    )
    assert held(plan, path)


def test_canaries_that_saved_something_before_they_failed_hold_nothing(
    pairs: tuple[Plan, Path],
) -> None:
    plan, path = pairs
    for number in range(4):
        say(plan, number, "started", "failed")
    assert held(plan, path)
    (plan.folder(list(plan.runs)[3]) / "checkpoint-000000000032-aaaaaaaaaaaaaaaa.pt").touch()
    assert not held(plan, path)


def test_a_run_that_is_made_after_all_lets_the_rest_begin(pairs: tuple[Plan, Path]) -> None:
    plan, path = pairs
    for number in range(4):
        say(plan, number, "started", "failed")
    assert held(plan, path)
    (plan.folder(next(iter(plan.runs))) / METRICS).write_text("{}")
    assert not held(plan, path)


def test_a_canary_that_is_at_work_again_by_a_later_command_is_waited_for(
    pairs: tuple[Plan, Path],
) -> None:
    plan, path = pairs
    for number in range(4):
        say(plan, number, "started", "failed")
    assert held(plan, path)
    say(plan, 0, "started", job="9_0")
    assert not held(plan, path)


def test_what_was_held_and_is_made_here_since_says_so(pairs: tuple[Plan, Path]) -> None:
    plan, path = pairs
    for number in range(4):
        say(plan, number, "started", "failed")
    say(plan, 4, "failed", job="6_0")  # in an earlier submission
    last = list(plan.runs)[4:]
    for run_id in last:
        record = {"event": "blocked", "job_id": "8_2", "reason": held(plan, path)}
        log(plan, run_id, record)
    assert read_kinds(plan)[4:] == ["blocked", "blocked"]
    for event, kind in (("started", "running"), ("failed", "failed")):
        log(plan, last[0], {"event": event, "job_id": "", "reason": "x"})
        assert read_kinds(plan)[4:] == [kind, "blocked"]
