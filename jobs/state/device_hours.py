"""How many device hours the attempts at a sweep's runs took, what came of them, and what would do.

An attempt lasts from its beginning to its last record in the log: nobody knows what a killed
process did after that. It is useful if it made the result, or if the next one continued from what
it saved.
The log is read only of runs that were not made at their first attempt.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.state.run_log import duration_s, split_attempts
from hvae_hpc.jobs.state.run_status import Standing
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.sweeps.costs import HEADROOM, percentile_95
from hvae_hpc.runs.done import ResultSummary
from hvae_hpc.runs.folder import read_log

OUTCOMES = ("useful", "preempted", "time limit", "failed", "cancelled", "interrupted", "at work")
"""What came of device time: "preempted" includes lost nodes, "interrupted" has no known reason."""
NODE_GONE = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
ENOUGH_ELEMENTS = 5
"""Fewer elements say nothing of what others need."""
WORTH_IT = 0.8
"""Advice is given where at most this share of what was asked for would do."""


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
    log = [r for r in read_log(standing.plan.folder(run_id)) if r.get("event") != "blocked"]
    attempts = split_attempts(log)
    for attempt, following in zip_longest(attempts, attempts[1:]):
        first = following[0] if following else {}
        side_by_side = max(1, attempt[0].get("at_once", 1))
        seconds = max(0.0, duration_s(attempt))
        outcome = _outcome(attempt, first, standing.submissions)
        if not following and result.done:
            return  # its seconds are those of the result
        if not following and standing.statuses[run_id].kind == "running":
            outcome, seconds = "at work", time.time() - attempt[0]["time"]
        yield outcome, seconds / side_by_side


def _outcome(
    attempt: Sequence[Mapping[str, Any]], following: Mapping[str, Any], submissions: Submissions
) -> str:
    """Return what came of an attempt that made no result."""
    if following.get("at", 0) > attempt[0].get("at", 0):
        return "useful"
    element = attempt[0].get("job_id", "")
    end = submissions.end_of(element)
    if any(record.get("event") in ("failed", "died", "again") for record in attempt):
        return "failed"
    if any(record.get("at_limit") for record in attempt) or end.startswith(("TIMEOUT", "DEADLINE")):
        return "time limit"
    if element and following.get("job_id") == element:  # SLURM began it again
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
