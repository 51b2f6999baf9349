"""The HDF5 shard format, schema 1: image+mask pairs, written once, verified whenever they are read.

docs/SHARDS.md defines it for readers in any language. A chunk is one pair, compressed by HDF5's own
gzip filter, so every HDF5 library reads it. A reader of a few rows verifies these rows, and the
whole chain up to the manifest. Equal pairs give equal bytes: no times, no library objects.
"""

import contextlib
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.pairs import Pairs, hash_rows
from hvae_hpc.runs.files import IMAGE_BYTES, read_file
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.identity import canonical_json, content_hash

SHARD_SCHEMA = 1
SEAL_BYTES = 512
"""Size of the user block, which HDF5 leaves to us: it holds the hash of the rest of the file."""

_HIGHEST_RATIO = 1032
"""Deflate shrinks nothing by more."""
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PIXELS = ("images", "masks")
_WORDS = ("case_ids", "slice_index", "spacing_mm", "source_sha256", "row_sha256", "attributes")

_REMEDY = "delete it, and pack the data or run the stage again"
_DAMAGE = (
    OSError,
    LookupError,
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    zlib.error,
)
"""What h5py and zlib raise for a damaged file."""


def write_pairs(path: Path, pairs: Pairs, attributes: dict[str, str]) -> str:
    """Write a shard atomically.

    Args:
        path: the shard's file.
        pairs: at least one pair.
        attributes: free text that belongs to the pairs ("source_cases": a JSON list).

    Returns:
        The content's SHA-256, 64 hexadecimal digits.

    Raises:
        ValueError: pairs that no stage may make: other dtypes, an image outside [0, 1] or not
            finite, a mask with other values than 0 and 1.
        UserError: the disk refused.
    """
    _check(pairs)
    rows = hash_rows(pairs)
    text = canonical_json(attributes)
    digest = _combine(pairs.images.shape, rows, text)
    write_atomic(path, _to_hdf5(pairs, rows, text, digest))
    return digest


def hash_pairs(pairs: Pairs, attributes: dict[str, str]) -> str:
    """Return the content hash that :func:`write_pairs` would return."""
    return _combine(pairs.images.shape, hash_rows(pairs), canonical_json(attributes))


class Shard:
    """An open shard: its rows can be read in any order, each verified.

    Attributes:
        path: the file.
        content_sha256: the hash of its content.
        image_size: rows and columns of its pairs.
        attributes: what was written with the pairs.
    """

    def __init__(self, path: Path, content_sha256: str | None = None) -> None:
        """Open a shard and verify all of it but the pixels.

        Args:
            path: the file.
            content_sha256: the hash that it must have (a manifest's); None for its own.

        Raises:
            UserError: it is missing, of another schema, damaged, or has other content.
        """
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such shard; pack the data or run the stage again")
        try:
            state = path.stat()
            _check_bytes(path, state.st_size, state.st_mtime_ns)
            # No file locks: shards are never changed in place, and network file systems often
            # refuse locks.
            self._file = h5py.File(path, "r", locking=False)
            self.content_sha256 = self._open(state.st_size)
            if content_sha256 not in (None, self.content_sha256):
                raise UserError(
                    f"{path}: has content {self.content_sha256[:12]}, "
                    f"the manifest says {content_sha256[:12]}; pack the data again"
                )
        except BaseException as error:
            self.close()
            if "locking flag" in str(error):
                raise UserError(
                    f"{path}: is open in this process by h5py's defaults; give h5py locking=False"
                ) from error
            if isinstance(error, _DAMAGE):
                raise self._damaged(error) from error
            raise

    def _open(self, file_bytes: int) -> str:
        """Read everything but the pixels of a file of a size; return the content's hash."""
        schema = self._file.attrs.get("schema")
        if schema != SHARD_SCHEMA:
            raise UserError(
                f"{self.path}: shard schema {schema}, expected {SHARD_SCHEMA}; {_REMEDY}"
            )

        values = {name: _own_values(self._file, name, file_bytes) for name in _PIXELS + _WORDS}
        self._images, self._masks = values.pop("images"), values.pop("masks")
        shape = self._images.shape
        for dataset, kind in ((self._images, "<f4"), (self._masks, "|u1")):
            form = (dataset.dtype.str, dataset.shape, dataset.chunks)
            if form != (kind, shape, (1, *shape[1:])):
                raise ValueError(f"{dataset.name} has form {form}")
            if (dataset.compression, dataset.shuffle) != ("gzip", False):
                raise ValueError(f"{dataset.name} is not compressed by gzip alone")
        self.image_size: tuple[int, ...] = shape[1:]

        self._words = {name: dataset[()] for name, dataset in values.items()}
        text = self._words.pop("attributes").decode()
        self._hashes = _to_texts(self._words.pop("row_sha256"))
        if {len(self._hashes), *map(len, self._words.values())} != {shape[0]}:
            raise ValueError("its arrays have unlike lengths")

        digest = str(self._file.attrs["content_sha256"])
        if digest != _combine(shape, self._hashes, text):
            raise ValueError("its content does not match its hash")
        self.attributes: dict[str, str] = json.loads(text)
        return digest

    def __len__(self) -> int:
        return len(self._hashes)

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        # A damaged file may never have been opened, or HDF5 may refuse even this of it.
        with contextlib.suppress(Exception):
            self._file.close()

    def read(self, rows: Sequence[int] | None = None) -> Pairs:
        """Read and verify all or some rows.

        Args:
            rows: which, in the order wanted; None for all.

        Raises:
            UserError: a row is damaged.
        """
        index = list(range(len(self)) if rows is None else rows)
        if any(not 0 <= row < len(self) for row in index):
            raise IndexError(f"rows {index} asked of a shard of {len(self)} pairs")

        shape = (len(index), *self.image_size)
        images, masks = np.empty(shape, "<f4"), np.empty(shape, np.uint8)
        try:
            for place, row in enumerate(index):
                _read_chunk(self._images, row, images[place])
                _read_chunk(self._masks, row, masks[place])
            pairs = Pairs(
                images=images,
                masks=masks,
                case_ids=_to_texts(self._words["case_ids"][index]),
                slice_index=self._words["slice_index"][index],
                spacing_mm=self._words["spacing_mm"][index],
                source_sha256=_to_texts(self._words["source_sha256"][index]),
            )
            if hash_rows(pairs) != [self._hashes[row] for row in index]:
                raise ValueError("its content does not match its hash")
        except _DAMAGE as error:
            raise self._damaged(error) from error
        return pairs

    def _damaged(self, error: Exception) -> UserError:
        why = (str(error) or type(error).__name__).splitlines()[0]
        return UserError(f"{self.path}: shard is damaged ({why}); {_REMEDY}")


def read_pairs(
    path: Path, rows: Sequence[int] | None = None, content_sha256: str | None = None
) -> tuple[Pairs, dict[str, str]]:
    """Read all or some rows of a shard, verified.

    Args:
        path: the shard's file.
        rows: which rows, in the order wanted; None for all.
        content_sha256: the hash that the shard must have (a manifest's); None for its own.

    Returns:
        The pairs, and the attributes.

    Raises:
        UserError: the shard is missing, of another schema, damaged, or has other content.
    """
    with Shard(path, content_sha256) as shard:
        return shard.read(rows), shard.attributes


def _read_chunk(dataset: h5py.Dataset, row: int, into: NDArray[Any]) -> None:
    """Read one pair's chunk; unlike HDF5's filter, this never unzips more than its size."""
    _, chunk = dataset.id.read_direct_chunk((row, 0, 0))
    values = zlib.decompressobj().decompress(chunk, into.nbytes)
    into.reshape(-1)[:] = np.frombuffer(values, into.dtype)


@lru_cache(maxsize=256)
def _check_bytes(path: Path, n_bytes: int, changed_ns: int) -> None:
    """Compare a file's bytes with its seal: of damaged ones libhdf5 may crash or never return.

    A file is read for this once in a process, unless its size or time of change differs. Files of
    earlier versions have no seal.

    Raises:
        OSError: it cannot be read.
        ValueError: its bytes are not those that were written.
    """
    content = memoryview(read_file(path, IMAGE_BYTES))
    if content[:8] != _HDF5_SIGNATURE and content[:SEAL_BYTES] != _seal(content[SEAL_BYTES:]):
        raise ValueError("its bytes do not match their hash")


def _seal(content: bytes | memoryview) -> bytes:
    """Return what stands before the HDF5 content in a file, in the user block of the format."""
    line = f"hvae_hpc shard; SHA-256 of the bytes from {SEAL_BYTES} on: "
    return f"{line}{hashlib.sha256(content).hexdigest()}\n".encode().ljust(SEAL_BYTES, b"\0")


def _own_values(file: h5py.File, name: str, file_bytes: int) -> h5py.Dataset:
    """Return a dataset whose values lie in this very file, and need no more memory than they can.

    Raises:
        KeyError, ValueError: there is no such dataset.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    dataset, is_zipped = file[name], name in _PIXELS
    # Values in other files' bytes have no place here; texts of any length lie behind pointers.
    if dataset.dtype.hasobject or (not is_zipped and dataset.id.get_offset() is None):
        raise ValueError(f"{name} holds no values of its own")
    most = file_bytes * (_HIGHEST_RATIO if is_zipped else 1)
    if dataset.nbytes > most or dataset.id.get_storage_size() > file_bytes:
        raise ValueError(
            f"{name} needs {dataset.nbytes:,} bytes, more than a file of this size holds"
        )
    return dataset


def _check(pairs: Pairs) -> None:
    arrays = (pairs.images, pairs.masks, pairs.slice_index, pairs.spacing_mm)
    dtypes = [str(array.dtype) for array in arrays]
    if dtypes != ["float32", "uint8", "int32", "float64"]:
        raise ValueError(f"dtypes are {', '.join(dtypes)}, expected float32, uint8, int32, float64")
    if not pairs.images.size:
        raise ValueError("no pairs, or images of no size; expected at least one pixel to write")

    low, high = pairs.images.min(), pairs.images.max()
    if not (low >= 0 and high <= 1):  # written so that a NaN fails it too
        raise ValueError(f"images run from {low} to {high}, expected [0, 1]")
    if pairs.masks.max() > 1:
        raise ValueError(f"masks hold {pairs.masks.max()}, expected 0 and 1")


def _combine(shape: Sequence[int], row_hashes: Sequence[str], text: str) -> str:
    return content_hash([SHARD_SCHEMA, shape, row_hashes, text])


def _to_hdf5(pairs: Pairs, row_hashes: Sequence[str], text: str, digest: str) -> bytes:
    """Return the file's bytes: made in memory, because HDF5 can crash where a disk is full."""
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=SEAL_BYTES) as file:
        file.attrs["schema"] = SHARD_SCHEMA
        file.attrs["content_sha256"] = digest
        for name, values in (("images", pairs.images.astype("<f4")), ("masks", pairs.masks)):
            # No shuffle filter: MR slices have few distinct values and take 0.15 of their size
            # instead of 0.24.
            file.create_dataset(
                name,
                data=values,
                chunks=(1, *values.shape[1:]),
                compression="gzip",
                compression_opts=1,
            )
        file["slice_index"] = pairs.slice_index
        file["spacing_mm"] = pairs.spacing_mm
        # Fixed-length bytes: HDF5's variable-length strings make files whose bytes differ from
        # run to run.
        file["case_ids"] = _to_bytes(pairs.case_ids)
        file["source_sha256"] = _to_bytes(pairs.source_sha256)
        file["row_sha256"] = _to_bytes(row_hashes)
        file["attributes"] = np.bytes_(text.encode())
    whole = content.getbuffer()
    whole[:SEAL_BYTES] = _seal(whole[SEAL_BYTES:])
    return bytes(whole)


def _to_bytes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def _to_texts(values: NDArray[np.bytes_]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)
