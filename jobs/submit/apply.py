"""A planned submission on its way into SLURM's queue: one sbatch per array, or smaller parts.

People are told what it will be (:func:`describe`) and what became of it (:func:`tell`). One command
as one job, such as the packing of a data set, goes into the queue by :func:`submit_command`.

No more is submitted than a limit of elements allows, of which one place is the last job's. Where
the limit is not known, a refusal tells that it is lower: half as many are tried. The last job
submits the rest.
"""

import contextlib
import math
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hvae_hpc.config.resources import START_S, Resources
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.failures.canary import GATE_MINUTES, canaries_ahead
from hvae_hpc.jobs.failures.retry import write_history
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.slurm.sbatch import python_command, sbatch_text
from hvae_hpc.jobs.state.submissions import (
    PLAN_FILE,
    Job,
    comment_of,
    note_job,
    parse_comment,
    submitting,
)
from hvae_hpc.jobs.submit.prepare import TABLES, Prepared, check_path
from hvae_hpc.jobs.sweeps.costs import duration
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.identity import content_hash
from hvae_hpc.runs.lease import check
from hvae_hpc.runs.plan import Array, Plan, write_plan


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
            size = int(min(size, self._room - 1))  # one place is the last job's
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
            yield f"--begin=now+{self.prepared.rest_after_s}seconds"

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
            reason = str(error).partition("sbatch: error: ")[2] or str(error)
            took = ""
            if self.jobs and kind is UserError:  # what it took stays, and no last job follows
                took = f"took {len(self.jobs)} job{'s' * (len(self.jobs) > 1)} and "
                reason += "; correct that and give the same command again"
            raise kind(f"sbatch {took}refused {self.plan.arrays[number].name}: {reason}") from error
        return slurm.parse_job_id(printed)

    def _find_in_queue(self, number: int, places: Sequence[int]) -> str:
        """Return the id of the job that carries a part of an array; "" where there is none."""
        known = {job.job for job in self.jobs}
        for row in slurm.read_queue(not_before=time.time()).rows:
            is_array = parse_comment(row.comment) == (self.prepared.name, number)
            if is_array and row.job not in known and set(row.places) <= set(places):
                return row.job
        return ""


def describe(prepared: Prepared, free_bytes: float) -> Iterator[str]:
    """Yield what will be submitted and what it costs, in lines."""
    plan, totals = prepared.plan, prepared.totals
    yield from (f"  {line}" for line in prepared.notes)
    if not plan.arrays:
        return

    yield from _describe_stages(plan)
    ahead = list(filter(None, canaries_ahead(plan)))
    if ahead:
        yield (
            f"  canaries:   {max(ahead)} elements of {len(ahead)} array{'s' * (len(ahead) > 1)} go "
            f"ahead, the rest begins {GATE_MINUTES} min after them"
        )
    measured = f"{totals['measured']:.0%} of them" if totals["measured"] else "none yet"
    yield (
        f"  expected:   {totals['gpu_hours']:.1f} GPU-hours, {totals['cpu_hours']:.1f} CPU-hours "
        f"(from measured times: {measured})"
    )
    may_fill = ""
    if free_bytes < totals["bytes_peak"]:
        may_fill = ", so it may fill the disk: give --array-parallelism N, or another --runs folder"
    yield (
        f"  to write:   {len(plan.arrays) + 4} files now; {totals['files']:,.0f} files "
        f"and {_size(totals['bytes'])} are kept, up to {_size(totals['bytes_peak'])} while it "
        f"runs; {_size(free_bytes)} are free{may_fill}"
    )
    yield (
        f"  scheduler:  {len(plan.arrays) + len(ahead)} sbatch calls; afterwards one call per time "
        "limit reached, and one squeue a minute while somebody looks"
    )
    if totals["elements"] + 1 > prepared.room:
        yield (
            f"  the queue takes {prepared.room} more elements; the last job submits the rest, or "
            "this command again"
        )


def _describe_stages(plan: Plan) -> Iterator[str]:
    """Yield a table of what is submitted, a line per stage, and who is requeued at its limit."""
    requeued = []
    yield (
        f"  to submit:  {'stage':11}{'runs':>6}{'arrays':>8}{'elements':>10}"
        f"{'each':>12}{'limit':>12}  partition"
    )
    for stage in dict.fromkeys(array.stage for array in plan.arrays):
        arrays = [array for array in plan.arrays if array.stage == stage]
        runs = sum(len(array.run_ids) for array in arrays)
        elements = sum(len(array.elements) for array in arrays)
        each = duration(sum(array.seconds for array in arrays) / elements) if elements else ""
        limit_s = 60 * max(array.minutes for array in arrays)
        limit = duration(limit_s)
        yield (
            f"{'':14}{stage:11}{runs:6}{len(arrays):8}{elements or 1:10}{each:>12}{limit:>12}"
            f"  {plan.resources[stage].partition}"
        )
        work_s = max(1, limit_s - START_S - plan.resources[stage].signal_lead_s)
        longest_s = max(array.seconds / max(1, len(array.elements)) for array in arrays)
        if longest_s > work_s:
            n = math.ceil(longest_s / work_s) - 1
            requeued.append(f"{stage}: about {n} requeue{'s' * (n > 1)} at {limit} each")
    if requeued:
        yield f"  time limit: {'; '.join(requeued)}"


def sbatch_texts(arrays: Sequence[Array]) -> Iterator[str]:
    """Yield the sbatch text of each stage's first array."""
    counts = Counter(array.stage for array in arrays)
    firsts = {array.stage: array for array in reversed(arrays)}
    for stage in counts:
        array, others = firsts[stage], counts[stage] - 1
        more = f" ({others} more differ in name, number of elements and time)" if others else ""
        waits = list(dict.fromkeys(arrays[number].name for number, _ in array.after))
        dots = " ..." if len(waits) > 3 else ""
        after = f", after {', '.join(waits[:3])}{dots}" if waits else ""
        title = "the last job" if stage == TABLES else array.name
        yield f"\n--- sbatch text of {title}{after}{more}"
        yield array.script.rstrip()


def tell(application: Application, retries: int) -> Iterator[str]:
    """Yield what was submitted, and what to do next.

    Args:
        application: that is over.
        retries: times that a run may be retried.
    """
    prepared = application.prepared
    for job in application.jobs:
        n = len(job.places)
        elements = f", {n} element{'s' * (n > 1)}" if n else ""
        yield f"  job {job.job}: {prepared.plan.arrays[job.array].name}{elements}"
    yield (
        f"submitted {application.submitted} runs in {len(application.jobs)} jobs; "
        f"{prepared.n_queued} runs were queued already"
    )
    if left := len(prepared.run_ids) - application.submitted:
        who = "try again later"
        if application.jobs:
            who = "the last job submits them, or this command, given again"
        yield f"{left} runs are not in the queue yet ({application.refused}); {who}"
    if not application.jobs:
        return

    if retries:
        yield (
            f"retries:    the last job retries what failed, each run up to {retries} times; where "
            "jobs may not submit, this command does, given again"
        )
    yield f"logs:       {prepared.folder}"
    yield f"status:     hvae-hpc status {shlex.quote(str(prepared.plan.runs_folder))}"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def submit_command(
    name: str, command: Sequence[str], resources: Resources, folder: Path
) -> tuple[str, bool]:
    """Submit one command as one job, unless it is in the queue already.

    Args:
        name: of the job.
        command: argv after Python.
        resources: of its stage, with a partition.
        folder: for the sbatch text and the log; of two jobs with one folder only one is in the
            queue.

    Returns:
        The job's id, and whether it was in the queue already.
    """
    check_path(folder)
    comment = comment_of(f"command-{content_hash(str(folder))[:12]}", 0)
    with submitting(folder):
        for row in slurm.read_queue(not_before=time.time()).rows:
            if row.comment == comment:
                return row.job, True

        argv = [*python_command(resources), *command]
        text = sbatch_text(folder, name, resources, argv, comment=comment)
        write_atomic(folder / f"{name}.sh", text)  # for people
        return slurm.parse_job_id(slurm.sbatch([], text)), False
