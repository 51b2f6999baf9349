"""A process that has imported what the stages need, and forks a child for each attempt that the drill makes at a run.

So a thousand attempts do not pay for a thousand imports. Nothing of torch may have started a thread
before a fork: it is pinned to one, and has no GPU here. Files are flushed slowly, so that some
    faults meet one that is half-written.
"""

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hvae_hpc.config.loader import dump, load
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.errors import UserError, run_command
from hvae_hpc.jobs.state.run_log import let_output_be_lost
from hvae_hpc.jobs.worker import signals
from hvae_hpc.jobs.worker.run import Report, execute, stage_function
from hvae_hpc.runs.plan import read_plan

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

SLOW_DISK_S = 0.02
"""Seconds that every flush takes longer."""


class Forking:
    """A server with several lanes, each of which makes one attempt at a time."""

    def __init__(self, plan_file: Path, warm: Sequence[str], lanes: int, log: IO[str]) -> None:
        pairs = [socket.socketpair() for _ in range(lanes)]
        command = [
            sys.executable,
            "-m",
            "tests.drill.fork_server",
            "--plan",
            str(plan_file),
            "--warm",
            *warm,
        ]
        command += ["--lanes", *(str(theirs.fileno()) for _, theirs in pairs)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            pass_fds=[theirs.fileno() for _, theirs in pairs],
        )  # fmt: skip
        self.lanes = [Lane(ours) for ours, _ in pairs]
        for _, theirs in pairs:
            theirs.close()

    def wait_until_ready(self) -> float:
        """Wait until it has imported all and warmed up; returns the seconds that the imports took."""
        return max(float(lane.hear(600.0)) for lane in self.lanes)

    def close(self) -> None:
        """Let it end, with what it is at."""
        for lane in self.lanes:
            lane.close()
        self.process.wait(60)


class Lane:
    """Makes attempts, one at a time, each in a fork: the drill's end of it."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket, self._heard = ours, b""
        self.pid = 0

    def begin(self, plan_file: Path, run_id: str) -> None:
        """Start an attempt."""
        self._socket.sendall(f"{run_id} {plan_file}\n".encode())
        self.pid = int(self.hear(60.0))

    def is_over(self, timeout_s: float) -> bool:
        """Wait for the attempt's end for so long at most."""
        # A quick attempt's answer comes along with its number, and select knows only of
        # what was not read yet.
        return b"\n" in self._heard or bool(select.select([self._socket], [], [], timeout_s)[0])

    def end(self) -> Report | int:
        """Return the report of an attempt that is over, or minus the signal that it died of, or its exit code."""
        answer = json.loads(self.hear(60.0))
        return answer if isinstance(answer, int) else load(Report, answer, "an attempt's answer")

    def hear(self, timeout_s: float) -> str:
        """Return the next line."""
        while b"\n" not in self._heard:
            if not self.is_over(timeout_s) or not (more := self._socket.recv(65536)):
                raise UserError("the process that makes the attempts ended or hangs; see its log")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """Send no more."""
        self._socket.close()


def _serve(lane: socket.socket, imports_s: float) -> None:
    """Make the attempts of one lane: a line with a run and a plan is answered by the child's number and its answer.

    A child is waited for only when the next one is wanted: until then nobody else can get its
        number.
    """
    lane.sendall(f"{imports_s}\n".encode())
    child = 0
    for line in lane.makefile():
        if child:
            os.waitpid(child, 0)
        run_id, _, plan_file = line.strip().partition(" ")
        hears, tells = os.pipe()
        child = os.fork()
        if not child:
            _attempt(Path(plan_file), run_id, tells)
        os.close(tells)
        lane.sendall(f"{child}\n".encode())
        with open(hears) as answers:
            answer = answers.read()
        how = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert how is not None
        code = how.si_status if how.si_code == os.CLD_EXITED else -how.si_status
        lane.sendall((answer if answer.endswith("\n") and not code else f"{code}\n").encode())
    if child:
        os.waitpid(child, 0)


def _attempt(plan_file: Path, run_id: str, tells: int) -> None:
    """Be the child: do what a worker does with one run, and end."""
    code = 1
    try:
        report = execute(read_plan(plan_file), run_id)
        os.write(tells, f"{json.dumps(dump(report))}\n".encode())
        code = 0
    except BaseException:  # a child must not go on with what its server was at
        traceback.print_exc()
    finally:
        os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Import, warm up, and serve until the drill closes the lanes."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill.fork_server")
    parser.add_argument("--plan", type=Path, required=True, help="of the runs to warm up with")
    parser.add_argument("--warm", nargs="*", default=[], help="their ids")
    parser.add_argument(
        "--lanes", type=int, nargs="+", required=True, help="numbers of open sockets"
    )
    options = parser.parse_args(argv)
    began = time.monotonic()
    for stage in CONFIGS:
        stage_function(stage)
    imports_s = time.monotonic() - began
    plan = read_plan(options.plan)
    for run_id in options.warm:
        execute(plan, run_id)  # what is imported and set up at the first step, once for all
    sync = os.fsync

    def sync_slowly(fd: "FileDescriptorLike") -> None:
        time.sleep(SLOW_DISK_S)
        sync(fd)

    os.fsync = sync_slowly
    lanes = [socket.socket(fileno=number) for number in options.lanes]
    children = []
    for lane in lanes:
        if child := os.fork():
            children.append(child)
            continue
        for other in lanes:
            if other is not lane:
                other.close()
        _serve(lane, imports_s)
        os._exit(0)
    for lane in lanes:
        lane.close()
    for child in children:
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    signals.install()
    let_output_be_lost()
    sys.exit(run_command(main))
