"""Calls of SLURM's commands, the user's queue, and what accounting knows of who left it.

Few questions are asked: all processes of a user on a machine share one answer of squeue for
``POLL_S``, in a file of the user's cache folder. A controller that is busy is asked again later,
with growing, random pauses. Every other refusal becomes one clear line.
"""

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hvae_hpc.errors import UserError
from hvae_hpc.runs.files import RECORD_BYTES, read_file
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.identity import JOB, content_hash

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
UNREACHED = re.compile(r"configuration source|unable to contact", re.IGNORECASE)
POLICY = re.compile(r"\b(?:Assoc|QOS)[A-Z]\w+")
FINAL_STATES = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}


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


def ask_once(command: Sequence[str], limit_s: float = 60.0, text: str = "") -> str:
    """Run one SLURM client command and return what it prints.

    Args:
        command: argv.
        limit_s: seconds after which it counts as not answering.
        text: its standard input.

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
            input=text,
            errors="replace",  # a job may have any name
            timeout=limit_s,
            check=True,
            env=environment,
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
        if UNREACHED.search(said):
            said += "; SLURM does not answer: try it on a login node, or check SLURM_CONF"
        raise kind(f"{' '.join(command)[:200]}: {said}") from error
    return done.stdout


def sbatch(arguments: Sequence[str], text: str) -> str:
    """Submit a job; returns what sbatch prints, for :func:`parse_job_id`.

    Args:
        arguments: options.
        text: for sbatch. It reads no file: others may be able to write in its folder.
    """
    return ask_once(["sbatch", "--parsable", *arguments], text=text)


def parse_job_id(printed: str) -> str:
    """Return the job's id from what ``sbatch --parsable`` prints: the id, or ``<id>;<cluster>``.

    Raises:
        UserError: there is more than an id, as from a wrapper of sbatch that greets, or less.
    """
    job_id = printed.strip().partition(";")[0]
    if not re.fullmatch(JOB.pattern, job_id):
        said = " ".join(printed.split())[:200]
        raise UserError(
            f"sbatch --parsable printed {said!r}, expected the job's id alone; the job may be "
            "queued: look with squeue --me, and cancel it before you submit again"
        )
    return job_id


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
    submitted_at: float = 0.0
    """in seconds since 1970; 0 where it is not known"""
    name: str = ""

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a job that is no array."""
        return max(1, len(self.places))


class Queue(NamedTuple):
    """What of the user's jobs waits or runs, and when SLURM said so (seconds since 1970)."""

    asked_at: float
    rows: tuple[Queued, ...]

    @property
    def elements(self) -> int:
        """Number of elements and single jobs."""
        return sum(row.elements for row in self.rows)


def read_queue(not_before: float, patience_s: float = PATIENCE_S) -> Queue:
    """Return the user's queue as any of the user's processes got it lately, or ask for it.

    Args:
        not_before: an answer must be as young as this, in seconds since 1970.
        patience_s: how long to try.

    Raises:
        BusyError: SLURM does not answer.
    """
    path, now = _cache_file(), time.time()
    with contextlib.suppress(OSError, ValueError, TypeError):
        asked_at, rows = json.loads(read_file(path, RECORD_BYTES))
        if not_before <= asked_at <= now:
            return Queue(asked_at, tuple(Queued(job, tuple(at), *rest) for job, at, *rest in rows))

    queue = Queue(now, tuple(_ask_queue(patience_s)))
    with contextlib.suppress(UserError):  # a full home folder costs a call, nothing else
        write_json(path, queue)
    return queue


def forget_queue() -> None:
    """Let the next reader ask, since something was submitted or cancelled."""
    with contextlib.suppress(OSError):
        _cache_file().unlink(missing_ok=True)


def _cache_file() -> Path:
    """Return where the last answer is kept: a home folder may be shared by several clusters."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "hvae_hpc"
    cluster = [os.environ.get(name) for name in ("SLURM_CONF", "SLURM_CLUSTERS")]
    return cache / f"squeue-{content_hash([*cluster, socket.gethostname()])[:8]}.json"


def _ask_queue(patience_s: float) -> Iterator[Queued]:
    command = ["squeue", "--me", "--noheader", "--format=%F|%K|%T|%r|%V|%j|%k"]
    for line in ask(command, patience_s).splitlines():
        with contextlib.suppress(ValueError):  # it is the second line of somebody's comment
            job, places, state, reason, at, name, comment = line.split("|", maxsplit=6)
            submitted_at = time.mktime(time.strptime(at, "%Y-%m-%dT%H:%M:%S"))
            seen = (parse_places(places), state, reason, comment.strip(), submitted_at, name)
            yield Queued(job, *seen)


def parse_places(text: str) -> tuple[int, ...]:
    """Turn an element list as squeue prints it ("3", "0-4,7,10-20:5%2", "N/A") into indices."""
    places: list[int] = []
    for part in text.partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            places += range(first, last + 1, step)
    return tuple(places)


def ask_accounting(jobs: Iterable[str], patience_s: float) -> dict[str, str] | None:
    """Return the states of the elements of some arrays, by one call of sacct.

    Args:
        jobs: the arrays' ids.
        patience_s: how long to try.

    Returns:
        For example "12_3" to "TIMEOUT on n3", "CANCELLED by 1000"; None where there is no
        accounting, or no answer.
    """
    command = ["sacct", "-nPX", "--jobs", ",".join(sorted(jobs))]
    try:
        answer = ask([*command, "--format=JobID,State,ExitCode,NodeList"], patience_s)
    except UserError:  # no sacct, or "Slurm accounting storage is disabled"
        return None

    states: dict[str, str] = {}
    for line in answer.splitlines():
        element, state, code, nodes = line.split("|")
        job, _, places = element.partition("_")
        if state == "FAILED":
            exit_code, _, number = code.partition(":")
            killed = number not in ("", "0")
            state += f", signal {number}" if killed else f", exit code {exit_code}"
        if nodes not in ("", "None assigned"):
            state += f" on {nodes}"
        states |= {f"{job}_{place}": state for place in parse_places(places.strip("[]"))}
    return states


def is_final(state: str) -> bool:
    """Tell whether an element stays in a state, as :func:`ask_accounting` returns it."""
    return state.partition(" ")[0].rstrip(",") in FINAL_STATES
