"""How many device hours the attempts at a sweep's runs took, what came of them, and what would do.

An attempt lasts from its beginning to its last record in the log: nobody knows what a killed
process did after that. What an attempt saved is useful as soon as a later one continued from it.
The log is read only of runs that were not made at their first attempt.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.state.element_ends import read_ends
from hvae_hpc.jobs.state.run_log import duration_s, split_attempts
from hvae_hpc.jobs.state.run_status import UNASKED, RunStatus, shows_life
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.sweeps.costs import HEADROOM, minutes_for
from hvae_hpc.runs.done import ResultSummary
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.plan import Plan

OUTCOMES = ("useful", "preempted", "time limit", "failed", "cancelled", "interrupted", "at work")
"""What came of device time: "preempted" includes lost nodes, "interrupted" has no known reason."""
ENDED = ("failed", "died", "stopped", "left", "again")
"""Events of a run's log that end an attempt; "again" is for a run that failed beside others."""
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
        energy_kwh: of the attempts that made a run on one GPU; None where none is known.
        elements: how many made all their runs at the first attempt; what follows is of them.
        minutes_asked: their time limit.
        minutes_used: 95 % of them took no longer.
        memory_gb_asked: host memory that was asked for.
        memory_gb_used: 95 % of them used no more.
        advice: a line on what to ask for, or none.
    """

    stage: str
    unit: str
    hours: dict[str, float]
    energy_kwh: float | None = None
    elements: int = 0
    minutes_asked: float = 0.0
    minutes_used: float = 0.0
    memory_gb_asked: float = 0.0
    memory_gb_used: float = 0.0
    advice: tuple[str, ...] = ()


def read_device_hours(
    plan: Plan,
    results: Mapping[str, ResultSummary],
    statuses: Mapping[str, RunStatus],
    submissions: Submissions,
) -> list[StageHours]:
    """Return what each stage of a sweep took so far; stages without any time are left out."""
    statuses, ends = call_silent_lost(plan, statuses), read_ends(submissions)
    submitted = submissions.last_elements()
    stages = []
    for stage in [stage for stage in CONFIGS if stage in plan.resources]:
        run_ids = [run_id for run_id, run in plan.runs.items() if run.stage == stage]
        made_on = {results[run_id].device for run_id in run_ids if results[run_id].done}
        unit = "gpu" if plan.resources[stage].gpus and made_on != {"cpu"} else "cpu"

        hours = dict.fromkeys(OUTCOMES, 0.0)
        for run_id in run_ids:
            needs, result = plan.resources_of(run_id), results[run_id]
            # Without SLURM a run has no cores of its own, so its threads count.
            cores = needs.tasks * needs.cpus if run_id in submitted else needs.threads
            devices = needs.nodes * needs.gpus if unit == "gpu" else cores
            for outcome, seconds in _seconds_of_run(plan, run_id, result, statuses[run_id], ends):
                hours[outcome] += devices * seconds / 3600

        if any(hours.values()):
            energies = [results[run_id].energy_j for run_id in run_ids]
            kwh = [energy_j / 3.6e6 for energy_j in energies if energy_j is not None]
            spent = StageHours(stage, unit, hours, sum(kwh) if kwh else None)
            stages.append(_add_usage(plan, spent, _find_usages(plan, stage, results, submissions)))
    return stages


def call_silent_lost(plan: Plan, statuses: Mapping[str, RunStatus]) -> dict[str, RunStatus]:
    """Call lost what shows no life, where SLURM was not asked. It is for looking back only."""
    called = dict(statuses)
    for run_id, status in statuses.items():
        unasked = status.kind == "running" and status.reason == UNASKED
        if unasked and not shows_life(plan.folder(run_id)):
            reason = f"ended without a result, {UNASKED}"
            called[run_id] = RunStatus("lost", status.element, reason)
    return called


def _seconds_of_run(
    plan: Plan, run_id: str, result: ResultSummary, status: RunStatus, ends: Mapping[str, str]
) -> Iterator[tuple[str, float]]:
    """Yield outcome and seconds of parts of a run's attempts."""
    if result.done:
        yield "useful", result.wall_s
    if result.attempt == 1:
        return

    # "blocked" neither begins nor ends an attempt.
    log = [r for r in read_log(plan.folder(run_id)) if r.get("event") != "blocked"]
    attempts = split_attempts(log)
    for attempt, following in zip_longest(attempts, attempts[1:]):
        side_by_side = max(1, int(attempt[0].get("at_once", 1)))
        seconds = max(0.0, duration_s(attempt)) / side_by_side
        if not following and result.done:
            return  # its seconds are those of the result
        if not following and status.kind == "running":
            yield "at work", (time.time() - float(attempt[0]["time"])) / side_by_side
            return
        first = following[0] if following else {}
        useful = _useful_share(attempt, int(first.get("at", 0)))
        yield "useful", useful * seconds
        yield _outcome(attempt, first, ends), (1 - useful) * seconds


def _useful_share(attempt: Sequence[Mapping[str, Any]], continued_at: int) -> float:
    """Return the share of an attempt's images from which the run continued."""
    at = int(attempt[0].get("at", 0))
    seen = max([at, *(int(record["images_seen"]) for record in attempt if "images_seen" in record)])
    if continued_at <= at:
        return 0.0
    return min(1.0, (continued_at - at) / (seen - at)) if seen > at else 1.0


def _outcome(
    attempt: Sequence[Mapping[str, Any]], following: Mapping[str, Any], ends: Mapping[str, str]
) -> str:
    """Return how an attempt ended that made no result."""
    last: Mapping[str, Any] = next((r for r in reversed(attempt) if r.get("event") in ENDED), {})
    element = attempt[0].get("job_id", "")
    end = ends.get(element, "")
    if last.get("event") in ("failed", "died", "again"):
        return "failed"
    if last.get("at_limit") or end.startswith(("TIMEOUT", "DEADLINE")):
        return "time limit"
    if element and following.get("job_id") == element:  # SLURM began it again
        return "preempted"
    if end.startswith("CANCELLED"):
        return "cancelled"
    return "preempted" if end.startswith(NODE_GONE) else "interrupted"


def _find_usages(
    plan: Plan, stage: str, results: Mapping[str, ResultSummary], submissions: Submissions
) -> list[tuple[float, ...]]:
    """Return what elements were given and used that made all their runs at the first attempt.

    Returns:
        Of each: its time limit and what it took, minutes; the memory asked for and used, GB.
    """
    last, usages = submissions.last_elements(), list[tuple[float, ...]]()
    of_stage = {run_id for run_id, run in plan.runs.items() if run.stage == stage}
    for name, element in submissions.elements.items():
        run_ids = element.run_ids
        at_once = all(
            run_id in of_stage and last[run_id] == name and results[run_id].attempt == 1
            for run_id in run_ids
        )
        if run_ids and at_once:
            needs = plan.resources_of(run_ids[0])
            minutes = sum(results[run_id].wall_s for run_id in run_ids) / 60
            peak_mib = max(results[run_id].peak_memory_mib for run_id in run_ids)
            memory_gb = peak_mib * needs.tasks_per_node / 1024
            usages.append((element.minutes, minutes, needs.memory_gb, memory_gb))
    return usages


def _add_usage(plan: Plan, spent: StageHours, usages: Sequence[tuple[float, ...]]) -> StageHours:
    """Add what a stage's elements used, and a line of advice where much less would do."""
    if len(usages) < ENOUGH_ELEMENTS:
        return spent
    asked, used, asked_gb, used_gb = (sorted(values) for values in zip(*usages, strict=True))
    place = math.ceil(0.95 * len(usages)) - 1
    most, minutes, most_gb, memory_gb = asked[-1], used[place], asked_gb[-1], used_gb[place]
    enough = minutes_for(60 * minutes * HEADROOM, plan.resources[spent.stage])
    enough_gb = max(1, math.ceil(memory_gb * HEADROOM))

    settings = []
    if enough <= WORTH_IT * most:
        settings.append(f"minutes = {enough}")
    if enough_gb <= WORTH_IT * most_gb:
        settings.append(f"memory_gb = {enough_gb}")
    advice = (
        f"{spent.stage}: 95 % of {len(usages)} elements used at most {minutes:.1f} of {most:.0f} "
        f"min and {memory_gb:.1f} of {most_gb:g} GB; in the site file "
        f"[{spent.stage}] {' and '.join(settings)} would do"
    )
    return spent._replace(
        elements=len(usages),
        minutes_asked=round(most, 3),
        minutes_used=round(minutes, 3),
        memory_gb_asked=round(most_gb, 3),
        memory_gb_used=round(memory_gb, 3),
        advice=(advice,) if settings else (),
    )
