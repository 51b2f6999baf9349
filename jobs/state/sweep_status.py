"""The status of whole sweeps: the status of every run, how far the running ones are, what is left.

The runs' own files say what is done, runs or failed. The user's queue says what waits: all
processes of a user together ask for it at most once a minute. Only the logs of running runs are
read whole.

At the end: how many device hours the attempts took, and what came of them. An attempt lasts from
its beginning to its last record in the log: nobody knows what a killed process did after that. It
is useful if it made the result, or if the next one continued from what it saved. The log is read
only of runs that were not made at their first attempt.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import NamedTuple

from hvae_hpc.config.stages import CONFIGS, SegmentConfig, TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.run_log import duration_s, split_attempts
from hvae_hpc.jobs.state.run_status import KINDS, RunStatuses, explain_lost, read_statuses
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.sweeps.costs import add_up, expected_seconds, kind_of, measure_rates
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import LogRecord, read_log
from hvae_hpc.runs.plan import Plan, find_plans, read_plan
from hvae_hpc.runs.run import Run

STATUS_PATIENCE_S = 8.0
"""A person waits for SLURM so long."""
PACE_OVER = 10
"""The pace is that of the log's last records: it changes where an HVAE's flow begins."""
OUTCOMES = ("useful", "preempted", "time limit", "failed", "cancelled", "interrupted", "at work")
"""What came of device time: "preempted" includes lost nodes, "interrupted" has no known reason."""
NODE_GONE = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")


class Progress(NamedTuple):
    """How far a running run is. None is what is not known.

    Attributes:
        progress: share of its images that it has seen.
        seconds_left: until its end.
        host: its node.
        images_per_s: that its device sees now, of all runs that share it.
        usual_images_per_s: the median of its kind, of runs that are finished or run.
    """

    progress: float | None = None
    seconds_left: float | None = None
    host: str = ""
    images_per_s: float | None = None
    usual_images_per_s: float | None = None


@frozen
class SweepStatus(RunStatuses):
    """The status of a sweep.

    Attributes:
        progress: of the runs that run.
        totals: the numbers of ``runs`` and of each kind of status; ``gpu_hours_left`` and
            ``cpu_hours_left``; and ``measured``, the share of the runs left whose time is known
            from finished runs of their kind.
        asked_at: when SLURM gave its queue, in seconds since 1970; None where it was not asked.
        note: why the queue is not known, where it should be.
    """

    progress: Mapping[str, Progress]
    totals: Mapping[str, float]
    asked_at: float | None = None
    note: str = ""


def read_sweep_statuses(runs_folder: Path, sweep: str | None = None) -> list[SweepStatus]:
    """Return the status of each sweep of a runs folder, or of the one that is named.

    Raises:
        UserError: there is no such folder or sweep.
    """
    plans = read_plans(runs_folder, sweep)
    submissions = Submissions(runs_folder)
    # The queue is read first: what ends after that has left its result, and does not seem lost.
    queue, note = read_our_queue(submissions)
    return [make_sweep_status(plan, submissions, queue, note) for plan in plans]


def read_plans(runs_folder: Path, sweep: str | None = None) -> list[Plan]:
    """Return the plans of a runs folder, or the one that is named; the folder may have moved."""
    here = runs_folder.resolve()
    paths = find_plans(runs_folder, sweep)
    return [replace(read_plan(path), runs_folder=here) for path in paths]


def read_our_queue(submissions: Submissions) -> tuple[slurm.Queue | None, str]:
    """Return the user's queue, and why it is not known where something was submitted from here."""
    if not submissions.plans:
        return None, ""
    if not slurm.is_available():
        return None, "there is no SLURM here"
    now = time.time()
    # An answer from before the last sbatch does not know its jobs. The clock of the machine that
    # submitted may be ahead of ours.
    submitted_at = [job.time for job in submissions.jobs if job.time <= now]
    oldest = max([now - read_site(None).caps.poll_s, *submitted_at])
    try:
        return slurm.read_queue(not_before=oldest, patience_s=STATUS_PATIENCE_S), ""
    except UserError as error:
        return None, str(error)


def make_sweep_status(
    plan: Plan, submissions: Submissions, queue: slurm.Queue | None, note: str = ""
) -> SweepStatus:
    """Return the status of a sweep.

    Args:
        plan: of the sweep.
        submissions: of its runs folder.
        queue: the user's, read just before; None where there is none.
        note: why not.
    """
    sweep = read_statuses(plan, read_results(plan), submissions, queue)
    if queue:
        sweep = explain_lost(sweep, STATUS_PATIENCE_S)
    progress = {
        run_id: read_progress(plan.runs[run_id], plan.folder(run_id))
        for run_id, status in sweep.statuses.items()
        if status.kind == "running"
    }
    _compare_paces(sweep, progress)
    return SweepStatus(
        **vars(sweep),
        progress=progress,
        totals=_add_up(sweep, progress),
        asked_at=queue.asked_at if queue else None,
        note=note,
    )


def _add_up(sweep: RunStatuses, progress: Mapping[str, Progress]) -> dict[str, float]:
    """Return the totals of a sweep."""
    statuses = sweep.statuses
    kinds = Counter(status.kind for status in statuses.values())
    left = [run_id for run_id, status in statuses.items() if status.kind != "done"]
    seconds = expected_seconds(sweep.plan, sweep.results, left)
    for run_id, each in progress.items():
        expected = seconds[run_id].expected * (1 - (each.progress or 0.0))
        seconds[run_id] = seconds[run_id]._replace(expected=expected)
    costs = add_up(sweep.plan, seconds)
    return {
        "runs": len(statuses),
        **{kind: kinds[kind] for kind in KINDS},
        "measured": costs["measured"],
        "gpu_hours_left": costs["gpu_hours"],
        "cpu_hours_left": costs["cpu_hours"],
    }


def _compare_paces(sweep: RunStatuses, progress: dict[str, Progress]) -> None:
    """Add to each run's pace what is usual for its kind."""
    runs, rates = sweep.plan.runs, measure_rates(sweep.plan, sweep.results)
    paces = {run_id: each.images_per_s for run_id, each in progress.items() if each.images_per_s}
    for run_id, pace in paces.items():
        rates[kind_of(runs[run_id])].append(1 / pace)
    for run_id in paces:
        usual = 1 / median(rates[kind_of(runs[run_id])])
        progress[run_id] = progress[run_id]._replace(usual_images_per_s=usual)


def read_progress(run: Run, folder: Path) -> Progress:
    """Return how far a run is, from its log's records of the present attempt.

    Args:
        run: that runs.
        folder: its folder.
    """
    attempts = split_attempts(read_log(folder))
    if not attempts:
        return Progress()
    attempt = attempts[-1]
    host = attempt[0]["host"]
    if not isinstance(run.config, (TrainConfig, SegmentConfig)):
        return Progress(host=host)

    # The present pace tells how long the rest will take.
    images = run.config.optim.images
    seen_at = [(r["time"], r["images_seen"]) for r in attempt if "images_seen" in r]
    seen_at = seen_at or [(attempt[0]["time"], attempt[0]["at"])]
    (earlier, seen_earlier), (latest, seen) = seen_at[-PACE_OVER:][0], seen_at[-1]
    left, pace = None, None
    if seen > seen_earlier and latest > earlier:
        took, silent = latest - earlier, time.time() - latest
        left = max(0.0, (images - seen) * took / (seen - seen_earlier) - silent)
        if seen < images:  # a silence longer than that of the records before it counts
            at_once = attempt[0].get("at_once", 1)
            pace = at_once * (seen - seen_earlier) / max(took, silent)
    return Progress(seen / images, left, host, pace)


class StageHours(NamedTuple):
    """What a stage's runs took.

    Attributes:
        stage: of the runs.
        unit: "gpu", of which a run has ``nodes x gpus``, or "cpu", of which it has ``tasks x cpus``
            (its threads where it ran without SLURM).
        hours: of devices, by outcome.
    """

    stage: str
    unit: str
    hours: dict[str, float]


def read_device_hours(sweep: RunStatuses) -> list[StageHours]:
    """Return what each stage of a sweep took so far; stages without any time are left out."""
    plan, results = sweep.plan, sweep.results
    submitted, stages = sweep.submissions.last_elements(), []
    for stage in [stage for stage in CONFIGS if stage in plan.resources]:
        run_ids = [run_id for run_id, run in plan.runs.items() if run.stage == stage]
        made_on = {results[run_id].device for run_id in run_ids if results[run_id].done}
        unit = "gpu" if plan.resources[stage].gpus and made_on != {"cpu"} else "cpu"

        hours = dict.fromkeys(OUTCOMES, 0.0)
        for run_id in run_ids:
            needs = plan.resources_of(run_id)
            # Without SLURM a run has no cores of its own, so its threads count.
            cores = needs.tasks * needs.cpus if run_id in submitted else needs.threads
            devices = needs.nodes * needs.gpus if unit == "gpu" else cores
            for outcome, seconds in _seconds_of_run(sweep, run_id):
                hours[outcome] += devices * seconds / 3600

        if any(hours.values()):
            stages.append(StageHours(stage, unit, hours))
    return stages


def _seconds_of_run(sweep: RunStatuses, run_id: str) -> Iterator[tuple[str, float]]:
    """Yield outcome and seconds of parts of a run's attempts."""
    result = sweep.results[run_id]
    if result.done:
        yield "useful", result.wall_s
    if result.attempt == 1:
        return

    # "blocked" neither begins nor ends an attempt.
    log = [r for r in read_log(sweep.plan.folder(run_id)) if r["event"] != "blocked"]
    attempts = split_attempts(log)
    for attempt, following in zip_longest(attempts, attempts[1:]):
        first = following[0] if following else LogRecord()
        side_by_side = max(1, attempt[0].get("at_once", 1))
        seconds = max(0.0, duration_s(attempt))
        outcome = _outcome(attempt, first, sweep.submissions)
        if not following and result.done:
            return  # its seconds are those of the result
        if not following and sweep.statuses[run_id].kind == "running":
            outcome, seconds = "at work", time.time() - attempt[0]["time"]
        yield outcome, seconds / side_by_side


def _outcome(attempt: Sequence[LogRecord], following: LogRecord, submissions: Submissions) -> str:
    """Return what came of an attempt that made no result."""
    if following["at"] > attempt[0]["at"]:
        return "useful"
    element = attempt[0]["job_id"]
    end = submissions.end_of(element)
    if any(record["event"] in ("failed", "died", "again") for record in attempt):
        return "failed"
    if any(record["at_limit"] for record in attempt) or end.startswith(("TIMEOUT", "DEADLINE")):
        return "time limit"
    if element and following["job_id"] == element:  # SLURM began it again
        return "preempted"
    if end.startswith("CANCELLED"):
        return "cancelled"
    return "preempted" if end.startswith(NODE_GONE) else "interrupted"
