"""Ten seeds of one arm as one element against ten elements, at demo size, on the same one core.

The elements run one after the other, and their own wall time is measured. What SLURM takes for each
element comes on top.

    python benchmarks/bundles.py [--seeds 10] [--repeats 3]
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.sweeps.config import SweepConfig
from hvae_hpc.preprocess.__main__ import main as preprocess
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.runs.plan import Array, Plan, write_plan
from hvae_hpc.sweep import read_sweep


def make_plan(folder: Path, seeds: int, factors: tuple[int, ...] = (), **changes: Any) -> Plan:
    """Plan the demo's reference arm and standard xF arms, with changed resources of runs."""
    return plan_reference(
        replace(read_sweep("demo"), factors=factors), folder, 40, seeds, **changes
    )


def plan_reference(
    sweep: SweepConfig, folder: Path, phantoms: int, seeds: int, **changes: Any
) -> Plan:
    """Plan a sweep's arms without a generator on phantoms."""
    shards = folder / "shards"
    raw = ["--raw", str(folder / "raw"), "--out", str(shards), "--local"]
    with contextlib.redirect_stdout(io.StringIO()):
        if preprocess(["brats2021", "--phantom", str(phantoms), *raw]):
            raise SystemExit("the phantoms could not be packed")
    sweep = replace(sweep, data=("brats2021",), seeds=seeds, doses=(), arms=(), generators={})
    data = expand.DataSet(name="brats2021", folder=shards, manifest=read_manifest(shards))
    return expand.make_plan(
        sweep, [data], folder / "runs", dict.fromkeys(CONFIGS, Resources(**changes))
    )


def run_elements(plan: Plan, bundles: list[tuple[str, ...]], folder: Path) -> float:
    """Run elements one after the other and return the seconds they took."""
    plan = replace(
        plan,
        runs_folder=folder / "runs",
        arrays=(
            Array(name="bench", stage=plan.runs[bundles[0][0]].stage, elements=tuple(bundles)),
        ),
    )
    write_plan(plan, folder / "plan.json")
    command = [
        sys.executable,
        "-m",
        "hvae_hpc.jobs.worker.element",
        "--plan",
        str(folder / "plan.json"),
        "--array",
        "0",
    ]
    started = time.perf_counter()
    for place in range(len(bundles)):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(place)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure both in turns and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times: dict[str, list[float]] = {"bundle": [], "elements": []}
    with tempfile.TemporaryDirectory() as place:
        plan = make_plan(Path(place), options.seeds)
        ids = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"]
        for repeat in range(options.repeats):
            for name, bundles in (
                ("bundle", [tuple(ids)]),
                ("elements", [(run_id,) for run_id in ids]),
            ):
                times[name].append(run_elements(plan, bundles, Path(place) / f"{name}-{repeat}"))
                print(f"{name:9} {times[name][-1]:7.1f} s", flush=True)

    import torch

    ratio = statistics.median(times["elements"]) / statistics.median(times["bundle"])
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"one core of {platform.machine()}"
    )
    print(
        f"{options.seeds} seeds: one bundle is {ratio:.2f} times as fast "
        f"as {options.seeds} elements ({versions})"
    )
    print(
        json.dumps(
            {
                "seeds": options.seeds,
                "repeats": options.repeats,
                "elements_vs_bundle": round(ratio, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
