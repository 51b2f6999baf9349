"""How long ``hvae-hpc status`` takes on 10,000 runs: none done, all in the queue, all done.

    python benchmarks/status.py

The script makes up the paper's sweep with 294 seeds in a temporary folder (90 MB). It times the
whole command.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from made_up_data import make_data_set, write_results

from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.state.submissions import comment_of
from hvae_hpc.jobs.submit.bundles import make_arrays
from hvae_hpc.jobs.sweeps.costs import expected_seconds
from hvae_hpc.jobs.sweeps.expand import make_plan
from hvae_hpc.runs.done import SETTLED_NS, read_results
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.plan import Plan, plan_path, write_plan
from hvae_hpc.sweep import read_sweep

SEEDS = 294
REPEATS = 3
FAKE_SLURM = {"sbatch": "exit 1", "sacct": "exit 1"}


def submit(plan: Plan, clients: Path) -> None:
    """Write a submission's files, and clients that answer like a SLURM with all jobs queued."""
    seconds = expected_seconds(plan, {}, plan.runs)
    plan = replace(plan, arrays=tuple(make_arrays(plan, list(plan.runs), seconds, queued={})))
    name = f"{plan.sweep}-made-up"
    folder = plan.runs_folder / "submissions" / name
    write_plan(plan, folder / "plan.json")
    queue, jobs = [], []
    for number, array in enumerate(plan.arrays):
        places = list(range(len(array.elements)))
        jobs.append({"array": number, "job": str(number + 1), "places": places, "time": 1.0})
        queue.append(f"{number + 1}|0-{places[-1]}|PENDING|Priority|{comment_of(name, number)}")
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    clients.mkdir()
    (clients / "queue").write_text("\n".join(queue) + "\n")
    for client, text in {**FAKE_SLURM, "squeue": f"cat {clients}/queue"}.items():
        (clients / client).write_text(f"#!/bin/sh\n{text}\n")
        (clients / client).chmod(0o755)


def measure(what: str, folder: Path, environment: dict[str, str], *, cold: bool = False) -> float:
    """Return the median time of the whole command, s, and print what it says."""
    times, command = [], [sys.executable, "-m", "hvae_hpc.cli", "status", str(folder)]
    for _ in range(REPEATS):
        if cold:
            for path in folder.glob("plans/*.cache"):
                path.unlink()
        began = time.perf_counter()
        said = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout
        times.append(time.perf_counter() - began)
    line = next(line for line in said.splitlines() if "runs done" in line)
    print(f"{what:32} {statistics.median(times):6.2f} s   ({line})", flush=True)
    return round(statistics.median(times), 3)


def main() -> int:
    """Measure, print a line for each measurement, and end with one line of JSON."""
    times: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        environment = {**os.environ, "XDG_CACHE_HOME": str(home / "cache")}
        data = [make_data_set(dataset) for dataset in ("brats2021", "hecktor2022")]
        plan = make_plan(
            replace(read_sweep("table1"), seeds=SEEDS),
            data,
            home / "runs",
            read_site(None).resources,
        )
        write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
        print(f"{len(plan.runs):,} runs, median of {REPEATS}")
        times["none_done"] = measure("none done", plan.runs_folder, environment)

        submit(plan, home / "clients")
        environment["PATH"] = f"{home / 'clients'}:{environment['PATH']}"
        times["all_waiting"] = measure("none done, all in the queue", plan.runs_folder, environment)

        write_results(plan)
        time.sleep(SETTLED_NS / 1e9 + 0.1)  # a younger metrics.json is read every time
        times["all_done_cold"] = measure(
            "all done, never looked at", plan.runs_folder, environment, cold=True
        )
        assert all(result.done for result in read_results(plan).values())
        times["all_done_warm"] = measure(
            "all done, looked at before", plan.runs_folder, environment
        )
        runs = len(plan.runs)

    versions = {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "kernel": platform.release(),
    }
    facts = {
        "runs": runs,
        "repeats": REPEATS,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "code": code_sha(),
    }
    print(json.dumps({"benchmark": "status", "seconds": times, **facts, "versions": versions}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
