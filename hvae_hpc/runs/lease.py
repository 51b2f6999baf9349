"""One writer per folder: a lease with a heartbeat, safe on network disks and after any death.

The holder of a folder has a file ``.lease-<n>`` in it and touches that file every ``HEARTBEAT_S``.
A lease that stays unchanged for ``MISSED`` heartbeats is dead. Each process measures this by its
own clock, so no two machines' clocks are compared. Where the file system has ``flock``, a lock is
tried first, because it answers at once.

Taking over: a process creates ``.lease-<n+1>`` exclusively, looks at the folder once more, and
removes the older leases. If anything else changed between its two looks, it steps back.

Losing: each write looks for its own lease after the temporary file is written and before that file
gets its final name. The process that takes over removes temporary files before it begins. So a
process that was stopped or cut off for too long fails at its next write, and changes nothing.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal, NamedTuple

from hvae_hpc.config.loader import dump, load
from hvae_hpc.errors import UserError

LOCK = ".lock"
LEASE = ".lease-"
HEARTBEAT_S = 20.0
"""Seconds between two signs of life."""
MISSED = 6
"""Missed heartbeats after which a lease is dead; NFS may show old file attributes for 60 s."""
LOOK_EVERY_S = 0.5
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


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a folder, as its lease says; empty while that is being written.

    Attributes:
        token: random, of this very lease.
        machine: the boot of a kernel and the namespace of process ids, in which pid and began name
            one process.
        began: when the process started, in clock ticks since the boot.
        job, life: SLURM's id of the element or job, and how often SLURM started it again.
        every_s: seconds between its heartbeats.
    """

    token: str = ""
    host: str = "another host"
    machine: str = ""
    pid: int = 0
    began: str = ""
    job: str = ""
    life: int = 0
    every_s: float = HEARTBEAT_S

    @classmethod
    def this_process(cls) -> "Holder":
        """Return the holder of a new lease of this process."""
        return cls(
            token=secrets.token_hex(8),
            host=host(),
            machine=_machine(),
            pid=os.getpid(),
            began=_start_of(os.getpid()) or "",
            job=job_id(),
            life=restart_count(),
            every_s=HEARTBEAT_S,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}{f' (job {self.job})' if self.job else ''}"

    def is_alive(self) -> bool | None:
        """Tell whether the process lives; None where only waiting for its heartbeat can tell."""
        if self.machine and self.machine == _machine():
            return _start_of(self.pid) in (self.began, None)
        # SLURM starts a job again only when its earlier life is over, or is to be ended.
        if self.job and self.job == job_id() and self.life < restart_count():
            return False
        return None


@cache
def _machine() -> str:
    with contextlib.suppress(OSError):
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

    @property
    def is_silent(self) -> bool:
        """Whether the lease missed so many heartbeats that it is dead."""
        return time.monotonic() - self.since > MISSED * self.holder.every_s


_WATCHED: dict[Path, dict[Path, Sight]] = {}
"""Leases seen, by folder; kept from one try to the next."""
_HELD: dict[Path, "Lease"] = {}


def _read(path: Path) -> tuple[Holder, tuple[str, int]] | None:
    """Return a lease's holder and stamp; None where it is gone."""
    try:
        with open(path, "rb") as file:  # opening a file makes NFS ask the server
            changed, content = os.fstat(file.fileno()).st_mtime_ns, file.read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return None
        raise
    holder = Holder()
    with contextlib.suppress(ValueError, UserError):  # being written, or another version's
        holder = load(Holder, json.loads(content), str(path))
    return holder, (holder.token, changed)


def _look(folder: Path) -> dict[Path, Sight]:
    """Return the leases in a folder, each with how long this process has seen it unchanged."""
    before, now = _WATCHED.pop(folder, {}), dict[Path, Sight]()
    for path in folder.glob(f"{LEASE}*"):
        lease = _read(path) if path.name.removeprefix(LEASE).isdigit() else None
        if lease is None:
            continue
        holder, stamp = lease
        last = before.get(path)
        if last is None:
            now[path] = Sight(holder, stamp, time.monotonic(), False)
        elif last.stamp != stamp:
            now[path] = Sight(holder, stamp, time.monotonic(), True)
        else:
            now[path] = last
    if now:
        _WATCHED[folder] = now
    return now


class Lease:
    """A folder that this process holds.

    Attributes:
        descriptor: of the locked file; a child that inherits it keeps others out until it ends.
        lost: whether another process took over, as far as the last heartbeat tells.
    """

    def __init__(self, path: Path, holder: Holder, file: IO[str]) -> None:
        self.path, self.holder, self.lost = path, holder, False
        self.file, self.descriptor = file, file.fileno()
        self._over = threading.Event()
        _HELD[path.parent.absolute()] = self
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(self.holder.every_s):
            with contextlib.suppress(OSError):  # the file server is away; the next write finds out
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
        with contextlib.suppress(OSError):
            if not self.lost and self._is_ours():
                self.path.unlink()
        self.file.close()
        with contextlib.suppress(OSError):  # not empty, as a rule
            self.path.parent.rmdir()


def check(folder: Path) -> None:
    """Raise a LostError where this process held a folder and another one took it over."""
    if lease := _HELD.get(folder.absolute()):
        lease.check()


@contextlib.contextmanager
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
            print(f"{folder}: waits for {taken or 'another process'}", file=sys.stderr, flush=True)
        time.sleep(LOOK_EVERY_S)
    try:
        yield taken
    finally:
        taken.release()


def _take(folder: Path) -> Lease | Holder | None:
    """Return the lease; or the holder that may be dead; or None where the folder is surely held."""
    while True:
        file, is_free = _lock(folder)
        try:
            taken = _take_over(folder, file, is_free)
        except FileNotFoundError:  # its last holder removed the folder just now
            file.close()
            continue
        except OSError as error:
            file.close()
            raise _refusal(folder, error) from error
        if not isinstance(taken, Lease):
            file.close()
        return taken


def _refusal(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot be written ({error.strerror}); make room there, or choose another folder"
    )


def _lock(folder: Path) -> tuple[IO[str], bool]:
    """Open a folder's lock file.

    Returns:
        The file, and whether it is locked by nobody else; True also where the file system has no
        locks, since then the lease alone protects.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / LOCK, "w")  # noqa: SIM115
        except OSError as error:
            if isinstance(error, FileNotFoundError) and folder.parent.is_dir():
                continue  # its last holder removed the folder just now
            raise _refusal(folder, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return file, False
        except OSError:  # a file system without locks
            return file, True
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat((folder / LOCK).stat(), os.fstat(file.fileno())):
                return file, True
        file.close()  # the file was removed meanwhile: nobody else would see this lock


def _take_over(folder: Path, file: IO[str], is_free: bool) -> Lease | Holder | None:
    """Take a folder that nobody holds any more; returns the same as :func:`_take`."""
    before = _look(folder)
    for sight in before.values():
        alive = sight.holder.is_alive()
        # Where the holder is dead but the lock is not free, a child of the holder may have
        # inherited the lock and still work, or the file server forgot to release it.
        is_dead = sight.is_silent or (alive is False and is_free)
        if not is_dead:
            return None if alive or sight.has_changed else sight.holder
    if not before and not is_free:
        return None

    number = 1 + max((int(path.name.removeprefix(LEASE)) for path in before), default=0)
    path, holder = folder / f"{LEASE}{number}", Holder.this_process()
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
    return Lease(path, holder, file)


def _create(path: Path, content: str) -> bool:
    """Create a file that does not exist; tells whether this process did it."""
    try:
        file = open(path, "x")  # noqa: SIM115
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise
    return True


def is_held(folder: Path) -> bool:
    """Tell whether a process holds a folder, as far as its lease tells and clocks agree."""
    with contextlib.suppress(OSError):
        for sight in _look(folder).values():
            age_s = abs(time.time() - sight.stamp[1] / 1e9)
            alive = sight.holder.is_alive()
            if alive or (alive is None and age_s < MISSED * sight.holder.every_s):
                return True
    return False
