"""Runs to SLURM: plan, apply, reconcile, and no driver that has to stay alive.

A submission is planned whole (arrays, elements, sbatch texts, costs) and written to one file before
the first sbatch. Applying it asks SLURM for one array after the other, each waiting by ``afterany``
for the arrays of its parents; every run checks its own parents when it starts. The queue is asked
first: what of the sweep waits or runs is left alone, also when an earlier call was killed half-way.
"""

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.failures.bad_nodes import without_bad_nodes
from hvae_hpc.jobs.failures.canary import canaries_alone, canaries_of
from hvae_hpc.jobs.failures.retry import (
    RetryHistory,
    choose_retries,
    read_history,
    with_retry_changes,
)
from hvae_hpc.jobs.sites.site import Site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.slurm.sbatch import python_command, sbatch_text
from hvae_hpc.jobs.state.element_ends import explain_lost
from hvae_hpc.jobs.state.run_status import RunStatus, read_run_status
from hvae_hpc.jobs.state.submissions import (
    PLAN_FILE,
    SUBMISSIONS,
    Job,
    Submissions,
    comment_of,
    submitting,
)
from hvae_hpc.jobs.submit.bundles import make_arrays
from hvae_hpc.jobs.sweeps.costs import add_up, expected_seconds
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.identity import content_hash
from hvae_hpc.runs.plan import Array, Plan, plan_id

TABLES = "tables"
QUESTIONS = 5
"""Calls of a client before the first sbatch, at most: nodes, partitions, settings, limits, the queue."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A submission that is planned but not written.

    Attributes:
        plan: with arrays, sbatch texts and totals.
        name: of the submission and its folder.
        statuses: how every run of the sweep stands.
        room: elements that the queue still takes; None where no limit is known.
        adopted: jobs in the queue that an earlier command submitted and did not live to note.
        again_s: seconds before the last job where SLURM takes no more now and it is to submit the
            rest.
        history: the retries, to be written before anything is submitted.
        told: what is retried and what not, for people.
    """

    plan: Plan
    name: str
    statuses: Mapping[str, RunStatus]
    room: int | None
    adopted: tuple[Job, ...] = ()
    again_s: int = 300
    history: RetryHistory | None = None
    told: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its plan, sbatch texts, job ids and logs lie."""
        return self.plan.runs_folder / SUBMISSIONS / self.name

    @property
    def run_ids(self) -> list[str]:
        """The runs that it submits."""
        return [
            run_id for array in self.plan.arrays for element in array.elements for run_id in element
        ]


def prepare(
    plan: Plan,
    site: Site,
    cluster: slurm.Cluster,
    tables_command: Sequence[str],
    *,
    only_new: bool = False,
    rest: bool = True,
    retries: int = 0,
) -> Prepared:
    """Plan what to submit of a sweep: all that is neither done nor in the queue.

    Args:
        plan: of the sweep, its resources fitted to the cluster.
        site: for the caps.
        cluster: what SLURM allows.
        tables_command: argv of the last job; the submission's folder is added to it.
        only_new: leave out what was ever submitted: what failed, was lost or cancelled is for a
            person to repeat, but for what the policy lets be retried.
        rest: take what was never submitted; False is for a broken sweep, where it would most likely
            fail as well.
        retries: times that a run may be retried with what the policy changes; 0 changes
            nothing.
    """
    _check_path(plan.runs_folder)
    submissions = Submissions(plan.runs_folder)
    limits = [limit for limit in (cluster.submit_limit, site.caps.elements) if limit]
    # Where something was submitted, the answer must be younger than the last sbatch; else
    # nothing of ours is there.
    young = time.time() if submissions.names or limits else None
    queue = slurm.read_queue(not_before=young, poll_s=site.caps.poll_s)
    results = read_results(plan)  # after the queue: what ends in between would seem lost
    statuses = read_run_status(plan, results, submissions, queue)
    history = read_history(plan.runs_folder)
    plan, choice = with_retry_changes(plan, history, site, cluster), None
    if retries:
        statuses = explain_lost(statuses, submissions, thorough=True)
        choice = choose_retries(
            plan, results, statuses, history, retries, site, cluster, by_hand=not only_new
        )
        plan = with_retry_changes(plan, choice.history, site, cluster)
    left_out = submissions.last_elements().keys() if only_new else set[str]()
    left_out = (left_out if rest else statuses.keys()) - (choice.run_ids if choice else set())
    kinds = ("done", "waiting", "running")
    wanted = [
        run_id for run_id, s in statuses.items() if s.kind not in kinds and run_id not in left_out
    ]
    queued = {
        run_id: s.element
        for run_id, s in statuses.items()
        if s.kind in ("waiting", "running") and s.element
    }
    room = max(0, min(limits) - queue.elements) if limits else None
    seconds = expected_seconds(plan, results, wanted)
    arrays = make_arrays(
        plan,
        wanted,
        seconds,
        queued=queued,
        max_array_size=cluster.max_array_size,
        max_elements=0 if room is None else max(1, room - 1),  # one is the last job's
    )
    arrays = [
        replace(array, grace_s=_grace_s(plan.resources[array.stage], cluster)) for array in arrays
    ]
    arrays = [
        replace(array, canaries=canaries_of(len(array.elements), site.caps.canary))
        for array in arrays
    ]
    if arrays or (queued and not _last_job_waits(plan.sweep, submissions, queue)):
        after = tuple(sorted({element.partition("_")[0] for element in queued.values()}))
        everything = tuple((number,) for number in range(len(arrays)))
        minutes = plan.resources[TABLES].minutes
        last = Array(
            name=f"{plan.sweep}-{TABLES}",
            stage=TABLES,
            after=everything,
            after_jobs=after,
            minutes=minutes,
        )
        arrays.append(last)
    plan = replace(plan, arrays=tuple(arrays), requeues=site.caps.requeues)
    name = f"{plan.sweep}-{plan_id(plan)}"
    folder = plan.runs_folder / SUBMISSIONS / name

    def healthy(resources: Resources) -> Resources:
        return without_bad_nodes(
            resources, (choice.history if choice else history).nodes.get(cluster.name, {}), cluster
        )

    arrays = [
        replace(array, script=_script(plan, folder, name, number, tables_command, healthy))
        for number, array in enumerate(arrays)
    ]
    plan = replace(plan, arrays=tuple(arrays))
    gates = sum(
        canaries_alone(array, plan.resources[array.stage].array_parallelism) > 0 for array in arrays
    )
    plan = replace(plan, totals=add_up(plan, wanted, seconds, QUESTIONS + gates))
    return Prepared(
        plan=plan,
        name=name,
        statuses=statuses,
        room=room,
        adopted=tuple(submissions.find_unnoted(queue)),
        again_s=int(5 * site.caps.poll_s),
        history=choice.history if choice else None,
        told=(choice.summary if choice else ()) + tuple(_tell_held(statuses, wanted)),
    )  # fmt: skip


def _tell_held(statuses: Mapping[str, RunStatus], wanted: Sequence[str]) -> Iterator[str]:
    """Yield how many of the runs that are to be submitted were held, and why."""
    reasons = Counter(statuses[run_id].reason for run_id in wanted if statuses[run_id].held)
    for reason, n in reasons.items():
        yield f"taken up: {n:,} run{'s' * (n > 1)} that {'were' if n > 1 else 'was'} {reason}"


def _grace_s(resources: Resources, cluster: slurm.Cluster) -> int:
    return max(resources.grace_s, cluster.partitions[resources.partition].grace_s)


def _last_job_waits(sweep: str, submissions: Submissions, queue: slurm.Queue) -> bool:
    return any(
        submissions.sweep(name) == sweep and submissions.arrays(name)[number]["stage"] == TABLES
        for _, name, number in submissions.find_queued(queue)
    )


def _check_path(folder: Path) -> None:
    """Refuse what SLURM would replace or cut in the name of a log file; everything else is quoted."""
    if not str(folder).isprintable() or re.search(r"[%\\'\"]", str(folder)):
        raise UserError(
            f"{str(folder)!r}: SLURM cannot write logs there; use a folder without %, \\, quotes and the like"
        )


def _script(
    plan: Plan,
    folder: Path,
    name: str,
    number: int,
    tables_command: Sequence[str],
    healthy: Callable[[Resources], Resources],
) -> str:
    array = plan.arrays[number]
    resources = (
        plan.resources_of(array.elements[0][0]) if array.elements else plan.resources[array.stage]
    )
    if array.stage == TABLES:
        command = [*python_command(resources), *tables_command, str(folder)]
    else:
        command = [
            *python_command(resources),
            "-m",
            "hvae_hpc.jobs.worker.element",
            "--plan",
            str(folder / PLAN_FILE),
        ]
        command += ["--array", str(number)]
    return sbatch_text(
        folder, array.name, replace(healthy(resources), minutes=array.minutes), command,
        comment=comment_of(name, number), elements=len(array.elements),
    )  # fmt: skip


def check_space(prepared: Prepared) -> float:
    """Return the free bytes where the runs folder lies; a UserError where what is kept will not fit."""
    there = next(path for path in (prepared.folder, *prepared.folder.parents) if path.exists())
    free, needed = float(shutil.disk_usage(there).free), prepared.plan.totals["bytes"]
    if free < needed:
        raise UserError(
            f"{prepared.plan.runs_folder}: {free / 1e9:.1f} GB are free, about {needed / 1e9:.1f} GB will be kept; "
            "make room, or give another folder by --runs"
        )
    return free


def submit_command(
    name: str,
    command: Sequence[str],
    resources: Resources,
    partition: str,
    folder: Path,
    *,
    key: str,
) -> tuple[str, bool]:
    """Submit one command as one job, unless it is in the queue already.

    Args:
        name: of the job.
        command: argv after Python.
        resources: of its stage.
        partition: where it goes, unless the stage has its own.
        folder: for the sbatch text and the log.
        key: names what the command makes; of two jobs with one key only one is in the queue.

    Returns:
        The job's id, and whether it was there already.
    """
    _check_path(folder)
    comment = comment_of(f"command-{content_hash(key)[:12]}", 0)
    with submitting(folder) as lock:
        for row in slurm.read_queue(not_before=time.time()).rows:
            if row.comment == comment:
                return row.job, True
        resources = replace(resources, partition=resources.partition or partition)
        text = sbatch_text(
            folder, name, resources, [*python_command(resources), *command], comment=comment
        )
        write_atomic(folder / f"{name}.sh", text)
        said = slurm.ask_once(
            ["sbatch", "--parsable", str(folder / f"{name}.sh")], keep_open=(lock,)
        )
        return said.strip().partition(";")[0], False
