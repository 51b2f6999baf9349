"""What one SLURM array element does: the runs of its bundle, one after the other or side by side, and how it leaves.

At the time limit it saves and sends itself back to the queue, if it got further; told to go for
another reason, it saves and goes: what is preempted, SLURM requeues by itself. Elements that reach
    their limits together make one call.
"""

from hvae_hpc.jobs.worker import signals

if __name__ == "__main__":
    signals.install()

import argparse
import contextlib
import fcntl
import os
import random
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError, run_command
from hvae_hpc.jobs.failures.canary import why_held
from hvae_hpc.jobs.slurm.client import CALL_EVERY_S, ask, format_places
from hvae_hpc.jobs.state.run_log import (
    LEFT_EARLY,
    announce,
    how_far,
    last_event_in,
    let_output_be_lost,
    meeting_file,
    record,
)
from hvae_hpc.jobs.worker.local_pool import Worker
from hvae_hpc.jobs.worker.run import Report, execute, follow, read_mine
from hvae_hpc.jobs.worker.side_by_side import Together
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.lease import job_id
from hvae_hpc.runs.plan import Plan

SPREAD_S = 20.0
"""Elements of a large array start within this time, so that a file server does not meet all of them at once."""
BUSY_S = 900.0
"""How long to wait for another process at the same run: a lost node's, which SLURM has yet to end."""
EARLY_S = 120.0
"""SLURM sends the signal up to 60 s early, and a step starts some time after its job."""
LATE_S = 90.0
"""SLURM ends what it preempts up to this long after the grace time: it looks now and then, and is polite."""
STALE_S = 120.0
"""An id that lies in the box for so long is of an element that was killed before its turn."""
ENDED_S = 120.0
"""How long SLURM may take to end what it was asked to requeue."""
FREE_RESTARTS = 3
"""Times that an element may send itself back without having got further: a limit may come too soon after a start."""


def run_element(plan_file: Path, array: int) -> int:
    """Do the runs of one element; a run that fails does not stop the others.

    Returns:
        0 where all are done, 1 where one failed or is blocked or held, 75 where it was asked to
        leave.
    """
    announce()
    plan, ids = read_mine(plan_file, array)
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    place = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    if not rank and (reason := why_held(plan_file, plan, array, place)):
        print(reason, flush=True)
        for run_id in ids:
            record(plan.folder(run_id), "blocked", reason)
        return 1
    _check_code(plan, ids)
    if rank:
        return follow(plan, ids[0], rank)
    elements = len(plan.arrays[array].elements)
    _wait(random.uniform(0, min(SPREAD_S, 0.02 * elements)), signals.leave_asked)
    began = time.time()
    before = {run_id: how_far(plan.folder(run_id)) for run_id in ids}
    reports = _do_all(plan, ids, lambda: Worker(plan_file, sys.stderr, array))
    resources = plan.resources_of(ids[0])
    if resources.tasks > 1 and (
        before[ids[0]] == float("inf") or how_far(plan.folder(ids[0])) < float("inf")
    ):
        meeting_file(
            plan, ids[0], "over"
        ).touch()  # where there was nothing to train, the others wait still
    if not signals.leave_asked() and all(report.state != "stopped" for report in reports.values()):
        return 0 if all(how_far(plan.folder(run_id)) == float("inf") for run_id in ids) else 1
    box = plan_file.parent / "requeue"
    times = _times_sent_back(box, job_id())
    further = any(how_far(plan.folder(run_id)) > before[run_id] for run_id in ids)
    at_limit = signals.time_is_up() and _limit_is_near(plan.arrays[array].minutes, resources, began)
    goes_back = at_limit and times < plan.requeues and (further or times < FREE_RESTARTS)
    why = (
        f"at its limit of {plan.arrays[array].minutes} minutes" if at_limit else "it was told to go"
    )
    for folder in map(plan.folder, ids):
        if last_event_in(folder, job_id()) == "stopped":
            record(folder, "left", why, at_limit=at_limit, further=further, goes_back=goes_back)
    if not at_limit:
        # What ends by itself in the grace time before a preemption is not requeued: it
        # waits to be ended.
        grace_s = plan.arrays[array].grace_s
        _wait(grace_s + LATE_S if grace_s else 0.0, lambda: False)
    elif not goes_back:
        print(
            f"at the time limit, sent back {times} times before, no further than then: not sent back",
            flush=True,
        )
    else:
        try:
            requeue(box, job_id())
        except OSError as error:  # a full disk: what saved nothing would come again and again
            print(
                f"could not be sent back ({error}); make room and give the sweep command again",
                flush=True,
            )
    return LEFT_EARLY


def _limit_is_near(minutes: int, resources: Resources, began: float) -> bool:
    """Tell whether USR2 came for the time limit: SLURM can be set up to send it at a preemption as well."""
    if end := os.environ.get("SLURM_JOB_END_TIME"):  # from SLURM 23 on
        left_s = float(end) - time.time()
    elif resources.minutes_min:  # SLURM chose the limit, and does not say which
        return True
    else:
        left_s = 60 * minutes - (time.time() - began)
    return left_s < resources.signal_lead_s + EARLY_S


def _check_code(plan: Plan, ids: Sequence[str]) -> None:
    if plan.allow_code_drift or code_sha() == plan.code_sha:
        return
    message = (
        f"the package changed since this was submitted ({plan.code_sha}, now {code_sha()}); give the sweep command "
        "again to run the new code, or with --allow-code-drift"
    )
    for run_id in ids:
        record(plan.folder(run_id), "failed", message)
    raise UserError(message)


def _do_all(plan: Plan, ids: Sequence[str], start: Callable[[], Worker]) -> dict[str, Report]:
    """Make the runs, in order or side by side, then those again that another process held or that failed beside others.

    Args:
        plan: of the element.
        ids: its runs.
        start: starts a process for some of them.
    """
    reports: dict[str, Report] = {}
    # What failed before it was sent back is not tried again.
    todo = [run_id for run_id in ids if last_event_in(plan.folder(run_id), job_id()) != "failed"]
    end: float | None = None

    def tell(report: Report) -> None:
        run = plan.runs[report.run_id]
        said = f"{report.state}: {run.stage} {run.label} ({report.run_id}), {report.wall_s:.1f} s: {report.message}"
        print(said, flush=True)

    if len(todo) > 1 and plan.resources_of(ids[0]).side_by_side:
        together = Together(plan, todo, start, tell)
        together.run()
        reports |= together.reports
        todo = [run_id for run_id in todo if run_id not in reports]
    while todo and not signals.leave_asked():
        for run_id in todo:
            if signals.leave_asked():
                break
            report = reports[run_id] = execute(plan, run_id)
            if report.state != "busy":
                tell(report)
        todo = [
            run_id
            for run_id in todo
            if reports.get(run_id) is None or reports[run_id].state == "busy"
        ]
        end = end or time.monotonic() + BUSY_S
        if time.monotonic() > end:
            print(f"busy: {' '.join(todo)}: another process was at it all the time", flush=True)
            break
        if todo:
            _wait(5.0, signals.leave_asked)
    return reports


def _wait(seconds: float, over: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not over():
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))


def requeue(box: Path, element: str) -> None:
    """Send an element back to the queue; elements that come at about the same time go by one call.

    Each leaves its id in a box; whoever gets the lock next takes all that are in it along. Who is
    told to go meanwhile takes its id out again: it was cancelled, or preempted, and is SLURM's.

    Args:
        box: file of the submission in which the ids lie; what was sent back stands in
            ``<box>.sent``.
        element: SLURM's ``<array>_<place>``.
    """
    _change(box, lambda lines: [*lines, f"{element} {time.time():.0f}"])
    _wait(random.uniform(0.0, 4.0), _told_to_go)
    with open(box.with_suffix(".sent"), "a+") as sent:
        _wait_for_lock(sent)
        if element in [
            line.split()[0] for line in _change(box, lambda lines: lines)
        ]:  # nobody took it along
            since = time.time() - os.fstat(sent.fileno()).st_mtime
            _wait(min(CALL_EVERY_S, CALL_EVERY_S - since) if sent.tell() else 0.0, _told_to_go)
            if _told_to_go():
                _change(box, lambda lines: [line for line in lines if line.split()[0] != element])
                return
            young = time.time() - STALE_S
            ids = {
                line.split()[0]
                for line in _change(box, lambda lines: [])
                if float(line.split()[1]) > young
            }
            sent.write("".join(f"{i}\n" for i in sorted(ids)))
            sent.flush()
            print(
                f"at the time limit: saved, sent back to the queue ({len(ids)} elements)",
                flush=True,
            )
            try:
                ask(["scontrol", "requeue", _job_list(ids)], patience_s=30.0)
            except UserError as error:
                print(f"could not be sent back ({error}); give the sweep command again", flush=True)
                return
    _wait(ENDED_S, _told_to_go)


def _told_to_go() -> bool:
    return not signals.time_is_up()


def _change(box: Path, change: Callable[[list[str]], list[str]]) -> list[str]:
    """Replace the lines of a file that others change as well; returns what they were."""
    with open(box, "a+") as file:
        _wait_for_lock(file)
        file.seek(0)
        lines = file.read().splitlines()
        changed = change(list(lines))
        if changed[: len(lines)] == lines:  # on a full disk, nothing of what others wrote is lost
            changed = changed[len(lines) :]
        else:
            file.truncate(0)
        file.write("".join(f"{line}\n" for line in changed))
    return lines


def _wait_for_lock(file: IO[str]) -> None:
    with contextlib.suppress(
        OSError
    ):  # none on this file system: two at once may lose an id, and that element waits
        fcntl.flock(file, fcntl.LOCK_EX)


def _times_sent_back(box: Path, element: str) -> int:
    sent = box.with_suffix(".sent")
    return sent.read_text().split().count(element) if sent.exists() else 0


def _job_list(elements: Collection[str]) -> str:
    """Name elements as scontrol takes them, in few requests: "7_[0-4,9],8_[1]"."""
    places: dict[str, list[int]] = {}
    for element in elements:
        job, _, place = element.partition("_")
        places.setdefault(job, []).append(int(place))
    return ",".join(f"{job}_[{format_places(places[job])}]" for job in sorted(places))


def main(argv: Sequence[str]) -> int:
    """Parse the command line that the launcher wrote."""
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
