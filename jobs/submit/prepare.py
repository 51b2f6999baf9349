"""What of a sweep is to be submitted: runs, arrays, sbatch texts and costs.

A submission is planned whole and written to one file before anything of it is submitted. The queue
is asked first: runs that wait or run are left alone, also when an earlier command was killed half
way. Each array waits by ``afterany`` for the arrays of its parents; every run checks its own
parents when it starts. No process has to stay alive.
"""

import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.failures.retry import (
    Choice,
    RetryHistory,
    choose_retries,
    read_history,
    with_retry_changes,
    without_bad_nodes,
)
from hvae_hpc.jobs.sites.site import Site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.slurm.sbatch import python_command, sbatch_text
from hvae_hpc.jobs.state.run_status import RunStatuses, explain_lost, read_statuses
from hvae_hpc.jobs.state.submissions import PLAN_FILE, SUBMISSIONS, Job, Submissions, comment_of
from hvae_hpc.jobs.submit.bundles import make_arrays
from hvae_hpc.jobs.submit.code_archive import CodeArchive, pack_code
from hvae_hpc.jobs.sweeps.costs import add_up, expected_seconds
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.plan import Array, Plan, plan_id

TABLES = "tables"
IN_QUEUE = ("waiting", "running")
Scope = Literal["all", "new", "retries"]


@frozen
class Prepared:
    """A submission that is planned but not written.

    Attributes:
        plan: with arrays and sbatch texts.
        name: of the submission and its folder.
        totals: what it will cost (:func:`hvae_hpc.jobs.sweeps.costs.add_up`).
        n_queued: the sweep's runs that wait or run already.
        room: elements that the queue still takes; infinite where no limit is known.
        adopted: jobs in the queue that an earlier command submitted and did not live to note.
        rest_after_s: seconds that the last job waits where it is to submit the rest.
        history: the retries, to be written before anything is submitted; None for as it was.
        notes: what is retried and what not, for people.
        code: from which its jobs import; None where they import what is installed.
    """

    plan: Plan
    name: str
    totals: Mapping[str, float]
    n_queued: int
    room: float
    adopted: tuple[Job, ...] = ()
    rest_after_s: int = 300
    history: RetryHistory | None = None
    notes: tuple[str, ...] = ()
    code: CodeArchive | None = None

    @property
    def folder(self) -> Path:
        """Where its plan, sbatch texts, job ids and logs lie."""
        return self.plan.runs_folder / SUBMISSIONS / self.name

    @property
    def run_ids(self) -> list[str]:
        """The runs that it submits."""
        return [run_id for array in self.plan.arrays for run_id in array.run_ids]


def prepare(
    plan: Plan,
    site: Site,
    tables_command: Sequence[str],
    *,
    scope: Scope = "all",
    retries: int = 0,
    after: Sequence[str] = (),
) -> Prepared:
    """Plan what to submit of a sweep: all that is neither done nor in the queue.

    Args:
        plan: of the sweep, its resources fitted to the cluster.
        site: for the caps and the cluster.
        tables_command: module and options of the last job; the submission's folder is added.
        scope: "all" is what a person asks for, who has looked at what failed. "new" leaves out
            what was ever submitted, but for retries; "retries" takes nothing else.
        retries: times that a run may be retried with what the policy changes; 0 changes nothing.
        after: SLURM's ids of other jobs, which must be over before anything begins.
    """
    check_path(plan.runs_folder)
    submissions = Submissions(plan.runs_folder)
    limit = min(site.cluster.submit_limit or math.inf, site.caps.elements or math.inf)
    # What was submitted from here must be in the answer; without submissions an older one will do.
    may_be_s_old = 0.0 if submissions.plans or limit < math.inf else site.caps.poll_s
    queue = slurm.read_queue(not_before=time.time() - may_be_s_old)
    results = read_results(plan)  # after the queue: what ends in between would seem lost
    sweep = read_statuses(plan, results, submissions, queue)
    if retries:
        sweep = explain_lost(sweep, thorough=True)

    plan, choice = _plan_retries(sweep, site, scope, retries)
    wanted = _choose_runs(sweep, scope, choice.run_ids)
    statuses = sweep.statuses
    queued = {i: s.element for i, s in statuses.items() if s.kind in IN_QUEUE and s.element}
    seconds = expected_seconds(plan, results, wanted)
    largest = site.cluster.max_array_size
    arrays = make_arrays(plan, wanted, seconds, queued=queued, max_array_size=largest)
    arrays = [_fit_array(array, plan, site, after) for array in arrays]

    noted = {job.job for job in submissions.jobs}
    ours = [job for _, job in submissions.find_queued(queue)]
    if arrays or (queued and not any(submissions.makes_tables(plan.sweep, job) for job in ours)):
        arrays.append(_last_job(plan, arrays, queued.values(), site))

    plan = replace(plan, arrays=tuple(arrays), requeues=site.caps.requeues)
    name = f"{plan.sweep}-{plan_id(plan)}"
    code = None if plan.allow_code_drift else pack_code(submissions.folder)
    return Prepared(
        plan=_with_scripts(plan, name, tables_command, choice.history, site, code),
        name=name,
        totals=add_up(plan, seconds),
        n_queued=sum(status.kind in IN_QUEUE for status in statuses.values()),
        room=max(0, limit - queue.elements),
        adopted=tuple(job for job in ours if job.job not in noted),
        rest_after_s=int(5 * site.caps.poll_s),
        history=choice.history if retries else None,
        notes=(*choice.summary, *_tell_held(sweep, wanted)),
        code=code,
    )


def _plan_retries(
    sweep: RunStatuses, site: Site, scope: Scope, retries: int
) -> tuple[Plan, Choice]:
    """Choose the failed runs to retry; returns the plan with the resources of all retries."""
    history = read_history(sweep.plan.runs_folder)
    choice = Choice(frozenset(), history, ())
    if retries:
        sweep = replace(sweep, plan=with_retry_changes(sweep.plan, history, site))
        choice = choose_retries(sweep, history, retries, site, by_hand=scope == "all")
    return with_retry_changes(sweep.plan, choice.history, site), choice


def _choose_runs(sweep: RunStatuses, scope: Scope, retried: Collection[str]) -> list[str]:
    """Return the runs that are neither done nor in the queue and are in the scope."""
    statuses, submitted = sweep.statuses, sweep.submissions.last_elements()
    known = {"all": (), "new": submitted, "retries": statuses}[scope]
    left_out = set(known).difference(retried)
    return [
        run_id
        for run_id, status in statuses.items()
        if status.kind not in ("done", *IN_QUEUE) and run_id not in left_out
    ]


def _fit_array(array: Array, plan: Plan, site: Site, after: Sequence[str]) -> Array:
    """Return an array with its partition's grace time and its canaries, if it can ever start."""
    resources, canaries = plan.resources[array.stage], site.caps.canary
    _check_fits(array.stage, plan.resources_of(array.run_ids[0]), site)
    return replace(
        array,
        after_jobs=(*array.after_jobs, *after),
        grace_s=max(resources.grace_s, site.cluster.partitions[resources.partition].grace_s),
        canaries=canaries if len(array.elements) >= 2 * canaries else 0,
    )


def _check_fits(stage: str, resources: Resources, site: Site) -> None:
    if stage in site.misfits:
        raise UserError(site.misfits[stage])
    site.cluster.check_suits(stage, resources)


def _last_job(plan: Plan, arrays: Sequence[Array], queued: Collection[str], site: Site) -> Array:
    """Return the job that makes the tables, after all arrays and all jobs in the queue."""
    _check_fits(TABLES, plan.resources[TABLES], site)
    return Array(
        name=f"{plan.sweep}-{TABLES}",
        stage=TABLES,
        after=tuple(
            (number, place)
            for number, array in enumerate(arrays)
            for place in range(len(array.elements))
        ),
        after_jobs=tuple(sorted({element.partition("_")[0] for element in queued})),
        minutes=plan.resources[TABLES].minutes,
    )


def _with_scripts(
    plan: Plan,
    name: str,
    tables_command: Sequence[str],
    history: RetryHistory,
    site: Site,
    code: CodeArchive | None,
) -> Plan:
    """Return the plan with the sbatch text of each array; a container has code of its own."""
    folder = plan.runs_folder / SUBMISSIONS / name
    bad_nodes = history.nodes.get(site.cluster.name, {})
    element = ["hvae_hpc.jobs.worker.element", "--plan", str(folder / PLAN_FILE)]
    arrays = []
    for number, array in enumerate(plan.arrays):
        if array.stage == TABLES:
            resources, command = plan.resources[TABLES], [*tables_command, str(folder)]
        else:  # all runs of an array have the same resources
            resources = plan.resources_of(array.run_ids[0])
            command = [*element, "--array", str(number)]
        resources = without_bad_nodes(resources, bad_nodes, site.cluster)
        start = code.start if code and not resources.container else ["-m"]
        script = sbatch_text(
            folder,
            array.name,
            replace(resources, minutes=array.minutes),
            [*python_command(resources), *start, *command],
            comment=comment_of(name, number),
            elements=len(array.elements),
        )
        arrays.append(replace(array, script=script))
    return replace(plan, arrays=tuple(arrays))


def _tell_held(sweep: RunStatuses, wanted: Sequence[str]) -> Iterator[str]:
    """Yield how many of the runs that are to be submitted were held, and why."""
    statuses = [sweep.statuses[run_id] for run_id in wanted]
    reasons = Counter(status.reason for status in statuses if status.held)
    for reason, n in reasons.items():
        yield f"taken up: {n:,} run{'s' * (n > 1)} that {'were' if n > 1 else 'was'} {reason}"


def check_path(folder: Path) -> None:
    """Refuse what SLURM would replace or cut in the name of a log file; all else is quoted."""
    if not str(folder).isprintable() or re.search(r"[%\\'\"]", str(folder)):
        raise UserError(
            f"{str(folder)!r}: SLURM cannot write logs there; "
            "use a folder without %, \\, quotes and the like"
        )


def check_space(prepared: Prepared) -> float:
    """Return the free bytes where the runs folder lies.

    Raises:
        UserError: what the runs keep will not fit.
    """
    folder = next(path for path in (prepared.folder, *prepared.folder.parents) if path.exists())
    free, needed = float(shutil.disk_usage(folder).free), prepared.totals["bytes"]
    if free < needed:
        raise UserError(
            f"{prepared.plan.runs_folder}: {free / 1e9:.1f} GB are free, about "
            f"{needed / 1e9:.1f} GB will be kept; make room, or give another folder by --runs"
        )
    return free
