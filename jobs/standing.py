"""How every run stands: done, running, waiting, failed, blocked, lost, or open.

Read from the runs' own files first, then from what was submitted and from the user's queue; nobody's memory is asked.
The launcher submits what is neither done nor in the queue, and ``hvae-hpc status`` shows the rest of it.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hvae_hpc.config import read_json
from hvae_hpc.jobs.slurm import Queue
from hvae_hpc.plan import Plan, State
from hvae_hpc.rundir import read_log, read_log_tail

SUBMISSIONS = "submissions"
PLAN_FILE = "plan.json"
JOBS_FILE = "jobs.jsonl"
SILENT_S = 150.0
"""A local run that has written nothing for so long is not at work any more."""
ENDS = ("failed", "blocked", "stopped")

Kind = Literal["done", "running", "waiting", "failed", "blocked", "lost", "open"]


class Standing(NamedTuple):
    """How a run stands.

    ``lost`` was submitted or started, is not in the queue and left no reason; ``open`` was never submitted. ``element``
    is SLURM's ``<array>_<place>`` that has or had it.
    """

    kind: Kind
    element: str = ""
    reason: str = ""


class Job(NamedTuple):
    """One sbatch that SLURM took: its id, and the places of the plan's array that it carries."""

    submission: str
    array: int
    job: str
    places: tuple[int, ...]


class Submissions:
    """What was ever submitted from a runs folder: plans' arrays, and the SLURM ids they got."""

    def __init__(self, runs_folder: Path) -> None:
        self.folder = runs_folder / SUBMISSIONS
        self.names = {path.parent.name for path in self.folder.glob(f"*/{PLAN_FILE}")}
        self._arrays: dict[str, list[dict[str, Any]]] = {}

    def arrays(self, name: str) -> list[dict[str, Any]]:
        """Return the arrays of a submission's plan as plain data."""
        if name not in self._arrays:
            self._arrays[name] = list(read_json(self.folder / name / PLAN_FILE)["arrays"])
        return self._arrays[name]

    def jobs(self) -> list[Job]:
        """Return all jobs whose ids were noted, in order of submission."""
        found = []
        for name in sorted(self.names, key=lambda name: (self.folder / name / PLAN_FILE).stat().st_mtime):
            with contextlib.suppress(FileNotFoundError):
                for line in (self.folder / name / JOBS_FILE).read_text().splitlines():
                    with contextlib.suppress(ValueError):  # cut short by a crash
                        entry = json.loads(line)
                        found.append(Job(name, entry["array"], entry["job"], tuple(entry["places"])))
        return found

    def runs(self, name: str, array: int, place: int) -> tuple[str, ...]:
        """Return the run ids of one element."""
        elements = self.arrays(name)[array]["elements"]
        return tuple(elements[place]) if place < len(elements) else ()


def comment_of(submission: str, array: int) -> str:
    """Return the comment by which a job in the queue names the array of the plan that it is."""
    return f"hvae_hpc:{submission}:{array}"


def parse_comment(comment: str) -> tuple[str, int] | None:
    """Return submission and array; None for a comment that is not ours."""
    mark, _, rest = comment.partition(":")
    submission, _, array = rest.rpartition(":")
    return (submission, int(array)) if mark == "hvae_hpc" and array.isdigit() else None


def read_standings(
    plan: Plan, states: Mapping[str, State], submissions: Submissions, queue: Queue | None
) -> dict[str, Standing]:
    """Return how every run of a plan stands.

    Args:
        plan: of the sweep.
        states: of its runs, from their own files.
        submissions: of its runs folder.
        queue: the user's; None where there is no SLURM.
    """
    submitted = {
        run_id: f"{job.job}_{place}"
        for job in submissions.jobs()
        for place in job.places
        for run_id in submissions.runs(job.submission, job.array, place)
    }
    queued = {}
    for row in queue.rows if queue else ():
        named = parse_comment(row.comment)
        if named and named[0] in submissions.names:
            for place in row.places:
                for run_id in submissions.runs(*named, place):
                    queued[run_id] = (f"{row.job}_{place}", row)
    standings: dict[str, Standing] = {}
    for run_id, state in states.items():
        if state.done:
            standings[run_id] = Standing("done")
        elif run_id in queued:
            element, row = queued[run_id]
            waits = row.state == "PENDING"
            standings[run_id] = (
                Standing("waiting", element, row.reason) if waits else _at_work(plan.folder(run_id), element, row.state)
            )
        else:
            standings[run_id] = _at_rest(plan, run_id, submitted.get(run_id, ""), standings)
    return standings


def _at_work(folder: Path, element: str, state: str) -> Standing:
    """Tell how a run stands whose element runs: before its turn, at work, or over already."""
    record = _last_event(folder)
    if record.get("job_id") != element:
        return Standing("waiting", element, "its element makes other runs first")
    if record["event"] in ("failed", "blocked"):
        return Standing(record["event"], element, str(record.get("reason", "")))
    return Standing("running", element, "" if state == "RUNNING" else state.lower())


def _at_rest(plan: Plan, run_id: str, element: str, before: Mapping[str, Standing]) -> Standing:
    """Tell how a run stands that is not in the queue, given its parents' standings."""
    record = _last_event(plan.folder(run_id))
    if record.get("event") == "failed":
        return Standing("failed", element, str(record.get("reason", "")))
    if record and record["event"] not in ENDS and not record.get("job_id") and _age_s(plan.folder(run_id)) < SILENT_S:
        return Standing("running", "", "local")
    for parent in plan.parents(run_id).values():
        if before[parent].kind in ("failed", "blocked", "lost"):
            run = plan.runs[parent]
            return Standing("blocked", element, f"needs {run.stage} {run.label} ({parent}), {before[parent].kind}")
    if element or record:
        said = "saved and left" if record.get("event") == "stopped" else "left the queue without a result"
        return Standing("lost", element, said)
    return Standing("open")


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


def _age_s(folder: Path) -> float:
    records = read_log_tail(folder)
    return time.time() - float(records[-1].get("time", 0.0)) if records else float("inf")
