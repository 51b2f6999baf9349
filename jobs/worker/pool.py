"""Several runs at a time, each in a worker: a child process that makes one run after the other.

A worker pays once for what it imports. When it dies (kill -9, out of memory), only its own run is
lost: the run is reported, a new worker takes the place, and a later attempt goes on from the run's
checkpoint. A local sweep has a pool for all its runs, an element for those that share its GPU.
"""

from hvae_hpc.jobs.worker import signals

if __name__ == "__main__":
    signals.install()

import contextlib
import itertools
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from hvae_hpc.config.loader import dump, load
from hvae_hpc.errors import run_command, say
from hvae_hpc.jobs.state.run_log import (
    count_oom_kills,
    evidence_of_death,
    let_output_be_lost,
    record,
)
from hvae_hpc.jobs.worker.run import Report, execute_when_free
from hvae_hpc.runs.files import open_to_append
from hvae_hpc.runs.plan import Plan, read_plan

STAGE_ORDER = ("train", "augment", "generate", "segment", "quality", "likelihood")
"""Order of runs that could start: what others wait for goes first, so parents before children."""


class Worker:
    """A child process and the run it is at.

    Args:
        plan_file: where its runs stand.
        log: takes what it prints.
        at_once: how many workers share its device, which is noted in what its runs cost.

    Attributes:
        run_id: what it is at; None while it waits for a run.
        death: evidence of why it died at its run; empty while it lives.
    """

    def __init__(self, plan_file: Path, log: IO[Any], at_once: int = 1) -> None:
        module = "hvae_hpc.jobs.worker.pool"
        command = [sys.executable, "-P", "-u", "-m", module, str(plan_file), str(at_once)]
        # In a process group of its own: Ctrl-C reaches the sweep alone, which then asks its
        # workers to save and leave.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._orders, self._answers = self.process.stdin, self.process.stdout
        self.run_id: str | None = None
        self.started, self._oom_kills = 0.0, 0
        self.death: dict[str, Any] = {}

    def give(self, run_id: str) -> None:
        """Tell it to make a run."""
        self.run_id, self.started = run_id, time.time()
        self._oom_kills = count_oom_kills()
        # If it has died meanwhile, `read` says so.
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(f"{run_id}\n")
            self._orders.flush()

    def read(self) -> Report | None:
        """Return its report, or one that says how it died; None where it ended without a run."""
        run_id, self.run_id = self.run_id, None
        line = self._answers.readline()
        if line:
            return load(Report, json.loads(line), "a worker's answer")
        code = self.process.wait()
        if run_id is None:
            return None
        self.death = evidence_of_death(code, count_oom_kills() - self._oom_kills)
        cause = self.death.get("signal", f"exit code {code}")
        cause += ", out of memory" if "oom_kills" in self.death else ""
        message = f"its process died ({cause}); the same command goes on from the last checkpoint"
        wall_s = time.time() - self.started
        return Report(run_id=run_id, state="failed", message=message, wall_s=wall_s)

    def ask_to_leave(self) -> None:
        """Ask it to save and leave: it does so when its input ends."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def leave(self) -> None:
        """Ask it to save and leave, and wait for that."""
        self.ask_to_leave()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pool:
    """Makes runs in workers, so many at a time, parents before children.

    Args:
        plan: of the runs.
        size: workers at a time.
        start: starts a worker.
        tell: is told of each run that ended.

    Attributes:
        workers: those that live.
        reports: run id to report, of what ended so far.
    """

    def __init__(
        self, plan: Plan, size: int, start: Callable[[], Worker], tell: Callable[[Report], None]
    ) -> None:
        self._plan, self._size, self._start, self._tell = plan, size, start, tell
        self._waiting: list[str] = []
        self.workers: list[Worker] = []
        self.reports: dict[str, Report] = {}

    def make(self, run_ids: Sequence[str]) -> dict[str, Report]:
        """Make runs; parents that are not among them are done.

        Returns:
            Run id to report, also for what was blocked by a parent that failed.
        """
        runs = self._plan.runs
        self._waiting = sorted(run_ids, key=lambda run_id: STAGE_ORDER.index(runs[run_id].stage))
        try:
            while not signals.leave_asked() and (self._waiting or self.running):
                self._give_out()
                self._read_answers()
        finally:
            self._leave()
        return self.reports

    @property
    def running(self) -> list[str]:
        """The runs that workers are at."""
        return [worker.run_id for worker in self.workers if worker.run_id is not None]

    def _end(self, report: Report) -> None:
        self.reports[report.run_id] = report
        self._tell(report)

    def _give_out(self) -> None:
        """Give each free worker the first run whose parents have ended.

        A run says itself that it is blocked where a parent ended without a result.
        """
        unfinished = {*self._waiting, *self.running}
        for run_id in list(self._waiting):
            if unfinished & set(self._plan.parents(run_id).values()):
                continue
            worker = self._free_worker()
            if worker is None:
                return
            self._waiting.remove(run_id)
            worker.give(run_id)

    def _free_worker(self) -> Worker | None:
        for worker in self.workers:
            if worker.run_id is None:
                return worker
        if len(self.workers) == self._size:
            return None
        self.workers.append(self._start())
        return self.workers[-1]

    def _read_answers(self) -> None:
        """Wait a moment for answers, and take those that came."""
        outputs: dict[Any, Worker] = {worker.process.stdout: worker for worker in self.workers}
        for output in select.select(list(outputs), [], [], 0.5)[0]:
            worker = outputs[output]
            report = worker.read()
            is_lost = report is not None and report.gpu_lost
            if report is None or worker.death or is_lost:
                self.workers.remove(worker)
            if is_lost:  # another worker begins with a GPU that works
                worker.leave()
            if report is None:
                continue
            if worker.death and not signals.leave_asked():
                record(self._plan.folder(report.run_id), "died", report.message, **worker.death)
            self._end(report)

    def _leave(self) -> None:
        """Let all workers save and leave, and take their last answers."""
        for worker in self.workers:  # all at once, as each takes its time to save
            worker.ask_to_leave()
        for worker in self.workers:
            worker.leave()
            if worker.run_id is not None:
                report = worker.read()
                if report and not worker.death:
                    self._end(report)
        self.workers.clear()


def run_locally(
    plan: Plan, plan_file: Path, run_ids: Sequence[str], n_workers: int
) -> dict[str, Report]:
    """Make runs on this machine, and print a line per run that ended.

    Args:
        plan: of the whole sweep.
        plan_file: where it was written, for the workers; their log lies beside it.
        run_ids: what to make; parents that are not among them are done.
        n_workers: workers at a time.

    Returns:
        Run id to report, also for what was blocked by a parent that failed.
    """
    from tqdm import tqdm  # only here: an element has no use for it

    bar = tqdm(total=len(run_ids), unit="run", disable=None, file=sys.stdout, leave=False)
    number, total = itertools.count(1), len(run_ids)

    def tell(report: Report) -> None:
        run = plan.runs[report.run_id]
        state = "" if report.state == "done" else f"{report.state.upper()}: "
        took = f"{run.stage:10} {run.label:32} {report.wall_s:6.1f} s"
        bar.clear()
        count = f"[{next(number):{len(str(total))}}/{total}]"
        say(f"{count} {took}  {state}{report.message}")
        bar.update()

    with bar, open_to_append(plan_file.with_suffix(".log")) as log:
        return Pool(plan, n_workers, lambda: Worker(plan_file, log), tell).make(run_ids)


def serve(argv: Sequence[str]) -> int:
    """Do a worker's work: make the runs that standard input names, an id a line.

    Each is answered by a line of JSON. When the input ends, this process saves and ends: it never
    outlives the one that started it.

    Args:
        argv: the plan's file, and how many workers share the device.
    """
    plan = read_plan(Path(argv[0]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    orders: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(line.strip())
        signals.ask_to_leave()
        orders.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while not signals.leave_asked():
        try:
            order = orders.get(timeout=0.5)  # so that a signal between two runs is noticed
        except queue.Empty:
            continue
        if order is None:
            break
        report = execute_when_free(plan, order, int(argv[1]))
        say(json.dumps(dump(report)), to=answers)
    return 0


if __name__ == "__main__":
    let_output_be_lost()
    sys.exit(run_command(serve))
