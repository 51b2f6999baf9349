"""One writer per folder: a lease with a heartbeat, safe on a network file system and after any death.

Who holds a folder has the file ``.lease-<n>`` in it and touches it now and then. Whoever finds it
unchanged for ``MISSED`` heartbeats, by its own clock alone, takes over: it creates ``.lease-<n+1>``
    exclusively, which one process
can, looks once more, and removes the older ones. From then on their holder is refused: each write
looks for its own lease after the temporary file is written and before it gets its final name, and
whoever takes over removes temporary files before it begins, so that no write of before falls into
the time after. No two machines' clocks are compared, and a process that was stopped, or cut off,
finds out at its next write. ``flock`` goes before it, where there is one.

The file is written under a temporary name and linked, or, where there are no links, created by
``O_EXCL``. It is removed when the folder is released: as everyone looks again after creating its
file, and steps back from what it does not know, an old look at the folder lets nobody in.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

from hvae_hpc.config.loader import dump, load
from hvae_hpc.errors import UserError
from hvae_hpc.runs.lease_holder import Holder, myself

LOCK = ".lock"
LEASE = ".lease-"
MISSED = 6
"""So many heartbeats that nobody saw make a lease dead; more than what NFS may keep of a file's attributes (60 s)."""
LOOK_EVERY_S = 0.5
TELL_AFTER_S = 3.0


class LostError(UserError):
    """Another process took the folder over; nothing more is written there by this one."""


class Sight(NamedTuple):
    """A lease as this process saw it last: its stamp, since when that is unchanged (s), and whether it ever changed."""

    holder: Holder
    stamp: tuple[str, int]
    since: float
    moved: bool

    @property
    def silent(self) -> bool:
        """Whether it missed so many heartbeats that it is dead."""
        return time.monotonic() - self.since > MISSED * self.holder.every_s


_WATCHED: dict[Path, dict[Path, Sight]] = {}
"""By folder; kept from one try to the next, so that a process can do other things meanwhile."""
_HELD: dict[Path, "Lease"] = {}


def _read(path: Path) -> tuple[Holder, tuple[str, int]] | None:
    """Return a lease's holder and stamp; opening it makes NFS ask the server. None where it is gone."""
    try:
        with open(path, "rb") as file:
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
    before, seen = _WATCHED.pop(folder, {}), dict[Path, Sight]()
    for path in folder.glob(f"{LEASE}*"):
        if path.name.removeprefix(LEASE).isdigit() and (found := _read(path)):
            was = before.get(path)
            same = was is not None and was.stamp == found[1]
            since = was.since if was and same else time.monotonic()
            seen[path] = Sight(*found, since, was is not None and (was.moved or not same))
    if seen:
        _WATCHED[folder] = seen
    return seen


class Lease:
    """A folder that this process holds.

    Attributes:
        descriptor: of the locked file; who inherits it keeps others out until it ends.
        lost: whether another process took over, as far as the last heartbeat found.
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
                self.lost = not self._is_there()
                if self.lost:
                    return
                os.utime(self.path)  # by the server's clock

    def _is_there(self) -> bool:
        found = _read(self.path)
        return found is not None and found[0].token == self.holder.token

    def check(self) -> None:
        """Raise a LostError where another process took over."""
        if self.lost or not self._is_there():
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
            if not self.lost and self._is_there():
                self.path.unlink()
        self.file.close()
        with contextlib.suppress(OSError):  # not empty, as a rule
            self.path.parent.rmdir()


def check(folder: Path) -> None:
    """Raise a LostError where this process held a folder and another one took it over."""
    if held := _HELD.get(folder.absolute()):
        held.check()


@contextlib.contextmanager
def locked(
    folder: Path, wait: Literal["never", "in doubt", "always"] = "never"
) -> Iterator[Lease | None]:
    """Hold a folder for one writer; yields None where another process holds it.

    Args:
        folder: is made if need be.
        wait: how long for another one: not at all, which is for who asks again; until it is known
            whether it lives; or until it is done.

    Raises:
        UserError: the folder cannot be written.
    """
    began = told = time.monotonic()
    while not isinstance(found := _take(folder), Lease) and (
        wait == "always" or (wait == "in doubt" and found)
    ):
        if told == began and time.monotonic() - began > TELL_AFTER_S:
            told = time.monotonic()
            print(f"{folder}: waits for {found or 'another process'}", file=sys.stderr, flush=True)
        time.sleep(LOOK_EVERY_S)
    if not isinstance(found, Lease):
        yield None
        return
    try:
        yield found
    finally:
        found.release()


def _take(folder: Path) -> Lease | Holder | None:
    """Return the lease; else who may hold the folder, or be dead; None where it is held for sure."""
    while True:
        file, quick = _lock(folder)
        try:
            found = _take_over(folder, file, quick)
        except FileNotFoundError:  # its last holder removed the folder just now
            file.close()
            continue
        except OSError as error:
            file.close()
            raise _refusal(folder, error) from error
        if not isinstance(found, Lease):
            file.close()
        return found


def _refusal(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot be written ({error.strerror}); make room there, or choose another folder"
    )


def _lock(folder: Path) -> tuple[IO[str], bool]:
    """Open a folder's lock; return it, and whether no process on a machine that shares its locks has it."""
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
        except OSError:  # a file system without locks: the lease alone protects
            return file, True
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat((folder / LOCK).stat(), os.fstat(file.fileno())):
                return file, True
        file.close()  # its last holder removed the file: what is locked here, nobody else will see


def _take_over(folder: Path, file: IO[str], quick: bool) -> Lease | Holder | None:
    before = _look(folder)
    for sight in before.values():
        lives = sight.holder.lives
        # A lock that outlives its holder is inherited by what may still work for it, or
        # forgotten by a file server.
        if not sight.silent and (lives is not False or not quick):
            return None if lives or sight.moved else sight.holder
    if not before and not quick:
        return None
    number = 1 + max((int(path.name.removeprefix(LEASE)) for path in before), default=0)
    path, mine = folder / f"{LEASE}{number}", myself()
    if not _create(path, json.dumps(dump(mine)) + "\n"):
        return None
    # Between the first look and now others may have come and gone, and the dead be alive.
    others = {other: sight for other, sight in _look(folder).items() if other != path}
    if any(
        other not in before or sight.stamp != before[other].stamp for other, sight in others.items()
    ):
        path.unlink(missing_ok=True)
        return None
    for other in others:
        other.unlink(missing_ok=True)
    _WATCHED.pop(folder, None)
    return Lease(path, mine, file)


def _create(path: Path, content: str) -> bool:
    """Create a file that is not there; tells whether it was this process that did.

    It is linked when it is whole, so that who is killed here leaves no lease that says nothing and
    is waited for.
    """
    whole = path.with_name(f"{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        with open(whole, "x") as file:
            file.write(content)
        try:
            os.link(whole, path)
        except FileExistsError:
            return (
                whole.stat().st_nlink > 1
            )  # NFS repeats a call whose answer was lost: it was ours after all
        except OSError:  # a file system without links
            return _create_by_name(path, content)
        return True
    finally:
        with contextlib.suppress(OSError):
            whole.unlink(missing_ok=True)


def _create_by_name(path: Path, content: str) -> bool:
    try:
        file = open(path, "x")  # noqa: SIM115
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def is_held(folder: Path) -> bool:
    """Tell whether a process holds a folder, as far as its lease tells and clocks agree."""
    with contextlib.suppress(OSError):
        for sight in _look(folder).values():
            age_s = abs(time.time() - sight.stamp[1] / 1e9)
            lives = sight.holder.lives
            if lives or (lives is None and age_s < MISSED * sight.holder.every_s):
                return True
    return False
