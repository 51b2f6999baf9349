"""What a run's log and files say of its attempts: how far each came, how long it took, why it ended.

How an attempt ended is logged where it is known, with what tells one kind of failure from another
(the exceptions' types, the system's error number, the signal, what the kernel counted), so that
nobody has to guess it from a sentence.
"""

import contextlib
import errno
import io
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hvae_hpc.errors import NO_ROOM, UserError
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.runs.folder import METRICS, append_log, read_log
from hvae_hpc.runs.lease import host, job_id

LEFT_EARLY = 75
"""Exit code (sysexits' "temporary failure"): an element saved, to be gone on with."""
STALLS = 10
"""Attempts of one element that may end where they began before the run is given up."""
BEGINS = re.compile(r"element \S+ begins, after \d+ restarts")
"""An element's first line in its log, to which SLURM adds all its lives."""
MACHINE_ERRORS: Mapping[int, Failure] = {
    **dict.fromkeys(NO_ROOM, "disk full or quota"),
    errno.ENOMEM: "out of memory (host)",
    errno.EIO: "node failure",  # its disk, or its way to the file server
    errno.ESTALE: "node failure",
}
"""The system's error numbers that say something of the machine and nothing of our code."""
NO_TEMPORARY = "No usable temporary directory found"
"""So Python says, as ENOENT, that no disk took a temporary file."""


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
    """Let what is printed be lost where it goes to a file on a full disk: no run is to end for it."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = io.BufferedWriter(_Output(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, errors="backslashreplace", line_buffering=True))


def announce() -> None:
    """Print that this process of an element begins, so that nobody takes what stands above for what it said."""
    print(
        f"element {job_id()} begins, after {os.environ.get('SLURM_RESTART_COUNT', '0')} restarts",
        flush=True,
    )


def checkpoint_at(folder: Path) -> int:
    """Return the images seen of the newest checkpoint, by its name; 0 where there is none."""
    return max(
        (int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*-*.pt")), default=0
    )


def how_far(folder: Path) -> float:
    """Return a number that grows with what is done of a run: images seen, or infinity for all of it."""
    return float("inf") if (folder / METRICS).exists() else checkpoint_at(folder)


def last_event_in(folder: Path, job: str) -> str:
    """Return the last event of a run's log where an element of this name logged it; else ""."""
    events = [entry for entry in read_log(folder) if "event" in entry]
    return str(events[-1]["event"]) if events and job and events[-1].get("job_id") == job else ""


def check_stall(folder: Path, log: Sequence[dict[str, Any]]) -> None:
    """Give a run up that one element began again and again without getting further.

    The next sweep command may submit a new element, which begins to count anew.

    Raises:
        StallError: the run is given up.
    """
    starts = [e for e in log if e.get("event") == "started" and e.get("job_id")]
    by_us = [entry for entry in starts if entry["job_id"] == job_id()]
    reached = checkpoint_at(folder)
    if len(by_us) >= STALLS and all(entry.get("at") == reached for entry in starts[-STALLS:]):
        raise StallError(
            f"began {STALLS} times at images_seen = {reached} and never got further; "
            "in the site file give its stage more minutes, or a smaller checkpoint_every_s"
        )


def split_attempts(log: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the records of each attempt, from its "started" to the last one before the next."""
    attempts: list[list[dict[str, Any]]] = []
    for entry in log:
        if entry.get("event") == "started":
            attempts.append([])
        if attempts:
            attempts[-1].append(entry)
    return attempts


def duration_s(attempt: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds from an attempt's beginning to its last record."""
    return float(attempt[-1].get("time", 0.0)) - float(attempt[0].get("time", 0.0))


def spent_s(log: Sequence[dict[str, Any]]) -> float:
    """Return the seconds that all attempts in a log took."""
    return sum(map(duration_s, split_attempts(log)))


def evidence_of(error: BaseException) -> dict[str, Any]:
    """Return what an exception tells of its cause: the types of it and of what it was raised from, an error number."""
    errors, number = list[str](), None
    cause: BaseException | None = error
    while cause is not None:
        errors.append(type(cause).__name__)
        if isinstance(cause, OSError):
            number = number or (errno.ENOSPC if NO_TEMPORARY in str(cause) else cause.errno)
        cause = cause.__cause__
    return {"errors": errors} | ({"errno": number} if number else {})


def evidence_of_death(code: int, oom_kills: int) -> dict[str, Any]:
    """Return what is known of a process that ended without a word.

    Args:
        code: its exit code, or minus the number of the signal that ended it.
        oom_kills: processes that the kernel ended for memory meanwhile, in the cgroup that it
            shares with us.
    """
    how = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
    return how | ({"oom_kills": oom_kills} if oom_kills else {})


def count_oom_kills(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return how many processes of our cgroup the kernel has ended for memory so far; 0 where it does not tell.

    Args:
        proc: names our cgroup: ``0::/path`` in version 2, ``4:memory:/path`` in version 1.
        root: where the cgroups' files lie.
    """
    with contextlib.suppress(OSError):
        for line in proc.read_text().splitlines():
            _, kinds, path = line.split(":", maxsplit=2)
            name = "memory.oom_control" if kinds else "memory.events"
            file = root / kinds / path.strip("/") / name
            if kinds in ("", "memory") and file.is_file():
                return sum(
                    map(int, re.findall(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE))
                )
    return 0


def record(
    folder: Path,
    event: Literal["failed", "blocked", "again", "died", "left"],
    message: str,
    **evidence: Any,
) -> str:
    """Log why an attempt ended without a result, and return that as one line.

    Args:
        folder: the run's.
        event: "failed" is the run's own word, "died" that of the process that started the run's.
        message: for people.
        evidence: of its cause, as :func:`evidence_of` returns it.
    """
    line = " ".join(message.split())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        append_log(
            folder, {"event": event, "reason": line, "job_id": job_id(), "host": host(), **evidence}
        )
    except (OSError, UserError):  # a disk that refuses is one of the failures to tell of
        print(f"{folder}: the failure could not be logged", file=sys.stderr)
    return line


EVENTS = {
    "started": "attempt {attempt} began on {host} {job_id}",
    "training": "trains from {images_seen:,} images on",
    "resumed": "went on from a checkpoint at {images_seen:,} images",
    "stopped": "saved, and left",
    "failed": "failed: {reason}",
    "blocked": "{reason}",
    "inputs_changed": "what it is made from was made anew, so it begins anew",
    "checkpoint_damaged": "{file} is damaged, the one before it is taken",
    "died": "{reason}",
    "left": "its element left: {reason}",
    "again": "failed beside other runs, is to be done again alone: {reason}",
    "compile_failed": "could not be compiled, goes on without: {reason}",
}


def when(record: Mapping[str, Any]) -> str:
    """Return the time of a record of log.jsonl: "Nov 29 09:24:35"."""
    return time.strftime("%b %d %H:%M:%S", time.localtime(record.get("time", 0)))


def describe(record: Mapping[str, Any]) -> str:
    """Return a record of log.jsonl in plain words."""
    event = record.get("event", "")
    try:
        return (
            EVENTS[event]
            .format(**{**record, "job_id": f"({record['job_id']})" if record.get("job_id") else ""})
            .rstrip()
        )
    except (KeyError, ValueError):  # the numbers of a training, or what another version wrote
        values = {
            name: value
            for name, value in record.items()
            if name not in ("time", "event", "images_seen")
        }
        said = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        ]
        return ", ".join([event or f"{record.get('images_seen', 0):,} images", *said])
