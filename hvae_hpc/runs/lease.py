"""One writer per folder: a lease with a heartbeat, safe on network disks and after any death.

The holder of a folder has a file ``.lease-<n>`` in it and touches that file every ``HEARTBEAT_S``.
A lease that stays unchanged for ``MISSED`` heartbeats is dead. Each process measures this by its
own clock, so no two machines' clocks are compared. A process that is gone from this machine is
known to be dead at once.

Taking over: a process creates ``.lease-<n+1>`` exclusively, looks at the folder once more, and
removes the older leases. If anything else changed between its two looks, it steps back. The lease
is written under a temporary name and linked to its own, so it says from the start who holds it.

Losing: each write looks for its own lease after the temporary file is written and before that file
gets its final name. The process that takes over removes temporary files before it begins. So a
process that was stopped or cut off for too long fails at its next write, and changes nothing.
"""

import errno
import json
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from hvae_hpc.config.loader import dump, load
from hvae_hpc.errors import UserError, say
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.files import SETTINGS_BYTES, open_file

LEASE = ".lease-"
NUMBER = re.compile(r"[0-9]{1,9}")
HEARTBEAT_S = 20.0
"""Seconds between two signs of life."""
LONGEST_HEARTBEAT_S = 600.0
"""A lease that says more is not believed."""
MISSED = 6
"""Missed heartbeats after which a lease is dead; NFS may show old file attributes for 60 s."""
LOOK_EVERY_S = 0.5
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system without hard links says."""
TELL_AFTER_S = 3.0


class LostError(UserError):
    """Another process took the folder over; this one writes nothing more there."""


def host() -> str:
    """Return the node's name, SLURM's where there is one."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def job_id() -> str:
    """Return SLURM's ``<array>_<element>`` or job id; "" outside SLURM."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")


def restart_count() -> int:
    """Return how often SLURM started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


@frozen
class Holder:
    """The process that holds a folder, as its lease says; empty while that is being written.

    Attributes:
        token: random, of this very lease.
        machine: the boot of a kernel and the namespace of process ids, in which pid and began name
            one process.
        began: when the process started, in clock ticks since the boot.
        job: SLURM's id of the element or job.
        every_s: seconds between its heartbeats.
    """

    token: str = ""
    host: str = "another host"
    machine: str = ""
    pid: int = 0
    began: str = ""
    job: str = ""
    every_s: float = HEARTBEAT_S

    def __post_init__(self) -> None:
        if not (0 < self.every_s <= LONGEST_HEARTBEAT_S and 0 <= self.pid < 2**31):
            raise ValueError(f"every_s is {self.every_s}, pid {self.pid}; no lease has such")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}{f' (job {self.job})' if self.job else ''}"

    def is_alive(self) -> bool | None:
        """Tell whether the process lives; None where only waiting for its heartbeat can tell."""
        if self.machine and self.machine == _machine():
            return _start_of(self.pid) in (self.began, None)
        return None


@cache
def _machine() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _start_of(pid: int) -> str | None:
    """Return a process's start, in ticks since the boot; "" if it is gone, None if it is hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # other users' processes may be hidden
        return None
    return "" if fields[0] in "ZX" else fields[19]


class Sight(NamedTuple):
    """A lease as this process saw it last.

    Attributes:
        holder: see there.
        stamp: token and time of change: a heartbeat changes it.
        since: when this process first saw this stamp, s on its monotonic clock.
        has_changed: whether this process ever saw the stamp change.
    """

    holder: Holder
    stamp: tuple[str, int]
    since: float
    has_changed: bool


_WATCHED: dict[Path, dict[Path, Sight]] = {}
"""Leases seen, by folder; kept from one try to the next."""
_HELD: dict[Path, "Lease"] = {}


def _read(path: Path) -> tuple[Holder, tuple[str, int]] | None:
    """Return a lease's holder and stamp; None where it is gone."""
    try:
        with open_file(path, SETTINGS_BYTES) as file:  # opening makes NFS ask the server
            changed, content = os.fstat(file.fileno()).st_mtime_ns, file.read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return None
        raise
    holder = Holder()
    with suppress(ValueError, UserError):  # being written, or another version's
        holder = load(Holder, json.loads(content), str(path))
    return holder, (holder.token, changed)


def _look(folder: Path) -> dict[Path, Sight]:
    """Return the leases in a folder, each with how long this process has seen it unchanged."""
    before, now = _WATCHED.pop(folder, {}), dict[Path, Sight]()
    for path in folder.glob(f"{LEASE}*"):
        lease = _read(path) if NUMBER.fullmatch(path.name.removeprefix(LEASE)) else None
        if lease is None:
            continue
        holder, stamp = lease
        last = before.get(path)
        if last is None or last.stamp != stamp:
            last = Sight(holder, stamp, time.monotonic(), has_changed=last is not None)
        now[path] = last
    if now:
        _WATCHED[folder] = now
    return now


class Lease:
    """A folder that this process holds.

    Attributes:
        lost: whether another process took over, as far as the last heartbeat tells.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self.holder, self.lost = path, holder, False
        self._over = threading.Event()
        _HELD[path.parent.absolute()] = self
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(self.holder.every_s):
            with suppress(OSError):  # the file server is away; the next write finds out
                self.lost = not self._is_ours()
                if self.lost:
                    return
                os.utime(self.path)  # by the server's clock

    def _is_ours(self) -> bool:
        lease = _read(self.path)
        return lease is not None and lease[0].token == self.holder.token

    def check(self) -> None:
        """Raise a LostError where another process took over."""
        if self.lost or not self._is_ours():
            self.lost = True
            others = [sight.holder for sight in _look(self.path.parent).values()]
            by = f" to {others[0]}" if others else ""
            raise LostError(
                f"{self.path.parent}: lost the folder{by}: this process gave no sign of life for "
                f"{MISSED * self.holder.every_s:.0f} s; nothing more is written here by it"
            )

    def release(self) -> None:
        """Let others have the folder; an empty one is removed."""
        self._over.set()
        _HELD.pop(self.path.parent.absolute(), None)
        with suppress(OSError):
            if not self.lost and self._is_ours():
                self.path.unlink()
        with suppress(OSError):  # not empty, as a rule
            self.path.parent.rmdir()


def check(folder: Path) -> None:
    """Raise a LostError where this process held a folder and another one took it over."""
    if lease := _HELD.get(folder.absolute()):
        lease.check()


@contextmanager
def locked(
    folder: Path, wait: Literal["never", "in doubt", "always"] = "never"
) -> Iterator[Lease | None]:
    """Hold a folder for one writer; yields None where another process holds it.

    Args:
        folder: is made if need be.
        wait: "never" for a caller that asks again later; "in doubt" until it is known whether the
            other process lives; "always" until the other process is done.

    Raises:
        UserError: the folder cannot be written.
    """
    began = time.monotonic()
    is_told = False
    while not isinstance(taken := _take(folder), Lease):
        if wait == "never" or (wait == "in doubt" and taken is None):
            yield None
            return
        if not is_told and time.monotonic() - began > TELL_AFTER_S:
            is_told = True
            say(f"{folder}: waits for {taken or 'another process'}", to=sys.stderr)
        time.sleep(LOOK_EVERY_S)
    try:
        yield taken
    finally:
        taken.release()


def _take(folder: Path) -> Lease | Holder | None:
    """Return the lease; or the holder that may be dead; or None where the folder is surely held."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _take_over(folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and folder.parent.is_dir():
                continue  # its last holder removed the folder just now
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); make room there, "
                "or choose another folder"
            ) from error


def _take_over(folder: Path) -> Lease | Holder | None:
    """Take a folder that nobody holds any more; returns the same as :func:`_take`."""
    before = _look(folder)
    for sight in before.values():
        alive = sight.holder.is_alive()
        is_silent = time.monotonic() - sight.since > MISSED * sight.holder.every_s
        if alive is not False and not is_silent:
            return None if alive or sight.has_changed else sight.holder

    number = 1 + max((int(path.name.removeprefix(LEASE)) for path in before), default=0)
    if not NUMBER.fullmatch(str(number)):
        raise OSError(errno.EINVAL, f"{LEASE}{number - 1} is none of ours, delete it")
    path = folder / f"{LEASE}{number}"
    holder = Holder(
        token=secrets.token_hex(8),
        host=host(),
        machine=_machine(),
        pid=os.getpid(),
        began=_start_of(os.getpid()) or "",
        job=job_id(),
        every_s=HEARTBEAT_S,
    )
    if not _create(path, json.dumps(dump(holder)) + "\n"):
        return None

    # Since the first look others may have come and gone, or a silent holder may have woken up.
    others = {other: sight for other, sight in _look(folder).items() if other != path}
    if any(
        other not in before or sight.stamp != before[other].stamp for other, sight in others.items()
    ):
        path.unlink(missing_ok=True)
        return None

    for other in others:
        other.unlink(missing_ok=True)
    _WATCHED.pop(folder, None)
    return Lease(path, holder)


def _create(path: Path, content: str) -> bool:
    """Create a file with all its content; False where there is one of that name already."""
    temporary = path.with_name(f"{LEASE}{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_text(content)
        os.link(temporary, path)
    except FileExistsError:
        # NFS may repeat a call whose answer was lost, and then refuse the link that it made.
        return temporary.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _create_by_open(path, content)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _create_by_open(path: Path, content: str) -> bool:
    """Do so where the file system has no links: for a moment the file is there without content."""
    try:
        with open(path, "x") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise
    return True


def is_held(folder: Path) -> bool:
    """Tell whether a process holds a folder, as far as its lease tells and clocks agree."""
    with suppress(OSError):
        for sight in _look(folder).values():
            age_s = abs(time.time() - sight.stamp[1] / 1e9)
            alive = sight.holder.is_alive()
            if alive or (alive is None and age_s < MISSED * sight.holder.every_s):
                return True
    return False
