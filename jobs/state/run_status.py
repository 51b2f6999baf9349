"""How every run stands: done, running, waiting, failed, blocked, lost, or open.

Read from the runs' own files first, then from what was submitted and from the user's queue;
nobody's memory is asked. The launcher submits what is neither done nor in the queue, and ``hvae-hpc
status`` shows the rest of it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from hvae_hpc.jobs.slurm.client import Queue, Queued
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.done import ResultSummary, list_folders
from hvae_hpc.runs.folder import read_log, read_log_tail
from hvae_hpc.runs.lease import is_held
from hvae_hpc.runs.plan import Plan

SILENT_S = 150.0
"""A local run that has written nothing for so long is not at work any more."""
UNASKED = "as far as its own files tell"
ENDS = ("failed", "blocked", "stopped", "died")

Kind = Literal["done", "running", "waiting", "lost", "failed", "blocked", "open"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class RunStatus(NamedTuple):
    """How a run stands.

    ``lost`` was submitted or started, is not in the queue and left no reason; ``open`` was never
    submitted. ``element`` is SLURM's ``<array>_<place>`` that has or had it.
    """

    kind: Kind
    element: str = ""
    reason: str = ""


def read_run_status(
    plan: Plan, results: Mapping[str, ResultSummary], submissions: Submissions, queue: Queue | None
) -> dict[str, RunStatus]:
    """Return how every run of a plan stands.

    Args:
        plan: of the sweep.
        results: of its runs, from their own files; read after the queue, or what ends in between
            seems lost.
        submissions: of its runs folder.
        queue: the user's; None where there is no SLURM, or no answer: then what was submitted
            counts as still there.
    """
    submitted = submissions.elements()
    queued: dict[str, tuple[str, Queued | None]] = {}
    for row, submission, array in submissions.ours(queue):
        for place in row.places:
            for run_id in submissions.runs(submission, array, place):
                queued[run_id] = (f"{row.job}_{place}", row)
    there = list_folders(plan.runs_folder, {run.stage for run in plan.runs.values()})
    statuses: dict[str, RunStatus] = {}
    for run_id, result in results.items():
        if result.done:
            statuses[run_id] = RunStatus("done")
            continue
        element, at = queued.get(run_id, (submitted.get(run_id, ""), None))
        breaker = submissions.breaker_of(element) if not at or at.state == "PENDING" else None
        if at and at.state == "PENDING" and not breaker:
            statuses[run_id] = RunStatus("waiting", element, at.reason)
            continue
        stage, _, name = plan.folder_name(run_id).partition("/")
        folder = plan.folder(run_id) if name in there[stage] else None
        record = _last_event(folder) if folder else {}
        here = not record.get("job_id") and record.get("time", 0.0) > submissions.submitted_at(
            element
        )  # since then
        if breaker and record.get("job_id") != element and not here:
            statuses[run_id] = RunStatus("blocked", element, breaker.reason)
        elif at and not (breaker and here):
            statuses[run_id] = _at_work(record, element, at.state)
        elif folder and _works_locally(folder, record):
            statuses[run_id] = RunStatus("running", "", "local")
        elif element and queue is None and record.get("event") not in ENDS:
            statuses[run_id] = RunStatus("running" if record else "waiting", element, UNASKED)
        else:
            # What it came to in an earlier element is not how the last one ended.
            earlier = queue is not None and record.get("job_id") != element
            told = {} if earlier and submissions.runs_of(str(record.get("job_id", ""))) else record
            statuses[run_id] = _at_rest(plan, run_id, result.reason, told, element, statuses)
    return statuses


def _at_work(record: Mapping[str, Any], element: str, state: str) -> RunStatus:
    """Tell how a run stands whose element runs: before its turn, at work, or over already."""
    if record.get("job_id") != element:
        return RunStatus("waiting", element, "their turn in the element")
    if record["event"] in ("failed", "blocked"):
        return RunStatus(record["event"], element, str(record.get("reason", "")))
    return RunStatus("running", element, "" if state == "RUNNING" else state.lower())


def _works_locally(folder: Path, record: Mapping[str, Any]) -> bool:
    """Tell whether a run that SLURM has no part in is at work: its lease says so, or its log."""
    return record.get("event") == "started" and not record.get("job_id") and is_heard_of(folder)


def is_heard_of(folder: Path) -> bool:
    """Tell whether who makes a run gave a sign of life just now."""
    last = max(
        (float(record.get("time", 0.0)) for record in read_log_tail(folder)[-1:]), default=0.0
    )
    return is_held(folder) or time.time() - last < SILENT_S


def _at_rest(
    plan: Plan,
    run_id: str,
    reason: str,
    record: Mapping[str, Any],
    element: str,
    before: Mapping[str, RunStatus],
) -> RunStatus:
    """Tell how a run stands that nobody is at, given why its metrics.json does not count and its parents' statuses."""
    element = element or str(record.get("job_id", ""))
    event = record.get("event")
    if event == "failed":
        return RunStatus("failed", element, str(record.get("reason", "")))
    for parent in plan.parents(run_id).values():
        if before[parent].kind == "blocked":  # for the same reason
            return RunStatus("blocked", element, before[parent].reason)
        if before[parent].kind in ("failed", "lost"):
            run = plan.runs[parent]
            return RunStatus(
                "blocked",
                element,
                f"needs {run.stage} {run.label} ({parent}), {before[parent].kind}",
            )
    if (
        reason or event == "blocked"
    ):  # to be made anew; or what it needed is there, or will be, by now
        return RunStatus("open", element, reason or str(record.get("reason", "")))
    if event == "stopped":
        return RunStatus("lost", element, "saved and left")
    if event == "died":
        return RunStatus("lost", element, str(record.get("reason", "")))
    if element:
        return RunStatus("lost", element, "left the queue without a result")
    return (
        RunStatus("lost", "", "its process ended without a result") if record else RunStatus("open")
    )


def _last_event(folder: Path) -> dict[str, Any]:
    """Return the log's last record that says how an attempt began or ended; empty where there is none."""
    for read in (read_log_tail, read_log):
        records = read(folder)
        for record in reversed(records):
            if record.get("event") in ("started", *ENDS):
                return record
        if not records:
            break
    return {}
