"""What one process does with runs: a SLURM array element, or a local worker that is told one run after the other.

The first lines make the signals that mean "leave" (USR2 before a time limit, TERM at a preemption, INT) set a
flag, before anything slow is imported; the training loop looks at the flag between steps, saves and leaves.
"""

import signal

_LEAVE: list[int] = []


def _note_signal(number: int, frame: object) -> None:
    _LEAVE.append(number)


def install_signal_handlers() -> None:
    """Make USR2, TERM and INT ask for a checkpoint and an end."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note_signal)


if __name__ == "__main__":
    install_signal_handlers()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import queue  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal  # noqa: E402

from hvae_hpc.config import dump, read_json  # noqa: E402
from hvae_hpc.errors import UserError, run_command  # noqa: E402
from hvae_hpc.jobs.provenance import host, job_id, make_provenance  # noqa: E402
from hvae_hpc.plan import AGAIN, Plan, read_plan, read_state  # noqa: E402
from hvae_hpc.resources import Outcome, Workplace  # noqa: E402
from hvae_hpc.rundir import (  # noqa: E402
    INPUTS,
    METRICS,
    RESULT_SCHEMA,
    RunResult,
    append_log,
    locked,
    read_log,
    read_result,
    remove_temporaries,
    result_stamp,
    write_config,
    write_json,
    write_result,
)

LEFT_EARLY = 75  # exit code (sysexits' "temporary failure"): saved, to be gone on with


@dataclass(frozen=True, kw_only=True)
class Report:
    """How an attempt at a run ended.

    Attributes:
        state: "busy" is another process at the same run, "blocked" a parent that is missing.
        message: one line for people.
    """

    run_id: str
    state: Literal["done", "stopped", "failed", "blocked", "busy"]
    message: str
    wall_s: float


def leave_asked() -> bool:
    """Tell whether a signal asked this process to save and leave."""
    return bool(_LEAVE)


def execute(plan: Plan, run_id: str, stopped: Callable[[], bool] = leave_asked) -> Report:
    """Make one run, or go on with it; never raises for what went wrong inside it."""
    started = time.time()
    folder = plan.folder(run_id)

    def report(state: Literal["done", "stopped", "failed", "blocked", "busy"], message: str) -> Report:
        return Report(run_id=run_id, state=state, message=message, wall_s=time.time() - started)

    try:
        with locked(folder) as mine:
            if not mine:
                return report("busy", "another process is at it")
            try:
                parents = _read_parents(plan, run_id)
            except UserError as error:
                return report("blocked", str(error))
            if read_state(plan, run_id, {role: result_stamp(result) for role, result in parents.items()}).done:
                return report("done", "was done already")
            outcome = _work(plan, run_id, stopped, started, parents)
            return report("stopped", "saved and left") if outcome is None else report("done", _headline(outcome))
    except UserError as error:
        return report("failed", _record_failure(folder, str(error)))
    except Exception as error:  # a bug in one run must not take the others of this process along
        traceback.print_exc()
        return report(
            "failed", _record_failure(folder, f"{type(error).__name__}: {error} (a bug: traceback in the log)")
        )


def _read_parents(plan: Plan, run_id: str) -> dict[str, RunResult]:
    """Return role to result of a run's parents; a missing one is a UserError that names it."""
    results = {}
    for role, parent in plan.parents(run_id).items():
        result = read_result(plan.folder(parent), parent)
        if result is None:
            run = plan.runs[parent]
            raise UserError(f"blocked: needs {run.stage} {run.label} ({parent}), which has no metrics.json")
        results[role] = result
    return results


def _work(
    plan: Plan, run_id: str, stopped: Callable[[], bool], started: float, parents: dict[str, RunResult]
) -> Outcome | None:
    run, folder = plan.runs[run_id], plan.folder(run_id)
    if run.run_id != run_id:
        raise UserError(f"the package now names this run {run.run_id}; {AGAIN}")
    remove_temporaries(folder)
    (folder / METRICS).unlink(missing_ok=True)  # of an earlier making; from here on the run is not done
    write_config(folder, dump(run.config))
    _drop_stale_checkpoints(folder, {role: result_stamp(parent) for role, parent in parents.items()})
    attempt = 1 + sum(record.get("event") == "started" for record in read_log(folder))
    append_log(folder, {"event": "started", "attempt": attempt, "host": host(), "job_id": job_id()})
    data = Path(plan.data[run.config.data]["folder"])
    _check_data(data, run.parents["data"])
    resources = plan.resources[run.stage]
    workplace = Workplace(
        folder=folder,
        data=data,
        parents={role: plan.folder(parent) for role, parent in plan.parents(run_id).items()},
        resources=resources,
        stopped=stopped,
    )
    outcome = stage_function(run.stage)(run.config, workplace)
    if outcome is None:
        append_log(folder, {"event": "stopped"})
        return None
    result = RunResult(
        schema=RESULT_SCHEMA,
        run_id=run_id,
        stage=run.stage,
        config=dump(run.config),
        parents=dict(run.parents),
        parent_results={role: result_stamp(parent) for role, parent in parents.items()},
        metrics=outcome.metrics,
        per_case=outcome.per_case,
        provenance=make_provenance(outcome, plan.code_sha, resources, attempt, started),
        details=outcome.details,
    )
    write_result(folder, result)
    for path in folder.glob("checkpoint-*.pt"):  # what training kept to go on from
        path.unlink(missing_ok=True)
    return outcome


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
    if stage == "train":
        from hvae_hpc.training.train import train_generator

        return train_generator
    if stage == "generate":
        from hvae_hpc.evaluation.generate import generate_pairs

        return generate_pairs
    if stage == "augment":
        from hvae_hpc.evaluation.augment import augment_pairs

        return augment_pairs
    if stage == "quality":
        from hvae_hpc.evaluation.quality import measure_quality

        return measure_quality
    from hvae_hpc.evaluation.segment import segment

    return segment


def _check_data(folder: Path, content_hash: str) -> None:
    from hvae_hpc.preprocess.manifest import read_manifest

    found = read_manifest(folder).content_hash
    if found != content_hash:
        raise UserError(
            f"{folder}: was repacked (content {found[:12]}, this run reads {content_hash[:12]}); "
            "give the sweep command again"
        )


def _record_failure(folder: Path, message: str) -> str:
    line = " ".join(message.split())
    try:
        append_log(folder, {"event": "failed", "reason": line})
    except OSError:  # a full disk is one of the failures to tell of
        print(f"{folder}: the failure could not be logged", file=sys.stderr)
    return line


def _headline(outcome: Outcome) -> str:
    for name, unit in (
        ("dice", ""),
        ("psnr_mean", " dB PSNR"),
        ("rejected", " draws rejected"),
        ("elbo", " nats ELBO"),
    ):
        if name in outcome.metrics:
            value = outcome.metrics[name]
            return f"Dice {value:.3f}" if name == "dice" else f"{value:.4g}{unit}"
    return ""


def run_element(plan_file: Path, array: int) -> int:
    """Do the runs of one SLURM array element; a run that fails does not stop the others.

    Returns:
        0 where all are done, 1 where one failed or is blocked, 75 where a signal asked to leave.
    """
    plan = read_plan(plan_file)
    element = plan.arrays[array]["elements"][int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    states = []
    for run_id in element:
        if leave_asked():
            return LEFT_EARLY
        report = execute(plan, run_id)
        states.append(report.state)
        run = plan.runs[run_id]
        print(
            f"{report.state}: {run.stage} {run.label} ({run_id}), {report.wall_s:.1f} s: {report.message}", flush=True
        )
        if report.state == "stopped":
            return LEFT_EARLY
    return 0 if all(state == "done" for state in states) else 1


def serve(plan_file: Path) -> int:
    """Do the runs whose ids come line by line on standard input; answer each with a line of JSON.

    When the input ends, so does this process, after a checkpoint: a worker never outlives the sweep that started it.
    """
    plan = read_plan(plan_file)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get among the answers
    wanted: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            wanted.put(line.strip())
        _LEAVE.append(0)
        wanted.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while not leave_asked():
        try:
            run_id = wanted.get(timeout=0.5)  # so that a signal between two runs is noticed
        except queue.Empty:
            continue
        if run_id is None:
            break
        print(json.dumps(dump(execute(plan, run_id))), file=answers, flush=True)
    return 0


def main(argv: Sequence[str]) -> int:
    """Parse the command line that the launcher wrote."""
    parser = argparse.ArgumentParser(prog="python -m hvae_hpc.jobs.tasks")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--array", type=int, help="number of the array in the plan; without it, serve standard input")
    options = parser.parse_args(argv)
    return serve(options.plan) if options.array is None else run_element(options.plan, options.array)


if __name__ == "__main__":
    sys.exit(run_command(main))
