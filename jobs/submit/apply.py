"""A planned submission on its way into SLURM's queue: one sbatch per array, or smaller parts.

No more is submitted than a limit of elements allows, of which one place is the last job's. Where
the limit is not known, a refusal tells that it is lower: half as many are tried. The last job
submits the rest.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.failures.canary import GATE_MINUTES, canaries_ahead
from hvae_hpc.jobs.failures.retry import write_history
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.submissions import PLAN_FILE, Job, note_job, parse_comment
from hvae_hpc.jobs.submit.prepare import Prepared
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.lease import check
from hvae_hpc.runs.plan import Array, write_plan


class LimitError(UserError):
    """SLURM takes no more of the user's elements now."""


class Application:
    """A prepared submission on its way into the queue.

    Args:
        prepared: what to submit.

    Attributes:
        jobs: that SLURM took, in order.
        refused: why SLURM takes no more now; "" where it took all.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.plan = prepared, prepared.plan
        self.jobs: list[Job] = []
        self._ahead = canaries_ahead(self.plan)
        self.refused = ""
        self._room, self._refusal = prepared.room, ""

    @property
    def submitted(self) -> int:
        """Number of the runs in the jobs."""
        return sum(
            len(self.plan.arrays[job.array].elements[place])
            for job in self.jobs
            for place in job.places
        )

    def run(self) -> None:
        """Write the plan, submit the arrays, parents' first, then the job that makes the tables.

        Raises:
            UserError: SLURM refuses for another reason than a limit of elements. What it took
                before stays in the queue.
        """
        for job in self.prepared.adopted:
            note_job(self.plan.runs_folder, job)
        if not self.plan.arrays:
            return
        if self.prepared.history:
            write_history(self.plan.runs_folder, self.prepared.history)
        if self.prepared.code:
            self.prepared.code.write()
        write_plan(self.plan, self.prepared.folder / PLAN_FILE)

        *arrays, _ = self.plan.arrays
        for number in range(len(arrays)):
            self._submit_array(number)
            if self.refused:  # the runs of later arrays may need what is not in the queue
                break

        if self.jobs or not arrays:
            with contextlib.suppress(LimitError):  # then the same command, given again, submits it
                self._submit(len(arrays), range(0))

    def _submit_array(self, number: int) -> None:
        """Submit an array: its canaries first, and in parts where SLURM does not take it whole."""
        array = self.plan.arrays[number]
        alone, first, end = self._ahead[number], 0, len(array.elements)
        while first < end:
            size = (alone if first < alone else end) - first
            if self._room is not None:
                size = min(size, self._room - 1)  # one place is the last job's
            if size < 1:
                limit = f"a limit of {self._room} more elements in the queue"
                self.refused = self._refusal or limit
                return

            try:
                self._submit(number, range(first, first + size))
            except LimitError as error:
                self._refusal, self._room = str(error), size // 2
            else:
                first += size

    def _submit(self, number: int, places: range) -> None:
        """Submit a part of an array (no places: the last job), and note its id."""
        array = self.plan.arrays[number]
        # For people; sbatch does not read it.
        write_atomic(self.prepared.folder / f"{number:03d}-{array.name}.sh", array.script)
        job_id = self._sbatch(list(self._sbatch_options(number, places)), number, places)
        job = Job(self.prepared.name, number, job_id, tuple(places), round(time.time(), 3))
        note_job(self.plan.runs_folder, job)
        self.jobs.append(job)
        if self._room is not None:
            self._room -= max(1, len(places))

    def _sbatch_options(self, number: int, places: range) -> Iterator[str]:
        """Yield what the sbatch text does not say: what a part waits for, elements, begin."""
        array = self.plan.arrays[number]
        waits = []
        if before := self._jobs_before(array):
            waits.append(f"afterany:{':'.join(before)}")
        alone = self._ahead[number]
        if places and places[0] >= alone:
            canaries = [job for job in self.jobs if job.array == number and min(job.places) < alone]
            waits += [f"after:{job.job}+{GATE_MINUTES}" for job in canaries]
        if waits:
            yield "--dependency=" + ",".join(waits)

        if 0 < len(places) < len(array.elements):
            throttle = self.plan.resources[array.stage].array_parallelism
            at_once = f"%{throttle}" if throttle else ""
            yield f"--array={places[0]}-{places[-1]}{at_once}"
        if not places and self.refused:
            # The last job submits the rest: not before there may be room.
            yield f"--begin=now+{self.prepared.again_s}seconds"

    def _jobs_before(self, array: Array) -> list[str]:
        """Return the SLURM ids that an array waits for: whole jobs, or single elements."""
        ids, after = list(array.after_jobs), set(array.after)
        for job in self.jobs:
            places = [place for place in job.places if (job.array, place) in after]
            is_whole = len(places) == len(job.places)
            ids += [job.job] if is_whole else [f"{job.job}_{place}" for place in places]
        return ids

    def _sbatch(self, arguments: Sequence[str], number: int, places: Sequence[int]) -> str:
        """Return the job's id.

        Where SLURM was too busy to answer, it may have taken the job all the same: then the queue
        is asked before sbatch is called once more.

        Raises:
            LimitError: SLURM takes no more of the user's elements.
            UserError: SLURM refuses for another reason, its answer is no id, or another command
                submits by now.
        """
        check(self.prepared.folder.parent)
        uncertain = False

        def attempt() -> str:
            nonlocal uncertain
            if uncertain and (job := self._find_in_queue(number, places)):
                return job
            try:
                return slurm.sbatch(arguments, self.plan.arrays[number].script)
            except slurm.BusyError:
                uncertain = True
                raise

        try:
            printed = slurm.patiently(attempt)
        except UserError as error:
            kind = LimitError if slurm.is_submit_limit(str(error)) else UserError
            reason = str(error).partition("sbatch: error: ")[2] or error
            raise kind(f"sbatch refused {self.plan.arrays[number].name}: {reason}") from error
        return slurm.parse_job_id(printed)

    def _find_in_queue(self, number: int, places: Sequence[int]) -> str:
        """Return the id of the job that carries a part of an array; "" where there is none."""
        known = {job.job for job in self.jobs}
        for row in slurm.read_queue(not_before=time.time()).rows:
            is_array = parse_comment(row.comment) == (self.prepared.name, number)
            if is_array and row.job not in known and set(row.places) <= set(places):
                return row.job
        return ""
