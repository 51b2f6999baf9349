"""A sweep on a real SLURM through everything that goes wrong at once, against an undisturbed one.

``make drill`` runs it with more seeds (``DRILL_SEEDS``).
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hvae_hpc.jobs.slurm.client import parse_places
from hvae_hpc.jobs.state.submissions import Job, Submissions, parse_comment
from hvae_hpc.runs.folder import read_log
from tests.jobs.worker.test_local_sweep import makings, numbers
from tests.minislurm.minislurm import MiniSlurm
from tests.tiny import SWEEP, keep_generators, make_data_set

SEEDS = int(os.environ.get("DRILL_SEEDS", "4"))
RUNS = 2 * 2 + 4 + SEEDS * 6
SITE = """
[all]
device = "cpu"
memory_gb = 7               # one element per node: the machine that plays the four has few cores
element_minutes = 0.3
signal_lead_s = 30
checkpoint_every_s = 1
[train]
gpus = 1
minutes = 1
[segment]
gpus = 1
"""
# Counts the calls of SLURM's clients by our programs; the third sbatch of the first command kills
# that command.
WRAPPER = """#!/bin/sh
echo "$(date +%s.%N) {name}" >> {calls}
"{real}" "$@" || exit $?
if [ {name} = sbatch ] && [ -e {armed} ] && [ "$(grep -c sbatch {calls})" -eq 3 ]; then rm {armed}; kill -9 $PPID; fi
"""
CLIENTS = ("sbatch", "squeue", "scontrol", "sacct", "sinfo", "scancel", "sacctmgr")


def make_project(folder: Path) -> Path:
    make_data_set(folder / "shards", "tiny", seed=0)
    text = keep_generators(SWEEP, "vae", "hvae").replace("seeds = 2", f"seeds = {SEEDS}")
    text = text.replace('"tiny", "tiny2"', '"tiny"')
    text = text.replace("doses = [4, 8]", "doses = [4]").replace("epochs = 10", "epochs = 6")
    head, mark, rest = text.partition("[generators.hvae]")  # long enough to reach time limits
    (folder / "sweep.toml").write_text(
        head + mark + rest.replace("images = 160", "images = 700", 1)
    )
    (folder / "site.toml").write_text(SITE)
    return folder


def wrap_clients(folder: Path, path: str) -> Path:
    """Put counting clients into folder; returns the file with one line per call."""
    folder.mkdir()
    calls = folder / "calls"
    (folder / "armed").touch()
    for name in CLIENTS:
        text = WRAPPER.format(
            name=name, calls=calls, real=shutil.which(name, path=path), armed=folder / "armed"
        )
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return calls


class Trouble(threading.Thread):
    """Preempts, kills a node and cancels elements in turn, each a few times."""

    def __init__(self, slurm: MiniSlurm) -> None:
        super().__init__()
        self.slurm, self.over, self.done, self.error = slurm, threading.Event(), Counter[str](), ""
        self.random = random.Random(int(os.environ.get("DRILL_SEED", "1")))

    def run(self) -> None:
        while not self.over.wait(2):
            for act in (self.cancel, self.preempt, self.lose_a_node):
                try:
                    act()
                except Exception as error:  # a test must hear of it, also from a thread
                    self.error = repr(error)
                if self.over.wait(4):
                    return

    def running(self) -> list[str]:
        return self.slurm.client(
            "squeue", "-h", "-t", "RUNNING", "-p", "gpu", "-o", "%F_%K"
        ).split()

    def preempt(self) -> None:
        if self.done["preempted"] < 5 and self.running():
            urgent = [
                "--partition=urgent",
                "--nodes=2",
                "--exclusive",
                "--output=/dev/null",
                "--wrap=sleep 3",
            ]
            self.slurm.client("sbatch", *urgent)
            self.done["preempted"] += 1

    def lose_a_node(self) -> None:
        if self.done["nodes lost"] < 1 and self.running():
            self.slurm.kill_node("n3")
            time.sleep(4)
            self.slurm.start_node("n3", timeout_s=60)
            self.done["nodes lost"] += 1

    def cancel(self) -> None:
        names = self.slurm.client(
            "squeue", "-h", "-t", "RUNNING", "-p", "gpu", "-o", "%F_%K %j"
        ).splitlines()
        elements = [name.split()[0] for name in names if "-segment-" in name]
        if self.done["cancelled"] < 2 and elements:
            self.slurm.client("scancel", self.random.choice(elements))
            self.done["cancelled"] += 1


def queued_runs(project: Path, slurm: MiniSlurm) -> Counter[str]:
    """Count how often each run is in the queue."""
    submissions = Submissions(project / "runs")
    found: Counter[str] = Counter()
    for line in slurm.client("squeue", "-h", "-o", "%K|%k").splitlines():
        places, _, comment = line.partition("|")
        if named := parse_comment(comment.strip()):
            found.update(
                run
                for place in parse_places(places)
                for run in submissions.run_ids(Job(*named, "1", ()), place)
            )
    return found


def most_in_a_minute(times: list[float]) -> int:
    return max((sum(start <= other < start + 60 for other in times) for start in times), default=0)


@pytest.mark.timeout(2700)
def test_runs_survive_everything_and_equal_an_undisturbed_sweep(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    undisturbed, project = (make_project(tmp_path / name) for name in ("undisturbed", "disturbed"))
    environment = minislurm.environment()
    calls = wrap_clients(tmp_path / "bin", environment["PATH"])
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    command = [sys.executable, "-m", "hvae_hpc.sweep", "--site", "site.toml"]

    def submit() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--partition", "gpu"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert submit().returncode == -9  # between two sbatch calls
    here = queued_runs(project, minislurm)
    assert 0 < len(here) < RUNS
    local = subprocess.Popen(
        [*command, "--local", "--workers", "1"],
        cwd=undisturbed,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    trouble = Trouble(minislurm)
    trouble.start()
    after_submission: list[float] = []
    made: dict[str, float] = {}
    try:
        for _ in range(4):  # cancelled elements need a person who gives the command again
            done = submit()
            assert done.returncode == 0, done.stdout + done.stderr
            submitted_at = time.time()
            twice = [run for run, times in queued_runs(project, minislurm).items() if times > 1]
            assert not twice
            deadline = time.time() + 1200
            while minislurm.client("squeue", "-h", "-p", "gpu"):
                assert time.time() < deadline, minislurm.client("squeue")
                time.sleep(2)
            lines = [line.split() for line in calls.read_text().splitlines()]
            # Elements that send themselves back call scontrol, once each, at their limit.
            after_submission += [
                float(at) for at, name in lines if float(at) > submitted_at and name != "scontrol"
            ]
            again, made = made, makings(project)
            assert again.items() <= made.items()  # what was done was not made again
            if len(made) == RUNS:
                break
    finally:
        trouble.over.set()
        trouble.join()
    print(trouble.done, len(after_submission), "calls after submission")
    assert not trouble.error
    assert min(trouble.done[name] for name in ("preempted", "nodes lost", "cancelled")) >= 1, (
        trouble.done
    )
    assert most_in_a_minute(after_submission) <= 4

    _, errors = local.communicate(timeout=600)
    assert local.returncode == 0, errors
    assert len(numbers(undisturbed)) == RUNS
    assert numbers(project) == numbers(undisturbed)
    logs = {path.parent.name: read_log(path.parent) for path in project.glob("runs/*/*/log.jsonl")}
    starts = {name: sum(r.get("event") == "started" for r in log) for name, log in logs.items()}
    for path in project.glob(
        "runs/*/*/metrics.json"
    ):  # the last start made it: none was made twice
        assert json.loads(path.read_text())["provenance"]["attempt"] == starts[path.parent.name]
    assert max(starts.values()) > 1
    elements = "\n".join(path.read_text() for path in project.glob("runs/submissions/*/*log.out"))
    assert "at the time limit: saved, sent back to the queue" in elements
    assert any(r.get("event") == "resumed" for log in logs.values() for r in log)
    table = Path("runs/results/tiny/table1.csv")
    assert (project / table).read_bytes() == (undisturbed / table).read_bytes()
