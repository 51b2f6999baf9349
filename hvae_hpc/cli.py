"""The console script ``hvae-hpc``: the three commands by shorter names, and the small tools beside them."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from hvae_hpc.errors import UserError, run_command

COMMANDS = {
    "preprocess": ("hvae_hpc.preprocess.__main__", "pack NIfTI cases into shards"),
    "sweep": ("hvae_hpc.sweep", "train, evaluate, make the tables; here or on SLURM"),
    "results": ("hvae_hpc.results.__main__", "make the tables and figures of a runs folder"),
    "status": ("", "count what is done and what is not"),
    "minislurm": ("hvae_hpc.jobs.minislurm", "a private SLURM on this machine, to try a sweep on"),
}


def main() -> int:
    """Run the console script; returns its exit code."""
    return run_command(_dispatch)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: hvae-hpc COMMAND ...\n")
        for name, (_, about) in COMMANDS.items():
            print(f"  {name:11} {about}")
        print("\nexample: hvae-hpc sweep demo     (each command has its own --help)")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}")
    if name == "status":
        return status(rest)
    result: int = import_module(COMMANDS[name][0]).main(rest)
    return result


def status(argv: Sequence[str]) -> int:
    """Print, per sweep and stage, how many runs are done, and the last failure of each run that is not."""
    from hvae_hpc.plan import find_plans, read_plan, read_states
    from hvae_hpc.rundir import read_log

    parser = argparse.ArgumentParser(prog="hvae-hpc status", description="What is done, from the runs' own files.")
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="the runs folder (default: ./runs)")
    folder = parser.parse_args(argv).runs
    for path in find_plans(folder):
        plan = read_plan(path)
        states = read_states(plan)
        every = Counter(run.stage for run in plan.runs.values())
        done = Counter(plan.runs[run_id].stage for run_id, state in states.items() if state.done)
        print(f"sweep {plan.sweep}")
        for stage, number in every.items():
            print(f"  {stage:8} {done[stage]:5} of {number:5} done")
        for run_id, state in states.items():
            records = read_log(plan.folder(run_id)) if not state.done else []
            if records and records[-1].get("event") == "failed":
                print(f"  failed: {plan.runs[run_id].stage} {plan.runs[run_id].label}: {records[-1]['reason']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
