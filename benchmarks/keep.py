"""Keep a sweep's tables, runs and settings under benchmarks/measured, without images.

    python benchmarks/keep.py RUNS SWEEP SWEEP_FILE

``sweep.json`` has every setting. Case ids become numbers and nodes' names "node"; ``runs.json.gz``
holds the plan and every metrics.json, so that a test makes the tables again and compares them byte
for byte.
"""

import argparse
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from hvae_hpc.config.loader import dump, load
from hvae_hpc.results.write import write_results
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import (
    RunResult,
    read_result,
    result_stamp,
    write_atomic,
    write_json,
    write_result,
)
from hvae_hpc.runs.plan import Plan, plan_path, read_plan
from hvae_hpc.sweep import read_sweep

MEASURED = Path(__file__).parent / "measured"


def keep(runs: Path, sweep: str, sweep_file: Path, out: Path) -> None:
    """Write one measured sweep to ``out/<sweep>/``."""
    path = plan_path(runs, sweep)
    plan = read_plan(path)
    results = strip(plan)
    raw = json.loads(path.read_text())
    raw["runs_folder"] = "runs"
    raw["data"] = {name: {**data, "folder": f"shards/{name}"} for name, data in raw["data"].items()}
    packed = {"plan": raw, "results": [dump(result) for result in results]}
    folder = out / sweep
    # mtime 0: the same runs give the same bytes.
    write_atomic(
        folder / "runs.json.gz", gzip.compress(json.dumps(packed, sort_keys=True).encode(), mtime=0)
    )
    write_json(folder / "sweep.json", dump(read_sweep(str(sweep_file))))
    with tempfile.TemporaryDirectory() as scratch:
        unpack(folder / "runs.json.gz", Path(scratch))
        for file in write_results(Path(scratch), sweep, out=Path(scratch) / "results"):
            table = file.parent.name == sweep and file.suffix in (".md", ".csv", ".txt")
            if table or (file.name.startswith("dice-") and file.suffix == ".png"):
                write_atomic(folder / file.name, file.read_bytes())


def strip(plan: Plan) -> list[RunResult]:
    """Return all results, parents first, without names of cases and nodes."""
    missing = [run_id for run_id, summary in read_results(plan).items() if not summary.done]
    if missing:
        raise SystemExit(
            f"{len(missing)} of {len(plan.runs)} runs are not done; give the sweep command again"
        )
    results = {run_id: read_result(plan.folder(run_id), run_id) for run_id in plan.runs}
    cases = sorted(
        {
            case
            for result in results.values()
            if result
            for case in [*result.per_case, *_listed(result)]
        }
    )
    numbers = {case: f"case-{i:03d}" for i, case in enumerate(cases)}
    stamps: dict[str, str] = {}

    kept = []
    for run_id, result in results.items():
        data = _rename(dump(result), numbers)
        data["provenance"]["host"] = "node"
        parents = {
            role: stamps[parent]
            for role, parent in plan.runs[run_id].parents.items()
            if role != "data"
        }
        kept.append(load(RunResult, {**data, "parent_results": parents}, run_id))
        stamps[run_id] = result_stamp(kept[-1])
    return kept


def _listed(result: RunResult) -> list[str]:
    return [
        case
        for value in result.details.values()
        if isinstance(value, list)
        for case in map(str, value)
    ]


def _rename(value: Any, numbers: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {numbers.get(key, key): _rename(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_rename(item, numbers) for item in value]
    return numbers.get(value, value) if isinstance(value, str) else value


def unpack(packed: Path, runs: Path) -> str:
    """Write a kept sweep's plan and metrics.json files to a runs folder; return its name."""
    data = json.loads(gzip.decompress(packed.read_bytes()))
    sweep = str(data["plan"]["sweep"])
    write_atomic(plan_path(runs, sweep), json.dumps(data["plan"]))
    plan = read_plan(plan_path(runs, sweep))
    for result in data["results"]:
        folder = plan.folder_name(result["run_id"])
        write_result(runs / folder, load(RunResult, result, folder))
    return sweep


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("sweep")
    parser.add_argument("sweep_file", type=Path)
    options = parser.parse_args()
    keep(options.runs, options.sweep, options.sweep_file, MEASURED)


if __name__ == "__main__":
    main()
