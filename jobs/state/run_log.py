"""What a run's log says of its attempts: how far each got, how long it took, and why it ended.

Beside it there are the logs that the processes of elements and of local workers print into.

The process that knows why an attempt ended logs it with evidence: the exceptions' types, the
system's error number, the signal, what the kernel counted. So nobody guesses it from a sentence.
"""

import contextlib
import errno
import io
import re
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hvae_hpc.errors import NO_ROOM, UserError, say
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.state.submissions import SUBMISSIONS
from hvae_hpc.runs.files import read_last_lines, refuse_links
from hvae_hpc.runs.folder import METRICS, LogRecord, append_log, find_checkpoints, read_log
from hvae_hpc.runs.lease import host, job_id

LEFT_EARLY = 75
"""Exit code of an element that saved and left, to continue later (sysexits: temporary failure)."""
STALLS = 10
"""A run is given up after so many attempts of one element that ended where they began."""
BEGINS = re.compile(r"element \S+ begins, after \d+ restarts")
"""The first line of an element in its log. SLURM adds to this log when it requeues the element."""
MACHINE_ERRORS: Mapping[int, Failure] = {
    **dict.fromkeys(NO_ROOM, "disk full or quota"),
    errno.ENOMEM: "out of memory (host)",
    errno.EIO: "node failure",  # its disk, or its way to the file server
    errno.ESTALE: "node failure",
}
"""The system's error numbers that are the machine's fault and not our code's."""
NO_TEMPORARY = "No usable temporary directory found"
"""Python's message, with the number ENOENT, where no disk took a temporary file."""


class StallError(UserError):
    """An element began a run again and again without getting further."""


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return len(data)


def let_output_be_lost() -> None:
    """Ignore a full disk in printing: what is printed is lost, and the run continues."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = io.BufferedWriter(_Output(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, errors="backslashreplace", line_buffering=True))


def checkpoint_at(folder: Path) -> int:
    """Return the images seen of the newest checkpoint, by its name; 0 where there is none."""
    newest = find_checkpoints(folder)[:1]
    return int(newest[0].name.split("-")[1]) if newest else 0


def how_far(folder: Path) -> float:
    """Return how much of a run is done: images seen of the checkpoint, infinity for all."""
    return float("inf") if (folder / METRICS).exists() else checkpoint_at(folder)


def last_event_in(folder: Path, job: str) -> str:
    """Return the last event of a run's log where an element of this name logged it; else ""."""
    events = [entry for entry in read_log(folder) if "event" in entry]
    return events[-1]["event"] if events and job and events[-1]["job_id"] == job else ""


def check_stall(folder: Path, log: Sequence[LogRecord]) -> None:
    """Give a run up that one element began again and again without getting further.

    The next sweep command may submit a new element, which begins to count again.

    Raises:
        StallError: the run is given up.
    """
    begins = [e["at"] for e in log if e["event"] == "started" and e["job_id"] == job_id()]
    reached = checkpoint_at(folder)
    if job_id() and begins[-STALLS:] == [reached] * STALLS:  # locally a person counts
        raise StallError(
            f"began {STALLS} times at images_seen = {reached} and never got further; "
            "in the site file give its stage more minutes, or a smaller checkpoint_every_s"
        )


def split_attempts(log: Sequence[LogRecord]) -> list[list[LogRecord]]:
    """Return the records of each attempt, from its "started" to the last one before the next."""
    attempts: list[list[LogRecord]] = []
    for entry in log:
        if entry["event"] == "started":
            attempts.append([])
        if attempts:
            attempts[-1].append(entry)
    return attempts


def duration_s(attempt: Sequence[LogRecord]) -> float:
    """Return the seconds from an attempt's beginning to its last record."""
    return attempt[-1]["time"] - attempt[0]["time"]


def spent_s(log: Sequence[LogRecord]) -> float:
    """Return the seconds that all attempts in a log took."""
    return sum(map(duration_s, split_attempts(log)))


def evidence_of(error: BaseException) -> dict[str, Any]:
    """Return what an exception tells of its cause.

    Returns:
        ``errors``, the types of the exception and of those it was raised from, and ``errno``, the
        system's error number, where there is one.
    """
    errors, number = list[str](), None
    cause: BaseException | None = error
    while cause is not None:
        errors.append(type(cause).__name__)
        if isinstance(cause, OSError):
            number = number or (errno.ENOSPC if NO_TEMPORARY in str(cause) else cause.errno)
        cause = cause.__cause__
    return {"errors": errors} | ({"errno": number} if number else {})


def evidence_of_death(code: int, oom_kills: int) -> dict[str, Any]:
    """Return what is known of a process that died and logged nothing.

    Args:
        code: its exit code, or minus the number of the signal that ended it.
        oom_kills: processes of our cgroup that the kernel ended for memory meanwhile.
    """
    how = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
    return how | ({"oom_kills": oom_kills} if oom_kills else {})


def count_oom_kills(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return how many processes of our cgroup the kernel has ended for memory so far.

    Args:
        proc: names our cgroup: ``0::/path`` in version 2, ``4:memory:/path`` in version 1.
        root: where the cgroups' files lie.

    Returns:
        The count; 0 where the kernel does not tell.
    """
    with contextlib.suppress(OSError):
        for line in proc.read_text().splitlines():
            _, kinds, path = line.split(":", maxsplit=2)
            name = "memory.oom_control" if kinds else "memory.events"
            file = root / kinds / path.strip("/") / name
            if kinds in ("", "memory") and file.is_file():
                counts = re.findall(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
                return sum(map(int, counts))
    return 0


def record(
    folder: Path,
    event: Literal["failed", "blocked", "again", "died", "left"],
    message: str,
    **evidence: Any,
) -> str:
    """Log why an attempt ended without a result.

    Args:
        folder: the run's.
        event: the run itself logs "failed"; the process that started the run's process logs "died".
        message: for people.
        evidence: of its cause, as :func:`evidence_of` returns it.

    Returns:
        The message in one line.
    """
    line = " ".join(message.split())
    about = {"event": event, "reason": line, "job_id": job_id(), "host": host()}
    try:
        refuse_links(folder, folder.parent.parent)
        folder.mkdir(parents=True, exist_ok=True)
        append_log(folder, about | evidence)
    except (OSError, UserError):  # the failure may be that the disk takes nothing
        say(f"{folder}: the failure could not be logged", to=sys.stderr)
    return line


def process_logs(runs_folder: Path, element: str, process: str = "*") -> list[Path]:
    """Return the logs of an element's processes, or of one of them, the newest last.

    Args:
        runs_folder: of the submission.
        element: SLURM's ``<array>_<place>``.
        process: number of the process in the element; "*" for all.
    """
    return _by_age(runs_folder.glob(f"{SUBMISSIONS}/*/{element}_{process}_log.out"))


def local_logs(runs_folder: Path, sweep: str) -> list[Path]:
    """Return the logs of a sweep's local workers, the newest last."""
    logs = (runs_folder / "local").glob("*.log")
    return _by_age(path for path in logs if path.stem.rpartition("-")[0] == sweep)


def _by_age(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.lstat().st_mtime)


def read_tail(path: Path, n_bytes: int = 256_000) -> list[str]:
    """Return a log's last lines as a terminal would show them, and 1000 characters of each.

    Args:
        path: of the log.
        n_bytes: no more is read, from its end.
    """
    lines = []
    with contextlib.suppress(OSError):
        lines = [line.decode(errors="replace") for line in read_last_lines(path, n_bytes)]
    # A progress bar overwrites its line after each "\r".
    return [line.rstrip("\r").rpartition("\r")[2][:1000] for line in lines]


def read_end(path: Path, run_id: str, number: int) -> list[str]:
    """Return a log's last lines, up to the last one that names this run."""
    lines = read_tail(path, n_bytes=10_000_000)
    places = [place for place, line in enumerate(lines) if f"({run_id})" in line]
    end = places[-1] + 1 if places else len(lines)
    return lines[max(0, end - number) : end]
