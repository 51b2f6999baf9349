"""How every run stands: done, running, waiting, failed, blocked, lost, or open.

Read from the runs' own files first, then from what was submitted and from the user's queue;
nobody's memory is asked. The launcher submits what is neither done nor in the queue, and ``hvae-hpc
status`` shows the rest of it.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from hvae_hpc.config.loader import read_json
from hvae_hpc.jobs.slurm.client import Queue, Queued
from hvae_hpc.jobs.state.breaker import Breaker, read_breakers
from hvae_hpc.runs.done import State, list_folders
from hvae_hpc.runs.files import append_line
from hvae_hpc.runs.folder import read_log, read_log_tail
from hvae_hpc.runs.lease import is_held, locked
from hvae_hpc.runs.plan import Plan

SUBMISSIONS = "submissions"
PLAN_FILE = "plan.json"
JOBS_FILE = "jobs.jsonl"
SILENT_S = 150.0
"""A local run that has written nothing for so long is not at work any more."""
UNASKED = "as far as its own files tell"
ENDS = ("failed", "blocked", "stopped", "died")

Kind = Literal["done", "running", "waiting", "lost", "failed", "blocked", "open"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Standing(NamedTuple):
    """How a run stands.

    ``lost`` was submitted or started, is not in the queue and left no reason; ``open`` was never
    submitted. ``element`` is SLURM's ``<array>_<place>`` that has or had it.
    """

    kind: Kind
    element: str = ""
    reason: str = ""


class Job(NamedTuple):
    """One sbatch that SLURM took: its id, the places of the plan's array that it carries, and when (s since 1970)."""

    submission: str
    array: int
    job: str
    places: tuple[int, ...]
    time: float


class Submissions:
    """What was ever submitted from a runs folder, or by one command: plans' arrays, and the SLURM ids they got."""

    def __init__(self, runs_folder: Path, name: str = "*") -> None:
        self.folder = runs_folder / SUBMISSIONS
        self.names = {path.parent.name for path in self.folder.glob(f"{name}/{PLAN_FILE}")}

    def sweep(self, name: str) -> str:
        """Return the name of the sweep that a submission is of."""
        return _read_plan(self.folder / name / PLAN_FILE)[0]

    def arrays(self, name: str) -> list[dict[str, Any]]:
        """Return the arrays of a submission's plan as plain data."""
        return _read_plan(self.folder / name / PLAN_FILE)[1]

    def jobs(self) -> list[Job]:
        """Return all jobs whose ids were noted, in order of submission."""
        found = []
        for name in sorted(
            self.names, key=lambda name: (self.folder / name / PLAN_FILE).stat().st_mtime
        ):
            with contextlib.suppress(FileNotFoundError):
                for line in (self.folder / name / JOBS_FILE).read_text().splitlines():
                    with contextlib.suppress(
                        ValueError, LookupError, TypeError
                    ):  # cut short by a crash
                        entry = json.loads(line)
                        places = tuple(entry["places"])
                        found.append(
                            Job(name, entry["array"], entry["job"], places, entry.get("time", 0.0))
                        )
        return found

    def ours(self, queue: Queue | None) -> list[tuple[Queued, str, int]]:
        """Return what of a queue was submitted from this runs folder, with submission and number of the array.

        Not what was submitted from the folder that this is a copy of. Where a site puts its own
        comments in place of ours, the noted ids tell.
        """
        rows = queue.rows if queue else ()
        noted = {job.job: (job.submission, job.array) for job in self.jobs()} if rows else {}
        named = [(row, parse_comment(row.comment) or noted.get(row.job)) for row in rows]
        return [
            (row, *name)
            for row, name in named
            if name and name[0] in self.names and self._is_from_here(name[0])
        ]

    def _is_from_here(self, name: str) -> bool:
        return _read_plan(self.folder / name / PLAN_FILE)[2] == str(self.folder.parent.resolve())

    def note(self, job: Job) -> None:
        """Keep a job's id beside its plan."""
        entry = {"array": job.array, "job": job.job, "places": job.places, "time": job.time}
        append_line(self.folder / job.submission / JOBS_FILE, json.dumps(entry))

    def unnoted(self, queue: Queue) -> list[Job]:
        """Return the jobs in the queue that a command submitted and did not live to note."""
        noted = {job.job for job in self.jobs()}
        found = [
            (row, name, array) for row, name, array in self.ours(queue) if row.job not in noted
        ]
        return [Job(name, array, row.job, row.places, queue.asked_at) for row, name, array in found]

    def runs(self, name: str, array: int, place: int) -> tuple[str, ...]:
        """Return the run ids of one element."""
        elements = self.arrays(name)[array]["elements"]
        return tuple(elements[place]) if place < len(elements) else ()

    def minutes(self, element: str) -> int:
        """Return the time limit that an element was submitted with; 0 for one that is not known."""
        return self._limits.get(element, (0, 0.0))[0]

    def submitted_at(self, element: str) -> float:
        """Return when an element was submitted, in seconds since 1970; 0 for one that is not known."""
        return self._limits.get(element, (0, 0.0))[1]

    @cached_property
    def _limits(self) -> dict[str, tuple[int, float]]:
        return {
            f"{job.job}_{place}": (
                int(self.arrays(job.submission)[job.array].get("minutes", 0)),
                job.time,
            )
            for job in self.jobs()
            for place in job.places
        }

    def runs_of(self, element: str) -> tuple[str, ...]:
        """Return the run ids of an element that SLURM took; none for one that is not known."""
        name, _, place = element.partition("_")
        job = self._job_of.get(name)
        return self.runs(job.submission, job.array, int(place)) if job and place.isdigit() else ()

    @cached_property
    def _job_of(self) -> dict[str, Job]:
        return {job.job: job for job in self.jobs()}

    @cached_property
    def breakers(self) -> dict[tuple[str, int], Breaker]:
        """What holds the rest of an array, by submission and number of the array."""
        return read_breakers(self.folder, self.names)

    def breaker_of(self, element: str) -> Breaker | None:
        """Return what holds an element; None where nothing does."""
        job = self._job_of.get(element.partition("_")[0]) if self.breakers else None
        breaker = self.breakers.get((job.submission, job.array)) if job else None
        return breaker if breaker and element not in breaker.elements else None

    def elements(self) -> dict[str, str]:
        """Return run id to the SLURM element that last had it, of all that was ever submitted."""
        return {
            run_id: f"{job.job}_{place}"
            for job in self.jobs()
            for place in job.places
            for run_id in self.runs(job.submission, job.array, place)
        }

    def got_further(self, name: str, states: Mapping[str, State]) -> bool:
        """Tell whether any run of a submission is done; else its last job would submit the same again and again."""
        runs = (
            run_id
            for array in self.arrays(name)
            for element in array["elements"]
            for run_id in element
        )
        return any(run_id in states and states[run_id].done for run_id in runs)


@cache
def _read_plan(path: Path) -> tuple[str, list[dict[str, Any]], str]:
    """Return sweep, arrays and runs folder of a submission's plan, which never changes and may be long."""
    plan = read_json(path)
    return str(plan["sweep"]), list(plan["arrays"]), str(plan["runs_folder"])


@contextlib.contextmanager
def submitting(folder: Path) -> Iterator[int]:
    """Let one command at a time plan and submit in a folder of submissions; yields the lock's file descriptor.

    sbatch inherits it: where a command is killed while sbatch is still talking to SLURM, the next
        one waits for that.
    """
    with locked(folder, wait="always") as lease:
        assert lease
        yield lease.descriptor


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
        states: of its runs, from their own files; read after the queue, or what ends in between
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
    standings: dict[str, Standing] = {}
    for run_id, state in states.items():
        if state.done:
            standings[run_id] = Standing("done")
            continue
        element, at = queued.get(run_id, (submitted.get(run_id, ""), None))
        breaker = submissions.breaker_of(element) if not at or at.state == "PENDING" else None
        if at and at.state == "PENDING" and not breaker:
            standings[run_id] = Standing("waiting", element, at.reason)
            continue
        stage, _, name = plan.folder_name(run_id).partition("/")
        folder = plan.folder(run_id) if name in there[stage] else None
        record = _last_event(folder) if folder else {}
        here = not record.get("job_id") and record.get("time", 0.0) > submissions.submitted_at(
            element
        )  # since then
        if breaker and record.get("job_id") != element and not here:
            standings[run_id] = Standing("blocked", element, breaker.reason)
        elif at and not (breaker and here):
            standings[run_id] = _at_work(record, element, at.state)
        elif folder and _works_locally(folder, record):
            standings[run_id] = Standing("running", "", "local")
        elif element and queue is None and record.get("event") not in ENDS:
            standings[run_id] = Standing("running" if record else "waiting", element, UNASKED)
        else:
            # What it came to in an earlier element is not how the last one ended.
            earlier = queue is not None and record.get("job_id") != element
            told = {} if earlier and submissions.runs_of(str(record.get("job_id", ""))) else record
            standings[run_id] = _at_rest(plan, run_id, state.reason, told, element, standings)
    return standings


def _at_work(record: Mapping[str, Any], element: str, state: str) -> Standing:
    """Tell how a run stands whose element runs: before its turn, at work, or over already."""
    if record.get("job_id") != element:
        return Standing("waiting", element, "their turn in the element")
    if record["event"] in ("failed", "blocked"):
        return Standing(record["event"], element, str(record.get("reason", "")))
    return Standing("running", element, "" if state == "RUNNING" else state.lower())


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
    before: Mapping[str, Standing],
) -> Standing:
    """Tell how a run stands that nobody is at, given why its metrics.json does not count and its parents' standings."""
    element = element or str(record.get("job_id", ""))
    event = record.get("event")
    if event == "failed":
        return Standing("failed", element, str(record.get("reason", "")))
    for parent in plan.parents(run_id).values():
        if before[parent].kind == "blocked":  # for the same reason
            return Standing("blocked", element, before[parent].reason)
        if before[parent].kind in ("failed", "lost"):
            run = plan.runs[parent]
            return Standing(
                "blocked",
                element,
                f"needs {run.stage} {run.label} ({parent}), {before[parent].kind}",
            )
    if (
        reason or event == "blocked"
    ):  # to be made anew; or what it needed is there, or will be, by now
        return Standing("open", element, reason or str(record.get("reason", "")))
    if event == "stopped":
        return Standing("lost", element, "saved and left")
    if event == "died":
        return Standing("lost", element, str(record.get("reason", "")))
    if element:
        return Standing("lost", element, "left the queue without a result")
    return (
        Standing("lost", "", "its process ended without a result") if record else Standing("open")
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
