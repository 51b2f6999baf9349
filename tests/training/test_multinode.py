"""A generator trained by two processes on two nodes of a real SLURM, preempted, against one undisturbed process."""

import subprocess
import sys
import time
from pathlib import Path

import torch

from hvae_hpc.runs.folder import SNAPSHOT, read_log
from tests.jobs.submit.test_prepare import call, wait_until_empty
from tests.jobs.worker.test_local_sweep import makings
from tests.minislurm.minislurm import MiniSlurm
from tests.tiny import SWEEP, keep_generators, make_data_set

SITE = """
[all]
device = "cpu"
memory_gb = 1
checkpoint_every_s = 0.5
[train]
gpus = 1
cpus = 2
nodes = 2
[segment]
gpus = 0
[generate]
gpus = 0
"""


def make_project(folder: Path) -> Path:
    """Write a project with one HVAE that takes a while."""
    make_data_set(folder / "shards", "tiny", side=48)
    text = keep_generators(SWEEP, "hvae")
    for before, after in (
        ('"tiny", "tiny2"', '"tiny"'),
        ("seeds = 2", "seeds = 1"),
        ("factors = [2, 3]", "factors = []"),
        ("doses = [4, 8]", "doses = [4]"),
        ("epochs = 10", "epochs = 1"),
        ("images = 160", "images = 80"),
        ("channels = [4, 8]", "channels = [16, 32]"),
        ('lr = 1e-2, precision = "fp32", ema', 'lr = 1e-3, precision = "fp32", ema'),
    ):
        assert before in text
        text = text.replace(before, after)
    (folder / "sweep.toml").write_text(text)
    (folder / "site.toml").write_text(SITE)
    return folder


def weights(project: Path) -> dict[str, torch.Tensor]:
    (path,) = project.glob(f"runs/train/*/{SNAPSHOT}")
    return torch.load(path, weights_only=True)["weights"]


def test_two_nodes_preempted_end_in_the_weights_of_one_process(
    minislurm: MiniSlurm, tmp_path: Path
) -> None:
    alone, together = (make_project(tmp_path / name) for name in ("alone", "together"))
    done = call(together, minislurm, "hvae_hpc.sweep", "--partition", "gpu")
    assert done.returncode == 0, done.stderr
    deadline = time.time() + 120
    while not (list(together.glob("runs/train/*/checkpoint-*.pt"))):
        assert time.time() < deadline, minislurm.client("squeue")
        time.sleep(0.1)
    (node_list,) = minislurm.client(
        "squeue", "-h", "-t", "RUNNING", "-n", "tiny-train-tiny-hvae", "-o", "%N"
    ).split()
    assert node_list == "n[1-2]"
    urgent = [
        "--partition=urgent",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ]
    minislurm.client("sbatch", *urgent)
    wait_until_empty(minislurm)
    logs = "\n".join(path.read_text() for path in together.glob("runs/submissions/*/*log.out"))
    assert len(makings(together)) == 7, logs
    (log,) = [read_log(path) for path in together.glob("runs/train/*")]
    assert sum(record.get("event") == "started" for record in log) == 2
    assert sum(record.get("event") == "resumed" for record in log) == 1
    assert not list(together.glob("runs/train/*/.*.tmp"))

    local = [sys.executable, "-m", "hvae_hpc.sweep", "--local", "--site", "site.toml"]
    assert (
        subprocess.run(local, cwd=alone, capture_output=True, timeout=300, check=False).returncode
        == 0
    )
    one, two = weights(alone), weights(together)
    flat = [torch.cat([w[name].double().flatten() for name in sorted(w)]) for w in (one, two)]
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 1e-5
    (result,) = together.glob("runs/train/*/metrics.json")
    assert '"processes": 2' in result.read_text()
    assert "trained by 2 processes" in result.read_text()
