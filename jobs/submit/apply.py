"""A planned submission on its way into SLURM's queue: one sbatch per array, and what to do when one is refused."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.failures.canary import GATE_MINUTES, canaries_alone
from hvae_hpc.jobs.failures.retry import write_history
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.submissions import PLAN_FILE, Job, Submissions, parse_comment
from hvae_hpc.jobs.submit.prepare import Prepared
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.lease import check
from hvae_hpc.runs.plan import Array, write_plan


class LimitError(UserError):
    """SLURM takes no more of the user's elements now."""


class Application:
    """A prepared submission on its way into the queue.

    Attributes:
        jobs: (SLURM id, name, elements) of each sbatch that was taken.
        submitted: runs in them.
        refused: why SLURM takes no more now; "" where it took all.
    """

    def __init__(self, prepared: Prepared, lock: int) -> None:
        self.prepared, self.lock, self.room = prepared, lock, prepared.room
        self.jobs: list[tuple[str, str, int]] = []
        self.submitted, self.refused, self.limited = 0, "", False
        self._ids: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
        self._submissions = Submissions(prepared.plan.runs_folder)

    def run(self) -> None:
        """Write the plan, then submit its arrays, parents' arrays first, and last the job that makes the tables.

        Raises:
            UserError: SLURM refuses for another reason than a limit of elements; what it took
                before stays.
        """
        for job in self.prepared.adopted:
            self._submissions.note(job)
        if not self.prepared.plan.arrays:
            return
        if self.prepared.history:
            write_history(self.prepared.plan.runs_folder, self.prepared.history)
        *arrays, _ = self.prepared.plan.arrays
        write_plan(self.prepared.plan, self.prepared.folder / PLAN_FILE)
        for number, array in enumerate(arrays):
            write_atomic(self._text(number), array.script)
            self._submit_array(number)
            if self.refused:  # children of what is not in the queue would be blocked
                break
        if self.jobs or not arrays:
            self._submit_last()
        if self.limited and (
            last := self._ids.get(len(arrays))
        ):  # submitted while there was room: before the others
            everything = ":".join(self._after(self.prepared.plan.arrays[-1]))
            slurm.ask(
                ["scontrol", "update", f"JobId={last[0][0]}", f"Dependency=afterany:{everything}"]
            )

    def _submit_array(self, number: int) -> None:
        """Submit an array, in parts where its canaries go ahead, or SLURM does not take it whole."""
        alone = self._alone(number)
        todo = list(range(len(self.prepared.plan.arrays[number].elements)))
        size = len(todo)
        while todo:
            if self.limited and self.jobs:  # while there is room for it
                self._submit_last()
            size = size if self.room is None else min(size, self.room - 1)  # one is the last job's
            if size < 1:
                self.refused = f"a limit of {self.prepared.room} more elements in the queue"
                return
            part = [place for place in todo[:size] if place < alone or todo[0] >= alone]
            try:
                self._submit(number, part)
            except LimitError as error:
                if len(part) == 1:
                    self.refused = str(error)
                    return
                self.limited = True
                size = len(part) // 2 if self.jobs else 1
            else:
                todo = todo[len(part) :]
                size = min(len(todo), 2 * size)

    def _submit_last(self) -> None:
        """Submit the job that makes the tables, unless it is there."""
        number = len(self.prepared.plan.arrays) - 1
        if number not in self._ids:
            write_atomic(self._text(number), self.prepared.plan.arrays[number].script)
            with contextlib.suppress(LimitError):  # then the same command, given again, goes on
                self._submit(number, [])

    def _submit(self, number: int, places: Sequence[int]) -> None:
        """Submit a part of an array (none: the last job), and note its id."""
        array = self.prepared.plan.arrays[number]
        command = ["sbatch", "--parsable"]
        waits = [f"afterany:{':'.join(after)}"] if (after := self._after(array)) else []
        if places and (alone := self._alone(number)) <= min(places):
            ahead = [job for job, others in self._ids.get(number, []) if min(others) < alone]
            waits += [f"after:{job}+{GATE_MINUTES}" for job in ahead]
        if waits:
            command.append("--dependency=" + ",".join(waits))
        if 0 < len(places) < len(array.elements):
            throttle = self.prepared.plan.resources[array.stage].array_parallelism
            command.append(
                f"--array={slurm.format_places(places)}" + (f"%{throttle}" if throttle else "")
            )
        if not places and (
            self.limited or self.refused
        ):  # it submits the rest: not before there may be room
            command.append(f"--begin=now+{self.prepared.again_s}seconds")
        job = self._sbatch([*command, str(self._text(number))], number, places)
        self._ids.setdefault(number, []).append((job, tuple(places)))
        self._submissions.note(
            Job(self.prepared.name, number, job, tuple(places), round(time.time(), 3))
        )
        self.jobs.append((job, array.name, len(places)))
        self.submitted += sum(len(array.elements[place]) for place in places)
        self.room = None if self.room is None else self.room - max(1, len(places))

    def _alone(self, number: int) -> int:
        array = self.prepared.plan.arrays[number]
        return canaries_alone(array, self.prepared.plan.resources[array.stage].array_parallelism)

    def _after(self, array: Array) -> list[str]:
        """Return the SLURM ids that an array waits for: of elements, or of whole arrays where that says the same."""
        found = list(array.after_jobs)
        for number in dict.fromkeys(number for number, *_ in array.after):
            wanted = {
                place for other, *places in array.after if other == number for place in places
            }
            for job, places in self._ids.get(number, []):
                mine = [place for place in places if not wanted or place in wanted]
                found += [job] if len(mine) == len(places) else [f"{job}_{place}" for place in mine]
        return found

    def _sbatch(self, command: Sequence[str], number: int, places: Sequence[int]) -> str:
        """Return the job's id. Where SLURM was too busy to answer, it may have taken the job: the queue tells."""
        check(
            self.prepared.folder.parent
        )  # who was stopped for long finds that another command submits by now
        uncertain = False

        def attempt() -> str:
            nonlocal uncertain
            if uncertain and (found := self._find(number, places)):
                return found
            try:
                return slurm.ask_once(command, keep_open=(self.lock,)).strip().partition(";")[0]
            except slurm.BusyError:
                uncertain = True
                raise

        name = self.prepared.plan.arrays[number].name
        try:
            return slurm.patiently(attempt)
        except UserError as error:
            kind = LimitError if slurm.is_submit_limit(str(error)) else UserError
            raise kind(
                f"sbatch refused {name}: {str(error).partition('sbatch: error: ')[2] or error}"
            ) from error

    def _find(self, number: int, places: Sequence[int]) -> str:
        known = {job for ids in self._ids.values() for job, _ in ids}
        for row in slurm.read_queue(not_before=time.time()).rows:
            named = parse_comment(row.comment) == (self.prepared.name, number)
            if named and row.job not in known and set(row.places) <= set(places):
                return row.job
        return ""

    def _text(self, number: int) -> Path:
        return self.prepared.folder / f"{number:03d}-{self.prepared.plan.arrays[number].name}.sh"
