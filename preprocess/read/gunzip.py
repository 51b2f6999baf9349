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


def gunzip(content: bytes, least: int, most: int) -> bytes | bytearray:
    """Return what a gzip file holds, after checking gzip's own checksum as far as it is read.

    Of several members it may be the first alone, if that has ``least`` bytes.

    Args:
        content: the whole file.
        least: bytes that a sound file holds.
        most: bytes that are unzipped; a few MB may hold many GB.

    Raises:
        EOFError: it ends early.
        gzip.BadGzipFile, zlib.error: it is damaged, or is no gzip file.
    """
    # The size is that of the last member; libdeflate reads the first one alone.
    size = int.from_bytes(content[-4:], "little")
    if deflate is not None and 0 < least <= size <= min(most, _HIGHEST_RATIO * len(content)):
        try:
            unzipped = deflate.gzip_decompress(content)
            if len(unzipped) >= least:  # else it was the first of several members
                return unzipped
        except (deflate.DeflateError, ValueError, MemoryError):
            pass  # Python's gzip says what is wrong, and reads files of several members
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        return file.read(most)
