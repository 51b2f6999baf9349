"""Runs to processes: SLURM arrays through submitit, or a few local workers.

On SLURM there is one array per (stage, data set, source), each waiting by ``afterany`` for the arrays of its
parents; every run checks its own parents when it starts. The plan is written before the first sbatch and holds
everything an element needs, so the shell may close, and no pickle is made.
"""

import contextlib
import io
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hvae_hpc.errors import UserError
from hvae_hpc.identity import content_hash
from hvae_hpc.jobs.slurm import check_partition, queued_elements
from hvae_hpc.plan import Plan, plan_id, read_plan, write_plan
from hvae_hpc.resources import Resources
from hvae_hpc.stages import QualityConfig, Run, SegmentConfig

MOST_ELEMENTS = 1000  # SLURM's default MaxArraySize of 1001 caps the index
SIGNAL_LEAD_S = 90


def group_runs(plan: Plan, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Sort runs into arrays, parents' arrays first.

    Returns:
        One mapping per array: ``name``, ``stage``, ``elements`` (lists of run ids), and ``after``, the numbers of the
        arrays it waits for.
    """
    members: dict[tuple[str, str, str], list[str]] = {}
    for run_id in run_ids:
        run = plan.runs[run_id]
        members.setdefault((run.stage, run.config.data, _source(run)), []).append(run_id)
    arrays: list[dict[str, Any]] = []
    array_of: dict[str, int] = {}
    for (stage, data, source), ids in members.items():
        for start in range(0, len(ids), MOST_ELEMENTS):
            part = ids[start : start + MOST_ELEMENTS]
            parents = {parent for run_id in part for parent in plan.parents(run_id).values()}
            after = sorted({array_of[parent] for parent in parents if parent in array_of})
            array_of |= dict.fromkeys(part, len(arrays))
            name = "-".join(filter(None, (plan.sweep, stage, data, source)))
            arrays.append({"name": name, "stage": stage, "elements": [[run_id] for run_id in part], "after": after})
    return arrays


def _source(run: Run) -> str:
    config = run.config
    if isinstance(config, SegmentConfig):
        return config.arm.generator or ("standard" if config.arm.n_standard else "reference")
    if isinstance(config, QualityConfig):
        return config.source
    return getattr(config, "generator", "")


def submit(plan: Plan, run_ids: Sequence[str], partition: str) -> dict[str, Any]:
    """Submit these runs as arrays, and a last small job that makes the tables.

    Args:
        plan: of the whole sweep.
        run_ids: the runs to make; what of them already waits or runs is left out.
        partition: where a stage goes that names no partition of its own.

    Returns:
        ``submitted`` (runs), ``queued`` (runs that were there already), ``jobs`` (array name to job id), ``folder``.

    Raises:
        UserError: the partition is unknown, or SLURM refuses.
    """
    for name in sorted({partition, *(resources.partition for resources in plan.resources.values())} - {""}):
        check_partition(name)
    queued = _queued_runs(plan)
    wanted = [run_id for run_id in run_ids if run_id not in queued]
    arrays = group_runs(plan, wanted)
    submission = content_hash([plan_id(plan), wanted])[:12]
    folder = plan.runs_folder / "submissions" / f"{plan.sweep}-{submission}"
    record: dict[str, Any] = {"submitted": wanted, "queued": sorted(queued), "jobs": {}, "folder": folder}
    if not wanted:
        return record
    write_plan(replace(plan, arrays=tuple(arrays)), folder / "plan.json")
    ids: list[str] = []
    for number, array in enumerate(arrays):
        resources = plan.resources[array["stage"]]
        after = [ids[parent] for parent in array["after"]] + _parents_in_queue(plan, array, queued)
        command = [sys.executable, "-u", "-m", "hvae_hpc.jobs.tasks", "--plan", str(folder / "plan.json")]
        executor = _executor(folder, array["name"], resources, partition, after)
        executor.parameters["comment"] = f"{folder.name}:{number}"  # by which the next call knows it again
        ids.append(_sbatch(executor, [*command, "--array", str(number)], len(array["elements"])))
        record["jobs"][array["name"]] = ids[-1]
    record["jobs"]["tables"] = _submit_tables(plan, partition, folder, ids)
    return record


def _queued_runs(plan: Plan) -> dict[str, str]:
    """Return run id to SLURM element of the plan's runs that an earlier call submitted and that still wait or run.

    The queue itself is asked: every array's comment names its submission, so also what was submitted by a call that was
    killed half-way is known.
    """
    submissions = {path.parent.name: path for path in plan.runs_folder.glob("submissions/*/plan.json")}
    if not submissions:
        return {}
    found: dict[str, str] = {}
    plans: dict[str, Plan] = {}
    for element in queued_elements():
        submission, _, number = element.comment.partition(":")
        if submission not in submissions:
            continue
        if submission not in plans:
            plans[submission] = read_plan(submissions[submission])
        runs = plans[submission].arrays[int(number)]["elements"][element.place]
        found |= {run_id: f"{element.array}_{element.place}" for run_id in runs if run_id in plan.runs}
    return found


def _parents_in_queue(plan: Plan, array: Mapping[str, Any], queued: Mapping[str, str]) -> list[str]:
    parents = {
        parent for element in array["elements"] for run_id in element for parent in plan.parents(run_id).values()
    }
    return sorted({queued[parent] for parent in parents if parent in queued})


def _executor(folder: Path, name: str, resources: Resources, partition: str, after: Sequence[str]) -> Any:
    """Return submitit's executor with one stage's resources; it writes the sbatch text and calls sbatch."""
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder)
    parameters: dict[str, Any] = {
        "job_name": name,
        "partition": resources.partition or partition,
        "time": resources.minutes,
        "cpus_per_task": resources.cpus,
        "mem": f"{int(resources.memory_gb * 1024)}MB",
        "signal_delay_s": SIGNAL_LEAD_S,
        "stderr_to_stdout": True,  # one log per element
        "additional_parameters": {"requeue": True},
        # SLURM 22.05 to 23.11: srun does not inherit --cpus-per-task.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus}"],
        "wckey": None,
    }
    if resources.gpus:
        parameters["gpus_per_node"] = resources.gpus
    if after:
        parameters["dependency"] = "afterany:" + ":".join(after)
    executor.parameters = {key: value for key, value in parameters.items() if value is not None}
    executor.parameters["wckey"] = None
    return executor


def _sbatch(executor: Any, command: Sequence[str], elements: int | None) -> str:
    """Submit one array (or, for None, one job) and return its id."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if elements is not None:
        executor.parameters["map_count"] = elements
    # The shell makes the step ignore the signals until Python has its handlers: what is ignored stays so over exec.
    step = "sh -c " + shlex.quote("trap '' USR2 TERM; exec " + shlex.join(command))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit passes sbatch's complaint on, and raises it as well
            return str(executor._submit_command(step).job_id)
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        said = " ".join(str(error).split())[-300:]
        raise UserError(f"sbatch refused {executor.parameters['job_name']}: {said}") from error


def _submit_tables(plan: Plan, partition: str, folder: Path, ids: Sequence[str]) -> str:
    command = [
        sys.executable,
        "-u",
        "-m",
        "hvae_hpc.results",
        str(plan.runs_folder),
        "--sweep",
        plan.sweep,
        "--partial",
    ]
    resources = Resources(cpus=1, memory_gb=4, minutes=30)
    return _sbatch(_executor(folder, f"{plan.sweep}-tables", resources, partition, ids), command, None)


def submit_command(name: str, argv: list[str], partition: str, cpus: int, minutes: int, folder: Path) -> str:
    """Submit one command as one job and return its id.

    Args:
        name: of the job.
        argv: the command.
        partition: an existing one.
        cpus: cores.
        minutes: time limit.
        folder: for the sbatch text and the log.
    """
    check_partition(partition)
    folder.mkdir(parents=True, exist_ok=True)
    resources = Resources(cpus=cpus, memory_gb=2 * cpus, minutes=minutes)
    return _sbatch(_executor(folder.resolve(), name, resources, partition, []), argv, None)
