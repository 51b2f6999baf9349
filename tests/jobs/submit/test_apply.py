"""Submissions on a strict SLURM: with accounting, JobRequeue=0, MaxArraySize 100 and at most 50 elements per user."""

import getpass
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm.client import parse_places
from hvae_hpc.jobs.state.submissions import SUBMISSIONS, Job, Submissions, note_job, submitting
from hvae_hpc.jobs.submit.apply import Application
from hvae_hpc.jobs.submit.prepare import Prepared, check_path
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.lease import LostError
from hvae_hpc.runs.plan import Array, Plan, plan_path, read_plan, write_plan
from hvae_hpc.sweep import read_sweep
from tests import ROOT
from tests.drill.test_disk_full import private_mounts
from tests.drill.test_faults import queued_runs
from tests.jobs.submit.test_prepare import wait_until_empty
from tests.jobs.worker.test_local_sweep import makings
from tests.minislurm.minislurm import MiniSlurm
from tests.results.made_up import folder_of
from tests.tiny import SWEEP, make_data_set

SITE = """
[all]
device = "cpu"
memory_gb = 1
signal_lead_s = 30
element_minutes = 0.02       # one run each
[train]
gpus = 0
[segment]
gpus = 0
"""


def make_project(folder: Path, seeds: int, site: str = SITE) -> Path:
    """Write a project of ``seeds`` reference runs and nothing else."""
    make_data_set(folder / "shards", "tiny", seed=0)
    text = (
        SWEEP.partition("[generators")[0]
        .replace('"tiny", "tiny2"', '"tiny"')
        .replace("epochs = 10", "epochs = 1")
    )
    text = text.replace("seeds = 2", f"seeds = {seeds}").replace("factors = [2, 3]", "factors = []")
    (folder / "sweep.toml").write_text(text)
    (folder / "site.toml").write_text(site)
    return folder


def plan_of(project: Path, **changes: object) -> Plan:
    """Plan the project's sweep."""
    sweep = replace(read_sweep(str(project / "sweep.toml")), **changes)
    folder = project / "shards" / "tiny"
    data = expand.DataSet(name="tiny", folder=folder, manifest=read_manifest(folder))
    return expand.make_plan(
        sweep, [data], project / "runs", read_site(project / "site.toml").resources
    )


def test_who_lost_the_right_to_submit_asks_slurm_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = Array(name="tiny", stage="segment", elements=(("0" * 12,),))
    plan = replace(plan_of(make_project(tmp_path, 1)), arrays=(array,))
    prepared = Prepared(plan=plan, name="tiny-0", totals={}, n_queued=0, room=math.inf)
    asked: list[object] = []
    monkeypatch.setattr(
        "hvae_hpc.jobs.slurm.client.ask_once", lambda command, **_: asked.append(command) or "7"
    )
    with submitting(plan.runs_folder / SUBMISSIONS):
        application = Application(prepared)
        assert application._sbatch(["--hold"], 0, (0,)) == "7"
        (mine,) = (plan.runs_folder / SUBMISSIONS).glob(".lease-*")
        mine.rename(
            mine.with_name(".lease-99")
        )  # another command took over while this one was stopped
        with pytest.raises(LostError, match="lost the folder"):
            application._sbatch(["--hold"], 0, (0,))
    assert asked == [["sbatch", "--parsable", "--hold"]]


def test_sbatch_gets_the_text_that_was_made_whatever_others_write_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = Array(name="tiny", stage="segment", elements=(("0" * 12,),), script="#!/bin/sh\ntrue\n")
    plan = replace(plan_of(make_project(tmp_path, 1)), arrays=(array, replace(array, elements=())))
    folder = plan.runs_folder / SUBMISSIONS / "tiny-0"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(  # somebody replaces the file just before sbatch reads it
        f'#!/bin/sh\nfor file in {folder}/*.sh; do echo theirs > "$file"; done\n'
        'for last; do :; done; if [ -f "$last" ]; then cat "$last"; else cat; fi '
        f">> {tmp_path}/got; echo 7\n"
    )
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with submitting(plan.runs_folder / SUBMISSIONS):
        Application(Prepared(plan=plan, name="tiny-0", totals={}, n_queued=0, room=math.inf)).run()
    assert (tmp_path / "got").read_text() == 2 * array.script


def call(
    project: Path, slurm: MiniSlurm, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hvae_hpc.sweep", "--site", "site.toml", *arguments]
    environment = {**slurm.environment(), **variables}
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )


def elements_in_queue(slurm: MiniSlurm) -> int:
    return len(slurm.client("squeue", "-r", "-h").splitlines())


def cancel_all(slurm: MiniSlurm) -> None:
    slurm.client("scancel", "--user", getpass.getuser())
    wait_until_empty(slurm)


@pytest.fixture
def closed(strict_slurm: MiniSlurm) -> Iterator[MiniSlurm]:
    """The strict SLURM with a partition that starts nothing."""
    strict_slurm.client("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    yield strict_slurm
    cancel_all(strict_slurm)
    strict_slurm.client("scontrol", "update", "PartitionName=gpu", "State=UP")


def set_limit(slurm: MiniSlurm, number: int) -> None:
    slurm.client(
        "sacctmgr", "-i", "modify", "user", getpass.getuser(), "set", f"maxsubmitjobs={number}"
    )


def hide_limits(folder: Path, slurm: MiniSlurm) -> str:
    """Return a PATH on which sacctmgr tells nothing, as on many clusters."""
    folder.mkdir()
    (folder / "sacctmgr").write_text("#!/bin/sh\nexit 1\n")
    (folder / "sacctmgr").chmod(0o755)
    return f"{folder}:{slurm.environment()['PATH']}"


def test_an_administrator_s_cap_of_elements_holds_where_slurm_has_none(
    closed: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path, seeds=40)
    (tmp_path / "admin.toml").write_text("[caps]\nelements = 11\n")
    done = call(project, closed, "--partition", "gpu", HVAE_HPC_SITE=str(tmp_path / "admin.toml"))
    assert "submitted 10 runs in 3 jobs" in done.stdout, done.stdout + done.stderr
    assert "30 runs are not in the queue yet (a limit of 1 more elements" in done.stdout
    assert elements_in_queue(closed) == 11


def test_a_hidden_limit_is_learned_from_the_refusal_and_the_rest_is_named(
    closed: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path, seeds=80)
    path = hide_limits(tmp_path / "bin", closed)
    done = call(project, closed, "--partition", "gpu", PATH=path)
    assert done.returncode == 0, done.stderr
    assert (
        "40 runs are not in the queue yet (sbatch refused tiny-segment-tiny-reference"
        in done.stdout
    )
    assert "AssocMaxSubmitJobLimit" in done.stdout
    assert elements_in_queue(closed) == 41  # 3 canaries, 37 of the 77 others, and the last job
    assert "tiny-tables" in closed.client("squeue", "-h", "-o", "%j")
    again = call(project, closed, "--partition", "gpu", PATH=path)
    assert again.returncode == 0, again.stderr
    assert "submitted 5 runs in 3 jobs; 40 runs were queued already" in again.stdout
    assert set(queued_runs(project, closed).values()) == {1}


OPTIONS = """
[segment.sbatch_args]
reservation = "imaging"
licenses = "tea:1"
[segment.srun_args]
cpu-bind = "none"
[tables]
minutes = 10
on_end = ["sh", "-c", "env | grep ^HVAE_HPC_"]
[tables.sbatch_args]
mail-user = "me@lab"
mail-type = "END"
"""


def test_what_a_limit_kept_out_is_submitted_by_the_last_job_and_the_end_is_told_once(
    strict_slurm: MiniSlurm, tmp_path: Path
) -> None:
    """All in a reservation, with licences, in the first partition that fits, after a colleague's job."""
    project = make_project(tmp_path, seeds=9, site=SITE + OPTIONS)
    reserve = ("reservation", "ReservationName=imaging", "Nodes=n[1-3]", "StartTime=now")
    me = f"Users={getpass.getuser()}"
    strict_slurm.client("scontrol", "create", *reserve, "Duration=60", "Flags=OVERLAP", me)
    hold = ("--hold", "--mem=100", "--reservation=imaging", "--output=/dev/null", "--wrap=true")
    other = strict_slurm.client("sbatch", "--parsable", *hold).strip()
    (tmp_path / "admin.toml").write_text("[caps]\npoll_s = 1\ncanary = 0\n")
    first = next(
        iter(plan_of(project).runs.values())
    )  # it fails: what goes first must not decide for the rest
    (project / "runs/segment").mkdir(parents=True)
    (project / "runs" / folder_of(first)).write_text("not a folder")
    path = hide_limits(tmp_path / "bin", strict_slurm)
    set_limit(strict_slurm, 6)
    flags = ("--partition", "short,gpu", "--after", other)
    try:
        site = {"HVAE_HPC_SITE": str(tmp_path / "admin.toml")}
        done = call(project, strict_slurm, *flags, PATH=path, **site)
        assert "6 runs are not in the queue yet" in done.stdout, done.stdout + done.stderr
        assert "segment: partition gpu, since short allows 20 of 60 minutes" in done.stdout
        shown = strict_slurm.client("squeue", "-h", "-o", "%j|%P|%v|%W|%E").splitlines()
        jobs = {name: rest for name, *rest in (line.split("|") for line in shown)}
        waits = f"afterany:{other}(unfulfilled)"
        assert jobs["tiny-segment-tiny-reference"] == ["gpu", "imaging", "tea:1", waits]
        assert jobs["tiny-tables"][:3] == ["short", "(null)", "(null)"]
        strict_slurm.client("scontrol", "release", other)
        wait_until_empty(strict_slurm)
    finally:
        set_limit(strict_slurm, 50)
        cancel_all(strict_slurm)
        strict_slurm.client("scontrol", "delete", "ReservationName=imaging")
    logs = "\n".join(path.read_text() for path in project.glob("runs/submissions/*/*log.out"))
    assert len(makings(project)) == 8, logs
    assert len(list((project / "runs/submissions").glob("*/plan.json"))) >= 2
    counts = Counter(
        record.get("event") for path in project.glob("runs/segment/*/") for record in read_log(path)
    )
    assert counts["started"] == 8
    assert (project / "runs/results/tiny/table1.csv").is_file()

    # One on_end for all last jobs, and mail for them alone.
    last_jobs = {*project.glob("runs/submissions/*/*-tiny-tables.sh")}
    (told,) = project.glob("runs/submissions/on_end-*.log")
    assert len(last_jobs) >= 2
    assert {"HVAE_HPC_RUNS=9", "HVAE_HPC_DONE=8"} <= {*told.read_text().splitlines()}
    texts = list(project.glob("runs/submissions/*/*.sh"))
    assert {path for path in texts if "--mail-user=me@lab" in path.read_text()} == last_jobs
    assert all(("--cpu-bind=none" in path.read_text()) != (path in last_jobs) for path in texts)


def test_the_last_job_does_not_touch_a_sweep_that_was_edited_since(tmp_path: Path) -> None:
    project = make_project(tmp_path, seeds=3)
    old, new = plan_of(project), plan_of(project, seeds=5)
    done, *_, never = old.runs
    assert execute(old, done).state == "done"
    folder = old.runs_folder / "submissions" / "tiny-1"
    arrays = tuple(
        Array(name="a", stage="segment", elements=((run_id,),)) for run_id in (done, never)
    )
    write_plan(replace(old, arrays=arrays), folder / "plan.json")
    note_job(old.runs_folder, Job("tiny-1", 0, "1", (0,), 0.0))
    write_plan(new, plan_path(old.runs_folder, "tiny"))
    command = [
        sys.executable,
        "-m",
        "hvae_hpc.sweep",
        "--partition",
        "gpu",
        "--finish",
        str(folder),
    ]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert (
        "2 runs are not in the queue yet, and the sweep or its code has changed; give the command"
        in ended.stderr
    )
    assert read_plan(plan_path(old.runs_folder, "tiny")).runs.keys() == new.runs.keys()
    assert (old.runs_folder / "results/tiny/table1.csv").is_file()


KILLER = """#!/bin/sh
{sbatch} "$@" || exit 1
echo x >> {count}
[ "$(wc -l < {count})" -ne {number} ] || kill -9 $PPID
"""


def test_a_command_that_is_killed_after_one_of_its_eight_sbatch_calls_is_taken_up(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    """Every run is in the queue once, waits for its parents, and the last job is there, once and last."""
    minislurm.client("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    real = shutil.which("sbatch", path=minislurm.environment()["PATH"])
    vae = "[generators.vae]" + SWEEP.partition("[generators.vae]")[2].partition("[generators")[0]
    try:
        for number in (1, 4, 8):
            project = make_project(tmp_path / str(number), seeds=2)
            with open(project / "sweep.toml", "a") as file:
                file.write(vae)
            wrapper = project / "bin/sbatch"
            wrapper.parent.mkdir()
            wrapper.write_text(KILLER.format(sbatch=real, count=project / "count", number=number))
            wrapper.chmod(0o755)
            path = f"{wrapper.parent}:{minislurm.environment()['PATH']}"
            assert call(project, minislurm, "--partition", "gpu", PATH=path).returncode == -9
            again = call(project, minislurm, "--partition", "gpu")
            assert again.returncode == 0, again.stderr
            runs = queued_runs(project, minislurm)
            assert len(runs) == 11
            assert set(runs.values()) == {1}
            queue = [
                line.split("|")
                for line in minislurm.client("squeue", "-h", "-o", "%j|%E|%F").splitlines()
            ]
            waits = {name: dependency for name, dependency, _ in queue}
            assert waits["tiny-train-tiny-vae"] == waits["tiny-segment-tiny-reference"] == "(null)"
            for name in (
                "tiny-generate-tiny-vae",
                "tiny-quality-tiny-vae",
                "tiny-segment-tiny-vae",
            ):
                assert waits[name].startswith("afterany:"), (number, name)
            (last,) = [dependency for name, dependency, _ in queue if name == "tiny-tables"]
            waited_for = set(re.findall(r"afterany:(\d+)", last))
            assert waited_for == {job for name, _, job in queue if name != "tiny-tables"}, number
            cancel_all(minislurm)
    finally:
        cancel_all(minislurm)
        minislurm.client("scontrol", "update", "PartitionName=gpu", "State=UP")


def test_a_disk_that_is_full_before_any_file_of_a_submission_is_one_line_and_no_run_is_queued_twice(
    closed: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path, seeds=3)
    command = [*private_mounts(), sys.executable, "-m", "tests.drill.full_submission", str(project)]
    root = ROOT
    done = subprocess.run(
        command, cwd=root, env=closed.environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = {Path(one["file"]).name: one for one in map(json.loads, done.stdout.splitlines())}
    assert seen.keys() == {
        *(".lease-#.tmp", "tiny.json", "code-#-#.zip", "plan.json", "jobs.jsonl"),
        *("#-tiny-segment-tiny-reference.sh", "#-tiny-tables.sh"),
    }
    for name, one in seen.items():
        (line,) = one["said"]
        assert re.fullmatch(
            r"error: \S+: cannot be written \(No space left on device\); .+", line
        ), one
        assert (one["code"], one["jobs"]) == (2, int(name in ("jobs.jsonl", "#-tiny-tables.sh"))), (
            one
        )
        assert (one["again"], one["said_again"], one["temporary"]) == (0, "", []), one
        assert one["runs"] == [1, 1, 1], one
        assert len(one["queued"]) == 2, one
        assert one["noted"] == one["queued"], one


def test_arrays_are_split_at_max_array_size(closed: MiniSlurm, tmp_path: Path) -> None:
    set_limit(closed, 1000)
    try:
        project = make_project(tmp_path, seeds=130)
        done = call(project, closed, "--partition", "gpu", "--array-parallelism", "5")
        assert "submitted 130 runs in 3 jobs" in done.stdout, done.stdout + done.stderr
        places = [parse_places(text) for text in closed.client("squeue", "-h", "-o", "%K").split()]
        assert sorted(map(len, places)) == [0, 30, 100]
        assert max(max(part) for part in places if part) == 99
        assert closed.client("squeue", "-h", "-o", "%K").count("%5") == 2
        assert set(queued_runs(project, closed).values()) == {1}
    finally:
        cancel_all(closed)
        set_limit(closed, 50)


def test_variables_of_a_job_or_a_profile_do_not_bend_what_is_submitted(
    closed: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path, seeds=3)
    foreign = {
        "SLURM_JOB_ID": "1",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SBATCH_PARTITION": "urgent",
    }
    done = call(project, closed, "--partition", "gpu", SBATCH_TIMELIMIT="1", **foreign)
    assert done.returncode == 0, done.stderr
    assert set(closed.client("squeue", "-h", "-o", "%P %l").splitlines()) == {
        "gpu 1:00:00",
        "gpu 30:00",
    }


def test_a_controller_that_took_a_job_and_did_not_say_so_is_asked_for_it(
    closed: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path, seeds=3)
    path = closed.environment()["PATH"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(
        f'#!/bin/sh\n{shutil.which("sbatch", path=path)} "$@" > {tmp_path}/said || exit 1\n'
        f"[ -e {tmp_path}/once ] && cat {tmp_path}/said && exit 0\n"
        f'touch {tmp_path}/once; echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1\n'
    )
    (tmp_path / "bin/sbatch").chmod(0o755)
    done = call(project, closed, "--partition", "gpu", PATH=f"{tmp_path}/bin:{path}")
    assert "submitted 3 runs in 2 jobs" in done.stdout, done.stdout + done.stderr
    assert queued_runs(project, closed).total() == 3
    ids = [
        json.loads(line)["job"]
        for line in next(project.glob("runs/submissions/*/jobs.jsonl")).open()
    ]
    assert sorted(ids) == sorted(set(closed.client("squeue", "-h", "-o", "%F").split()))


def test_folders_with_blanks_and_shell_characters_are_quoted_and_others_refused(
    strict_slurm: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "my runs; $(touch pwned) & `touch pwned` | more", seeds=1)
    done = call(project, strict_slurm, "--partition", "gpu")
    assert done.returncode == 0, done.stderr
    wait_until_empty(strict_slurm)
    logs = "\n".join(path.read_text() for path in project.glob("runs/submissions/*/*log.out"))
    assert len(makings(project)) == 1, logs
    assert not list(tmp_path.rglob("pwned"))
    refused = call(make_project(tmp_path / "it's", seeds=1), strict_slurm, "--partition", "gpu")
    assert refused.returncode == 2
    assert "SLURM cannot write logs there" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    for name in ("50%j", 'a"b', "back\\slash"):
        with pytest.raises(UserError, match="SLURM cannot write logs there"):
            check_path(tmp_path / name)
    assert strict_slurm.client("squeue", "-h") == ""


def test_a_preempted_training_goes_on_though_the_site_requeues_nothing_by_itself(
    strict_slurm: MiniSlurm, tmp_path: Path
) -> None:
    """The element has saved long before the grace time of its partition ends, and must still be there then."""
    project = make_project(
        tmp_path, seeds=1, site=SITE.replace("[train]", "[train]\ncheckpoint_every_s = 1")
    )
    vae = (
        SWEEP.partition("[generators.vae]")[2]
        .partition("[generators")[0]
        .replace("images = 160", "images = 1400")
    )
    with open(project / "sweep.toml", "a") as file:
        file.write("[generators.vae]" + vae.replace("[4, 8]", "[8, 16]"))
    done = call(project, strict_slurm, "--partition", "graceful")
    assert done.returncode == 0, done.stderr
    deadline = time.time() + 120
    while not any(
        "images_seen" in r for path in project.glob("runs/train/*") for r in read_log(path)
    ):
        assert time.time() < deadline
        time.sleep(0.2)
    urgent = [
        "--partition=urgent",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ]
    strict_slurm.client("sbatch", *urgent)
    wait_until_empty(strict_slurm)
    assert (
        len(makings(project)) == 8
    )  # the VAE, its pairs, three qualities, the reference and two doses
    (log,) = [read_log(path) for path in project.glob("runs/train/*")]
    starts = [record["job_id"] for record in log if record.get("event") == "started"]
    assert len(starts) == 2
    assert len(set(starts)) == 1  # one element, started twice by SLURM
    assert any(record.get("event") == "resumed" for record in log)


def test_ten_thousand_runs_make_few_files_and_few_calls(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path, seeds=10_000, site=SITE.replace("0.02", "0.25"))
    minislurm.client("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    try:
        done = call(project, minislurm, "--partition", "gpu")
        assert "submitted 10000 runs in 5 jobs" in done.stdout, done.stdout + done.stderr
        made = [path for path in (project / "runs").rglob("*") if path.is_file()]
        assert len(made) < 20
        jobs = Submissions(project / "runs").jobs
        assert len(jobs[0].places + jobs[1].places) == 1001  # canaries, and the rest of the array
        assert max(max(job.places) for job in jobs if job.places) == 1000
        assert set(queued_runs(project, minislurm).values()) == {1}
        assert queued_runs(project, minislurm).total() == 10_000
    finally:
        cancel_all(minislurm)
        minislurm.client("scontrol", "update", "PartitionName=gpu", "State=UP")
