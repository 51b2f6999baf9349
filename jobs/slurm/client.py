"""Calls of SLURM's commands, and the user's queue.

Few questions are asked: all processes of a user share one answer of squeue for ``POLL_S``, in a
file of the user's cache folder. A controller that is busy is asked again later, with growing,
random pauses. Every other refusal becomes one clear line.
"""

import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from hvae_hpc.errors import UserError
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.identity import content_hash

POLL_S = 60.0
PATIENCE_S = 180.0
FOREIGN = re.compile(
    r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SCANCEL|SCONTROL|PMI|PMIX)_"
)
"""Variables of an outer job, a profile or an MPI; they win over an sbatch text's own lines."""
BUSY = re.compile(
    r"rate limit|unable to contact|timed out|transport endpoint|connection (refused|reset)"
    r"|zero bytes|temporarily un|try again|backup controller",
    re.IGNORECASE,
)
CONFS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")
POLICY = re.compile(r"\b(?:Assoc|QOS)[A-Z]\w+")


class BusyError(UserError):
    """SLURM did not answer, or is busy; what it was asked may have been done all the same."""


def is_available() -> bool:
    """Tell whether sbatch is on the PATH."""
    return shutil.which("sbatch") is not None


def is_submit_limit(said: str) -> bool:
    """Tell whether sbatch refused because the user has too much in the queue already.

    SLURM's general sentence names several limits, so a particular reason decides if there is one.
    """
    reasons = POLICY.findall(said)
    return any("Submit" in reason for reason in reasons) if reasons else "job submit limit" in said


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what others left of SLURM in it."""
    own = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    if conf := os.environ.get("SLURM_CONF"):  # names the cluster
        own["SLURM_CONF"] = conf
    return own


def ask_once(
    command: Sequence[str], limit_s: float = 60.0, *, keep_open: Sequence[int] = ()
) -> str:
    """Run one SLURM client command and return what it prints.

    Args:
        command: argv.
        limit_s: seconds after which it counts as not answering.
        keep_open: file descriptors (of locks) that it holds as long as it lives, also when we are
            killed.

    Raises:
        BusyError: the controller is not there or too busy.
        UserError: the command is not there, or was refused.
    """
    try:
        # SLURM_BITSTR_LEN=0: squeue prints element lists whole instead of "12_[0-1,...]".
        environment = clean_environment() | {"SLURM_BITSTR_LEN": "0"}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=True,
            env=environment,
            pass_fds=keep_open,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not on the PATH; log in to a SLURM node, or use --local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BusyError(
            f"{command[0]} did not answer within {limit_s:.0f} s; try again later"
        ) from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        kind = BusyError if BUSY.search(said) else UserError
        raise kind(f"{' '.join(command)[:200]}: {said}") from error
    return done.stdout


def sbatch(arguments: Sequence[str], lock: int) -> str:
    """Submit a job; returns its id.

    Args:
        arguments: of sbatch.
        lock: file descriptor that sbatch holds as long as it lives, also when we are killed.
    """
    answer = ask_once(["sbatch", "--parsable", *arguments], keep_open=(lock,))
    return answer.strip().partition(";")[0]


def patiently(question: Callable[[], str], patience_s: float = PATIENCE_S) -> str:
    """Ask again while SLURM is busy; pauses grow and are random, so that askers do not meet."""
    pause_s, end = 2.0, time.monotonic() + patience_s
    while True:
        try:
            return question()
        except BusyError:
            wait_s = pause_s * random.uniform(0.5, 1.5)
            if time.monotonic() + wait_s > end:
                raise
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, 60.0)


def ask(command: Sequence[str], patience_s: float = PATIENCE_S) -> str:
    """Run a SLURM command that does no harm when it is run twice; see :func:`ask_once`."""
    return patiently(lambda: ask_once(command, min(60.0, patience_s)), patience_s)


class Queued(NamedTuple):
    """Elements of one array, or one job that is none, with the same state."""

    job: str
    places: tuple[int, ...]
    """of an array's elements; none for a job that is no array"""
    state: str
    """PENDING, RUNNING, SUSPENDED, COMPLETING, ..."""
    reason: str
    comment: str


class Queue(NamedTuple):
    """What of the user's jobs waits or runs, and when SLURM said so (seconds since 1970)."""

    asked_at: float
    rows: tuple[Queued, ...]

    @property
    def elements(self) -> int:
        """Number of elements and single jobs."""
        return sum(max(1, len(row.places)) for row in self.rows)


def read_queue(
    *, not_before: float | None = None, poll_s: float = POLL_S, patience_s: float = PATIENCE_S
) -> Queue:
    """Return the user's queue as any of the user's processes got it lately, or ask for it.

    Args:
        not_before: an answer must be as young as this, in seconds since 1970; None for no older
            than ``poll_s``.
        poll_s: seconds for which an answer serves everybody.
        patience_s: how long to try. With less than the usual patience, SLURM is not even asked
            where somebody got no answer since.

    Raises:
        BusyError: SLURM does not answer.
    """
    oldest = time.time() - poll_s if not_before is None else not_before
    with _shared_answer(patience_s) as path:
        asked_at, rows = _read_answer(path)
        if oldest <= asked_at <= time.time():
            if rows is not None:
                return Queue(asked_at, rows)
            if patience_s < PATIENCE_S:
                raise BusyError(f"SLURM did not answer {time.time() - asked_at:.0f} s ago")

        asked_at = time.time()
        try:
            rows = tuple(_ask_queue(patience_s))
        except BusyError:
            _keep_answer(path, asked_at, None)
            raise
        _keep_answer(path, asked_at, rows)
        return Queue(asked_at, rows)


def forget_queue() -> None:
    """Let the next reader ask, since something was submitted or cancelled."""
    with _shared_answer(PATIENCE_S) as path:
        _keep_answer(path, 0.0, None)


def _read_answer(path: Path | None) -> tuple[float, tuple[Queued, ...] | None]:
    """Return when squeue was last asked, and what it said; no rows where it did not answer."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        if path:
            asked_at, rows = json.loads(path.read_text())
            if rows is None:
                return asked_at, None
            return asked_at, tuple(Queued(job, tuple(places), *rest) for job, places, *rest in rows)
    return 0.0, None


def _keep_answer(path: Path | None, asked_at: float, rows: Sequence[Queued] | None) -> None:
    with contextlib.suppress(UserError, OSError):  # a full home folder costs a call, nothing else
        if path:
            write_json(path, [asked_at, rows])


@contextlib.contextmanager
def _shared_answer(patience_s: float) -> Iterator[Path | None]:
    """Hold the file of the user's queue on this cluster; None where there is no place for it.

    Another process that asks meanwhile waits for the answer.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "hvae_hpc"
    name, end = f"squeue-{_cluster_key()}", time.monotonic() + patience_s
    with contextlib.ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(cache / f"{name}.lock", "w"))
            while not _try_lock(lock):
                if time.monotonic() > end:
                    raise BusyError("another process waits for SLURM's answer")
                time.sleep(0.05)
        except OSError:
            yield None
            return
        yield cache / f"{name}.json"


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _cluster_key() -> str:
    """Name the cluster for which the clients speak here: a home folder may be shared by several."""
    conf = os.environ.get("SLURM_CONF") or next(
        (path for path in CONFS if Path(path).is_file()), ""
    )
    try:
        settings = Path(conf).read_text(errors="replace")
    except OSError:  # configured without a file: then by machine
        settings = socket.gethostname()
    return content_hash([conf, settings, os.environ.get("SLURM_CLUSTERS", "")])[:8]


def _ask_queue(patience_s: float) -> Iterator[Queued]:
    command = ["squeue", "--me", "--noheader", "--format=%F|%K|%T|%r|%k"]
    for line in ask(command, patience_s).splitlines():
        words = line.split("|", maxsplit=4)
        if len(words) == 5:  # else it is the second line of somebody's comment
            job, places, state, reason, comment = words
            yield Queued(job, parse_places(places), state, reason, comment.strip())


def parse_places(text: str) -> tuple[int, ...]:
    """Turn an element list as squeue prints it ("3", "0-4,7,10-20:5%2", "N/A") into indices."""
    places: list[int] = []
    for part in text.partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            places += range(first, last + 1, step)
    return tuple(places)
