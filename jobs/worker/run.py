"""What one process does with runs: checks, makes, or goes on with one; and a local worker, told one after the other.

A SLURM element does the same with the runs of its bundle (:mod:`hvae_hpc.jobs.worker.element`).
"""

from hvae_hpc.jobs.worker import signals

if __name__ == "__main__":
    signals.install()

import argparse
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from hvae_hpc.config.loader import dump, read_json
from hvae_hpc.errors import UserError, run_command
from hvae_hpc.jobs.state.run_log import (
    MACHINE_ERRORS,
    check_stall,
    checkpoint_at,
    evidence_of,
    let_output_be_lost,
    meeting_file,
    record,
    spent_s,
)
from hvae_hpc.jobs.worker.gpu_meter import GPUMeter
from hvae_hpc.jobs.worker.provenance import make_provenance
from hvae_hpc.preprocess.store.manifest import require_content
from hvae_hpc.runs.done import read_summary
from hvae_hpc.runs.folder import (
    INPUTS,
    METRICS,
    RESULT_SCHEMA,
    RunResult,
    append_log,
    read_log,
    read_result,
    remove_temporaries,
    result_stamp,
    write_config,
    write_json,
    write_result,
)
from hvae_hpc.runs.lease import LostError, check, host, job_id, locked
from hvae_hpc.runs.plan import REPLAN, Plan, read_element, read_plan
from hvae_hpc.runs.workplace import Outcome, Workplace

STAGES = {
    "train": ("training.train", "train_generator"),
    "likelihood": ("evaluation.likelihood", "measure_likelihood"),
    "generate": ("evaluation.generate", "generate_pairs"),
    "augment": ("evaluation.augment", "augment_pairs"),
    "quality": ("evaluation.quality", "measure_quality"),
    "segment": ("evaluation.segment", "segment"),
}
"""Stage to the module and the function that does it."""
HEADLINES = {
    "dice": "Dice {:.3f}",
    "psnr_mean": "{:.4g} dB PSNR",
    "rejected": "{:.4g} draws rejected",
    "log_likelihood": "{:.4g} nats",
    "elbo": "{:.4g} nats ELBO",
}
"""What of a run's metrics is told when it is done: the first of these that it has."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How an attempt at a run ended.

    Attributes:
        state: "busy" is another process at the same run, or one that took it over; "blocked" a
            missing parent.
        message: one line for people.
    """

    run_id: str
    state: Literal["done", "stopped", "failed", "blocked", "busy"]
    message: str
    wall_s: float


def execute(
    plan: Plan, run_id: str, stopped: Callable[[], bool] = signals.leave_asked, at_once: int = 1
) -> Report:
    """Make one run, or go on with it, as one of so many on its device; never raises for what went wrong inside it."""
    started = time.time()
    folder = plan.folder(run_id)

    def report(
        state: Literal["done", "stopped", "failed", "blocked", "busy"], message: str
    ) -> Report:
        return Report(run_id=run_id, state=state, message=message, wall_s=time.time() - started)

    try:
        with locked(folder) as mine:
            if not mine:
                return report("busy", "another process is at it")
            try:
                parents = _read_parents(plan, run_id)
            except UserError as error:
                return report("blocked", record(folder, "blocked", str(error)))
            if read_summary(
                plan, run_id, {role: result_stamp(result) for role, result in parents.items()}
            ).done:
                _tidy(folder)  # its maker may have been killed just before it did so
                return report("done", "was done already")
            outcome = _work(plan, run_id, lambda: mine.lost or stopped(), started, parents, at_once)
            return (
                report("stopped", "saved and left")
                if outcome is None
                else report("done", _headline(outcome))
            )
    except LostError as error:  # the log is the other's now
        print(error, flush=True)
        return report("busy", str(error))
    except UserError as error:
        return report("failed", record(folder, "failed", str(error), **evidence_of(error)))
    except Exception as error:  # a bug in one run must not take the others of this process along
        traceback.print_exc()
        kind, evidence = type(error).__name__, evidence_of(error)
        ours = evidence.get("errno") not in MACHINE_ERRORS and not kind.endswith("MemoryError")
        message = f"{kind}: {error}{' (a bug: traceback in the log)' if ours else ''}"
        return report("failed", record(folder, "failed", message, **evidence))


def _read_parents(plan: Plan, run_id: str) -> dict[str, RunResult]:
    """Return role to result of a run's parents; a missing one is a UserError that names it."""
    results = {}
    for role, parent in plan.parents(run_id).items():
        result = read_result(plan.folder(parent), parent)
        if result is None:
            run = plan.runs[parent]
            raise UserError(f"needs {run.stage} {run.label} ({parent}), which has no metrics.json")
        results[role] = result
    return results


def _work(
    plan: Plan,
    run_id: str,
    stopped: Callable[[], bool],
    started: float,
    parents: dict[str, RunResult],
    at_once: int,
) -> Outcome | None:
    run, folder = plan.runs[run_id], plan.folder(run_id)
    if run.run_id != run_id:
        raise UserError(f"the package now names this run {run.run_id}; {REPLAN}")
    remove_temporaries(folder)
    check(folder)
    (folder / METRICS).unlink(
        missing_ok=True
    )  # of an earlier making; from here on the run is not done
    write_config(folder, dump(run.config))
    stamps = {role: result_stamp(parent) for role, parent in parents.items()}
    _drop_stale_checkpoints(folder, stamps)
    log = read_log(folder)
    attempt = 1 + sum(entry.get("event") == "started" for entry in log)
    at = checkpoint_at(folder)
    beside = {"at_once": at_once} if at_once > 1 else {}
    append_log(
        folder,
        {
            "event": "started",
            "attempt": attempt,
            "host": host(),
            "job_id": job_id(),
            "at": at,
            **beside,
        },
    )
    check_stall(folder, log)
    require_content(Path(plan.data[run.config.data]["folder"]), run.parents["data"])
    resources = plan.resources_of(run_id)
    workplace = _workplace(plan, run_id, stopped)
    with GPUMeter(wanted=resources.gpus > 0) as meter:
        outcome = stage_function(run.stage)(run.config, workplace)
    if outcome is None:
        append_log(folder, {"event": "stopped", "job_id": job_id()})
        return None
    result = RunResult(
        schema=RESULT_SCHEMA,
        run_id=run_id,
        stage=run.stage,
        config=dump(run.config),
        parents=dict(run.parents),
        parent_results=stamps,
        metrics=outcome.metrics,
        per_case=outcome.per_case,
        provenance=make_provenance(
            outcome, plan.code_sha, resources, attempt, started, spent_s(log), meter.read(), at_once
        ),
        details=outcome.details,
    )
    write_result(folder, result)
    _tidy(folder)
    return outcome


def _tidy(folder: Path) -> None:
    """Remove what training kept to go on from, and what killed writers left."""
    for path in folder.glob("checkpoint-*.pt"):
        path.unlink(missing_ok=True)
    remove_temporaries(folder)


def _drop_stale_checkpoints(folder: Path, stamps: dict[str, str]) -> None:
    """Start anew where a checkpoint was made from other makings of the parents than the present ones."""
    path = folder / INPUTS
    if path.exists() and read_json(path) != stamps:
        for checkpoint in folder.glob("checkpoint-*.pt"):
            checkpoint.unlink(missing_ok=True)
        append_log(folder, {"event": "inputs_changed"})
    write_json(path, stamps)


def stage_function(stage: str) -> Callable[[Any, Workplace], Outcome | None]:
    """Import and return what a stage does; only here, because a process pays for what it imports."""
    module, name = STAGES[stage]
    work: Callable[[Any, Workplace], Outcome | None] = getattr(
        import_module(f"hvae_hpc.{module}"), name
    )
    return work


def _workplace(plan: Plan, run_id: str, stopped: Callable[[], bool], rank: int = 0) -> Workplace:
    run, resources = plan.runs[run_id], plan.resources_of(run_id)
    return Workplace(
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


def follow(plan: Plan, run_id: str, rank: int) -> int:
    """Train along as a further process of a run whose first process does the rest; returns the exit code."""
    meeting, over = meeting_file(plan, run_id, "here"), meeting_file(plan, run_id, "over")
    while not meeting.exists():
        if over.exists() or signals.leave_asked():
            return 0
        time.sleep(0.2)
    run = plan.runs[run_id]
    try:
        # Only a training has several processes, and that is made from nothing but data.
        workplace = _workplace(plan, run_id, signals.leave_asked, rank)
        stage_function(run.stage)(run.config, workplace)
    except UserError as error:
        print(f"process {rank}: {error}", flush=True)
        return 1
    return 0


def read_mine(plan_file: Path, array: int) -> tuple[Plan, tuple[str, ...]]:
    """Read of a submission's plan what this process's element needs."""
    return read_element(plan_file, array, int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")))


def _headline(outcome: Outcome) -> str:
    found = (
        text.format(outcome.metrics[name])
        for name, text in HEADLINES.items()
        if name in outcome.metrics
    )
    return next(found, "")


def serve(plan: Plan) -> int:
    """Do the runs that come line by line on standard input, id and number at once; answer each with a line of JSON.

    When the input ends, so does this process, after a checkpoint: a worker never outlives the sweep
        that started it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get among the answers
    wanted: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            wanted.put(line.strip())
        signals.ask_to_leave()
        wanted.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while not signals.leave_asked():
        try:
            order = wanted.get(timeout=0.5)  # so that a signal between two runs is noticed
        except queue.Empty:
            continue
        if order is None:
            break
        run_id, at_once = order.split()
        print(
            json.dumps(dump(execute(plan, run_id, at_once=int(at_once)))), file=answers, flush=True
        )
    return 0


def main(argv: Sequence[str]) -> int:
    """Parse the command line that the local sweep, or an element, wrote."""
    parser = argparse.ArgumentParser(prog="python -m hvae_hpc.jobs.worker.run")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument(
        "--array", type=int, help="number of the array in the plan, for an element's runs alone"
    )
    options = parser.parse_args(argv)
    return serve(
        read_plan(options.plan)
        if options.array is None
        else read_mine(options.plan, options.array)[0]
    )


if __name__ == "__main__":
    let_output_be_lost()
    sys.exit(run_command(main))
