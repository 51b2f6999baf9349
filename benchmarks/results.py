"""Rows from 1,000 to 100,000 metrics.json files: cold, again and with one new, against the plain loop; and the tables.

    python benchmarks/results.py [--quick]

The plain loop is ``pd.DataFrame([json.load(file) for file in files])``: it checks nothing and knows
of no plan. Ours checks every file against its schema and the plan, and ends with the rows of all
tables. Each side runs in a process of its own, in turns, a first turn not counted; imports are not
timed, nor is reading the plan, which is printed apart. The files are in the system's cache for all.
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
SIDES = ("plain loop", "cold", "again", "one new")
TABLES_UP_TO = 10_000


def name_machine() -> str:
    """Return the processor, the cores that may be used, and the memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"


def make_runs(folder: Path, n: int) -> int:
    """Write a plan of about n runs, and all their metrics.json; return how many there are."""
    sweep = read_sweep(SWEEP)
    data = [make_data_set(name) for name in sweep.data]
    plan = make_plan(
        replace(sweep, seeds=round(n / 32)), data, folder, read_site(None).resources
    )  # 2 x 16 arms
    write_plan(plan, plan_path(folder, plan.sweep))
    write_results(plan)
    time.sleep(SETTLED_NS / 1e9 + 0.1)  # a younger file is read every time
    return len(plan.runs)


def run_side(side: str, folder: Path) -> dict[str, float]:
    """Do one side's work in this process; return its seconds and peak memory (MiB)."""
    import pandas as pd

    from hvae_hpc.results.collect import collect

    kept = list(folder.glob("plans/*.records"))
    if side == "cold":
        for path in kept:
            path.unlink()
    if side == "one new":
        path = next(folder.glob("segment/*/metrics.json"))
        path.write_text(path.read_text())
    began = time.perf_counter()
    if side == "plain loop":
        paths = [f"{stage.path}/{run.name}/metrics.json" for stage in os.scandir(folder) if stage.name != "plans"
                 for run in os.scandir(stage.path)]  # fmt: skip
        began = time.perf_counter()
        rows = len(pd.DataFrame([json.load(open(path)) for path in paths]))
        planned = 0.0
    else:
        plan = read_plan(plan_path(folder, SWEEP))
        planned = time.perf_counter() - began
        began = time.perf_counter()
        rows = len(collect(plan).costs)
    seconds = time.perf_counter() - began
    peak, of_child = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    peak_mib = (
        peak + len(os.sched_getaffinity(0)) * of_child
    ) / 1024  # at most: each process as large as the largest
    return {"seconds": seconds, "plan_s": planned, "peak_mib": peak_mib, "rows": rows}


def measure(folder: Path, n: int, turns: int) -> dict[str, dict[str, float]]:
    """Run all sides in turns; return the median seconds and the highest peak of each, and print them."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(turns + 1):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
            time.sleep(SETTLED_NS / 1e9 + 0.1 if side == "plain loop" else 0)  # after "one new"
            said = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            assert said["rows"] == n, f"{side} has {said['rows']} rows, expected {n}"
            if turn:
                found[side].append(said)
    medians = {}
    for side, turns_of in found.items():
        seconds = statistics.median(turn["seconds"] for turn in turns_of)
        peak = max(turn["peak_mib"] for turn in turns_of)
        medians[side] = {"seconds": seconds, "peak_mib": peak, "plan_s": turns_of[-1]["plan_s"]}
        plan = f"   (plan {turns_of[-1]['plan_s']:.2f} s before)" if side != "plain loop" else ""
        print(f"{n:>8,} runs  {side:10}  {seconds:7.2f} s  {peak:6.0f} MiB{plan}", flush=True)
    ratios = [
        a["seconds"] / b["seconds"] for a, b in zip(found["plain loop"], found["cold"], strict=True)
    ]
    medians["ratio"] = {"cold": statistics.median(ratios)}
    return medians


def measure_tables(folder: Path, n: int) -> float:
    """Time the whole command that makes tables, figures and the report, with nothing new to read."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "hvae_hpc.results", str(folder)], check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    print(
        f"{n:>8,} runs  tables, figures and report, the whole command: {seconds:.1f} s", flush=True
    )
    return seconds


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="20,000 files, one turn that counts, no tables"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.folder)))
        return 0
    sizes = (20_000,) if options.quick else (1_000, 10_000, 100_000)
    seconds, tables = {}, {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            n = make_runs(Path(folder), size)
            seconds[n] = measure(Path(folder), n, 1 if options.quick else options.turns)
            if size <= TABLES_UP_TO:
                tables[n] = round(measure_tables(Path(folder), n), 1)
    largest = seconds[max(seconds)]
    facts = {
        "runs": max(seconds),
        "collect_vs_plain_loop": round(largest["ratio"]["cold"], 2),
        "incremental_s": round(largest["again"]["seconds"], 2),
        "one_new_s": round(largest["one new"]["seconds"], 2),
        "read_plan_s": round(largest["again"]["plan_s"], 2),
        "peak_mib": round(max(largest[side]["peak_mib"] for side in SIDES[1:])),
        "tables_s": tables,
        "machine": name_machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "code": code_sha(),
    }
    versions = {name: version(name) for name in ("pandas", "pyarrow", "msgspec", "numpy")}
    print(
        json.dumps(
            {"benchmark": "results", **facts, "python": platform.python_version(), **versions}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
