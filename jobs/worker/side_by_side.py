"""Runs of one element side by side on its device: so many, or as many as a short measurement finds to be worth it.

Each is in a process of its own, a worker as a local sweep has them; where the site runs NVIDIA's
MPS, the workers find it as the element would. A small network leaves much of a large GPU idle, and
then two trainings take little longer than one. How many pay, the trainings' own logs tell: one more
is tried as long as all together see clearly more images per second, and only while the last ones
leave room in the memory. None of the time is lost, as all that is measured counts.
"""

import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.state.run_log import record
from hvae_hpc.jobs.worker import signals
from hvae_hpc.jobs.worker.gpu_meter import device_memory
from hvae_hpc.jobs.worker.local_pool import Worker
from hvae_hpc.jobs.worker.run import Report
from hvae_hpc.runs.folder import read_log_tail
from hvae_hpc.runs.plan import Plan

GAIN = 1.1
"""One run more must bring at least so many times the images per second, or it is not worth its memory."""
ROOM = 1.5
"""Free memory that one run more is thought to need, in shares of what the others take on average."""


def next_number(rates: Mapping[int, float], room: bool) -> int:
    """Return how many runs to have at once.

    Args:
        rates: number at once, from 1 on, to the images per second that all of them saw together.
        room: for one more than was tried.
    """
    tried = max(rates, default=0)
    if tried > 1 and rates[tried] < GAIN * rates[tried - 1]:
        return tried - 1
    return tried + 1 if room or not tried else tried


def images_per_s(folders: Sequence[Path], since: float) -> float | None:
    """Return what runs that train at the same time see together; None until each has logged two windows of it.

    Args:
        folders: of the runs.
        since: when they were given out; what they logged before the last of them began to train
            does not count.
    """
    logs = [read_log_tail(folder) for folder in folders]
    began = max(
        [
            since,
            *(entry["time"] for log in logs for entry in log if entry.get("event") == "training"),
        ]
    )
    total = 0.0
    for log in logs:
        windows = [entry for entry in log if "event" not in entry and entry["time"] > began]
        if len(windows) < 2 or windows[-1]["time"] == windows[0]["time"]:
            return None
        seen = windows[-1]["images_seen"] - windows[0]["images_seen"]
        total += seen / (windows[-1]["time"] - windows[0]["time"])
    return total


def has_room(resources: Resources, busy: Sequence[Worker]) -> bool:
    """Tell whether the cores and the GPU's and the host's memory suffice for one run more; without NVML they do not."""
    memory, more = device_memory(), ROOM / len(busy)
    if memory is None or (len(busy) + 1) * resources.threads > resources.cpus:
        return False
    host = sum(worker.memory_mib() for worker in busy)
    return memory.free > more * memory.used and 1024 * resources.memory_gb > (1 + more) * host


class Together:
    """The runs of an element, and the workers that make them.

    Args:
        plan: of the element.
        ids: its runs, of one stage.
        start: starts a worker.
        tell: is told of each run that ended.

    Attributes:
        reports: how runs ended; what is missing is to be done again alone: another process held it,
            or it failed beside others, whose fault that may be.
    """

    def __init__(
        self,
        plan: Plan,
        ids: Sequence[str],
        start: Callable[[], Worker],
        tell: Callable[[Report], None],
    ) -> None:
        self.plan, self.waiting, self.start, self.tell = plan, list(ids), start, tell
        self.resources = plan.resources_of(ids[0])
        self.number, self.measures = self.resources.at_once or 1, not self.resources.at_once
        self.rates: dict[int, float] = {}
        self.reports: dict[str, Report] = {}
        self.shared: set[str] = set()
        self.workers: list[Worker] = []
        self.since = time.time()

    def run(self) -> None:
        """Make the runs, until all are made or it was asked to leave; then all have saved and left."""
        with selectors.DefaultSelector() as selector:
            try:
                while not signals.leave_asked() and (self.waiting or self._busy()):
                    self._give_out(selector)
                    for key, _ in selector.select(timeout=0.5):
                        self._hear(key.data, selector)
                    if self.measures and len(self._busy()) == self.number:
                        self._measure()
            finally:
                for worker in self.workers:  # all at once, as each takes its time to save
                    worker.process.terminate()
                for worker in self.workers:
                    asked = worker.run_id is not None
                    worker.leave()
                    report = worker.read() if asked else None
                    if (
                        report and worker.run_id is None
                    ):  # it was there already when it was asked to leave
                        self.tell(report)

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.run_id is not None]

    def _give_out(self, selector: selectors.BaseSelector) -> None:
        while self.waiting and len(self._busy()) < self.number:
            idle = [worker for worker in self.workers if worker.run_id is None]
            if not idle:
                idle = [self.start()]
                self.workers += idle
                selector.register(idle[0].process.stdout, selectors.EVENT_READ, idle[0])  # type: ignore[arg-type]
            at_once = min(
                self.number, len(self._busy()) + len(self.waiting)
            )  # no more of them are left
            idle[0].give(self.waiting.pop(0), at_once)
        busy = self._busy()
        if len(busy) > 1:
            self.shared |= {worker.run_id for worker in busy if worker.run_id}
        for worker in [
            worker for worker in self.workers if worker.run_id is None
        ]:  # it would keep its memory
            self._dismiss(worker, selector)

    def _dismiss(self, worker: Worker, selector: selectors.BaseSelector) -> None:
        selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        self.workers.remove(worker)
        worker.leave()

    def _hear(self, worker: Worker, selector: selectors.BaseSelector) -> None:
        report = worker.read() if worker.run_id is not None else None
        died = worker.run_id is not None  # it did not answer
        if report is None or died:
            worker.run_id = None
            self._dismiss(worker, selector)
        if report is None or report.state == "busy" or (died and signals.leave_asked()):
            return
        if report.state == "failed" and report.run_id in self.shared:
            record(self.plan.folder(report.run_id), "again", report.message, **worker.death)
            return
        if died:
            record(self.plan.folder(report.run_id), "failed", report.message, **worker.death)
        self.reports[report.run_id] = report
        self.tell(report)

    def _measure(self) -> None:
        busy = self._busy()
        rate = images_per_s([self.plan.folder(worker.run_id or "") for worker in busy], self.since)
        if rate is None:
            return
        self.rates[self.number] = rate
        number = next_number(self.rates, bool(self.waiting) and has_room(self.resources, busy))
        said = ", ".join(f"{n} at once: {found:.0f} images/s" for n, found in self.rates.items())
        print(f"{said}; goes on with {number}", flush=True)
        self.measures, self.number, self.since = number > self.number, number, time.time()
