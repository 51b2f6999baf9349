"""``hvae-hpc cancel`` and ``throttle``: on a real SLURM nothing but what is meant is touched."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvae_hpc.errors import run_command
from hvae_hpc.jobs.commands import cancel as control
from hvae_hpc.jobs.commands import logs
from hvae_hpc.jobs.slurm.client import Queued
from hvae_hpc.jobs.state.submissions import Job, Submissions
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run
from tests.jobs.queues import make_plan, submit
from tests.minislurm.minislurm import MiniSlurm
from tests.minislurm.test_minislurm import wait_until
from tests.results.made_up import SMALL_ARMS, fake_metrics, finish, make_runs

COUNTING = """#!/bin/sh
echo "{name} $*" >> {calls}
exec {real} "$@"
"""


@pytest.fixture
def runs() -> list[Run]:
    return make_runs(arms=SMALL_ARMS[:2], seeds=4, sources=())


@pytest.fixture
def plan(tmp_path: Path, runs: list[Run]) -> Plan:
    return make_plan(tmp_path / "runs", runs)


def call(command: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run one of the commands and return what it prints, also where it is refused."""
    function = {"cancel": control.cancel, "throttle": control.throttle, "logs": logs.main}[command]
    code = run_command(function, arguments)
    said = capsys.readouterr()
    assert (code == 2) == said.err.startswith("error: ")
    return said.out + said.err


class Cluster:
    """A real SLURM in which every client's call is written down, and arrays that do nothing are submitted."""

    def __init__(self, slurm: MiniSlurm, folder: Path) -> None:
        self.slurm, self.calls = slurm, folder / "calls"

    def array(self, plan: Plan, elements: list[list[str]], name: str, *options: str) -> str:
        """Submit an array that waits for ever, as a submission of a plan; returns its id."""
        common = [
            f"--comment=hvae_hpc:{name}:0",
            f"--array=0-{len(elements) - 1}",
            "--mem=100",
            "--output=/dev/null",
        ]
        job = self.slurm.client(
            "sbatch", "--parsable", *common, *options, "--wrap=sleep 600"
        ).strip()
        submit(plan, elements, job=job, name=name)
        return job

    def queue(self) -> set[str]:
        return set(self.slurm.client("squeue", "-h", "-r", "-o", "%i", "-t", "PD,R").split())

    def throttle_of(self, job: str) -> str:
        found = re.search(
            r"ArrayTaskThrottle=(\d+)", self.slurm.client("scontrol", "show", "job", job)
        )
        return found[1] if found else "0"

    def asked(self, call: str) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if line.startswith(call)]


@pytest.fixture
def cluster(
    minislurm: MiniSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    environment = minislurm.environment()
    (tmp_path / "bin").mkdir()
    for name in ("squeue", "scancel", "scontrol"):
        real = shutil.which(name, path=environment["PATH"])
        (tmp_path / "bin" / name).write_text(
            COUNTING.format(name=name, calls=tmp_path / "calls", real=real)
        )
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{environment['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Cluster(minislurm, tmp_path)
    minislurm.client("scancel", "--user", str(os.geteuid()))
    wait_until(lambda: set(minislurm.status().values()) == {"idle"})


def test_cancelling_a_sweep_takes_its_jobs_by_one_call_and_nobody_else_s(
    cluster: Cluster,
    plan: Plan,
    runs: list[Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_plan(tmp_path / "runs", runs[4:], "small-too")
    elsewhere = make_plan(tmp_path / "elsewhere", runs)
    ids = list(plan.runs)
    mine = [
        cluster.array(plan, [[i] for i in ids[:4]], "small-abc"),
        cluster.array(plan, [[ids[5]]], "small-def", "-H"),
    ]
    tables = cluster.slurm.client(
        *(
            "sbatch",
            "--parsable",
            "-H",
            "--comment=hvae_hpc:small-abc:0",
            "--wrap=true",
            "--output=/dev/null",
        )
    ).strip()
    kept = [
        cluster.array(other, [[ids[4]]], "small-too-abc", "-H"),
        cluster.array(elsewhere, [[ids[0]]], "small-xyz", "-H"),
        cluster.slurm.client("sbatch", "--parsable", "-H", "--comment=mine", "--wrap=true").strip(),
    ]
    folder = str(tmp_path / "runs")
    said = call("cancel", "--runs", folder, capsys=capsys)
    assert "has several sweeps, name one of small, small-too" in said
    said = call("cancel", "small", "--runs", folder, capsys=capsys)
    assert re.search(
        r"sweep small: cancelled 3 jobs with \d waiting and \d running elements", said
    ), said
    wait_until(lambda: cluster.queue() == {f"{kept[0]}_0", f"{kept[1]}_0", kept[2]})
    assert [set(line.split()[1:]) for line in cluster.asked("scancel")] == [{*mine, tables}]
    assert "nothing of it is in the queue" in call(
        "cancel", "small", "--runs", folder, capsys=capsys
    )
    assert len(cluster.asked("squeue --me")) == 2


def test_a_sweep_that_was_never_submitted_is_told_from_slurm_s_without_asking_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for command in (["cancel"], ["throttle", "2"]):
        said = call(*command, "--runs", str(plan.runs_folder), capsys=capsys)
        assert said.startswith("nothing was submitted from here; end a sweep in local processes")


def test_cancelling_a_run_takes_its_element_and_says_what_goes_with_it(
    cluster: Cluster, plan: Plan, runs: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = list(plan.runs)
    job = cluster.array(plan, [ids[:3], ids[3:6], ids[6:]], "small-abc", "-H")
    finish(plan.runs_folder, runs[3], fake_metrics(runs[3]))
    said = call(
        "cancel", "brats2021-standard-x5-s0", "--runs", str(plan.runs_folder), capsys=capsys
    )
    assert said.splitlines() == [
        f"cancelled element {job}_1 (pending), which makes segment brats2021-standard-x5-s0",
        "the element's other runs, 2, are cancelled with it",
        "the same sweep command submits them again, and continues from what was saved",
    ]
    assert cluster.queue() == {f"{job}_0", f"{job}_2"}
    said = call("cancel", ids[4], "--runs", str(plan.runs_folder), capsys=capsys)
    assert "is not in the queue" in said
    assert len(cluster.asked("scancel")) == 1


def test_throttling_is_one_call_for_all_arrays_that_wait(
    cluster: Cluster,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = list(plan.runs)
    first = cluster.array(plan, [[i] for i in ids[:3]], "small-abc", "-H")
    second = cluster.array(plan, [[i] for i in ids[3:6]], "small-def", "-H")
    foreign = cluster.slurm.client(
        "sbatch", "--parsable", "-H", "--array=0-2", "--wrap=true"
    ).strip()
    folder = str(plan.runs_folder)
    said = call("throttle", "2", "--runs", folder, capsys=capsys)
    assert said == f"sweep small: at most 2 at a time in each of 2 arrays\n  {first} {second}\n"
    assert [cluster.throttle_of(job) for job in (first, second, foreign)] == ["2", "2", "0"]
    assert len(cluster.asked("scontrol update")) == 1
    call("throttle", "0", "small", "--runs", folder, capsys=capsys)
    assert [cluster.throttle_of(job) for job in (first, second)] == ["0", "0"]
    (tmp_path / "site.toml").write_text("[caps]\narray_parallelism = 1\n")
    monkeypatch.setenv("HVAE_HPC_SITE", str(tmp_path / "site.toml"))
    for wanted in ("5", "0"):
        assert "the administrator allows 1" in call(
            "throttle", wanted, "--runs", folder, capsys=capsys
        )
        assert [cluster.throttle_of(job) for job in (first, second)] == ["1", "1"]
    assert "expected 0 (as many as fit) or more" in call(
        "throttle", "--runs", folder, "--", "-1", capsys=capsys
    )
    assert "has no sweep 'none'" in call("throttle", "1", "none", "--runs", folder, capsys=capsys)


def test_throttling_what_does_not_wait_changes_nothing(
    cluster: Cluster, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    job = cluster.array(plan, [[next(iter(plan.runs))]], "small-abc")
    wait_until(lambda: "RUNNING" in cluster.slurm.client("squeue", "-h", "-j", job, "-o", "%T"))
    assert "none of its arrays waits" in call(
        "throttle", "1", "--runs", str(plan.runs_folder), capsys=capsys
    )
    assert cluster.asked("scontrol update") == []


CLIENT = """#!/bin/sh
case $0 in *squeue) cat {queue} ;; *) echo "$(basename $0) $*" >> {calls} ;; esac
"""


@pytest.mark.parametrize(
    ("row", "is_ours"),
    [
        ("12|0-1|PENDING|Priority|{at}|small-segment-brats2021|(null)", True),
        ("12|0-1|PENDING|Priority|{at}|renamed|hvae_hpc:small-abc:0", True),
        ("12|0-1|PENDING|Priority|2020-02-02T02:02:02|small-segment-brats2021|(null)", False),
        ("12|0-1|PENDING|Priority|{at}|thesis|(null)", False),
        ("12|0-1|PENDING|Priority|{at}|a|hvae_hpc:small-abc:0|(null)", False),
    ],
)
def test_without_our_comment_a_job_is_ours_by_its_name_and_its_time_of_submission_alone(
    row: str,
    is_ours: bool,
    plan: Plan,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = time.time()
    name = submit(plan, [[run_id] for run_id in list(plan.runs)[:2]], at=at)
    file = plan.runs_folder / "submissions" / name / "plan.json"
    content = json.loads(file.read_text())
    content["arrays"][0] |= {"name": "small-segment-brats2021", "stage": "segment"}
    file.write_text(json.dumps(content))

    calls, queue = tmp_path / "calls", tmp_path / "queue"
    queue.write_text(row.format(at=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at))) + "\n")
    for client in ("squeue", "scancel", "scontrol"):
        (tmp_path / client).write_text(CLIENT.format(calls=calls, queue=queue))
        (tmp_path / client).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for command, asked in (
        (("cancel",), "scancel 12"),
        (("cancel", next(iter(plan.runs))), "scancel 12_0"),
        (("throttle", "3"), "scontrol update JobId=12 ArrayTaskThrottle=3"),
    ):
        calls.write_text("")
        said = call(*command, "--runs", str(plan.runs_folder), capsys=capsys)
        assert calls.read_text() == (f"{asked}\n" if is_ours else "")
        assert ("left alone: 12, noted here" in said) != is_ours


def test_no_job_is_ours_by_a_record_whose_names_are_not_as_ours_begin(
    plan: Plan, tmp_path: Path
) -> None:
    at = time.time()
    name = submit(plan, [[next(iter(plan.runs))]], at=at)
    file = plan.runs_folder / "submissions" / name / "plan.json"
    content = json.loads(file.read_text())
    content["arrays"][0]["name"] = "thesis"  # as squeue shows it to all
    file.write_text(json.dumps(content))
    row = Queued("12", (0,), "PENDING", "Priority", "", at, "thesis")
    submissions = Submissions(plan.runs_folder)
    assert not submissions.is_proven(row, Job(name, 0, "12", (0,)))
