"""What the attempts at a sweep's runs took and what came of it, and what was asked for against what was used.

A run that was made at its first attempt tells it by its metrics.json, which is remembered; only of
the others the logs are read. Time counts from an attempt's beginning to its last sign of life: what
a killed process did after that nobody knows. What an attempt saved and a later one went on from is
useful, whatever ended the attempt.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.state.element_ends import read_ends
from hvae_hpc.jobs.state.run_log import checkpoint_at
from hvae_hpc.jobs.state.run_status import UNASKED, RunStatus, shows_life
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.sweeps.costs import HEADROOM, minutes_for
from hvae_hpc.runs.done import ResultSummary, look_at
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.lease import LEASE
from hvae_hpc.runs.plan import Plan

OUTCOMES = ("useful", "preempted", "time limit", "failed", "cancelled", "interrupted", "at work")
"""What came of device time; "preempted" is also a node that was lost, "interrupted" what nobody gave a reason for."""
ENDED = ("failed", "died", "stopped", "left", "again")
"""What a log says of an attempt's end; "again" where it failed beside others."""
ELEMENTS = 5  # that must be done before anything is said of what others need
WORTH_IT = 0.8  # share of what was asked for, up to which asking for less is advised


class Spending(NamedTuple):
    """What a stage's runs took: device hours by outcome, energy of the attempts that made a run, advice.

    ``unit`` is "gpu" or "cpu", of which a run has ``nodes x gpus`` or ``tasks x cpus``, without
    SLURM its threads. ``energy_kwh`` is None where no run's is known; that of a run on several GPUs
    is not. The rest is of the ``elements`` all of whose runs were made at their first attempt: what
    was asked for, and what 95 % of them stayed within.
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


def read_spending(
    plan: Plan,
    results: Mapping[str, ResultSummary],
    statuses: Mapping[str, RunStatus],
    submissions: Submissions,
) -> list[Spending]:
    """Return what each stage of a sweep took so far; stages without any time are left out."""
    ends, hours = read_ends(submissions), dict[str, dict[str, float]]()
    statuses, units, submitted = (
        silent_as_lost(plan, statuses),
        _units(plan, results),
        submissions.last_elements(),
    )
    energy: dict[str, float] = {}
    for run_id, run in plan.runs.items():
        if run.stage not in plan.resources:
            continue
        needs, result = plan.resources_of(run_id), results[run_id]
        cores = (
            needs.tasks * needs.cpus if run_id in submitted else needs.threads
        )  # here, nothing was set aside
        devices = float(needs.nodes * needs.gpus if units[run.stage] == "gpu" else cores)
        of_stage = hours.setdefault(run.stage, dict.fromkeys(OUTCOMES, 0.0))
        for outcome, seconds in _of_run(plan, run_id, result, statuses[run_id], ends):
            of_stage[outcome] += devices * seconds / 3600
        if result.energy_j is not None:
            energy[run.stage] = energy.get(run.stage, 0.0) + result.energy_j / 3.6e6
    used = _used(plan, results, submissions)
    spent = [
        Spending(stage, units[stage], hours[stage], energy.get(stage))
        for stage in CONFIGS
        if stage in hours
    ]
    return [
        _advise(plan, of_stage, used.get(of_stage.stage, []))
        for of_stage in spent
        if any(of_stage.hours.values())
    ]


def _units(plan: Plan, results: Mapping[str, ResultSummary]) -> dict[str, str]:
    """Return "gpu" or "cpu" by stage: where its runs were made, whatever was asked for; before that, what was."""
    seen: dict[str, set[str]] = {}
    for run_id, run in plan.runs.items():
        if results[run_id].done:
            seen.setdefault(run.stage, set()).add(results[run_id].device)
    return {
        stage: "gpu" if needs.gpus and seen.get(stage) != {"cpu"} else "cpu"
        for stage, needs in plan.resources.items()
    }


def silent_as_lost(plan: Plan, statuses: Mapping[str, RunStatus]) -> dict[str, RunStatus]:
    """Call lost what runs for all that SLURM was asked, and gives no sign of life: to look back, not to submit."""
    lost = {
        run_id: RunStatus("lost", status.element, f"ended without a result, {UNASKED}")
        for run_id, status in statuses.items()
        if status.kind == "running"
        and status.reason == UNASKED
        and not shows_life(plan.folder(run_id))
    }
    return {**statuses, **lost}


def _of_run(
    plan: Plan, run_id: str, result: ResultSummary, status: RunStatus, ends: Mapping[str, str]
) -> Iterator[tuple[str, float]]:
    """Yield outcome and seconds of parts of a run's attempts."""
    if result.done:
        yield "useful", result.wall_s
    if result.attempt == 1 or (
        status.kind in ("open", "waiting", "blocked") and not plan.folder(run_id).is_dir()
    ):
        return
    folder = plan.folder(run_id)
    log = [
        record for record in read_log(folder) if record.get("event") != "blocked"
    ]  # which ends no attempt
    # Nothing goes on from what a failed run saved, until it does.
    saved = {"at": 0 if status.kind == "failed" else checkpoint_at(folder)}
    starts = [number for number, record in enumerate(log) if record.get("event") == "started"]
    for begin, end in zip(starts, [*starts, None][1:], strict=True):
        attempt, following = log[begin:end], log[end] if end else saved
        began, at = float(attempt[0].get("time", 0.0)), int(attempt[0].get("at", 0))
        side_by_side = max(1, int(attempt[0].get("at_once", 1)))
        if end is None and result.done:
            return
        last = float(attempt[-1].get("time", began))
        if end is None and attempt[-1].get("event") not in ENDED:
            last = max(last, _touched_at(folder))
        seconds = max(0.0, last - began) / side_by_side
        if end is None and status.kind == "running":
            yield "at work", seconds
            return
        seen = max(
            [at, *(int(record["images_seen"]) for record in attempt if "images_seen" in record)]
        )
        further = max(0, int(following.get("at", 0)) - at)
        kept = min(1.0, further / (seen - at)) if seen > at else float(further > 0)
        yield "useful", kept * seconds
        yield _outcome(attempt, following, ends), (1 - kept) * seconds


def _touched_at(folder: Path) -> float:
    """Return when the process at a run last saved, or touched its lease, in seconds since 1970; 0 for never."""
    found = [
        look_at(str(path))
        for kind in ("checkpoint-*.pt", f"{LEASE}*")
        for path in folder.glob(kind)
    ]
    return max((file.st_mtime for file in found if file), default=0.0)


def _outcome(
    attempt: Sequence[Mapping[str, Any]], following: Mapping[str, Any], ends: Mapping[str, str]
) -> str:
    """Return by what an attempt ended that made no result."""
    ended: Mapping[str, Any] = next((r for r in reversed(attempt) if r.get("event") in ENDED), {})
    element = attempt[0].get("job_id", "")
    word = ends.get(element, "")
    if ended.get("event") in ("failed", "died", "again"):
        return "failed"
    if ended.get("at_limit") or word.startswith(("TIMEOUT", "DEADLINE")):
        return "time limit"
    if element and following.get("job_id") == element:  # SLURM began it again
        return "preempted"
    if word.startswith("CANCELLED"):
        return "cancelled"
    return (
        "preempted" if word.startswith(("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")) else "interrupted"
    )


def _used(
    plan: Plan, results: Mapping[str, ResultSummary], submissions: Submissions
) -> dict[str, list[tuple[float, ...]]]:
    """Return minutes asked for and used, and GB, of each element of a stage all of whose runs had one attempt."""
    mine: dict[str, list[str]] = {}
    for run_id, element in submissions.last_elements().items():
        if run_id in plan.runs and results[run_id].attempt == 1:
            mine.setdefault(element, []).append(run_id)
    found: dict[str, list[tuple[float, ...]]] = {}
    for element, ids in mine.items():
        if len(ids) == len(submissions.element(element).run_ids):
            needs = plan.resources_of(ids[0])
            memory_gb = max(results[i].peak_memory_mib for i in ids) * needs.tasks_per_node / 1024
            minutes = sum(results[i].wall_s for i in ids) / 60
            used = (submissions.element(element).minutes, minutes, needs.memory_gb, memory_gb)
            found.setdefault(plan.runs[ids[0]].stage, []).append(used)
    return found


def _advise(plan: Plan, spending: Spending, used: Sequence[tuple[float, ...]]) -> Spending:
    """Add what was asked for and used, and what would do where that is clearly less."""
    if len(used) < ELEMENTS:
        return spending
    stage, of_elements, advice = spending.stage, f"(95 % of {len(used)} elements)", []
    asked, minutes, asked_gb, memory_gb = map(sorted, zip(*used, strict=True))
    place = math.ceil(0.95 * len(used)) - 1
    would = minutes_for(60 * minutes[place] * HEADROOM, plan.resources[stage])
    would_gb = max(1, math.ceil(memory_gb[place] * HEADROOM))
    if would <= WORTH_IT * asked[-1]:
        advice.append(
            f"{stage}: asked for {asked[-1]:.0f} min, used {minutes[place]:.1f} {of_elements}: [{stage}] minutes = "
            f"{would} in the site file would do; later submissions of such runs ask for no more by themselves"
        )
    if would_gb <= WORTH_IT * asked_gb[-1]:
        advice.append(
            f"{stage}: asked for {asked_gb[-1]:g} GB, used {memory_gb[place]:.1f} {of_elements}: "
            f"[{stage}] memory_gb = {would_gb} in the site file would do"
        )
    most = [
        round(value, 3) for value in (asked[-1], minutes[place], asked_gb[-1], memory_gb[place])
    ]
    names = Spending._fields[5:9]
    return spending._replace(
        elements=len(used), advice=tuple(advice), **dict(zip(names, most, strict=True))
    )
