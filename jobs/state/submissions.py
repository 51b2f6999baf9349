"""What was submitted from a runs folder: the plan of each submission, and the jobs that SLURM took.

A submission is a folder with the plan that one command made and a line for each sbatch that SLURM
took. A job in the queue names its submission in its comment.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.config.loader import load, read_json
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.errors import say
from hvae_hpc.jobs.slurm.client import Queue, Queued
from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import NO_RECORD, append_line, read_records
from hvae_hpc.runs.identity import JOB, require_form
from hvae_hpc.runs.lease import locked
from hvae_hpc.runs.plan import Array

SUBMISSIONS = "submissions"
PLAN_FILE = "plan.json"
JOBS_FILE = "jobs.jsonl"
ENDS_FILE = "ends.json"
SUBMITTING_S = 600.0
"""An sbatch may take so long until its job is noted, with the difference of two clocks."""
LATEST = 1e11
"""No time in seconds since 1970 is later."""


@dataclass(frozen=True)
class Job:
    """One sbatch that SLURM took.

    Attributes:
        submission: the submission's name.
        array: number of the array in the submission's plan.
        job: SLURM's id.
        places: the array's elements that this job carries.
        time: when it was submitted, in seconds since 1970.
    """

    submission: str
    array: int
    job: str
    places: tuple[int, ...]
    time: float = 0.0

    def __post_init__(self) -> None:
        require_form("job", self.job, JOB)
        if min(self.array, *self.places, 0) < 0 or not 0 <= self.time < LATEST:
            raise ValueError("array, places or time is out of range")


class Element(NamedTuple):
    """One element of a job.

    Attributes:
        run_ids: the runs that it makes, in this order.
        minutes: its time limit; 0 where it is not known.
        submitted_at: in seconds since 1970; 0 where it is not known.
    """

    run_ids: tuple[str, ...] = ()
    minutes: int = 0
    submitted_at: float = 0.0


class SubmittedPlan(NamedTuple):
    """What counts of a submission's plan."""

    sweep: str
    arrays: Sequence[Array]
    runs_folder: str


class Submissions:
    """All submissions of a runs folder, or the one that is named. Jobs are read once.

    Args:
        runs_folder: where they were submitted from.
        name: of one submission.

    Attributes:
        folder: of all submissions.
        plans: submission to what counts of its plan.
    """

    def __init__(self, runs_folder: Path, name: str = "*") -> None:
        self.folder = runs_folder / SUBMISSIONS
        files = self.folder.glob(f"{name}/{PLAN_FILE}")
        self.plans = {path.parent.name: plan for path in files if (plan := _read_plan(path))}

    def array_of(self, job: Job) -> Array:
        """Return the array that a job carries, or a part of which it carries."""
        return self.plans[job.submission].arrays[job.array]

    def run_ids(self, job: Job, place: int) -> tuple[str, ...]:
        """Return the runs of one element of a job; none beyond its array's end."""
        elements = self.array_of(job).elements
        return elements[place] if place < len(elements) else ()

    def makes_tables(self, sweep: str, job: Job) -> bool:
        """Tell whether a job is the last job of a sweep."""
        return self.plans[job.submission].sweep == sweep and self.array_of(job).stage == "tables"

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs that were noted, in the order of their submissions."""
        by_age = sorted(
            self.plans, key=lambda name: (self.folder / name / PLAN_FILE).stat().st_mtime
        )
        return [job for name in by_age for job in self._read_jobs(name)]

    def _read_jobs(self, name: str) -> Iterator[Job]:
        def check(entry: Any) -> Job:
            return load(Job, {**entry, "submission": name}, JOBS_FILE)

        jobs = read_records(self.folder / name / JOBS_FILE, check)
        yield from (job for job in jobs if job.array < len(self.plans[name].arrays))

    def element(self, name: str) -> Element:
        """Return an element by SLURM's ``<array>_<place>``; an empty one where it is not known."""
        return self.elements.get(name, Element())

    def last_elements(self) -> dict[str, str]:
        """Return run id to the SLURM element that had it last."""
        return {
            run_id: name for name, element in self.elements.items() for run_id in element.run_ids
        }

    @cached_property
    def elements(self) -> dict[str, Element]:
        """All elements that SLURM took, by ``<array>_<place>``, in order of submission."""
        elements = {}
        for job in self.jobs:
            minutes = self.array_of(job).minutes
            for place in job.places:
                element = Element(self.run_ids(job, place), minutes, job.time)
                elements[f"{job.job}_{place}"] = element
        return elements

    @cached_property
    def asked_ends(self) -> tuple[float, dict[str, str]]:
        """When accounting was asked last (seconds since 1970), and how elements ended.

        The ends are "12_3" to "TIMEOUT on n1", or to "" where accounting knows nothing. A damaged
        file holds none.
        """
        with contextlib.suppress(*NO_RECORD):
            content = read_json(self.folder / ENDS_FILE)
            ends = {name: str(end) for name, end in content["ends"].items()}
            return float(content["asked_at"]), ends
        return 0.0, {}

    def end_of(self, element: str) -> str:
        """Return what accounting said of an element's end; "" where nothing is known."""
        return self.asked_ends[1].get(element, "")

    def find_queued(self, queue: Queue | None) -> list[tuple[Queued, Job]]:
        """Return the queue's rows that were submitted from this runs folder, with their jobs.

        Where a site replaces our comments, the noted ids tell. A copy of a runs folder has no jobs.
        """
        if not queue or not queue.rows:
            return []
        noted = {job.job: (job.submission, job.array) for job in self.jobs}
        ours = []
        for row in queue.rows:
            submission, array = parse_comment(row.comment) or noted.get(row.job, ("", 0))
            here = str(self.folder.parent.resolve())
            plan = self.plans.get(submission)
            if plan and plan.runs_folder == here and array < len(plan.arrays):
                ours.append((row, Job(submission, array, row.job, row.places, queue.asked_at)))
        return ours

    def is_proven(self, row: Queued, job: Job) -> bool:
        """Tell whether a row of the queue is surely a job of ours, so that it may be cancelled.

        Its comment says so, or both its name and its time of submission are those of the record.
        The name begins as all of ours do, since others may have written the record.
        """
        if parse_comment(row.comment):
            return True
        sweep = self.plans[job.submission].sweep
        begins = tuple(f"{sweep}-{stage}" for stage in (*CONFIGS, "tables"))
        is_named = row.name == self.array_of(job).name
        is_timely = any(
            noted.job == row.job and abs(row.submitted_at - noted.time) < SUBMITTING_S
            for noted in self.jobs
        )
        return is_named and row.name.startswith(begins) and is_timely

    def queued_runs(self, queue: Queue | None) -> dict[str, tuple[str, Queued]]:
        """Return each run in the queue that was submitted from here, with its element and row."""
        return {
            run_id: (f"{row.job}_{place}", row)
            for row, job in self.find_queued(queue)
            for place in row.places
            for run_id in self.run_ids(job, place)
        }


@cache
def _read_plan(path: Path) -> SubmittedPlan | None:
    """Read what counts of a submission's plan, which never changes; None where it is none."""
    try:
        refuse_links(path, path.parents[2])
        plan = read_json(path)
        arrays = [load(Array, array, str(path)) for array in plan["arrays"]]
        return SubmittedPlan(str(plan["sweep"]), arrays, str(plan["runs_folder"]))
    except NO_RECORD as error:
        say(f"{path}: is no plan, so this submission counts as none ({error})", to=sys.stderr)
    return None


def note_job(runs_folder: Path, job: Job) -> None:
    """Write a job's id beside its plan."""
    entry = {"array": job.array, "job": job.job, "places": job.places, "time": job.time}
    append_line(runs_folder / SUBMISSIONS / job.submission / JOBS_FILE, json.dumps(entry))


@contextlib.contextmanager
def submitting(folder: Path) -> Iterator[None]:
    """Let one command at a time plan and submit in a folder of submissions."""
    refuse_links(folder, folder.parent)
    with locked(folder, wait="always"):
        yield


def comment_of(submission: str, array: int) -> str:
    """Return the comment by which a job in the queue names its submission and array."""
    return f"hvae_hpc:{submission}:{array}"


def parse_comment(comment: str) -> tuple[str, int] | None:
    """Return submission and array number; None for a comment that is not ours."""
    ours = re.fullmatch(r"hvae_hpc:(.*):([0-9]{1,9})", comment)
    return (ours[1], int(ours[2])) if ours else None
