"""One attempt at one run: check it, make it or go on with it, and write down how it ended."""

import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from hvae_hpc.config.loader import dump, read_json
from hvae_hpc.errors import UserError, is_gpu_lost, say
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.state.run_log import (
    MACHINE_ERRORS,
    check_stall,
    checkpoint_at,
    evidence_of,
    record,
    spent_s,
)
from hvae_hpc.jobs.worker import signals
from hvae_hpc.jobs.worker.provenance import make_provenance, read_energy_j
from hvae_hpc.preprocess.store.manifest import require_content
from hvae_hpc.runs.done import read_summary
from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import (
    INPUTS,
    METRICS,
    RESULT_SCHEMA,
    RunResult,
    append_log,
    read_log,
    read_result,
    remove_checkpoints,
    remove_temporaries,
    result_stamp,
    write_config,
    write_json,
    write_result,
)
from hvae_hpc.runs.lease import Lease, LostError, check, host, job_id, locked, restart_count
from hvae_hpc.runs.plan import REPLAN, Plan
from hvae_hpc.runs.workplace import Outcome, Workplace

STAGES = {
    "train": "training.train:train_generator",
    "likelihood": "evaluation.likelihood:measure_likelihood",
    "generate": "evaluation.generate:generate_pairs",
    "augment": "evaluation.augment:augment_pairs",
    "quality": "evaluation.quality:measure_quality",
    "segment": "evaluation.segment:segment",
}
"""Stage to the module and the function that does it."""
BUSY_S = 900.0
"""How long to wait for another process at a run: SLURM has yet to end a lost node's."""
RETRY_BUSY_S = 1.0
HEADLINES = {
    "dice": "Dice {:.3f}",
    "psnr_mean": "{:.4g} dB PSNR",
    "rejected": "{:.4g} draws rejected",
    "log_likelihood": "{:.4g} nats",
    "elbo": "{:.4g} nats ELBO",
}
"""What of a run's metrics is told when it is done: the first of these that it has."""


End = Literal["done", "stopped", "failed", "blocked", "busy"]


@frozen
class Report:
    """How an attempt at a run ended.

    Attributes:
        state: "busy" where another process is at the run, or took it over; "blocked" where a parent
            is missing.
        message: one line for people.
    """

    run_id: str
    state: End
    message: str
    wall_s: float
    gpu_lost: bool = False


def execute(plan: Plan, run_id: str, at_once: int = 1) -> Report:
    """Make one run, or go on with it; what goes wrong inside it is reported, never raised.

    Args:
        plan: with the run and its parents.
        run_id: of the run.
        at_once: how many runs share the device.
    """
    started = time.time()
    folder = plan.folder(run_id)

    def report(state: End, message: str) -> Report:
        return Report(run_id=run_id, state=state, message=message, wall_s=time.time() - started)

    try:
        refuse_links(folder, plan.runs_folder)
        with locked(folder) as lease:
            if not lease:
                return report("busy", "another process is at it")
            try:
                stamps = _stamp_parents(plan, run_id)
            except UserError as error:
                return report("blocked", record(folder, "blocked", str(error)))
            if read_summary(plan, run_id, stamps).done:
                _tidy(folder)  # its maker may have been killed just before it did so
                return report("done", "was done already")
            outcome = _make(plan, run_id, stamps, lease, started, at_once)
            if outcome is None:
                return report("stopped", "saved and left")
            told = outcome.metrics
            headlines = (text.format(told[n]) for n, text in HEADLINES.items() if n in told)
            return report("done", next(headlines, ""))
    except LostError as error:  # the log is the other process's now
        say(error)
        return report("busy", str(error))
    except UserError as error:
        return report("failed", record(folder, "failed", str(error), **evidence_of(error)))
    except Exception as error:  # a bug in one run must not take the others of this process along
        say(traceback.format_exc(), to=sys.stderr)
        kind, evidence, is_lost = type(error).__name__, evidence_of(error), is_gpu_lost()
        is_known = evidence.get("errno") in MACHINE_ERRORS or kind.endswith("MemoryError")
        message = f"{kind}: {error}"
        if is_lost:
            evidence["gpu_lost"] = True
        elif not is_known:
            message += " (a bug: traceback in the log)"
        message = record(folder, "failed", message, **evidence)
        return replace(report("failed", message), gpu_lost=is_lost)


def execute_when_free(plan: Plan, run_id: str, at_once: int = 1) -> Report:
    """Make a run as :func:`execute` does; wait where another process is at it.

    An element waits ``BUSY_S`` at most, so that it does not hold its GPU for another's work.
    """
    give_up_at = time.monotonic() + (BUSY_S if job_id() else math.inf)
    while (report := execute(plan, run_id, at_once)).state == "busy":
        if signals.leave_asked() or time.monotonic() > give_up_at:
            break
        time.sleep(RETRY_BUSY_S)
    return report


def _stamp_parents(plan: Plan, run_id: str) -> dict[str, str]:
    """Return role to result stamp of a run's parents.

    Raises:
        UserError: a parent has no result, or one that cannot be believed; it names the parent.
    """
    stamps = {}
    for role, parent in plan.parents(run_id).items():
        result = read_result(plan.folder(parent), parent)
        if result is None:
            raise UserError(f"needs {plan.runs[parent]} ({parent}), which has no metrics.json")
        stamps[role] = result_stamp(result)
    return stamps


def _make(
    plan: Plan,
    run_id: str,
    stamps: Mapping[str, str],
    lease: Lease,
    started: float,
    at_once: int,
) -> Outcome | None:
    """Make a run whose folder this process holds; None where it was told to leave."""
    run, folder, resources = plan.runs[run_id], plan.folder(run_id), plan.resources_of(run_id)
    if run.run_id != run_id:
        raise UserError(f"the package now names this run {run.run_id}; {REPLAN}")

    # From here on the run is not done, also where it was made before.
    remove_temporaries(folder)
    check(folder)
    (folder / METRICS).unlink(missing_ok=True)
    write_config(folder, dump(run.config))
    _drop_stale_checkpoints(folder, stamps)

    log = read_log(folder)
    attempt = 1 + sum(entry["event"] == "started" for entry in log)
    begins = {"event": "started", "attempt": attempt, "host": host(), "job_id": job_id()}
    append_log(folder, {**begins, "at": checkpoint_at(folder), "at_once": at_once})
    check_stall(folder, log)
    require_content(Path(plan.data[run.config.data]["folder"]), run.parents["data"])

    energy_before = read_energy_j() if resources.gpus else None
    outcome = _work(plan, run_id, lambda: lease.lost or signals.leave_asked())
    if outcome is None:
        append_log(folder, {"event": "stopped", "job_id": job_id()})
        return None

    provenance = make_provenance(
        outcome, plan.code_sha, resources, attempt, started, spent_s(log), energy_before, at_once
    )
    result = RunResult(
        schema=RESULT_SCHEMA,
        run_id=run_id,
        stage=run.stage,
        config=dump(run.config),
        parents=dict(run.parents),
        parent_results=dict(stamps),
        metrics=outcome.metrics,
        per_case=outcome.per_case,
        provenance=provenance,
        details=outcome.details,
    )
    write_result(folder, result)
    _tidy(folder)
    return outcome


def _drop_stale_checkpoints(folder: Path, stamps: Mapping[str, str]) -> None:
    """Begin again where a parent was made again since the checkpoints were written."""
    path = folder / INPUTS
    if path.exists() and read_json(path) != stamps:
        remove_checkpoints(folder)
        append_log(folder, {"event": "inputs_changed"})
    write_json(path, stamps)


def _tidy(folder: Path) -> None:
    """Remove what training kept to go on from, and what killed writers left."""
    remove_checkpoints(folder)
    remove_temporaries(folder)


def stage_function(stage: str) -> Callable[[Any, Workplace], Outcome | None]:
    """Import and return what a stage does; only here, as a process pays for what it imports."""
    return resolve_name(f"hvae_hpc.{STAGES[stage]}")


def _work(plan: Plan, run_id: str, stopped: Callable[[], bool], rank: int = 0) -> Outcome | None:
    """Do what a run's stage does, as one of the run's processes."""
    run, resources = plan.runs[run_id], plan.resources_of(run_id)
    place = Workplace(
        folder=plan.folder(run_id),
        data=Path(plan.data[run.config.data]["folder"]),
        parents={role: plan.folder(parent) for role, parent in plan.parents(run_id).items()},
        resources=resources,
        stopped=stopped,
        rank=rank,
        world=resources.tasks if job_id() else 1,
        local_rank=int(os.environ.get("SLURM_LOCALID", "0")),
        rendezvous=meeting_file(plan, run_id, "here"),
    )
    return stage_function(run.stage)(run.config, place)


def meeting_file(plan: Plan, run_id: str, what: Literal["here", "over"]) -> Path:
    """Return a file of a run's present attempt, which the first of its processes makes.

    "here" tells the others where the first process listens, "over" that there is nothing to train.
    """
    return plan.folder(run_id) / f".{what}-{job_id()}-{restart_count()}.tmp"


def follow(plan: Plan, run_id: str, rank: int) -> int:
    """Train along as a further process of a run; the first process does the rest.

    Returns:
        0, or 1 where the training failed.
    """
    here, over = meeting_file(plan, run_id, "here"), meeting_file(plan, run_id, "over")
    while not here.exists():
        if over.exists() or signals.leave_asked():
            return 0
        time.sleep(0.2)
    try:
        _work(plan, run_id, signals.leave_asked, rank)
    except UserError as error:
        say(f"process {rank}: {error}")
        return 1
    return 0
