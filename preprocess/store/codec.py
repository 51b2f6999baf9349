"""gzip and zlib, by libdeflate where it is installed: about three times as fast as Python's own zlib.

What libdeflate refuses, Python's gzip looks at again: its word counts, and it reads files of
several members.
"""

import contextlib
import gzip
import importlib
import zlib
from typing import Any

libdeflate: Any = None
with contextlib.suppress(ImportError):  # packing installs it; a node that only trains may lack it
    libdeflate = importlib.import_module("deflate")

_HIGHEST_RATIO = 1032
"""More than this deflate cannot shrink anything: a size beyond is a damaged one."""


def gunzip(content: bytes) -> bytes | bytearray:
    """Return what a gzip file holds, after checking gzip's own checksum.

    Of a file of several members of one and the same size it may be the first alone: who knows how
        many bytes there
    must be, and gets fewer, asks ``gzip.decompress``.

    Args:
        content: the whole file.

    Raises:
        EOFError: it ends early.
        gzip.BadGzipFile, zlib.error: it is damaged, or is no gzip file.
    """
    size = int.from_bytes(content[-4:], "little")  # of the last member, modulo 4 GiB
    if (
        libdeflate is not None
        and content[:2] == b"\x1f\x8b"
        and 0 < size <= _HIGHEST_RATIO * len(content)
    ):
        try:
            unzipped: bytearray = libdeflate.gzip_decompress(content)
            return unzipped
        except (libdeflate.DeflateError, ValueError, MemoryError):
            pass
    return gzip.decompress(content)


def compress(data: bytes) -> bytes:
    """Return a zlib stream, quickly made: level 1 is as small as gzip's, to a percent or two (docs/SHARDS.md)."""
    return (
        bytes(libdeflate.zlib_compress(data, 1))
        if libdeflate is not None
        else zlib.compress(data, 1)
    )


def decompress(stream: bytes, size: int) -> bytes | bytearray:
    """Return the ``size`` bytes that a zlib stream holds, after checking its checksum.

    Raises:
        ValueError: it is damaged, or holds another number of bytes.
    """
    data: bytes | bytearray
    try:
        data = (
            libdeflate.zlib_decompress(stream, size)
            if libdeflate is not None
            else zlib.decompress(stream)
        )
    except Exception as error:  # DeflateError, zlib.error
        raise ValueError(f"chunk is damaged: {error}") from error
    if len(data) != size:
        raise ValueError(f"chunk holds {len(data)} bytes, expected {size}")
    return data
