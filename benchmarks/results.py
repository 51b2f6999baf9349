"""Rows from 10,000 metrics.json files: cold, again and with one new, against a plain loop.

    python benchmarks/results.py [--quick] [--turns 3]

The plain loop is ``pd.DataFrame([json.load(file) for file in files])``: it checks nothing and knows
of no plan. Ours checks every file against its schema and the plan, and ends with the rows of all
tables. Each side runs in a process of its own, in turns; a first turn is not counted. Imports and
the reading of the plan are not timed. The files are in the system's cache for all.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from made_up_data import make_data_set, write_results

from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.sweeps.expand import make_plan
from hvae_hpc.runs.done import SETTLED_NS
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.plan import plan_path, read_plan, write_plan
from hvae_hpc.sweep import read_sweep

SWEEP = "table1"
RUNS = 10_000
RUNS_PER_SEED = 32  # 16 arms of two data sets
SIDES = ("plain loop", "cold", "again", "one new")


def name_machine() -> str:
    """Return the processor, the cores that may be used, and the memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{(models or [platform.machine()])[0]}, {cores} cores, {memory:.0f} GiB of memory"


def wait_until_settled() -> None:
    """Wait: a file that changed just now is read every time."""
    time.sleep(SETTLED_NS / 1e9 + 0.1)


def make_runs(folder: Path, n: int) -> int:
    """Write a plan of about n runs, and all their metrics.json; return how many there are."""
    sweep = read_sweep(SWEEP)
    data = [make_data_set(name) for name in sweep.data]
    sweep = replace(sweep, seeds=round(n / RUNS_PER_SEED))
    plan = make_plan(sweep, data, folder, read_site(None).resources)
    write_plan(plan, plan_path(folder, plan.sweep))
    write_results(plan)
    wait_until_settled()
    return len(plan.runs)


def run_side(side: str, folder: Path) -> dict[str, float]:
    """Do one side's work in this process; return its rows, seconds and peak memory (MiB)."""
    import pandas as pd

    from hvae_hpc.results.collect import collect

    plan = read_plan(plan_path(folder, SWEEP))
    if side == "cold":
        for path in folder.glob("plans/*.cache"):
            path.unlink()
    if side == "one new":
        path = next(folder.glob("segment/*/metrics.json"))
        path.write_text(path.read_text())

    began = time.perf_counter()
    if side == "plain loop":
        paths = [plan.folder(run_id) / "metrics.json" for run_id in plan.runs]
        rows = len(pd.DataFrame([json.loads(path.read_bytes()) for path in paths]))
    else:
        rows = len(collect(plan).costs)
    seconds = time.perf_counter() - began

    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "seconds": seconds, "peak_mib": peak_mib}


def measure(folder: Path, n: int, turns: int) -> dict[str, list[dict[str, float]]]:
    """Run all sides in turns; print and return what they took, but for the first turn."""
    counted: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(turns + 1):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured = json.loads(printed)
            assert measured["rows"] == n, f"{side} has {measured['rows']} rows, expected {n}"
            if turn:
                counted[side].append(measured)
        wait_until_settled()  # after "one new"
    for side, of_side in counted.items():
        peak_mib = max(measured["peak_mib"] for measured in of_side)
        print(f"{n:,} runs  {side:10}  {median_s(of_side):6.2f} s  {peak_mib:5.0f} MiB", flush=True)
    return counted


def median_s(of_side: Sequence[Mapping[str, float]]) -> float:
    """Return the median seconds of a side's turns."""
    return statistics.median(measured["seconds"] for measured in of_side)


def measure_tables(folder: Path) -> float:
    """Time the command that makes tables, figures and the report, with nothing new to read."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "hvae_hpc.results", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn that counts, no tables")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.folder)))
        return 0

    with tempfile.TemporaryDirectory() as name:
        n = make_runs(Path(name), RUNS)
        counted = measure(Path(name), n, 1 if options.quick else options.turns)
        tables = {} if options.quick else {"tables_s": round(measure_tables(Path(name)), 1)}
    seconds = {side: round(median_s(of_side), 2) for side, of_side in counted.items()}
    ours = [measured for side in SIDES[1:] for measured in counted[side]]
    facts = {
        "runs": n,
        "plain_loop_s": seconds["plain loop"],
        "cold_s": seconds["cold"],
        "incremental_s": seconds["again"],
        "one_new_s": seconds["one new"],
        "peak_mib": round(max(measured["peak_mib"] for measured in ours)),
        **tables,
        "machine": name_machine(),
        "load": os.getloadavg()[0],
        "code": code_sha(),
        "python": platform.python_version(),
        "pandas": version("pandas"),
    }
    print(json.dumps({"benchmark": "results", **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
