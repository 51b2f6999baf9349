"""``hvae-hpc cancel`` and ``throttle``: change a sweep's jobs in the queue, and nobody else's.

A job is ours if its comment names a submission of the runs folder. Where a site replaces comments,
its name and time of submission must be those of the record. The queue is asked just before the one
call that changes something.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.errors import UserError, say
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.find_run import add_runs_folder, find_run
from hvae_hpc.jobs.state.submissions import Job, Submissions
from hvae_hpc.runs.plan import Plan, find_plans

CANCEL_PATIENCE_S = 30.0
"""A person waits for SLURM so long."""


def cancel(argv: Sequence[str]) -> int:
    """Cancel a sweep's jobs, or the element of one run."""
    parser = argparse.ArgumentParser(prog="hvae-hpc cancel", description=cancel.__doc__)
    about = "what to cancel (default: the only sweep of the folder)"
    parser.add_argument("what", nargs="?", metavar="SWEEP|RUN", help=about)
    add_runs_folder(parser)
    options = parser.parse_args(argv)
    if options.what in [None, *(path.stem for path in find_plans(options.runs))]:
        _cancel_sweep(options.runs, _find_sweep(options.runs, options.what))
    else:
        _cancel_run(options.runs, *find_run(options.runs, options.what))
    return 0


def _cancel_sweep(runs_folder: Path, sweep: str) -> None:
    rows = [row for row in _read_queue(runs_folder, sweep) if row.state != "COMPLETING"]
    if not rows:
        say(f"sweep {sweep}: nothing of it is in the queue")
        return
    jobs = sorted({row.job for row in rows}, key=int)
    _scancel(jobs)
    elements = sum(row.elements for row in rows)
    waiting = sum(row.elements for row in rows if row.state == "PENDING")
    counted = f"{waiting} waiting and {elements - waiting} running elements"
    say(f"sweep {sweep}: cancelled {len(jobs)} jobs with {counted}")
    say(f"  {' '.join(jobs)}")
    say("running elements save before they end; the same sweep command continues from there")


def _cancel_run(runs_folder: Path, plan: Plan, run_id: str) -> None:
    submissions, run = Submissions(runs_folder), plan.runs[run_id]
    elements = [
        (f"{row.job}_{place}", row, run_ids)
        for row, job in _find_proven(submissions)
        for place in row.places
        if run_id in (run_ids := submissions.run_ids(job, place))
    ]
    if not elements:
        say(f"{run} ({run_id}) is not in the queue")
        return
    element, row, run_ids = elements[0]
    _scancel([element])
    state = row.state.lower()
    say(f"cancelled element {element} ({state}), which makes {run}")

    if len(run_ids) > 1:
        say(f"the element's other runs, {len(run_ids) - 1}, are cancelled with it")
    say("the same sweep command submits them again, and continues from what was saved")


def throttle(argv: Sequence[str]) -> int:
    """Let at most N elements of each of a sweep's arrays run at a time."""
    parser = argparse.ArgumentParser(prog="hvae-hpc throttle", description=throttle.__doc__)
    about = "number of elements; 0 for no limit"
    parser.add_argument("n", type=int, metavar="N", help=about)
    about = "which sweep (default: the only sweep of the folder)"
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help=about)
    add_runs_folder(parser)
    options = parser.parse_args(argv)
    sweep = _find_sweep(options.runs, options.sweep)

    n, cap = options.n, read_site(None).caps.array_parallelism
    if n < 0:
        raise UserError(f"N is {n}, expected 0 (as many as fit) or more")
    if cap and not 0 < n <= cap:
        say(f"the administrator allows {cap} elements of an array at a time")
        n = cap

    # SLURM can change only arrays of which something waits.
    rows = _read_queue(options.runs, sweep)
    jobs = sorted({row.job for row in rows if row.places and row.state == "PENDING"}, key=int)
    if jobs:
        update = ["scontrol", "update", f"JobId={','.join(jobs)}", f"ArrayTaskThrottle={n}"]
        slurm.ask(update, CANCEL_PATIENCE_S)
        at_a_time = f"at most {n}" if n else "as many as fit"
        say(f"sweep {sweep}: {at_a_time} at a time in each of {len(jobs)} arrays")
        say(f"  {' '.join(jobs)}")
    else:
        later = "for later arrays, use --array-parallelism or the site file"
        say(f"sweep {sweep}: none of its arrays waits; {later}")
    return 0


def _find_sweep(runs_folder: Path, name: str | None) -> str:
    """Return a sweep's name, or that of the folder's only sweep."""
    names = [path.stem for path in find_plans(runs_folder, name)]
    if len(names) > 1:
        raise UserError(f"{runs_folder}: has several sweeps, name one of {', '.join(names)}")
    return names[0]


def _read_queue(runs_folder: Path, sweep: str) -> list[slurm.Queued]:
    """Return the sweep's rows of the queue that were submitted from this runs folder."""
    submissions = Submissions(runs_folder)
    rows = _find_proven(submissions)
    return [row for row, job in rows if submissions.plans[job.submission].sweep == sweep]


def _find_proven(submissions: Submissions) -> list[tuple[slurm.Queued, Job]]:
    """Return the queue's rows that are surely ours, and name the others that the record claims."""
    if not submissions.plans:
        say("nothing was submitted from here; end a sweep in local processes with Ctrl-C")
        return []
    queue = slurm.read_queue(not_before=time.time(), patience_s=CANCEL_PATIENCE_S)
    rows = submissions.find_queued(queue)
    proven = [each for each in rows if submissions.is_proven(*each)]
    if others := sorted({each[0].job for each in rows if each not in proven}):
        say(f"left alone: {' '.join(others)}, noted here under another name or time than SLURM's")
    return proven


def _scancel(names: Sequence[str]) -> None:
    slurm.ask(["scancel", *names], CANCEL_PATIENCE_S)
    slurm.forget_queue()
