"""The literal command on a real SLURM of four nodes: arrays, the same tables as here, and only what is missing."""

import getpass
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvae_hpc.runs.identity import code_sha
from tests import ROOT
from tests.jobs.worker.test_local_sweep import makings, numbers
from tests.minislurm.minislurm import MiniSlurm
from tests.minislurm.test_minislurm import wait_until
from tests.tiny import keep_generators, make_project

SITE = """
[all]
element_minutes = 0.02
[train]
gpus = 1
device = "cpu"
memory_gb = 1
[generate]
gpus = 1
device = "cpu"
memory_gb = 1
[augment]
memory_gb = 1
[quality]
memory_gb = 1
[segment]
gpus = 1
device = "cpu"
cpus = 1
memory_gb = 1
"""


def project_in(folder: Path) -> Path:
    project = make_project(folder)
    text = (
        (project / "sweep.toml")
        .read_text()
        .replace("doses = [4, 8]", "doses = [4]")
        .replace("factors = [2, 3]", "factors = [2]")
    )
    text = keep_generators(text, "hvae").replace('"tiny", "tiny2"', '"tiny"')
    (project / "sweep.toml").write_text(text)
    (project / "site.toml").write_text(SITE)
    return project


def copy_checkout(folder: Path) -> Path:
    """Copy the package as it lies in a checkout, changed in a comment, so that it can be told from this one."""
    for name in ("hvae_hpc", "jobs", "preprocess", "results"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    with open(folder / "jobs/__init__.py", "a") as file:
        file.write("# a copy\n")
    return folder


def call(
    project: Path, slurm: MiniSlurm, *arguments: str, checkout: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    environment = {**slurm.environment(), "HVAE_HPC_SITE": str(project / "site.toml")}
    environment["PYTHONPATH"] = str(checkout)
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )


def wait_until_empty(slurm: MiniSlurm, limit_s: float = 480) -> None:
    deadline = time.time() + limit_s
    while queue := slurm.client("squeue", "--noheader", "--format=%i %j %T %R"):
        assert time.time() < deadline, queue
        time.sleep(1)


@pytest.fixture(scope="module")
def swept(minislurm: MiniSlurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project whose sweep went through SLURM, and what the command printed.

    Its checkout was edited before the first run began, and deleted when the first was done.
    """
    project = project_in(tmp_path_factory.mktemp("slurm"))
    checkout = copy_checkout(tmp_path_factory.mktemp("checkout"))
    minislurm.client("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    try:
        command = ("hvae_hpc.sweep", "--partition", "gpu")
        done = call(project, minislurm, *command, checkout=checkout)
        (checkout / "hvae_hpc/runs/plan.py").write_text("raise RuntimeError('edited')\n")
    finally:
        minislurm.client("scontrol", "update", "PartitionName=gpu", "State=UP")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: list(project.glob("runs/*/*/metrics.json")), 120)
    shutil.rmtree(checkout)
    wait_until_empty(minislurm)
    return project, done.stdout


def test_the_literal_command_runs_as_arrays_on_several_nodes(swept: tuple[Path, str]) -> None:
    project, out = swept
    results = [json.loads(path.read_text()) for path in project.glob("runs/*/*/metrics.json")]
    logs = "\n".join(path.read_text() for path in project.glob("runs/submissions/*/*log.out"))
    assert len(results) == 13, logs
    assert "submitted 13 runs in 10 jobs; 0 runs were queued already" in out
    assert all("_" in result["provenance"]["job_id"] for result in results)
    (archive,) = project.glob("runs/submissions/code-*.zip")
    shas = {result["provenance"]["code_sha"] for result in results}
    assert shas == {archive.name.split("-")[1]} != {code_sha()}
    assert not any("changed" in str(result["provenance"]["notes"]) for result in results)
    assert (
        len(list(project.glob("runs/submissions/*/*_log.out"))) == 14
    )  # one log per element, and the tables' job


def test_elements_ran_on_several_nodes_and_cpu_stages_held_no_gpu(swept: tuple[Path, str]) -> None:
    project, _ = swept
    texts = [path.read_text() for path in project.glob("runs/submissions/*/*.sh")]
    augment = next(text for text in texts if "tiny-augment-tiny" in text)
    train = next(text for text in texts if "tiny-train-tiny-hvae" in text)
    assert "gpus" not in augment
    assert "--gpus-per-node=1" in train
    assert "--array=0-1%2" in augment
    nodes = {
        json.loads(line)["host"]
        for path in project.glob("runs/*/*/log.jsonl")
        for line in path.read_text().splitlines()
        if '"started"' in line
    }
    assert len(nodes) >= 2, nodes


def test_its_numbers_and_tables_are_those_of_a_local_run(
    swept: tuple[Path, str], tmp_path: Path
) -> None:
    project, _ = swept
    local = project_in(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "hvae_hpc.sweep", "--local"],
        cwd=local,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert numbers(project) == numbers(local)
    for name in ("table1.csv", "table2.csv", "table1.md"):
        assert (project / "runs/results/tiny" / name).read_bytes() == (
            local / "runs/results/tiny" / name
        ).read_bytes()


def test_a_second_call_submits_nothing(swept: tuple[Path, str], minislurm: MiniSlurm) -> None:
    project, _ = swept
    before = minislurm.client("squeue", "--noheader")
    done = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
    assert done.returncode == 0
    assert "submitted nothing: every run is done" in done.stdout
    assert minislurm.client("squeue", "--noheader") == before == ""


def test_a_call_while_runs_are_queued_submits_none_of_them_again(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    project = project_in(tmp_path)
    minislurm.client("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    try:
        first = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
        again = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
    finally:
        minislurm.client("scancel", "--user", getpass.getuser())
        minislurm.client("scontrol", "update", "PartitionName=gpu", "State=UP")
    assert "submitted 13 runs" in first.stdout
    assert "submitted 0 runs in 0 jobs; 13 runs were queued already" in again.stdout


def test_a_deleted_run_is_made_again_with_what_hangs_on_it(
    swept: tuple[Path, str], minislurm: MiniSlurm, tmp_path: Path
) -> None:
    project = Path(shutil.copytree(swept[0], tmp_path / "copy"))
    before, values = makings(project), numbers(project)
    (folder,) = project.glob("runs/generate/tiny-hvae-s0-*")
    shutil.rmtree(folder)
    done = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
    assert "submitted 4 runs in 4 jobs" in done.stdout, done.stdout + done.stderr
    wait_until_empty(minislurm)
    after = makings(project)
    assert (
        sum(after[name] != before[name] for name in after) == 4
    )  # the pairs, their quality, two segment runs
    assert numbers(project) == values
    table = (project / "runs/results/tiny/table1.md").read_text()
    assert "Mixed code: 2 versions of the code made the runs" in table
    assert f"{code_sha()} (" in table


def test_an_unknown_partition_is_named_beside_those_that_exist(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    project = project_in(tmp_path)
    done = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpus; touch x")
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "error: unknown partition 'gpus; touch x'; this cluster has cpu, gpu, urgent"
    )
    assert not (project / "runs").exists()


def test_what_no_node_has_is_said_before_anything_is_submitted(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    project = project_in(tmp_path)
    flags = ["--partition", "gpu", "--gpus-per-node", "3"]
    done = call(project, minislurm, "hvae_hpc.sweep", *flags)
    assert done.returncode == 2
    refused = (
        "error: train: partition gpu has too few nodes with gpus = 3, memory_gb = 1 and 3 cores"
    )
    assert done.stderr.startswith(f"{refused}, expected 1; lower them under [train]")
    assert not (project / "runs/plans").exists()


def test_a_refusal_of_slurm_is_one_line(minislurm: MiniSlurm, tmp_path: Path) -> None:
    project = project_in(tmp_path)
    (project / "site.toml").write_text(
        SITE.replace(
            "cpus = 1\nmemory_gb = 1", 'constraint = "none-has-it"\ncpus = 1\nmemory_gb = 1'
        )
    )
    done = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "sbatch took 3 jobs and refused tiny-segment-tiny" in line
    minislurm.client("scancel", "--user", getpass.getuser())


def test_an_element_that_is_told_to_leave_saves_and_the_same_command_goes_on(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    project = project_in(tmp_path)
    text = (project / "sweep.toml").read_text().replace("images = 160", "images = 1200")
    text = text.replace("factors = [2]", "factors = []").replace("seeds = 2", "seeds = 1")
    (project / "sweep.toml").write_text(text)
    done = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
    assert done.returncode == 0, done.stderr
    deadline = time.time() + 120
    while not any(
        '"images_seen"' in path.read_text() for path in project.glob("runs/train/*hvae*/log.jsonl")
    ):
        assert time.time() < deadline, minislurm.client("squeue")
        time.sleep(0.5)
    minislurm.client("scancel", "--user", getpass.getuser())
    wait_until_empty(minislurm)
    assert list(project.glob("runs/train/*hvae*/checkpoint-*.pt"))
    done = call(project, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
    assert done.returncode == 0
    wait_until_empty(minislurm)
    (log,) = project.glob("runs/train/*hvae*/log.jsonl")
    assert '"resumed"' in log.read_text()
    assert len(makings(project)) == 7


def test_preprocess_goes_to_slurm_too(minislurm: MiniSlurm, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("[pack]\nmemory_gb = 1\n")
    arguments = [
        "brats2021",
        "--phantom",
        "2",
        "--raw",
        "raw",
        "--out",
        "our shards/brats2021",
    ]
    done = call(tmp_path, minislurm, "hvae_hpc.preprocess", *arguments, "--partition", "cpu")
    assert done.returncode == 0, done.stderr
    assert "pack: cpus 8 to 4, all that its partition has" in done.stdout
    quoted = "--data 'brats2021=our shards/brats2021' --plan --partition cpu"
    assert f"when it is done: python -m hvae_hpc.sweep {quoted}" in done.stdout
    wait_until_empty(minislurm)
    assert (tmp_path / "our shards/brats2021/manifest.json").is_file(), done.stdout
