"""The status of every run: done, running, waiting, failed, blocked, lost, or open.

The runs' own files count first, then what was submitted and what the user's queue says. The sweep
command submits what is neither done nor in the queue; ``hvae-hpc status`` shows everything.

Of elements that left the queue without a result SLURM's accounting says how they ended: TIMEOUT,
NODE_FAIL, CANCELLED and so on. It is asked for all of them in one call, at most once in ``POLL_S``.
A file beside the submissions keeps what it said, so nobody asks twice for an element that ended.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.slurm.client import POLL_S, Queue, Queued, ask_accounting, is_final
from hvae_hpc.jobs.state.submissions import ENDS_FILE, Submissions
from hvae_hpc.runs.done import Results, list_folders
from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import LogRecord, read_log, read_log_tail, write_json
from hvae_hpc.runs.lease import is_held
from hvae_hpc.runs.plan import Plan

BEHIND_S = 600.0
"""Accounting may learn of an element this late after its submission."""
SILENT_S = 150.0
"""A run without a lease that has logged nothing for so long counts as ended."""
HELD = "held: "
"""Beginning of the reason of a run that did not start because its canaries failed."""
UNASKED = "as far as its own files tell"
"""Reason of a submitted run where SLURM was not asked."""
ENDS = ("failed", "blocked", "stopped", "died")
"""Events of a run's log that end an attempt."""

Kind = Literal["done", "running", "waiting", "lost", "failed", "blocked", "open"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class RunStatus(NamedTuple):
    """The status of a run.

    Attributes:
        kind: "lost" was submitted or started, is not in the queue and left no reason; "open" was
            never submitted.
        element: SLURM's ``<array>_<place>`` that has or had the run; "" for none.
        reason: for people.
    """

    kind: Kind
    element: str = ""
    reason: str = ""

    @property
    def held(self) -> bool:
        """Whether it did not begin because the canaries of its array failed alike."""
        return self.kind == "blocked" and self.reason.startswith(HELD)


Statuses = Mapping[str, RunStatus]
"""Run id to status."""


@frozen
class RunStatuses:
    """The status of every run of a plan.

    Attributes:
        plan: of the sweep.
        results: of its runs.
        statuses: of its runs, parents before children.
        submissions: of its runs folder.
    """

    plan: Plan
    results: Results
    statuses: Statuses
    submissions: Submissions


def read_statuses(
    plan: Plan, results: Results, submissions: Submissions, queue: Queue | None
) -> RunStatuses:
    """Find the status of every run of a plan.

    Args:
        plan: of the sweep.
        results: of its runs, from their own files. They are read after the queue: what ends between
            the two would otherwise seem lost.
        submissions: of its runs folder.
        queue: the user's; None where there is no SLURM, or no answer. Then what was submitted and
            has not begun counts as waiting.
    """
    submitted, queued = submissions.last_elements(), submissions.queued_runs(queue)
    folders = list_folders(plan)
    statuses: dict[str, RunStatus] = {}

    for run_id, result in results.items():
        element, row = queued.get(run_id, (submitted.get(run_id, ""), None))
        if result.done:
            statuses[run_id] = RunStatus("done")
            continue
        if row and row.state == "PENDING":
            statuses[run_id] = RunStatus("waiting", element, row.reason)
            continue

        # Only of what is neither done nor waiting is the log read.
        stage, _, name = plan.folder_name(run_id).partition("/")
        folder = plan.folder(run_id) if name in folders[stage] else None
        last = _last_event(folder) if folder else LogRecord()
        if row:
            statuses[run_id] = _status_in_element(last, element, row)
        elif folder and _is_alive(folder, last, queue):
            where = (element, UNASKED) if last["job_id"] else ("", "local")
            statuses[run_id] = RunStatus("running", *where)
        elif element and queue is None and not last:
            statuses[run_id] = RunStatus("waiting", element, UNASKED)
        else:
            if queue is not None and _is_of_earlier_element(last, element, submissions):
                last = LogRecord()
            statuses[run_id] = _status_after_end(
                plan, run_id, result.reason, last, element, statuses
            )
    return RunStatuses(plan=plan, results=results, statuses=statuses, submissions=submissions)


def _status_in_element(last: LogRecord, element: str, row: Queued) -> RunStatus:
    """Return the status of a run whose element runs: before its turn, at its turn, or after it."""
    if last["job_id"] != element or last["event"] == "died":
        return RunStatus("waiting", element, "their turn in the element")
    if last["event"] in ("failed", "blocked"):
        return RunStatus(last["event"], element, last["reason"])
    return RunStatus("running", element, "" if row.state == "RUNNING" else row.state.lower())


def _is_alive(folder: Path, last: LogRecord, queue: Queue | None) -> bool:
    """Tell whether a process that is not in the queue holds a run, or has logged just now."""
    if last["event"] != "started" or (last["job_id"] and queue is not None):
        return False
    records = read_log_tail(folder)
    written_at = records[-1]["time"] if records else 0.0
    return is_held(folder) or time.time() - written_at < SILENT_S


def _is_of_earlier_element(last: LogRecord, element: str, submissions: Submissions) -> bool:
    """Tell whether an earlier element logged the event: it does not say how the last one ended."""
    logged_by = last["job_id"]
    return logged_by != element and bool(submissions.element(logged_by).run_ids)


def _status_after_end(
    plan: Plan, run_id: str, reason: str, last: LogRecord, element: str, statuses: Statuses
) -> RunStatus:
    """Return the status of a run that no process makes now.

    Args:
        plan: of its sweep.
        run_id: of the run.
        reason: why its metrics.json does not count; "" where there is none.
        last: the event that began or ended its last attempt; empty for none.
        element: that had it last; "" for none.
        statuses: of its parents at least.
    """
    element = element or last["job_id"]
    event, said = last["event"], last["reason"]
    if event == "failed":
        return RunStatus("failed", element, said)

    for parent in plan.parents(run_id).values():
        if statuses[parent].kind == "blocked":  # for the same reason
            return RunStatus("blocked", element, statuses[parent].reason)
        if statuses[parent].kind in ("failed", "lost"):
            needs = f"needs {plan.runs[parent]} ({parent}), {statuses[parent].kind}"
            return RunStatus("blocked", element, needs)

    if event == "blocked" and said.startswith(HELD):
        return RunStatus("blocked", element, said)
    # Its result is out of date, or its parents, which blocked it, no longer do.
    if reason or event == "blocked":
        return RunStatus("open", element, reason or said)
    silent = "ended without a result" if last else "ended before its log began"
    how = {"stopped": "saved and left", "died": said}.get(event, silent)
    return RunStatus("lost", element, how) if element or last else RunStatus("open")


def _last_event(folder: Path) -> LogRecord:
    """Return the log's last record that began or ended an attempt; empty where there is none."""
    # The last lines of a long log tell it nearly always.
    for read in (read_log_tail, read_log):
        for record in reversed(read(folder)):
            if record["event"] in ("started", *ENDS):
                return record
    return LogRecord()


def explain_lost(
    sweep: RunStatuses, patience_s: float = 10.0, *, thorough: bool = False
) -> RunStatuses:
    """Add to the reason of each lost run how SLURM says that its element ended.

    Args:
        sweep: its runs' statuses.
        patience_s: how long to try.
        thorough: ask even if somebody asked less than ``POLL_S`` ago.
    """
    lost = {i: status for i, status in sweep.statuses.items() if status.kind == "lost"}
    elements = {status.element for status in lost.values()} - {""}
    _find_ends(elements, sweep.submissions, patience_s, thorough)
    for run_id, status in lost.items():
        if end := sweep.submissions.end_of(status.element):
            lost[run_id] = status._replace(reason=f"{status.reason}: {end}")
    return replace(sweep, statuses={**sweep.statuses, **lost})


def _find_ends(
    elements: set[str], submissions: Submissions, patience_s: float, thorough: bool
) -> None:
    """Add how elements ended to `asked_ends`, and to its file."""
    asked_at, ends = submissions.asked_ends
    unknown, now = elements - ends.keys(), time.time()
    if not unknown or (not thorough and 0 <= now - asked_at < POLL_S):
        return

    jobs = {element.partition("_")[0] for element in unknown}
    states = ask_accounting(jobs, patience_s)
    if states is not None:
        ends |= {name: states[name] for name in unknown & states.keys() if is_final(states[name])}
        # Accounting never knows what was cancelled before it began.
        for name in unknown - states.keys():
            if now - submissions.element(name).submitted_at > BEHIND_S:
                ends[name] = ""

    # In somebody else's runs folder nothing is kept.
    with contextlib.suppress(UserError, OSError):
        refuse_links(submissions.folder, submissions.folder.parent)
        write_json(submissions.folder / ENDS_FILE, {"asked_at": now, "ends": ends})
