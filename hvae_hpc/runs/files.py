"""The one opener of files that somebody else may have made, and its refusals.

Runs folders, packed data and raw folders are copied between people. So only regular files are
opened. A FIFO or a device is an error at once and never waited for, and a file beyond the bound of
its kind is not read. Reading follows a link to a regular file, since people link to large disks.
Writing and deleting follow none below the folder that a person named.
"""

import errno
import io
import os
import re
import stat
from pathlib import Path

from hvae_hpc.errors import UserError

SETTINGS_BYTES = 2**20
"""Most that a sweep, site or recipe file may have."""
RECORD_BYTES = 2**27
"""Most that a manifest, plan or metrics.json may have; of a longer log the end is read."""
IMAGE_BYTES = 2**32
"""Most that a scan, a picture, a shard or samples.npz may have."""
WEIGHT_BYTES = 2**34
"""Most that a checkpoint or snapshot may have."""


def plain_name(text: str) -> str:
    """Return a file's name for a text that may hold anything."""
    return re.sub(r"^\.|[^A-Za-z0-9._-]", "_", text)


def open_file(path: Path, most: int) -> io.BufferedReader:
    """Open a regular file for reading.

    Args:
        path: of the file, or of a link to it.
        most: bytes that it may have.

    Raises:
        OSError: it is missing, is no regular file, or is larger.
    """
    file = _open(path, os.O_RDONLY)
    size = os.fstat(file.fileno()).st_size
    if size > most:
        file.close()
        raise OSError(errno.EINVAL, f"has {size:,} bytes, expected {most:,} at most", str(path))
    return io.BufferedReader(file)


def read_file(path: Path, most: int) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        OSError: as :func:`open_file`.
    """
    with open_file(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # Python makes room for as much as asked


def read_last_lines(path: Path, most: int) -> list[bytes]:
    """Return the last lines of a regular file that may be long; the first one is whole.

    Args:
        path: of the file.
        most: bytes that are read, from its end.

    Raises:
        OSError: it is missing, or is no regular file.
    """
    with _open(path, os.O_RDONLY) as file:
        start = max(0, os.fstat(file.fileno()).st_size - most)
        file.seek(start)
        content = file.read(most).removesuffix(b"\n")
    lines = content.split(b"\n") if content else []
    return lines[1:] if start and len(lines) > 1 else lines


def open_to_append(path: Path) -> io.FileIO:
    """Open a regular file, made if need be, for reading and for adding at its end.

    Raises:
        OSError: it is a link, is no regular file, or the disk refused.
    """
    return _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)


def _open(path: Path, flags: int) -> io.FileIO:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.EINVAL, "is a link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return io.FileIO(descriptor, "a+" if flags & os.O_APPEND else "r")


def refuse_links(path: Path, root: Path) -> None:
    """Refuse to write or delete where a link leads out of the folder that a person named.

    Args:
        path: of a file or folder below the root.
        root: the runs folder or the folder of ``--out``, which may itself be a link.

    Raises:
        UserError: the path, or a folder between it and the root, is a link.
    """
    for place in (path, *path.parents):
        if place == root:
            return
        if place.is_symlink():
            raise UserError(
                f"{place}: is a link, and nothing is written through links below {root}; "
                "put what it leads to in its place, or remove the link"
            )
