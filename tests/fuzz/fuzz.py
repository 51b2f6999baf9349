"""Inputs -> results, by worker processes that are started again where an input ends them."""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT
from tests.fuzz.inputs import make_good_folders

MOST_WAIT = 60.0
"""Seconds for an input on a busy machine; the worker itself bounds what it computes."""
RIGHT = ("done", "one line", "no memory")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How an input ended.

    Attributes:
        outcome: of RIGHT, or what is wrong: "traceback", "noise", "bad pairs", "hang", "crash".
        text: the last words.
        seconds: of CPU.
        mib: memory beyond what the process had before.
    """

    kind: str
    seed: int
    outcome: str
    text: str
    seconds: float = 0.0
    mib: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether it ended in packed pairs, a result or one line."""
        return self.outcome in RIGHT

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m tests.fuzz --only {self.kind} {self.seed}"


def run_inputs(inputs: Sequence[tuple[str, int]], folder: Path, workers: int) -> Iterator[Result]:
    """Yield the result of each input, as they come.

    Args:
        inputs: kinds and seeds.
        folder: an empty one to work in.
        workers: processes.
    """
    make_good_folders(folder / "good")
    todo: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for each in inputs:
        todo.put(each)
    results: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()

    def work(place: Path) -> None:
        try:
            for result in _work(todo, folder / "good", place):
                results.put(result)
        except Exception as error:
            results.put(error)

    for number in range(workers):
        place = folder / f"worker-{number}"
        place.mkdir()
        threading.Thread(target=work, args=(place,), daemon=True).start()
    for _ in inputs:
        result = results.get()
        if isinstance(result, Exception):
            raise result
        yield result


def _work(todo: "queue.SimpleQueue[tuple[str, int]]", good: Path, place: Path) -> Iterator[Result]:
    """Run inputs until none is left, in one process and its successors."""
    worker = Worker(good, place)
    with contextlib.suppress(queue.Empty):
        while True:
            result = worker.run(*todo.get_nowait())
            yield result
            if result.outcome in ("hang", "crash"):
                worker.end()
                worker = Worker(good, place)
    worker.end()


class Worker:
    """A process of :mod:`tests.fuzz.worker`."""

    def __init__(self, good: Path, place: Path) -> None:
        environment = {
            **{name: os.environ[name] for name in ("HOME",) if name in os.environ},
            "PATH": "/nowhere",
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": "0",
            "TMPDIR": str(place),
            "XDG_CACHE_HOME": str(place / "cache"),
            "MPLCONFIGDIR": str(place),
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(good), str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=place,
        )
        ready = self._read(120)
        assert ready == b"ready\n", ready

    def run(self, kind: str, seed: int) -> Result:
        """Run one input to its end, or to its time limit."""
        assert self.process.stdin
        self.process.stdin.write(f"{kind} {seed}\n".encode())
        self.process.stdin.flush()
        line = self._read(MOST_WAIT)
        if line:
            return Result(kind=kind, seed=seed, **json.loads(line))
        code = None if line is None else self.process.wait()
        is_busy = code in (None, -signal.SIGPROF)
        text = "still busy" if is_busy else f"exit code {code}"
        return Result(kind=kind, seed=seed, outcome="hang" if is_busy else "crash", text=text)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _read(self, seconds: float) -> bytes | None:
        """Read a line of an answer; None where none comes in time."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        return self.process.stdout.readline()
