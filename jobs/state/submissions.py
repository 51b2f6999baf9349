"""What was submitted from a runs folder: the plan of each submission, and the jobs that SLURM took."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.config.loader import read_json
from hvae_hpc.jobs.slurm.client import Queue, Queued
from hvae_hpc.jobs.state.breaker import Breaker, read_breakers
from hvae_hpc.runs.done import ResultSummary
from hvae_hpc.runs.files import append_line
from hvae_hpc.runs.lease import locked

SUBMISSIONS = "submissions"
PLAN_FILE = "plan.json"
JOBS_FILE = "jobs.jsonl"


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

    def got_further(self, name: str, results: Mapping[str, ResultSummary]) -> bool:
        """Tell whether any run of a submission is done; else its last job would submit the same again and again."""
        runs = (
            run_id
            for array in self.arrays(name)
            for element in array["elements"]
            for run_id in element
        )
        return any(run_id in results and results[run_id].done for run_id in runs)


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
