"""This user's own folder on a node's own disk: where it is, and what may be removed from it.

``<scratch>/hvae_hpc-<uid>/`` is open to its owner alone, since it holds patients' images, and code
that is run. Who uses a folder in it holds a shared lock on it, which dies with its process; only
what nobody holds is removed.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from hvae_hpc.errors import UserError

VARIABLE = "HVAE_HPC_SCRATCH"


def scratch_folder(asked: str) -> Path | None:
    """Return the user's own folder on this node's disk, made if need be; None where no scratch is asked for.

    Args:
        asked: an absolute path with variables of the node ("$TMPDIR"), or ""; ``$HVAE_HPC_SCRATCH``
            goes before it.

    Raises:
        UserError: there can be none here, or what is there is not ours alone.
    """
    text = os.environ.get(VARIABLE, asked)
    if not text:
        return None
    path = Path(os.path.expandvars(text))
    if "$" in str(path) or not path.is_absolute():
        raise UserError(
            f"scratch {text!r} is {str(path)!r} here, expected an absolute path and variables that are set"
        )
    if in_home(path):
        raise UserError(f"scratch {text!r} lies in the home folder, expected a node's own disk")
    return own_folder(path)


def in_home(path: Path) -> bool:
    """Tell whether a path lies in the home folder, which is small and on a file server; "/" is nobody's."""
    home = Path(os.environ.get("HOME") or "/").resolve()
    return path.resolve().is_relative_to(home) and home != home.parent


def own_folder(path: Path) -> Path:
    """Return the user's own folder in one that may be open to all, made if need be.

    Raises:
        UserError: it cannot be made, or what is there is not ours alone.
    """
    own = path / f"hvae_hpc-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = (
            own.lstat()
        )  # the folder above may be open to all: a link, or another's folder, may wait there
    except OSError as error:
        raise UserError(f"{own}: cannot be made ({error.strerror})") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(
            f"{own}: is not a folder of ours alone (mode 700); remove it, or name another scratch"
        )
    return own


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Keep a folder from being removed, and note that it is used; yields False where it is not there, or is going."""
    with _locked(folder, fcntl.LOCK_SH) as mine:
        if mine:
            os.utime(folder, (time.time(), time.time()))
        yield mine


def remove_unused(folder: Path) -> bool:
    """Remove a folder that no process holds; tells whether it is gone."""
    with _locked(folder, fcntl.LOCK_EX) as mine:
        if mine:
            shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[bool]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        mine = False
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            mine = os.path.samestat(
                folder.stat(), os.fstat(descriptor)
            )  # not removed, or made anew, meanwhile
        yield mine
    finally:
        os.close(descriptor)
