"""The status of whole sweeps: the status of every run, how far the running ones are, what is left.

The runs' own files say what is done, runs or failed. The user's queue says what waits: all
processes of a user together ask for it at most once a minute. Only the logs of running runs are
read whole.

At the end: how many device hours the attempts took, what came of them, and what would do. An
attempt lasts from its beginning to its last record in the log: nobody knows what a killed process
did after that. It is useful if it made the result, or if the next one continued from what it saved.
The log is read only of runs that were not made at their first attempt.
"""

import math
import time
from collections import Counter, defaultdict
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
from hvae_hpc.jobs.state.run_status import KINDS, Standing, explain_lost, read_standing
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.sweeps.costs import (
    HEADROOM,
    add_up,
    count_operations,
    expected_seconds,
    find_peak,
    kind_of,
    measure_rates,
    percentile_95,
)
from hvae_hpc.runs.done import ResultSummary, read_results
from hvae_hpc.runs.folder import LogRecord, read_log
from hvae_hpc.runs.plan import Plan, find_plans, read_plan
from hvae_hpc.runs.run import Run

PATIENCE_S = 8.0
"""A person waits for SLURM so long."""
PACE_OVER = 10
"""The pace is that of the log's last records: it changes where an HVAE's flow begins."""
OUTCOMES = ("useful", "preempted", "time limit", "failed", "cancelled", "interrupted", "at work")
"""What came of device time: "preempted" includes lost nodes, "interrupted" has no known reason."""
NODE_GONE = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
ENOUGH_ELEMENTS = 5
"""Fewer elements say nothing of what others need."""
WORTH_IT = 0.8
"""Advice is given where at most this share of what was asked for would do."""


class Progress(NamedTuple):
    """How far a running run is. None is what is not known.

    Attributes:
        progress: share of its images that it has seen.
        seconds_left: until its end.
        host: its node.
        images_per_s: that its device sees now, of all runs that share it.
        usual_images_per_s: the median of its kind, of runs that are finished or run.
        share_of_peak: of its devices' peak in bfloat16, by the network's own count of operations.
    """

    progress: float | None = None
    seconds_left: float | None = None
    host: str = ""
    images_per_s: float | None = None
    usual_images_per_s: float | None = None
    share_of_peak: float | None = None


@frozen
class SweepStatus(Standing):
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
        return slurm.read_queue(not_before=oldest, patience_s=PATIENCE_S), ""
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
    standing = read_standing(plan, read_results(plan), submissions, queue)
    if queue:
        standing = explain_lost(standing, PATIENCE_S)
    progress = {
        run_id: read_progress(plan.runs[run_id], plan.folder(run_id))
        for run_id, status in standing.statuses.items()
        if status.kind == "running"
    }
    progress = _compare_paces(standing, progress)
    return SweepStatus(
        **vars(standing),
        progress=progress,
        totals=_add_up(standing, progress),
        asked_at=queue.asked_at if queue else None,
        note=note,
    )


def _add_up(standing: Standing, progress: Mapping[str, Progress]) -> dict[str, float]:
    """Return the totals of a sweep."""
    statuses = standing.statuses
    kinds = Counter(status.kind for status in statuses.values())
    left = [run_id for run_id, status in statuses.items() if status.kind != "done"]
    seconds = expected_seconds(standing.plan, standing.results, left)
    for run_id, far in progress.items():
        expected = seconds[run_id].expected * (1 - (far.progress or 0.0))
        seconds[run_id] = seconds[run_id]._replace(expected=expected)
    costs = add_up(standing.plan, seconds)
    return {
        "runs": len(statuses),
        **{kind: kinds[kind] for kind in KINDS},
        "measured": costs["measured"],
        "gpu_hours_left": costs["gpu_hours"],
        "cpu_hours_left": costs["cpu_hours"],
    }


def _compare_paces(standing: Standing, progress: Mapping[str, Progress]) -> dict[str, Progress]:
    """Add to each run's pace what is usual, and its share of the peak of a device that is known."""
    plan, results = standing.plan, standing.results
    rates = measure_rates(plan, results)
    for run_id, far in progress.items():
        if far.images_per_s:
            rates[kind_of(plan.runs[run_id])].append(1 / far.images_per_s)
    devices = {result.host: result.device for result in results.values()}

    compared = dict(progress)
    for run_id, far in progress.items():
        if far.images_per_s:
            run, asked = plan.runs[run_id], plan.resources_of(run_id)
            device = devices.get(far.host, f"{asked.partition} {asked.constraint}")
            peak = find_peak(device) * asked.nodes * asked.gpus
            compared[run_id] = far._replace(
                usual_images_per_s=1 / median(rates[kind_of(run)]),
                share_of_peak=far.images_per_s * count_operations(run) / peak if peak else None,
            )
    return compared


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
        advice: a line on how much less memory to ask for; "" for none.
    """

    stage: str
    unit: str
    hours: dict[str, float]
    advice: str


def read_device_hours(standing: Standing) -> list[StageHours]:
    """Return what each stage of a sweep took so far; stages without any time are left out."""
    plan, results = standing.plan, standing.results
    submitted, stages = standing.submissions.last_elements(), []
    for stage in [stage for stage in CONFIGS if stage in plan.resources]:
        run_ids = [run_id for run_id, run in plan.runs.items() if run.stage == stage]
        made = [results[run_id] for run_id in run_ids if results[run_id].done]
        made_on = {result.device for result in made}
        unit = "gpu" if plan.resources[stage].gpus and made_on != {"cpu"} else "cpu"

        hours = dict.fromkeys(OUTCOMES, 0.0)
        for run_id in run_ids:
            needs = plan.resources_of(run_id)
            # Without SLURM a run has no cores of its own, so its threads count.
            cores = needs.tasks * needs.cpus if run_id in submitted else needs.threads
            devices = needs.nodes * needs.gpus if unit == "gpu" else cores
            for outcome, seconds in _seconds_of_run(standing, run_id):
                hours[outcome] += devices * seconds / 3600

        if any(hours.values()):
            stages.append(StageHours(stage, unit, hours, _advise(standing, stage, made)))
    return stages


def _seconds_of_run(standing: Standing, run_id: str) -> Iterator[tuple[str, float]]:
    """Yield outcome and seconds of parts of a run's attempts."""
    result = standing.results[run_id]
    if result.done:
        yield "useful", result.wall_s
    if result.attempt == 1:
        return

    # "blocked" neither begins nor ends an attempt.
    log = [r for r in read_log(standing.plan.folder(run_id)) if r["event"] != "blocked"]
    attempts = split_attempts(log)
    for attempt, following in zip_longest(attempts, attempts[1:]):
        first = following[0] if following else LogRecord()
        side_by_side = max(1, attempt[0].get("at_once", 1))
        seconds = max(0.0, duration_s(attempt))
        outcome = _outcome(attempt, first, standing.submissions)
        if not following and result.done:
            return  # its seconds are those of the result
        if not following and standing.statuses[run_id].kind == "running":
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


def _advise(standing: Standing, stage: str, made: Sequence[ResultSummary]) -> str:
    """Return a line on how much less memory would do; "" where that is not known, or not much less.

    It looks at the elements that made all their runs at the first attempt. 95 % of them must have
    used less, and some headroom is added. Time limits follow measured times by themselves.
    """
    by_element = defaultdict[str, list[ResultSummary]](list)
    for result in made:
        by_element[result.job].append(result)
    elements = [
        results
        for name, results in by_element.items()
        if name in standing.submissions.elements and all(result.attempt == 1 for result in results)
    ]
    if len(elements) < ENOUGH_ELEMENTS:
        return ""

    needs = standing.plan.resources[stage]
    mib = percentile_95(max(result.peak_memory_mib for result in results) for results in elements)
    enough_gb = max(1, math.ceil(mib * needs.tasks_per_node / 1024 * HEADROOM))
    if enough_gb > WORTH_IT * needs.memory_gb:
        return ""
    return (
        f"{stage}: for 95 % of {len(elements)} elements less memory would do; "
        f"in the site file [{stage}] memory_gb = {enough_gb}"
    )
