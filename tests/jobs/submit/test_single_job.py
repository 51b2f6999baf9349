"""One command as one SLURM job."""

import subprocess
import sys
from pathlib import Path

from tests.jobs.submit.test_apply import closed  # noqa: F401
from tests.minislurm.minislurm import MiniSlurm


def test_a_packing_that_is_queued_is_not_queued_twice(
    closed: MiniSlurm,  # noqa: F811
    tmp_path: Path,
) -> None:
    command = [
        sys.executable,
        "-m",
        "hvae_hpc.preprocess",
        "brats2021",
        "--phantom",
        "2",
        "--workers",
        "2",
    ]
    (tmp_path / "site.toml").write_text("[pack]\nmemory_gb = 1\n")
    command += ["--partition", "gpu", "--site", "site.toml", "--time", "20", "--nice", "5"]
    first, second = (
        subprocess.run(
            command,
            cwd=tmp_path,
            env=closed.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    )
    assert "is in the queue already" not in first.stdout
    assert "is in the queue already" in second.stdout
    (line,) = closed.client("squeue", "-h", "-o", "%j %l").splitlines()
    assert line == "pack-brats2021 20:00"
    assert "shards/brats2021/logs" in first.stdout
