"""Runs on this machine: a few long-lived worker processes, each told one run after the other.

A worker pays once for what it imports. One that dies (kill -9, out of memory) takes only its own
run along: the run is reported, a fresh worker takes its place, and the same command goes on later
    from the run's checkpoint.
"""

import contextlib
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hvae_hpc.config.loader import load
from hvae_hpc.jobs.state.run_log import count_oom_kills, evidence_of_death, record
from hvae_hpc.jobs.worker.run import Report
from hvae_hpc.runs.plan import Plan

FIRST = {"train": 0, "augment": 1, "generate": 2, "quality": 4, "segment": 3, "likelihood": 5}
"""Order of stages among runs that could start: what others wait for goes first."""
ASK_AGAIN_S = 1.0


class Worker:
    """One worker process and the run it is at.

    Args:
        plan_file: where its runs stand.
        log: takes what it prints.
        array: of the element in the plan that it works for; None for all of the plan.

    Attributes:
        run_id: what it is at; where it died at it, that still.
        death: what is known of that.
    """

    def __init__(self, plan_file: Path, log: IO[str], array: int | None = None) -> None:
        command = [sys.executable, "-u", "-m", "hvae_hpc.jobs.worker.run", "--plan", str(plan_file)]
        command += ["--array", str(array)] if array is not None else []
        # Its own process group: Ctrl-C reaches the sweep alone, which then asks its
        # workers to save and leave.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        self.run_id: str | None = None
        self.started, self._oom_kills = 0.0, 0
        self.death: dict[str, Any] = {}

    def give(self, run_id: str, at_once: int = 1) -> None:
        """Tell it to make a run, as one of so many on its device."""
        assert self.process.stdin is not None
        self.run_id, self.started = run_id, time.time()
        self.death, self._oom_kills = {}, count_oom_kills()
        with contextlib.suppress(
            BrokenPipeError
        ):  # it died between two runs; its silence is read as that
            self.process.stdin.write(f"{run_id} {at_once}\n")
            self.process.stdin.flush()

    def read(self) -> Report:
        """Return its report, or one that says how it died."""
        assert self.process.stdout is not None
        assert self.run_id is not None
        run_id, line = self.run_id, self.process.stdout.readline()
        if line:
            self.run_id = None
            return load(Report, json.loads(line), "a worker's answer")
        code = self.process.wait()
        self.death = evidence_of_death(code, count_oom_kills() - self._oom_kills)
        cause = self.death.get("signal", f"exit code {code}") + (
            ", out of memory" * ("oom_kills" in self.death)
        )
        message = f"its process died ({cause}); the same command goes on from the last checkpoint"
        return Report(
            run_id=run_id, state="failed", message=message, wall_s=time.time() - self.started
        )

    def memory_mib(self) -> float:
        """Return its largest resident set so far."""
        with contextlib.suppress(OSError):  # it ended
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def leave(self) -> None:
        """Ask it to save and leave, and wait for that."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Progress:
    """Prints a line per finished run, and on a terminal one more that counts."""

    def __init__(self, plan: Plan, total: int) -> None:
        self.plan, self.total, self.finished = plan, total, 0
        self.started = time.time()
        self.live = sys.stdout.isatty()

    def tell(self, report: Report) -> None:
        """Print how a run ended."""
        self.finished += 1
        run = self.plan.runs[report.run_id]
        width = len(str(self.total))
        state = "" if report.state == "done" else f"{report.state.upper()}: "
        count = f"[{self.finished:{width}}/{self.total}]"
        line = (
            f"{count} {run.stage:8} {run.label:32} {report.wall_s:6.1f} s  {state}{report.message}"
        )
        print(("\r\033[K" if self.live else "") + line, flush=True)

    def tick(self, workers: Sequence[Worker]) -> None:
        """Renew the line that counts."""
        if not self.live:
            return
        busy = [self.plan.runs[worker.run_id] for worker in workers if worker.run_id]
        spent = time.time() - self.started
        left = (
            f", about {spent / self.finished * (self.total - self.finished) / 60:.0f} min left"
            if self.finished
            else ""
        )
        names = ", ".join(f"{run.stage} {run.label}" for run in busy)
        print(
            f"\r\033[K{self.finished}/{self.total} done{left}; now {names}"[:150],
            end="",
            flush=True,
        )


def run_locally(
    plan: Plan, plan_file: Path, run_ids: Sequence[str], n_workers: int
) -> dict[str, Report]:
    """Make runs in local processes, parents before children.

    Args:
        plan: of the whole sweep.
        plan_file: where it was written, for the workers.
        run_ids: what to make; parents that are not among them are done.
        n_workers: processes at a time.

    Returns:
        Run id to report, also for what was blocked by a parent that failed.
    """
    waiting = sorted(run_ids, key=lambda run_id: FIRST[plan.runs[run_id].stage])
    reports: dict[str, Report] = {}
    not_before: dict[str, float] = {}
    progress = Progress(plan, len(waiting))
    log = open(plan_file.with_suffix(".log"), "a")  # noqa: SIM115 (it is the workers', closed below)
    workers = [Worker(plan_file, log) for _ in range(min(n_workers, len(waiting)))]
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        try:
            while waiting or any(worker.run_id for worker in workers):
                _settle_blocked(plan, waiting, reports, progress)
                _give_out(
                    plan,
                    [r for r in waiting if not_before.get(r, 0) <= time.time()],
                    waiting,
                    workers,
                )
                progress.tick(workers)
                for key, _ in selector.select(timeout=1.0):
                    worker = key.data
                    report = (
                        worker.read() if worker.run_id else None
                    )  # None: it died between two runs
                    if (
                        report and report.state == "busy"
                    ):  # another sweep is at it: ask again in a while
                        waiting.append(report.run_id)
                        not_before[report.run_id] = time.time() + ASK_AGAIN_S
                    elif report:
                        if worker.run_id is not None:  # it died at it
                            record(
                                plan.folder(report.run_id), "died", report.message, **worker.death
                            )
                        reports[report.run_id] = report
                        progress.tell(report)
                    if worker.process.poll() is not None or report is None:
                        selector.unregister(worker.process.stdout)
                        workers.remove(worker)
                        fresh = Worker(plan_file, log)
                        selector.register(fresh.process.stdout, selectors.EVENT_READ, fresh)  # type: ignore[arg-type]
                        workers.append(fresh)
        finally:
            for worker in workers:
                if worker.process.poll() is None:
                    worker.process.terminate()
            for worker in workers:
                worker.leave()
            log.close()
    return reports


def _settle_blocked(
    plan: Plan, waiting: list[str], reports: dict[str, Report], progress: Progress
) -> None:
    """Report what waits for a run that ended without a result; repeated, for children of children."""
    changed = True
    while changed:
        changed = False
        for run_id in list(waiting):
            lost = [
                p
                for p in plan.parents(run_id).values()
                if p in reports and reports[p].state != "done"
            ]
            if lost:
                waiting.remove(run_id)
                parent = plan.runs[lost[0]]
                message = f"needs {parent.stage} {parent.label} ({lost[0]})"
                reports[run_id] = Report(
                    run_id=run_id, state="blocked", message=message, wall_s=0.0
                )
                progress.tell(reports[run_id])
                changed = True


def _give_out(
    plan: Plan, due: Sequence[str], waiting: list[str], workers: Sequence[Worker]
) -> None:
    """Give every idle worker the first of the due runs whose parents are done."""
    running = {worker.run_id for worker in workers}
    open_runs = {*waiting, *running}
    for worker in workers:
        if worker.run_id is not None:
            continue
        ready = next(
            (r for r in due if r in waiting and not open_runs & set(plan.parents(r).values())), None
        )
        if ready is None:
            return
        waiting.remove(ready)
        worker.give(ready)
