"""What one SLURM array element does: make the runs of its bundle, and leave in good order.

At its time limit an element saves and sends itself back to the queue, if it got further. When it is
told to go for another reason, it saves and goes: SLURM itself requeues what it preempts.
"""

from hvae_hpc.jobs.worker import signals

if __name__ == "__main__":
    signals.install()

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from hvae_hpc.errors import UserError, run_command, say
from hvae_hpc.jobs.failures.canary import why_held
from hvae_hpc.jobs.slurm.client import ask
from hvae_hpc.jobs.state.run_log import (
    LEFT_EARLY,
    how_far,
    last_event_in,
    let_output_be_lost,
    record,
)
from hvae_hpc.jobs.worker.pool import Pool, Worker
from hvae_hpc.jobs.worker.run import Report, execute_when_free, follow, meeting_file
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.lease import job_id, restart_count
from hvae_hpc.runs.plan import Plan, read_plan

SPREAD_S = 20.0
"""Elements of a large array start within this time, so that a file server is not overrun."""
EARLY_S = 120.0
"""SLURM sends the signal up to 60 s early, and a step starts some time after its job."""
LATE_S = 90.0
"""SLURM may end what it preempts up to this long after the grace time."""
ENDED_S = 120.0
"""How long SLURM may take to end an element that it was asked to requeue."""
FREE_RESTARTS = 3
"""Restarts that need no progress: a limit may come too soon after a start."""


def run_element(plan_file: Path, array: int) -> int:
    """Make the runs of one element; a run that fails does not stop the others.

    Returns:
        0 where all are done; 1 where one failed, is blocked or is held; 75 where the element was
        told to leave.
    """
    say(f"element {job_id()} begins, after {restart_count()} restarts")  # see BEGINS in run_log
    plan = read_plan(plan_file)
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    place = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    ids = plan.arrays[array].elements[place]
    if rank == 0 and (reason := why_held(plan_file, plan, array, place)):
        say(reason)
        for run_id in ids:
            record(plan.folder(run_id), "blocked", reason)
        return 1
    _check_code(plan, ids)
    if rank > 0:
        return follow(plan, ids[0], rank)

    elements = len(plan.arrays[array].elements)
    _wait(random.uniform(0, min(SPREAD_S, 0.02 * elements)), signals.leave_asked)

    began = time.time()
    before = {run_id: how_far(plan.folder(run_id)) for run_id in ids}
    reports = _make_all(plan, plan_file, ids)
    _send_followers_home(plan, ids[0], before[ids[0]])

    if all(_is_done(plan, run_id) for run_id in ids):
        return 0
    if not (signals.leave_asked() or any(report.state == "stopped" for report in reports.values())):
        return 1
    _leave(plan, array, before, began)
    return LEFT_EARLY


def _is_done(plan: Plan, run_id: str) -> bool:
    return how_far(plan.folder(run_id)) == float("inf")


def _check_code(plan: Plan, ids: Sequence[str]) -> None:
    if plan.allow_code_drift or code_sha() == plan.code_sha:
        return
    message = (
        f"the package changed since this was submitted ({plan.code_sha}, now {code_sha()}); "
        "give the sweep command again to run the new code, or with --allow-code-drift"
    )
    for run_id in ids:
        record(plan.folder(run_id), "failed", message)
    raise UserError(message)


def _send_followers_home(plan: Plan, run_id: str, before: float) -> None:
    """Tell a run's further processes that there was nothing to train; else they wait for it."""
    was_trained = before < float("inf") and _is_done(plan, run_id)
    if plan.resources_of(run_id).tasks > 1 and not was_trained:
        meeting_file(plan, run_id, "over").touch()


def _make_all(plan: Plan, plan_file: Path, ids: Sequence[str]) -> dict[str, Report]:
    """Make the runs of one stage: several at a time where the site says so, then one by one."""
    reports: dict[str, Report] = {}
    # A requeued element does not retry what failed in it before.
    todo = [
        run_id
        for run_id in ids
        if last_event_in(plan.folder(run_id), job_id()) not in ("failed", "died")
    ]

    def make_in_workers(at_once: int) -> dict[str, Report]:
        start = partial(Worker, plan_file, sys.stderr, at_once)
        return Pool(plan, at_once, start, partial(_tell, plan)).make(todo)

    resources = plan.resources_of(ids[0])
    at_once = min(resources.at_once, len(todo))
    if at_once > 1 and resources.tasks == 1:
        reports = make_in_workers(at_once)

        # A failure beside others may be theirs (memory): such a run is retried alone.
        todo = [i for i in todo if i in reports and reports[i].state == "failed"]
        for run_id in todo:
            record(plan.folder(run_id), "again", reports[run_id].message)

    while todo and not signals.leave_asked():
        report = execute_when_free(plan, todo.pop(0))
        reports[report.run_id] = report
        _tell(plan, report)
        if report.gpu_lost:  # the others go on in a process of their own
            return reports | make_in_workers(1)
    return reports


def _tell(plan: Plan, report: Report) -> None:
    what = f"{report.state}: {plan.runs[report.run_id]} ({report.run_id})"
    say(f"{what}, {report.wall_s:.1f} s: {report.message}")


def _leave(plan: Plan, array: int, before: Mapping[str, float], began: float) -> None:
    """Log why the element leaves and send it back, or wait until SLURM ends it.

    Args:
        plan: of the submission.
        array: number of the element's array in it.
        before: run id to how far that run was when the element began.
        began: when the element began, seconds since 1970.
    """
    of_array, resources = plan.arrays[array], plan.resources_of(next(iter(before)))
    further = any(how_far(plan.folder(run_id)) > far for run_id, far in before.items())
    at_limit = signals.time_is_up() and _is_limit_near(
        of_array.minutes, resources.minutes_min, resources.signal_lead_s, began
    )
    restarts = restart_count()
    goes_back = at_limit and restarts < plan.requeues and (further or restarts < FREE_RESTARTS)

    why = f"at its limit of {of_array.minutes} minutes" if at_limit else "it was told to go"
    for folder in map(plan.folder, before):
        if last_event_in(folder, job_id()) == "stopped":
            record(folder, "left", why, at_limit=at_limit, further=further, goes_back=goes_back)

    if goes_back:
        requeue(job_id(), min(resources.signal_lead_s / 3, 0.1 * len(of_array.elements)))
    elif at_limit:
        say(f"at the time limit, after {restarts} restarts: not sent back")
    elif of_array.grace_s:
        # SLURM does not requeue what ends by itself in the grace time before a preemption.
        _wait(of_array.grace_s + LATE_S, lambda: False)


def _is_limit_near(minutes: int, minutes_min: int, lead_s: int, began: float) -> bool:
    """Tell whether USR2 came for the time limit: SLURM may send it at a preemption as well."""
    if end := os.environ.get("SLURM_JOB_END_TIME"):  # from SLURM 23 on
        left_s = float(end) - time.time()
    elif minutes_min:  # SLURM chose the limit, and does not say which
        return True
    else:
        left_s = 60 * minutes - (time.time() - began)
    return left_s < lead_s + EARLY_S


def requeue(element: str, spread_s: float) -> None:
    """Send this element back to the queue, and wait until SLURM ends it.

    Whoever is told to go meanwhile was cancelled or preempted, and is not sent back.

    Args:
        element: SLURM's ``<array>_<place>``.
        spread_s: elements that reach their limits together call within so many seconds.
    """
    _wait(random.uniform(0, spread_s), _is_told_to_go)
    if _is_told_to_go():
        return
    try:
        ask(["scontrol", "requeue", element], patience_s=30.0)  # once more where SLURM is busy
    except UserError as error:
        say(f"could not be sent back ({error}); give the sweep command again")
        return
    say("at the time limit: saved, sent back to the queue")
    _wait(ENDED_S, _is_told_to_go)


def _is_told_to_go() -> bool:
    return not signals.time_is_up()


def _wait(seconds: float, is_over: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_over():
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))


def main(argv: Sequence[str]) -> int:
    """Parse the command line that stands in the element's sbatch text."""
    parser = argparse.ArgumentParser(prog="python -m hvae_hpc.jobs.worker.element")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--array", type=int, required=True, help="number of the array in the plan")
    options = parser.parse_args(argv)
    return run_element(options.plan, options.array)


if __name__ == "__main__":
    let_output_be_lost()
    code = run_command(main)
    signals.ignore()
    sys.exit(code)
