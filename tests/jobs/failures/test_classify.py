"""Every class of failure, provoked: on a real SLURM, by the kernel, on a full disk; a GPU's memory alone is made up."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.commands.why import explain
from hvae_hpc.jobs.failures.classify import Evidence, classify, gather
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm.client import read_queue
from hvae_hpc.jobs.slurm.sbatch import sbatch_text
from hvae_hpc.jobs.state.run_log import read_tail
from hvae_hpc.jobs.state.run_status import RunStatus, explain_lost, read_statuses
from hvae_hpc.jobs.state.submissions import ENDS_FILE, Submissions, comment_of
from hvae_hpc.jobs.worker import run as tasks
from hvae_hpc.jobs.worker.pool import run_locally
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import LogRecord, write_json
from hvae_hpc.runs.plan import Plan, write_plan
from tests.jobs.queues import log, submit
from tests.jobs.queues import make_plan as make_up_plan
from tests.jobs.worker.test_run import make_plan, run_named
from tests.minislurm.minislurm import MiniSlurm
from tests.minislurm.test_minislurm import wait_until
from tests.results.made_up import SMALL_ARMS, make_runs
from tests.tiny import make_data_set

SITE = read_site(None)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The runs of a tiny sweep on one data set."""
    return make_plan(tmp_path)


def why(plan: Plan, run_id: str, status: RunStatus | None = None) -> list[str]:
    """Return what ``hvae-hpc why`` says of a run; it is printed too (pytest -rP)."""
    submissions = Submissions(plan.runs_folder)
    status = status or read_statuses(plan, read_results(plan), submissions, None).statuses[run_id]
    evidence = gather(plan, run_id, status, submissions)
    lines = list(explain(plan, run_id, evidence, SITE))
    print("\n".join(lines))
    assert len(lines) <= 10
    assert max(map(len, lines)) < 400
    return lines


def with_model_that(plan: Plan, **optim: object) -> tuple[Plan, str]:
    """Return the plan with its VAE trained otherwise, and that run."""
    run_id = run_named(plan, "train", "vae")
    config = plan.runs[run_id].config
    run = replace(plan.runs[run_id], config=replace(config, optim=replace(config.optim, **optim)))
    return replace(plan, runs={run.run_id: run}), run.run_id


def test_a_loss_that_leaves_the_numbers(plan: Plan) -> None:
    plan, run_id = with_model_that(plan, lr=1e30, clip_norm=0.0)
    assert tasks.execute(plan, run_id).state == "failed"
    lines = why(plan, run_id)
    assert lines[1] == "class:     non-finite loss"
    assert lines[3].endswith("NonFiniteError")
    assert "retry:     no rule retries it" in lines


def test_data_that_is_not_what_was_planned(plan: Plan, tmp_path: Path) -> None:
    run_id = run_named(plan, "train", "vae")
    make_data_set(tmp_path / "shards", "tiny", seed=7)
    assert tasks.execute(plan, run_id).state == "failed"
    lines = why(plan, run_id)
    assert lines[1] == "class:     bad input"
    assert lines[-1] == "next:      correct what it names, then give the same sweep command again"


def failing_by(error: Exception) -> Callable[[str], Callable[..., None]]:
    def fail(config: object, workplace: object) -> None:
        raise error

    return lambda stage: fail


def test_a_bug(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = run_named(plan, "train", "vae")
    monkeypatch.setattr(tasks, "stage_function", failing_by(ZeroDivisionError("division by zero")))
    assert tasks.execute(plan, run_id).state == "failed"
    lines = why(plan, run_id)
    assert lines[1] == "class:     code error"
    assert "failed: ZeroDivisionError: division by zero (a bug: traceback in the log)" in lines[2]


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.ENOSPC, "disk full or quota"),
        (errno.EDQUOT, "disk full or quota"),
        (errno.ENOMEM, "out of memory (host)"),
        (errno.EIO, "node failure"),
        (errno.ESTALE, "node failure"),
        (errno.ENOENT, "code error"),
    ],
)
def test_the_system_s_error_numbers_are_told_apart(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, number: int, failure: str
) -> None:
    run_id = run_named(plan, "train", "vae")
    monkeypatch.setattr(tasks, "stage_function", failing_by(OSError(number, os.strerror(number))))
    assert tasks.execute(plan, run_id).state == "failed"
    lines = why(plan, run_id)
    assert lines[1] == f"class:     {failure}"
    assert ("a bug" in lines[2]) == (failure == "code error")


def test_a_gpu_whose_memory_is_full_has_fewer_pairs_at_once_next(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    run_id = run_named(plan, "train", "hvae")
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB"
    )  # made up: there is no GPU
    monkeypatch.setattr(tasks, "stage_function", failing_by(error))
    assert tasks.execute(plan, run_id).state == "failed"
    lines = why(plan, run_id)
    assert lines[1] == "class:     out of memory (device)"
    assert "a bug" not in lines[2]
    assert "retry:     micro_batch 2; 0 of 4 retries used" in lines
    arm = run_named(plan, "segment", "reference")  # in parts, a U-Net would give other numbers
    assert tasks.execute(plan, arm).state == "failed"
    lines = why(plan, arm)
    assert lines[-2] == "retry:     no: nothing can be changed that would help"
    assert lines[-1].startswith("next:      a GPU with more memory")


def test_what_needs_a_failed_run_points_at_it(plan: Plan, tmp_path: Path) -> None:
    train, generate = run_named(plan, "train", "vae"), run_named(plan, "generate", "vae")
    make_data_set(tmp_path / "shards", "tiny", seed=7)
    assert [tasks.execute(plan, run_id).state for run_id in (train, generate)] == [
        "failed",
        "blocked",
    ]
    lines = why(plan, generate)
    assert lines[1] == "class:     blocked by parent"
    command = f"hvae-hpc why {plan.folder_name(train)}"
    assert lines[-1] == f"next:      {command} --runs {plan.runs_folder}"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of its own, or skip where that may not be done."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("may not mount a small disk here: run the tests as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(plan: Plan, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        plan = replace(plan, runs_folder=disk)
        run_id = run_named(plan, "train", "vae")
        (plan.folder(run_id)).mkdir(parents=True)
        assert tasks.execute(plan, run_id).state == "failed"
        lines = why(plan, run_id)
    assert lines[1] == "class:     disk full or quota"
    assert f"error number {errno.ENOSPC}" in lines[3]
    assert lines[-1] == "next:      make room, then give the same sweep command again"


@contextmanager
def small_memory(n_bytes: int) -> Iterator[Path]:
    """Make a cgroup of version 1 or 2 with little memory below our own, or skip where that may not be done."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    kinds, path = next(((kinds, path) for _, kinds, path in lines if kinds == "memory"), ("", ""))
    path = path or next((path for _, kinds, path in lines if not kinds), "/")
    group = Path("/sys/fs/cgroup", kinds, path.strip("/"), f"hvae-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if kinds else "memory.max")).write_text(str(n_bytes))
    except OSError as error:
        pytest.skip(f"may not make a cgroup with little memory here ({error.strerror})")
    try:
        yield group
    finally:
        group.rmdir()


SWEEP = """
import sys
from pathlib import Path
from hvae_hpc.jobs.worker.pool import run_locally
from hvae_hpc.jobs.state.run_log import read_tail
from hvae_hpc.runs.plan import read_plan
Path(sys.argv[1], "cgroup.procs").write_text("0")
plan = read_plan(Path(sys.argv[2]))
run_locally(plan, Path(sys.argv[2]), [sys.argv[3]], 1)
"""


def test_a_process_that_the_kernel_ends_for_memory(plan: Plan, tmp_path: Path) -> None:
    run_id = run_named(plan, "segment", "reference")
    write_plan(plan, tmp_path / "plan.json")
    with small_memory(120_000_000) as group:  # torch alone needs more
        command = [sys.executable, "-c", SWEEP, str(group), str(tmp_path / "plan.json"), run_id]
        subprocess.run(command, check=True, timeout=100, stdout=subprocess.DEVNULL)
    lines = why(plan, run_id)
    assert lines[1] == "class:     out of memory (host)"
    assert "ended by SIGKILL, kills for memory: 1" in lines[3]
    assert "retry:     memory_gb 8 -> 12; 0 of 3 retries used" in lines


def test_a_process_that_somebody_kills_is_lost(plan: Plan, tmp_path: Path) -> None:
    run_id = run_named(plan, "segment", "reference")
    write_plan(plan, tmp_path / "plan.json")
    # What its parts import is of no matter: it dies before, by the signal that nobody can refuse.
    code = "import os, sys; os.read(0, 1); os.kill(os.getpid(), 9)"
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
        (tmp_path / "python").chmod(0o755)
        patch.setattr(sys, "executable", str(tmp_path / "python"))
        assert run_locally(plan, tmp_path / "plan.json", [run_id], 1)[run_id].state == "failed"
    lines = why(plan, run_id)
    assert lines[1] == "class:     lost"
    assert lines[2].startswith("status:    lost: its process died (SIGKILL)")
    assert "retry:     as it was; 0 of 2 retries used" in lines


# On a SLURM of its own: with accounting, and ending what takes more memory than it asked for.

HUNGRY = "import time; x = bytearray(400_000_000); time.sleep(60)"
WAITS = "import time; time.sleep(300)"
SUICIDAL = "import os, time; time.sleep(1); os.kill(os.getpid(), 9)"
KINDS = {
    "hungry": HUNGRY, "slow": WAITS, "stuck": WAITS, "preempted": WAITS, "node": WAITS, "cancelled": WAITS,
    "killed": SUICIDAL,
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(
    harsh_slurm: MiniSlurm, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, dict[str, RunStatus]]:
    """A plan whose runs' elements were each ended in another way, and how the runs stand, in the order of KINDS."""
    slurm, folder = harsh_slurm, tmp_path_factory.mktemp("runs")
    plan = make_up_plan(folder, make_runs(arms=SMALL_ARMS[:1], seeds=len(KINDS), sources=()))
    jobs = {}
    for run_id, (kind, code) in zip(plan.runs, KINDS.items(), strict=True):
        name = submit(plan, [[run_id]], job="0", name=f"small-{kind}", at=time.time())
        where = plan.runs_folder / "submissions" / name
        minutes = 10 if kind in ("slow", "stuck") else 60
        resources = Resources(partition="gpu", memory_gb=0.1, minutes=minutes, signal_lead_s=1)
        step = [sys.executable, "-S", "-c", code]
        (where / "text.sh").write_text(
            sbatch_text(where, kind, resources, step, comment=comment_of(name, 0), elements=1)
        )
        node = {"node": ["-w", "n3"], "preempted": ["-w", "n4"]}.get(kind, ["-x", "n3,n4"])
        jobs[kind] = slurm.client("sbatch", "--parsable", *node, str(where / "text.sh")).strip()
        (where / "jobs.jsonl").unlink()
        submit(plan, [[run_id]], job=jobs[kind], name=name, at=time.time())
        element = f"{jobs[kind]}_0"
        wait_until(
            lambda j=jobs[kind]: (
                slurm.client("squeue", "-h", "-j", j, "-o", "%T").strip() != "PENDING"
            )
        )
        host = slurm.client("squeue", "-h", "-j", jobs[kind], "-o", "%N").strip()
        log(
            plan,
            run_id,
            {"event": "started", "attempt": 1, "at": 0, "host": host, "job_id": element},
        )
        if kind == "slow":
            (plan.folder(run_id) / "checkpoint-000000000032-aaaaaaaaaaaaaaaa.pt").touch()
    for kind in ("slow", "stuck"):
        slurm.client(
            "scontrol", "update", f"JobId={jobs[kind]}_0", "EndTime=now+3"
        )  # in the past is refused
    slurm.client("scancel", f"{jobs['cancelled']}_0")
    slurm.client(
        "scontrol", "update", f"JobId={jobs['node']}_0", "Requeue=0"
    )  # or it would begin again by itself
    slurm.kill_node("n3")
    slurm.client(
        "sbatch",
        "--partition=urgent",
        "-w",
        "n4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    )
    wait_until(lambda: not slurm.client("squeue", "-h"), 90)
    slurm.start_node("n3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.environment().items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        submissions, results = Submissions(plan.runs_folder), read_results(plan)
        queue, statuses = read_queue(not_before=time.time()), dict[str, RunStatus]()

        def all_known() -> bool:  # slurmdbd takes its time
            sweep = read_statuses(plan, results, submissions, queue)
            statuses.update(explain_lost(sweep, thorough=True).statuses)
            return len([end for end in submissions.asked_ends[1].values() if end]) == len(KINDS)

        wait_until(all_known, 20)
    return plan, statuses


@pytest.mark.needs_accounting
@pytest.mark.parametrize(
    ("kind", "failure", "state", "retry"),
    [
        (
            "hungry",
            "out of memory (host)",
            "FAILED",
            "memory_gb 16 -> 24; 0 of 3",
        ),
        (
            "slow",
            "time limit with progress",
            "TIMEOUT",
            "as it was; 0 of 10",
        ),
        (
            "stuck",
            "time limit without progress",
            "TIMEOUT",
            "minutes 60 -> 120; 0 of 2",
        ),
        ("preempted", "preempted", "PREEMPTED", "as it was; 0 of 20"),
        ("node", "node failure", "NODE_FAIL", "as it was, not on n3 for 24 h; 0 of 3"),
        ("killed", "lost", "FAILED", "as it was; 0 of 2"),
        (
            "cancelled",
            "lost, taken out of the queue",
            "CANCELLED",
            "not by itself: somebody took it out of the queue",
        ),
    ],
)
def test_what_slurm_ends(
    ended: tuple[Plan, dict[str, RunStatus]], kind: str, failure: str, state: str, retry: str
) -> None:
    plan, statuses = ended
    run_id = list(plan.runs)[list(KINDS).index(kind)]
    lines = why(plan, run_id, statuses[run_id])
    assert lines[1] == f"class:     {failure}"
    assert f"SLURM says {state}" in lines[3]
    assert any(line.startswith(f"retry:     {retry}") for line in lines)
    # Where there is no accounting, the element's log tells the same, unless its node was gone
    # before it could.
    unasked = Submissions(plan.runs_folder)
    unasked.__dict__["asked_ends"] = 0.0, {}
    evidence = gather(plan, run_id, statuses[run_id], unasked)
    assert classify(evidence) == ("lost" if kind == "node" else failure.partition(",")[0])
    assert evidence.cancelled == (kind == "cancelled")


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0", "out of memory (host)"),
        ("srun: error: n1: task 0: Out Of Memory", "out of memory (host)"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", "out of memory (host)"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory (device)"),
        ("RuntimeError: CUDA driver error: out of memory", "out of memory (device)"),
        ("process 1: out of memory with 8 pairs of 256x256 px at once on cuda:1; lower", "out of memory (device)"),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "node failure"),
        ("NVRM: Xid (PCI:0000:3b:00): 31, pid=7, name=python, Ch 00000008", "lost"),  # the program's own
        ("OSError: [Errno 28] No space left on device", "disk full or quota"),
        ("slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-11-28T10:36:19 ***", "lost"),
        ("nothing of the kind", "lost"),
    ],
)  # fmt: skip
def test_what_stands_in_the_log_of_an_element_that_left_nothing_else(
    line: str, failure: str
) -> None:
    evidence = Evidence(RunStatus("lost", "12_0", "ended without a result"), lines=[line])
    assert classify(evidence) == failure
    assert not evidence.cancelled


def test_the_words_of_earlier_runs_of_an_element_are_not_taken_for_those_of_the_last(
    plan: Plan,
) -> None:
    first, second = list(plan.runs)[:2]
    name = submit(plan, [[first, second]])
    log(plan, second, {"event": "started", "job_id": "12_0"})
    (plan.runs_folder / "submissions" / name / "12_0_0_log.out").write_text(
        f"CUDA out of memory\nfailed: train x ({first}), 1.0 s: CUDA out of memory\nslurmstepd: error: bad_alloc\n"
    )
    evidence = gather(plan, second, RunStatus("lost", "12_0"), Submissions(plan.runs_folder))
    assert list(evidence.lines) == ["slurmstepd: error: bad_alloc"]


def test_a_run_whose_folder_took_no_word_is_known_by_the_element_s_log(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    name = submit(plan, [[run_id]])
    (plan.runs_folder / "submissions" / name / "12_0_0_log.out").write_text(
        f"failed: train x ({run_id}), 1.0 s: /runs/x: cannot be written (No space left on device)\n"
    )
    evidence = gather(plan, run_id, RunStatus("lost", "12_0"), Submissions(plan.runs_folder))
    assert classify(evidence) == "disk full or quota"


def test_a_local_attempt_after_a_submitted_one_is_told_by_its_own_log(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    submit(plan, [[run_id]], at=time.time() - 60)
    log(
        plan,
        run_id,
        {"event": "started", "job_id": ""},
        {"event": "died", "signal": "SIGSEGV", "job_id": ""},
    )
    submissions = Submissions(plan.runs_folder)
    status = read_statuses(plan, read_results(plan), submissions, None).statuses[run_id]
    ends = {"asked_at": time.time(), "ends": {"12_0": "PREEMPTED"}}
    write_json(plan.runs_folder / "submissions" / ENDS_FILE, ends)
    evidence = gather(plan, run_id, status, Submissions(plan.runs_folder))
    assert classify(evidence) == "code error"
    assert not evidence.cancelled


def test_a_run_that_somebody_stopped_counts_as_cancelled() -> None:
    lost, left = (
        RunStatus("lost", "12_0", "saved and left"),
        LogRecord(event="left", at_limit=False),
    )
    assert Evidence(lost, began=LogRecord(at=0), ended=left).cancelled
    preempted = Evidence(
        lost,
        began=LogRecord(at=0),
        ended=left,
        lines=["*** STEP 5.0 ON n4 CANCELLED AT x DUE TO PREEMPTION ***"],
    )
    assert not preempted.cancelled
    assert not Evidence(lost, began=LogRecord(at=0), ended=LogRecord(left, at_limit=True)).cancelled


def test_a_time_limit_is_known_from_the_element_s_own_word() -> None:
    left = LogRecord(event="left", at_limit=True, further=True, goes_back=False)
    lost = RunStatus("lost", "12_0", "saved and left")
    assert classify(Evidence(lost, ended=left)) == "time limit with progress"
    assert (
        classify(Evidence(lost, ended=LogRecord(left, further=False)))
        == "time limit without progress"
    )
    assert (
        classify(Evidence(lost, ended=LogRecord(left, goes_back=True))) == "lost"
    )  # it was taken out before it came back


BEGAN = "element 12_0 begins, after {} restarts\n"


def gather_of(
    plan: Plan, elements: list[list[str]], text: str, run_id: str, kind: str = "lost"
) -> Evidence:
    """Return the evidence of a run of an element whose log has some text."""
    name = submit(plan, elements)
    (plan.runs_folder / "submissions" / name / "12_0_0_log.out").write_text(text)
    return gather(plan, run_id, RunStatus(kind, "12_0"), Submissions(plan.runs_folder))


@pytest.mark.parametrize(
    ("first", "second", "failure", "cancelled"),
    [
        (
            "CANCELLED AT x DUE TO NODE FAILURE",
            "Detected 1 oom_kill event in StepId=1",
            "out of memory (host)",
            False,
        ),
        ("CANCELLED AT x DUE TO TIME LIMIT", "*** JOB 14 ON n1 CANCELLED AT x ***", "lost", True),
        ("nothing", "*** JOB 14 ON n1 CANCELLED AT x DUE to SIGNAL Terminated ***", "lost", True),
        ("nothing", "*** STEP 14.0 ON n1 CANCELLED AT x DUE to SIGNAL Killed ***", "lost", False),
        ("CANCELLED AT x DUE TO PREEMPTION", "nothing", "lost", False),
        (
            "*** JOB 14 ON n1 CANCELLED AT x ***",
            "CANCELLED AT x DUE TO PREEMPTION",
            "preempted",
            False,
        ),
    ],
)
def test_only_what_its_last_life_said_counts_of_an_element_s_log(
    plan: Plan, first: str, second: str, failure: str, cancelled: bool
) -> None:
    run_id = next(iter(plan.runs))
    log(plan, run_id, {"event": "started", "job_id": "12_0", "at": 0})
    stopped = f"stopped: train x ({run_id}), 1.0 s: saved and left\n"
    text = f"{BEGAN.format(0)}{stopped}{first}\n{BEGAN.format(1)}{stopped}{second}\n"
    evidence = gather_of(plan, [[run_id]], text, run_id)
    assert classify(evidence) == failure
    assert evidence.cancelled == cancelled


def test_an_element_that_is_cancelled_after_its_requeue_is_not_retried(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    left = {"event": "left", "at_limit": True, "further": True, "goes_back": True, "job_id": "12_0"}
    log(
        plan,
        run_id,
        {"event": "started", "job_id": "12_0"},
        {"event": "stopped", "job_id": "12_0"},
        left,
    )
    text = f"{BEGAN.format(0)}cannot allocate memory: fewer workers\n*** JOB 14 ON n1 CANCELLED AT x DUE TO JOB REQUEUE ***\n"
    evidence = gather_of(plan, [[run_id]], text, run_id)
    assert (classify(evidence), evidence.cancelled) == ("lost", True)


def test_runs_of_a_bundle_whose_turn_had_not_come_are_no_failures(plan: Plan) -> None:
    first, at_work, third, again = list(plan.runs)[:4]
    for run_id in (first, at_work):
        log(plan, run_id, {"event": "started", "job_id": "12_0", "at": 0})
    log(plan, again, {"event": "failed", "reason": "bad_alloc", "job_id": "7_3"})
    bundle = [[first, at_work, third, again]]
    text = (
        BEGAN.format(0)
        + f"done: train x ({first}), 1.0 s: \nslurmstepd: error: *** CANCELLED AT x DUE TO TIME LIMIT\n"
    )
    assert classify(gather_of(plan, bundle, text, at_work)) == "time limit without progress"
    for run_id, kind in ((third, "lost"), (again, "failed")):
        evidence = gather_of(plan, bundle, text, run_id, kind)
        assert (classify(evidence), evidence.cancelled, evidence.had_turn) == ("lost", False, False)
    cancelled = gather_of(plan, bundle, text + "*** JOB 14 ON n1 CANCELLED AT x ***\n", third)
    assert cancelled.cancelled


def test_the_last_record_of_an_attempt_s_end_counts(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    records = [
        {"event": "started", "job_id": "12_0"},
        {"event": "failed", "reason": "quota", "errno": errno.EDQUOT, "job_id": "12_0"},
        {
            "event": "failed",
            "reason": "ZeroDivisionError: x",
            "errors": ["ZeroDivisionError"],
            "job_id": "12_0",
        },
    ]
    log(plan, run_id, *records)
    assert classify(gather_of(plan, [[run_id]], "", run_id, "failed")) == "code error"


def test_of_a_long_log_its_end_is_read_and_no_line_is_long(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        file.truncate(10_000_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"x" * 5000 + b"\n10%\r20%\r\n\xff end")
    assert read_tail(tmp_path / "log")[-3:] == ["x" * 1000, "20%", "\ufffd end"]
