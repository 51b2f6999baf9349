"""What is known of how sweeps stand: every run's status, how far those are that run, and what is left to do.

The runs' own files say what is done, running or failed; the user's queue, asked at most once a
minute by all processes together, what waits. How far a run is, is read from the logs of those alone
that run.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.element_ends import explain_lost
from hvae_hpc.jobs.state.run_status import KINDS, RunStatus, read_run_status
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.sweeps.costs import Seconds, expected_seconds
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.plan import Plan, find_plans, read_plan
from hvae_hpc.runs.run import Run

SCHEMA = 1
"""Of the plain data that ``--json`` prints."""
PATIENCE_S = 8.0
"""How long a person is kept waiting for SLURM."""
PACE_OVER = 10
"""Records of the log from which the pace is taken: it changes where an HVAE's flow sets in."""


class Progress(NamedTuple):
    """How far a run is that runs: share of its images, seconds left, its node, seconds since this attempt began.

    None is what nobody can tell.
    """

    progress: float | None = None
    seconds_left: float | None = None
    host: str = ""
    seconds: float | None = None


class SweepStatus(NamedTuple):
    """All that is known of how a sweep stands.

    ``totals`` are the numbers of ``runs``, of each kind of status, of ``gpu_hours_left`` and
    ``cpu_hours_left``, and ``measured``, the share of the runs left of whose kind a finished run
    told how long it takes. ``asked_at`` is when SLURM gave its queue, seconds since 1970; where it
    was not asked, ``note`` says why, if it ought to have been.
    """

    plan: Plan
    statuses: Mapping[str, RunStatus]
    progress: Mapping[str, Progress]
    totals: Mapping[str, float]
    asked_at: float | None = None
    note: str = ""


def read_sweep_statuses(runs_folder: Path, sweep: str | None = None) -> list[SweepStatus]:
    """Return how the sweeps of a runs folder stand, or the one that is named.

    Raises:
        UserError: there is no such folder or sweep.
    """
    plans = read_plans(runs_folder, sweep)
    submissions = Submissions(runs_folder)
    # The queue first: what ends after that has left its result, and is not taken for lost.
    queue, note = read_our_queue(submissions)
    return [make_sweep_status(plan, submissions, queue, note) for plan in plans]


def read_plans(runs_folder: Path, sweep: str | None = None) -> list[Plan]:
    """Return the plans of a runs folder, or the one that is named; the folder may have been moved since."""
    here = runs_folder.resolve()
    paths = find_plans(runs_folder, sweep)
    return [replace(_read_plan(path, path.stat().st_mtime_ns), runs_folder=here) for path in paths]


@lru_cache(maxsize=4)
def _read_plan(path: Path, mtime_ns: int) -> Plan:
    return read_plan(path)


def read_our_queue(submissions: Submissions) -> tuple[slurm.Queue | None, str]:
    """Return the user's queue where something was ever submitted from the runs folder, or why it is not known."""
    if not submissions.names:
        return None, ""
    if not slurm.is_available():
        return None, "there is no SLURM here"
    poll_s, now = read_site(None).caps.poll_s, time.time()
    # An answer from before the last sbatch does not know what that submitted. (Clocks of
    # machines may differ.)
    oldest = max([now - poll_s, *(job.time for job in submissions.jobs if job.time <= now)])
    try:
        return slurm.read_queue(not_before=oldest, poll_s=poll_s, patience_s=PATIENCE_S), ""
    except UserError as error:
        return None, str(error)


def make_sweep_status(
    plan: Plan, submissions: Submissions, queue: slurm.Queue | None, note: str = ""
) -> SweepStatus:
    """Put together how a sweep stands.

    Args:
        plan: of the sweep.
        submissions: of its runs folder.
        queue: the user's, read just before; None where there is none.
        note: why not.
    """
    results = read_results(plan)
    statuses = read_run_status(plan, results, submissions, queue)
    if queue:
        statuses = explain_lost(statuses, submissions, PATIENCE_S)
    left = [run_id for run_id, status in statuses.items() if status.kind != "done"]
    seconds = expected_seconds(plan, results, left)
    progress = {
        run_id: read_progress(plan.runs[run_id], plan.folder(run_id), seconds[run_id])
        for run_id in left
        if statuses[run_id].kind == "running"
    }
    kinds = Counter(status.kind for status in statuses.values())
    totals: dict[str, float] = {"runs": len(statuses), **{kind: kinds[kind] for kind in KINDS}}
    totals["measured"] = sum(seconds[run_id].high is not None for run_id in left) / max(
        1, len(left)
    )
    totals |= {"gpu_hours_left": 0.0, "cpu_hours_left": 0.0}
    for run_id in left:
        needs = plan.resources[plan.runs[run_id].stage]
        made = progress[run_id].progress if run_id in progress else 0.0
        hours = seconds[run_id].expected * (1 - (made or 0.0)) / 3600
        totals["gpu_hours_left"] += hours * needs.nodes * needs.gpus
        totals["cpu_hours_left"] += hours * needs.tasks * needs.cpus
    return SweepStatus(plan, statuses, progress, totals, queue.asked_at if queue else None, note)


def read_progress(run: Run, folder: Path, expected: Seconds) -> Progress:
    """Return how far a run is, from its log's records of the present attempt.

    Args:
        run: that runs.
        folder: its folder.
        expected: what the whole of it takes.
    """
    log, now = read_log(folder), time.time()
    starts = [number for number, record in enumerate(log) if record.get("event") == "started"]
    if not starts:
        return Progress()
    attempt = log[starts[-1] :]
    began = float(attempt[0]["time"])
    images = (
        run.config.optim.images if isinstance(run.config, (TrainConfig, SegmentConfig)) else None
    )
    marks = [
        (float(record["time"]), int(record["images_seen"]))
        for record in attempt
        if "images_seen" in record
    ]
    marks = marks or [(began, int(attempt[0].get("at", 0)))]
    (before, seen_before), (at, seen) = marks[-PACE_OVER:][0], marks[-1]
    left: float | None = None
    if images and seen > seen_before and at > before:
        left = max(0.0, (images - seen) * (at - before) / (seen - seen_before) - (now - at))
    elif expected.high is not None:  # nothing is known of its own pace yet
        left = expected.expected * (1 - marks[0][1] / images if images else 1.0) - (now - began)
        left = left if left > 0 else None
    return Progress(
        seen / images if images else None, left, str(attempt[0].get("host", "")), now - began
    )


def to_plain(sweeps: Sequence[SweepStatus], classes: Mapping[str, str]) -> dict[str, Any]:
    """Return everything as plain data with stable names; classes are those of the failures, by run id."""
    plain = []
    for plan, statuses, progress, totals, *_ in sweeps:
        runs = [
            {"run_id": run_id, "stage": plan.runs[run_id].stage, "label": plan.runs[run_id].label}
            | {
                **status._asdict(),
                **progress.get(run_id, Progress())._asdict(),
                "failure": classes.get(run_id, ""),
            }
            for run_id, status in statuses.items()
        ]
        plain.append(
            {
                "sweep": plan.sweep,
                "runs_folder": str(plan.runs_folder),
                "totals": dict(totals),
                "runs": runs,
            }
        )
    asked = {
        "time": time.time(),
        "queue_asked_at": sweeps[0].asked_at,
        "note": sweeps[0].note,
    }
    return {"schema": SCHEMA, **asked, "sweeps": plain}
