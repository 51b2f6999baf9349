"""10,000 runs planned, submitted to a real SLURM of four nodes on this machine, and looked at.

    python benchmarks/scale.py [--runs 10000] [--repeats 3]

It needs SLURM's daemons (.ci/install_slurm.sh installs them). An element has 7 runs, so about 1,400
elements lie in arrays of at most 1001. The partition starts nothing. Times are wall times of the
commands as a user types them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hvae_hpc.jobs.state.submissions import Submissions
from tests.minislurm.minislurm import MiniSlurm, MiniSlurmConfig

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.jobs.submit.test_apply import SITE, make_project


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run a command and return its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - started


def main() -> None:
    """Measure each command on fresh projects and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    sweep = [sys.executable, "-m", "hvae_hpc.sweep", "--site", "site.toml", "--partition", "gpu"]
    status = [
        sys.executable,
        "-c",
        "import sys; from hvae_hpc.cli import main; sys.exit(main())",
        "status",
    ]
    times: dict[str, list[float]] = {"plan": [], "submit": [], "status": []}
    counts: dict[str, int] = {}

    with (
        tempfile.TemporaryDirectory() as place,
        MiniSlurm(MiniSlurmConfig(folder=Path(place) / "slurm")) as slurm,
    ):
        slurm.client("scontrol", "update", "PartitionName=gpu", "State=DOWN")
        environment = {**slurm.environment(), "XDG_CACHE_HOME": f"{place}/cache"}
        for repeat in range(options.repeats):
            (Path(place) / f"{repeat}").mkdir()
            project = make_project(
                Path(place) / f"{repeat}", options.runs, SITE.replace("0.02", "0.25")
            )
            times["plan"].append(timed([*sweep, "--plan"], project, environment))
            times["submit"].append(timed(sweep, project, environment))
            times["status"].append(timed(status, project, environment))

            files = sum(path.is_file() for path in (project / "runs").rglob("*"))
            jobs = Submissions(project / "runs").jobs
            counts = {
                "files": files,
                "sbatch": len(jobs),
                "elements": sum(len(job.places) for job in jobs),
            }
            slurm.client("scancel", "--partition", "gpu")
            print({name: round(taken[-1], 2) for name, taken in times.items()}, counts, flush=True)

        version = slurm.client("sinfo", "--version").strip()

    medians = {f"{name}_s": round(statistics.median(taken), 2) for name, taken in times.items()}
    machine = f"{version}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{options.runs} runs: {medians} ({machine})")
    print(json.dumps({"runs": options.runs, **medians, **counts}))


if __name__ == "__main__":
    main()
