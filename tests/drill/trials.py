"""The drill's trials: one run made through several faults, what each attempt had to come to, and the tallies of all.

A trial's run, faults and moments follow from the seed and the trial's number alone; only how far a
run was when a fault struck is the machine's.
"""

import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

from hvae_hpc.jobs.failures.classify import Evidence, classify
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.worker.pool import Worker
from hvae_hpc.jobs.worker.run import Report
from hvae_hpc.runs.folder import METRICS, LogRecord, read_log, read_result
from hvae_hpc.runs.identity import file_sha256
from hvae_hpc.runs.plan import Plan, write_plan
from hvae_hpc.runs.run import Run
from tests.drill.compare import compare
from tests.drill.faults import SIGNALS, Fault, damage, draw_fault, strike

PATIENCE_S = 120.0
"""An attempt that takes so much longer than undisturbed hangs."""


class Process(Protocol):
    """An attempt at a run, in a fork or in a new process."""

    pid: int

    def begin(self, plan_file: Path, run_id: str) -> None: ...
    def is_over(self, timeout_s: float) -> bool: ...
    def end(self) -> Report | int: ...


def row_of(run: Run) -> str:
    """Return what the drill's table calls a run: its stage; a training's generator and a generation's sampler."""
    extra = {"train": "generator", "generate": "sampler"}.get(run.stage)
    return f"{run.stage} {getattr(run.config, extra)}" if extra else run.stage


def link_parents(plan: Plan, into: Plan, run_id: str) -> None:
    """Give a run of another runs folder the parents that were made undisturbed."""
    for parent in plan.parents(run_id).values():
        link = into.folder(parent)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(plan.folder(parent))


def newest_whole(folder: Path) -> int:
    """Return the images seen of a run's newest checkpoint that is undamaged; 0 where there is none."""
    for path in sorted(folder.glob("checkpoint-*-*.pt"), reverse=True):
        _, images, sha = path.stem.split("-")
        if file_sha256(path).startswith(sha):
            return int(images)
    return 0


@dataclass
class Tally:
    """What was found so far; several lanes add to it.

    ``quickest`` are the least seconds that a run of a row took in a process with all imports made:
    undisturbed runs had theirs still to make, and of a short run's faults most would come too late.
    """

    faults: int
    taken: int = 0
    told: int = 0
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    quickest: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, one: int = 1) -> bool:
        """Reserve a fault, if there are any left; -1 gives one back that came too late."""
        with self.lock:
            free = one < 0 or self.taken < self.faults
            self.taken += one if free else 0
            return free

    def learn(self, row: str, seconds: float) -> None:
        """Keep how long a run took that nothing disturbed."""
        with self.lock:
            self.quickest[row] = min(seconds, self.quickest.get(row, seconds))

    def count(self, row: str, **found: int) -> None:
        """Add to what is counted by row."""
        with self.lock:
            self.found.update({(row, name): n for name, n in found.items() if n})


class Trial:
    """One run and the faults that it meets.

    Args:
        plan: of the undisturbed runs.
        run_id: of the run.
        folder: of the trial, new.
        chance: of its faults.
    """

    def __init__(
        self, plan: Plan, run_id: str, folder: Path, chance: random.Random, fresh: float
    ) -> None:
        self.plan, self.run_id, self.chance, self.fresh = plan, run_id, chance, fresh
        self.mine = replace(plan, runs_folder=folder)
        self.folder, self.plan_file = self.mine.folder(run_id), folder / "plan.json"
        self.row = row_of(plan.runs[run_id])
        made = read_result(plan.folder(run_id), run_id)
        assert made is not None
        self.wall_s = made.provenance.wall_s
        optim = getattr(plan.runs[run_id].config, "optim", None)
        self.images = optim.images if optim else 0  # of a training, which leaves checkpoints
        self.kills, self.goes_on_at = 0, 0
        self.problems: list[str] = []

    def run(
        self, most: int, tally: Tally, start: Callable[[bool], Process], imports_s: float
    ) -> None:
        """Make the run through some faults, at most so many, then without, and look at what came out."""
        link_parents(self.plan, self.mine, self.run_id)
        write_plan(self.mine, self.plan_file)
        most, patience = self.chance.randint(1, most), PATIENCE_S
        while not self.problems:
            fault = (
                draw_fault(self.chance, self.fresh, self.images > 0)
                if most > 0 and tally.take()
                else None
            )
            report, struck = self._attempt(
                fault, start(bool(fault and fault.fresh)), imports_s, tally
            )
            most -= 1
            state = report.state if isinstance(report, Report) else "died"
            if state == "done":
                break
            if state == "busy" and patience > 0:  # a dead process's claim is to end by itself
                time.sleep(1.0)
                patience -= 1.0
            elif (
                state == "stopped" and not struck and patience > PATIENCE_S / 2
            ):  # by a signal of somebody else's
                patience -= PATIENCE_S / 6
                tally.count(self.row, outside=1)
            elif not struck:
                self.problems.append(f"lost: left alone, it came to {report}")
        self._finish(start(False))
        tally.count(self.row, runs=1)

    def _attempt(
        self, fault: Fault | None, process: Process, imports_s: float, tally: Tally
    ) -> tuple[Report | int, bool]:
        """Make one attempt; returns what came of it, and whether the fault met it."""
        seen = len(read_log(self.folder))
        whole_s = min(self.wall_s, tally.quickest.get(self.row, self.wall_s))
        left_s = whole_s * (1 - self.goes_on_at / self.images if self.images else 1)
        began = time.monotonic()
        process.begin(self.plan_file, self.run_id)
        struck = False
        if fault:
            moment_s = fault.share * (left_s + 0.05 + (imports_s if fault.fresh else 0.0))
            if struck := not process.is_over(moment_s):
                strike(process.pid, fault)
        if not process.is_over(PATIENCE_S + 20 * self.wall_s):
            self.problems.append(f"hangs after {fault}")
            strike(process.pid, Fault("KILL", 0, False, 0))
        took_s = time.monotonic() - began
        report = process.end()
        state = report.state if isinstance(report, Report) else "died"
        if state == "done" and not struck and not self.goes_on_at and not (fault and fault.fresh):
            tally.learn(self.row, took_s)
        if fault and (not struck or state in ("busy", "done")):
            tally.take(-1)  # it came too late to do harm
            struck = False
        self._check(fault if struck else None, report, read_log(self.folder)[seen:], tally)
        return report, struck

    def _check(
        self, fault: Fault | None, report: Report | int, log: list[dict[str, Any]], tally: Tally
    ) -> None:
        """Hold against an attempt what its fault allows, and what its log says of where it went on from."""
        trained = [record["images_seen"] for record in log if record.get("event") == "training"]
        if trained and trained[0] != self.goes_on_at:
            self.problems.append(f"went on from {trained[0]} images, expected {self.goes_on_at}")
        kept = sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)
        half = len(list(self.folder.glob(".*.tmp")))
        tally.count(
            self.row, resumed=int(bool(trained) and trained[0] > 0), half_written=int(half > 0)
        )
        if (at := newest_whole(self.folder)) < self.goes_on_at and not (
            self.folder / METRICS
        ).exists():
            self.problems.append(f"{fault}: the checkpoint at {self.goes_on_at} images is gone")
        if fault:
            with tally.lock:  # where there is nothing to damage, it was a KILL
                tally.sent[
                    self.row, "KILL" if fault.kind == "damaged" and not kept else fault.kind
                ] += 1
            if wrong := self._is_wrong(fault, report, log, not trained or at > 0):
                self.problems.append(f"{fault}: {wrong}")
            self.kills += fault.kind in ("KILL", "damaged")
            if (
                len(kept) > 2 + self.kills
            ):  # one killed in between had no time to remove what is too much
                self.problems.append(f"{fault}: {len(kept)} checkpoints")
            if fault.kind == "damaged" and kept:
                damage(kept[0], fault.detail)
        self.goes_on_at = newest_whole(self.folder)

    def _is_wrong(
        self, fault: Fault, report: Report | int, log: list[dict[str, Any]], saved: bool
    ) -> str:
        """Say what an attempt should have come to after its fault, if it did not."""
        if isinstance(report, int):
            # A new process may be told to go before it can listen, or before it takes
            # the run; KILL nobody survives.
            told = fault.kind in ("USR2", "TERM")
            right = report == -SIGNALS.get(fault.kind, 0) < 0 and (fault.fresh or not told)
            right = right or (report == 0 and fault.fresh and told and not log)
            return "" if right else f"its process ended with {report}"
        if fault.kind == "disk full":
            records = [record for record in log if record.get("event") == "failed"]
            ended = records[-1] if records else LogRecord(event="failed", reason=report.message)
            kind = classify(Evidence(status=RunStatus("failed"), ended=ended))
            right = (
                report.state == "failed"
                and kind == "disk full or quota"
                and "\n" not in report.message
            )
            return "" if right else f"{report.state}, taken for {kind}: {report.message}"
        if fault.kind in ("USR2", "TERM"):
            right = report.state == "stopped" and saved
            return "" if right else f"{report.state}, saved {saved}: {report.message}"
        return f"was to die, and came to {report.state}: {report.message}"

    def _finish(self, process: Process) -> None:
        """Compare the run; asked for once more, it must say that it is done, and stay as it is."""
        self.problems += compare(self.plan.folder(self.run_id), self.folder, self.run_id)
        if self.problems:
            return
        result = (self.folder / METRICS).read_bytes()
        process.begin(self.plan_file, self.run_id)
        report = process.end() if process.is_over(PATIENCE_S) else None
        again = not isinstance(report, Report) or report.message != "was done already"
        if again or (self.folder / METRICS).read_bytes() != result:
            self.problems.append(f"doubled: done, and asked for again, it came to {report}")


class Fresh:
    """An attempt in a new process, such as a sweep's worker is."""

    def __init__(self, log: IO[str]) -> None:
        self._log = log
        self.pid = 0

    def begin(self, plan_file: Path, run_id: str) -> None:
        """Start it."""
        self._worker = Worker(plan_file, self._log)
        self.pid = self._worker.process.pid
        self._worker.give(run_id)

    def is_over(self, timeout_s: float) -> bool:
        """Wait for its end for so long at most."""
        assert self._worker.process.stdout is not None
        return bool(select.select([self._worker.process.stdout], [], [], timeout_s)[0])

    def end(self) -> Report | int:
        """Return its report, or minus the signal that it died of, or its exit code."""
        report = self._worker.read()
        assert report is not None
        self._worker.leave()
        return self._worker.process.returncode if self._worker.death else report
