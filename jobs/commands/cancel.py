"""``hvae-hpc cancel`` and ``throttle``: what is done to a sweep's jobs in the queue, and to nobody else's.

Ours is a job whose comment names a submission of the runs folder. The queue is asked anew, and then
there is one call.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.find_run import find_run
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.plan import Plan, find_plans

PATIENCE_S = 30.0
"""How long SLURM is asked again where it does not answer: a person waits."""


def cancel(argv: Sequence[str]) -> int:
    """Take a sweep's jobs, or the element of one run, out of the queue."""
    parser = argparse.ArgumentParser(prog="hvae-hpc cancel", description=cancel.__doc__)
    parser.add_argument(
        "what", nargs="?", metavar="SWEEP|RUN", help="default: the folder's only sweep"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the runs folder (default: ./runs)"
    )
    options = parser.parse_args(argv)
    if options.what is None or options.what in [path.stem for path in find_plans(options.runs)]:
        _cancel_sweep(options.runs, options.what or _only_sweep(options.runs))
    else:
        _cancel_run(options.runs, *find_run(options.runs, options.what))
    return 0


def _cancel_sweep(runs_folder: Path, sweep: str) -> None:
    rows = [row for row in _in_queue(runs_folder, sweep) if row.state != "COMPLETING"]
    if not rows:
        print(f"sweep {sweep}: nothing of it is in the queue")
        return
    jobs = sorted({row.job for row in rows}, key=int)
    slurm.ask(["scancel", *jobs], PATIENCE_S)
    slurm.forget_queue()
    elements = Counter[bool]()
    for row in rows:
        elements[row.state == "PENDING"] += max(1, len(row.places))
    counted = f"{elements[True]} waiting and {elements[False]} running elements"
    print(f"sweep {sweep}: cancelled {len(jobs)} jobs with {counted}")
    print(f"  {' '.join(jobs)}")
    print("what ran saves before it ends; the same sweep command goes on from there")


def _cancel_run(runs_folder: Path, plan: Plan, run_id: str) -> None:
    submissions, run = Submissions(runs_folder), plan.runs[run_id]
    queue = slurm.read_queue(not_before=time.time(), patience_s=PATIENCE_S)
    for row, submission, array in submissions.find_queued(queue):
        for place in row.places:
            bundle = submissions.run_ids(submission, array, place)
            if run_id in bundle:
                slurm.ask(["scancel", f"{row.job}_{place}"], PATIENCE_S)
                slurm.forget_queue()
                print(
                    f"cancelled element {row.job}_{place} ({row.state.lower()}), which makes {run.stage} {run.label}"
                )
                results = read_results(plan)
                if others := [
                    i for i in bundle if i != run_id and i in results and not results[i].done
                ]:
                    print("with it go, of the same element:")
                    print(
                        "".join(f"  {plan.runs[i].stage} {plan.runs[i].label}\n" for i in others),
                        end="",
                    )
                print(
                    "the same sweep command submits what was cancelled again, and goes on from what was saved"
                )
                return
    print(f"{run.stage} {run.label} ({run_id}) is not in the queue")


def throttle(argv: Sequence[str]) -> int:
    """Let at most N elements of each of a sweep's arrays run at a time."""
    parser = argparse.ArgumentParser(prog="hvae-hpc throttle", description=throttle.__doc__)
    parser.add_argument(
        "n", type=int, metavar="N", help="elements of an array; 0 for as many as fit"
    )
    parser.add_argument(
        "sweep", nargs="?", metavar="SWEEP", help="default: the folder's only sweep"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the runs folder (default: ./runs)"
    )
    options = parser.parse_args(argv)
    sweep = find_plans(options.runs, options.sweep or _only_sweep(options.runs))[0].stem
    n, cap = options.n, read_site(None).caps.array_parallelism
    if n < 0:
        raise UserError(f"N is {n}, expected 0 (as many as fit) or more")
    if cap and not 0 < n <= cap:
        print(
            f"the administrator allows {cap} elements of an array at a time, not {n or 'as many as fit'}"
        )
        n = cap
    # Only of what waits: SLURM has nothing to change in an array whose elements have all started.
    rows = [row for row in _in_queue(options.runs, sweep) if row.places and row.state == "PENDING"]
    jobs = sorted({row.job for row in rows}, key=int)
    if jobs:
        slurm.ask(
            ["scontrol", "update", f"JobId={','.join(jobs)}", f"ArrayTaskThrottle={n}"], PATIENCE_S
        )
        print(
            f"sweep {sweep}: {f'at most {n}' if n else 'as many as fit'} at a time in each of {len(jobs)} arrays"
        )
        print(f"  {' '.join(jobs)}")
    else:
        print(
            f"sweep {sweep}: no array of it waits; for later ones there is --array-parallelism, or the site file"
        )
    return 0


def _only_sweep(runs_folder: Path) -> str:
    names = [path.stem for path in find_plans(runs_folder)]
    if len(names) > 1:
        raise UserError(f"{runs_folder}: has several sweeps, name one of {', '.join(names)}")
    return names[0]


def _in_queue(runs_folder: Path, sweep: str) -> list[slurm.Queued]:
    """Return what of a sweep is in the queue now and was submitted from this runs folder."""
    submissions = Submissions(runs_folder)
    queue = slurm.read_queue(not_before=time.time(), patience_s=PATIENCE_S)
    return [
        row
        for row, submission, _ in submissions.find_queued(queue)
        if submissions.sweep(submission) == sweep
    ]
