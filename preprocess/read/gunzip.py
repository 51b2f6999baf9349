"""Unzip a gzip file, three times as fast where libdeflate is installed (``deflate`` on PyPI)."""

import contextlib
import gzip
import importlib
import io
from typing import Any

deflate: Any = None
with contextlib.suppress(ImportError):  # packing installs it; a node that only trains may lack it
    deflate = importlib.import_module("deflate")

_HIGHEST_RATIO = 1032
"""Deflate shrinks nothing by more: a size beyond it is a damaged one, and is not allocated."""


def gunzip(content: bytes, most: int) -> bytes | bytearray:
    """Return what a gzip file holds, after checking gzip's own checksum.

    Of a file of several members of equal size it may be the first alone. A caller who gets fewer
    bytes than there must be asks :func:`gunzip_start`.

    Args:
        content: the whole file.
        most: bytes that are unzipped; a few MB may hold many GB.

    Raises:
        EOFError: it ends early.
        gzip.BadGzipFile, zlib.error: it is damaged, or is no gzip file.
    """
    size = int.from_bytes(content[-4:], "little")  # of the last member
    if deflate is not None and 0 < size <= min(most, _HIGHEST_RATIO * len(content)):
        try:
            return deflate.gzip_decompress(content)
        except (deflate.DeflateError, ValueError, MemoryError):
            pass  # Python's gzip says what is wrong, and reads files of several members
    return gunzip_start(content, most)


def gunzip_start(content: bytes, most: int) -> bytes:
    """Return the first bytes of what a gzip file holds, of any number of members.

    Raises:
        EOFError, gzip.BadGzipFile, zlib.error: as :func:`gunzip`, as far as is read.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        return file.read(most)
