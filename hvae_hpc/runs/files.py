"""Files that grow line by line; a crash or a full disk may cut the last line short."""

import contextlib
import io
import os
from pathlib import Path

from hvae_hpc.errors import UserError
from hvae_hpc.runs.lease import check


def refused(path: Path, error: OSError) -> UserError:
    """Return what a person is told where the disk refuses a file."""
    why = error.strerror or error
    return UserError(f"{path}: cannot be written ({why}); what was there before is untouched")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; a last line that was cut short is closed off first.

    Args:
        path: in a folder that exists.
        line: one or several, without the end of the last one.

    Raises:
        UserError: the disk refused, and nothing of the line stays; or this process lost the folder
            to another one.
    """
    check(path.parent)
    try:
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            is_cut = size > 0 and file.read(1) != b"\n"
            _append(file, size, (b"\n" if is_cut else b"") + f"{line}\n".encode())
    except OSError as error:
        raise refused(path, error) from error


def _append(file: io.FileIO, size: int, content: bytes) -> None:
    """Write at the end of a file of such a size; nothing of it stays where the disk is full."""
    written = 0
    try:
        while written < len(content):
            written += file.write(content[written:])
    except OSError:
        with contextlib.suppress(OSError):
            if os.fstat(file.fileno()).st_size == size + written:  # nobody else has written since
                file.truncate(size)
        raise
