"""A whole sweep in local processes: to its tables, again for what is missing only, and through kill -9."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hvae_hpc.runs.folder import METRICS, SNAPSHOT, read_log
from tests.tiny import keep_generators, make_data_set, make_project

ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


def sweep(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hvae_hpc.sweep", "--local", *arguments]
    return subprocess.run(
        command, cwd=project, capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )


def numbers(project: Path) -> dict[str, object]:
    """Every run's metrics and cases, without what differs from one making to the next."""
    found = {}
    for path in sorted(project.glob("runs/*/*/metrics.json")):
        data = json.loads(path.read_text())
        found[path.parent.name] = (
            data["metrics"],
            data["per_case"],
            data["config"],
            data["parents"],
        )
    return found


def makings(project: Path) -> dict[str, float]:
    return {
        p.parent.name: json.loads(p.read_text())["provenance"]["started_at"]
        for p in project.glob("runs/*/*/metrics.json")
    }


ONE_SET = ('"tiny", "tiny2"', '"tiny"')
ONE_SEED = ("seeds = 2", "seeds = 1")
ONE_DOSE = ("doses = [4, 8]", "doses = [4]")
ONE_FACTOR = ("factors = [2, 3]", "factors = [2]")
NO_FACTOR = ("factors = [2, 3]", "factors = []")


def change_sweep(project: Path, *changes: tuple[str, str]) -> Path:
    """Replace some of a project's sweep file; returns the project."""
    text = (project / "sweep.toml").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (project / "sweep.toml").write_text(text)
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep ran to the end, undisturbed."""
    project = make_project(tmp_path_factory.mktemp("finished"))
    change_sweep(project, ONE_DOSE, ONE_FACTOR)
    # A folder that somebody else made may hold modules, and settings that start programs.
    for name in ("torch", "h5py", "numpy", "multiprocessing", "matplotlib"):
        (project / f"{name}.py").write_text("raise SystemExit('a module of the folder ran')")
    (project / "matplotlibrc").write_text("text.usetex: True\n")
    done = sweep(project)
    assert done.returncode == 0, done.stdout + done.stderr
    (project / "out.txt").write_text(done.stdout)
    return project


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_sweep_ends_in_its_tables_and_says_where_they_lie(finished: Path) -> None:
    out = (finished / "out.txt").read_text()
    assert len(numbers(finished)) == 46
    for name in ("table1.md", "table1.csv", "table2.md", "table2.csv"):
        assert (finished / "runs/results/tiny" / name).is_file()
    assert "files are in " in out
    assert f"open {finished}/runs/results/tiny/report.html" in out
    assert "Reference" in out


def test_a_sweep_that_asks_for_likelihoods_and_controls_has_them_in_its_tables(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path)
    (project / "more.toml").write_text(
        """
        extends = "./sweep.toml"
        data = ["tiny"]
        seeds = 1
        factors = []
        doses = []
        samplers = ["prior", "aggregated"]
        arms = [
            "hvae-aggregated-shuffled+4@steps", "vae-first+8", "copies-x2", "moved", "real-7",
            "real-9", "vae-only+8", "reference@steps",
        ]
        likelihoods = true
        likelihood = {cases = 2, chains = 2, temperatures = 5, importance_samples = 5}
        """
    )
    done = sweep(project, "more.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes without arm real-9: too few cases" in done.stdout
    folder = project / "runs/results/tiny"
    likelihoods = (folder / "likelihoods.csv").read_text()
    assert "tiny,hvae,elbo_flow,1,1," in likelihoods
    assert "tiny,vae,log_likelihood,1,1," in likelihoods
    arms = [line.split(",")[1] for line in (folder / "arms.csv").read_text().splitlines()[1:]]
    assert sorted(arms) == sorted([
        "reference", "hvae-aggregated-shuffled+4@steps", "vae-first+8", "copies-x2", "moved", "real-7", "vae-only+8",
        "reference@steps",
    ])  # fmt: skip


def test_the_same_command_again_makes_nothing(finished: Path) -> None:
    before = makings(finished)
    done = sweep(finished)
    assert done.returncode == 0
    assert makings(finished) == before


def test_finished_runs_keep_no_checkpoints_and_no_temporaries(finished: Path) -> None:
    assert not list(finished.glob("runs/**/checkpoint-*.pt"))
    assert not list(finished.glob("runs/**/.*.tmp"))


def test_what_is_missing_or_truncated_is_made_again_with_what_hangs_on_it_and_nothing_else(
    copy: Path,
) -> None:
    before, values = makings(copy), numbers(copy)
    (train,) = copy.glob("runs/train/tiny-hvae-s0-*")
    (leaf,) = copy.glob("runs/segment/tiny2-vae+4-s1-*")
    (truncated,) = copy.glob("runs/segment/tiny-reference-s1-*/metrics.json")
    shutil.rmtree(train)
    shutil.rmtree(leaf)
    truncated.write_text(truncated.read_text()[:100])

    done = sweep(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to be made again: segment tiny-reference-s1" in done.stdout
    after = makings(copy)
    remade = [name.rsplit("-", 1)[0] for name in after if after[name] != before[name]]
    # The train run, the pairs it made, their quality (all three labelled so), and the two
    # segmentations that use them.
    of_the_training = ["tiny-hvae+4-s0", "tiny-hvae+4-s1", *["tiny-hvae-s0"] * 3]
    assert sorted(remade) == sorted([*of_the_training, "tiny2-vae+4-s1", "tiny-reference-s1"])
    assert numbers(copy) == values


def test_a_moved_project_has_nothing_to_make_and_repacked_data_has(copy: Path) -> None:
    (copy / "shards").rename(copy / "packed")
    done = sweep(copy, "--plan", "--data", "tiny=packed/tiny", "tiny2=packed/tiny2")
    assert "segment       20 runs,    20 done,     0 to make" in done.stdout
    make_data_set(copy / "packed", "tiny", seed=9)
    done = sweep(copy, "--plan", "--data", "tiny=packed/tiny", "tiny2=packed/tiny2")
    assert "segment       20 runs,    10 done,    10 to make" in done.stdout


def test_plan_does_nothing(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    done = sweep(project, "--plan")
    assert done.returncode == 0
    assert "nothing was done" in done.stdout
    assert not (project / "runs").exists()


SITE = (
    "[train]\ngpus = 0\ncheckpoint_every_s = 0.05\n[segment]\ngpus = 0\ncheckpoint_every_s = 0.05\n"
)


def test_trainings_killed_at_random_end_as_if_undisturbed(tmp_path: Path) -> None:
    """kill -9 of a worker, and of the sweep itself, at random moments, then the same command."""
    projects = [make_project(tmp_path / name) for name in ("undisturbed", "killed")]
    for project in projects:
        change_sweep(project, ONE_SET, ONE_SEED, ONE_DOSE, NO_FACTOR)
        change_sweep(project, ("images = 160", "images = 480"), ("epochs = 10", "epochs = 20"))
        text = (project / "sweep.toml").read_text()
        (project / "sweep.toml").write_text(keep_generators(text, "hvae"))
        (project / "site.toml").write_text(SITE)
    assert sweep(projects[0], "--site", "site.toml").returncode == 0

    random.seed(int(os.environ.get("DRILL_SEED", "1")))
    killed, kills = projects[1], 0
    command = [sys.executable, "-m", "hvae_hpc.sweep", "--local", "--site", "site.toml"]
    for attempt in range(3):
        process = subprocess.Popen(
            command, cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before, deadline = checkpoints(killed), time.time() + 60
        while checkpoints(killed) <= before:
            assert process.poll() is None
            assert time.time() < deadline
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.3))
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        victims = [int(child) for child in children if attempt % 2] + [
            process.pid
        ]  # workers too, or the sweep alone
        for victim in victims:
            if process.poll() is None:
                os.kill(victim, signal.SIGKILL)
                kills += 1
        process.wait()
    done = sweep(killed, "--site", "site.toml")
    assert done.returncode == 0, done.stderr
    assert kills >= 3
    assert numbers(killed) == numbers(projects[0])
    for snapshot in projects[0].glob(f"runs/train/*/{SNAPSHOT}"):
        other = killed / snapshot.relative_to(projects[0])
        one, two = (torch.load(path, weights_only=True)["weights"] for path in (snapshot, other))
        assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [r for path in killed.glob("runs/*/*/log.jsonl") for r in read_log(path.parent)]
    # The kills hit trainings, and these went on.
    assert sum(record.get("event") == "resumed" for record in logs) >= 2


def checkpoints(project: Path) -> set[Path]:
    return set(project.glob("runs/*/*/checkpoint-*.pt"))


def test_a_run_that_fails_is_named_blocks_its_children_and_stops_nothing_else(
    tmp_path: Path,
) -> None:
    project = change_sweep(make_project(tmp_path), ONE_SET, ONE_SEED, ONE_DOSE, ONE_FACTOR)
    change_sweep(
        project,
        ("min_mask_px = 1", "min_mask_px = 300"),
        ("max_draws_per_pair = 2000", "max_draws_per_pair = 1"),
    )
    done = sweep(project)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: 9 of 17 runs were not made; first: generate tiny-")
    assert "had a mask of 300 px or more" in line
    assert "BLOCKED: needs generate tiny-hvae-s0" in done.stdout
    assert len(list(project.glob(f"runs/segment/*/{METRICS}"))) == 2  # reference and standard


def test_two_sweeps_at_once_share_the_work_and_make_no_run_twice(tmp_path: Path) -> None:
    project = change_sweep(make_project(tmp_path), ONE_SET, ONE_SEED, ONE_DOSE, NO_FACTOR)
    command = [sys.executable, "-m", "hvae_hpc.sweep", "--local", "--workers", "1"]
    both = [
        subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    starts = [
        r
        for path in project.glob("runs/*/*/log.jsonl")
        for r in read_log(path.parent)
        if r.get("event") == "started"
    ]
    assert len(starts) == len(numbers(project)) == 15


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    project = change_sweep(make_project(tmp_path), ONE_SET, ("images = 160", "images = 40_000"))
    command = [sys.executable, "-m", "hvae_hpc.sweep", "--local"]
    process = subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 300
    while not any(r.get("images_seen") for p in project.glob("runs/train/*") for r in read_log(p)):
        assert time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip() == "stopped; the same command continues from what is there"
    assert list(project.glob("runs/train/*/checkpoint-*.pt"))
    time.sleep(1)
    assert not subprocess.run(["pgrep", "-f", str(project)], capture_output=True, text=True).stdout
