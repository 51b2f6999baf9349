"""The HDF5 shard format, schema 1: image+mask pairs, written once, verified whenever they are read.

docs/SHARDS.md defines it for readers in any language. A chunk is a pair, compressed as HDF5's own
gzip filter does, so every HDF5 library reads it; here libdeflate works on the chunks beside HDF5,
which is quicker. A reader of a few rows verifies just these rows, and the whole chain up to the
manifest. Equal pairs give equal bytes: no times, no library objects.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.codec import compress, decompress
from hvae_hpc.preprocess.store.pairs import Pairs, hash_rows
from hvae_hpc.runs.folder import write_atomic_by
from hvae_hpc.runs.identity import canonical_json, content_hash

SHARD_SCHEMA = 1

_REMEDY = "delete it, and pack the data or run the stage again"
_WRONG = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError)
"""What h5py raises for a damaged file."""


def write_pairs(path: Path, pairs: Pairs, attributes: Mapping[str, str] | None = None) -> str:
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
    text = canonical_json(dict(attributes or {}))
    digest = _combine(pairs, rows, text)
    write_atomic_by(path, lambda temporary: _write_plainly(temporary, pairs, rows, text, digest))
    return digest


def hash_pairs(pairs: Pairs, attributes: Mapping[str, str] | None = None) -> str:
    """Return the content hash that :func:`write_pairs` would return."""
    return _combine(pairs, hash_rows(pairs), canonical_json(dict(attributes or {})))


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
            UserError: it is missing, of another schema, damaged, or is not the one that was meant.
        """
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such shard; pack the data or run the stage again")
        try:
            # No file locks: shards are never changed in place, and network file
            # systems often refuse locks.
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            if "locking flag" in str(error):
                raise UserError(
                    f"{path}: is open in this process by h5py's defaults; give h5py locking=False"
                ) from error
            raise self._damaged(_first_line(error)) from error
        try:
            self.content_sha256 = self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, _WRONG):
                raise self._damaged(_first_line(error)) from error
            raise
        if content_sha256 not in (None, self.content_sha256):
            self.close()
            raise UserError(
                f"{path}: has content {self.content_sha256[:12]}, the manifest says {content_sha256[:12]}; "
                "pack the data again"
            )

    def _open(self) -> str:
        schema = self._file.attrs.get("schema")
        if schema != SHARD_SCHEMA:
            raise UserError(
                f"{self.path}: shard schema {schema}, expected {SHARD_SCHEMA}; {_REMEDY}"
            )
        self._images, self._masks = self._file["images"], self._file["masks"]
        shape = self._images.shape
        for dataset, kind in ((self._images, "<f4"), (self._masks, "|u1")):
            form = (
                dataset.dtype.str,
                dataset.shape,
                dataset.chunks,
                dataset.compression,
                dataset.shuffle,
            )
            if form != (kind, shape, (1, *shape[1:]), "gzip", False):
                raise ValueError(f"{dataset.name} has form {form}")
        self.image_size: tuple[int, int] = (int(shape[1]), int(shape[2]))
        self._hashes = [value.decode() for value in self._file["row_sha256"][()]]
        self._words = {
            name: self._file[name][()]
            for name in ("case_ids", "slice_index", "spacing_mm", "source_sha256")
        }
        if {len(self._hashes), *map(len, self._words.values())} != {shape[0]}:
            raise ValueError("its arrays have unlike lengths")
        text = self._file["attributes"][()].decode()
        digest = str(self._file.attrs["content_sha256"])
        if digest != content_hash([SHARD_SCHEMA, list(shape), self._hashes, text]):
            raise ValueError("its content does not match its hash")
        self.attributes: dict[str, str] = json.loads(text)
        return digest

    def __len__(self) -> int:
        return len(self._hashes)

    def __enter__(self) -> "Shard":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(Exception):  # of a damaged file HDF5 may refuse even this
            self._file.close()

    def read(
        self, rows: Sequence[int] | None = None, *, verify: Sequence[bool] | None = None
    ) -> Pairs:
        """Read all or some rows.

        Args:
            rows: which, in the order wanted; None for all.
            verify: for each of them, whether to compare its hash; None for all. For a reader that
                has compared it once.

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
                case_ids=tuple(value.decode() for value in self._words["case_ids"][index]),
                slice_index=self._words["slice_index"][index],
                spacing_mm=self._words["spacing_mm"][index],
                source_sha256=tuple(
                    value.decode() for value in self._words["source_sha256"][index]
                ),
            )
        except _WRONG as error:
            raise self._damaged(_first_line(error)) from error
        checked = [True] * len(index) if verify is None else list(verify)
        got = hash_rows(pairs, checked)
        if any(
            check and have != self._hashes[row]
            for check, have, row in zip(checked, got, index, strict=True)
        ):
            raise self._damaged("its content does not match its hash")
        return pairs

    def _damaged(self, why: str) -> UserError:
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
        UserError: the shard is missing, of another schema, damaged, or is not the one that was
            meant.
    """
    with Shard(path, content_sha256) as shard:
        return shard.read(rows), shard.attributes


def _read_chunk(dataset: h5py.Dataset, row: int, into: NDArray[Any]) -> None:
    # Beside HDF5's filters: libdeflate is quicker.
    skipped_filters, chunk = dataset.id.read_direct_chunk((row, 0, 0))
    if skipped_filters:
        raise ValueError("a chunk is not compressed")
    into.reshape(-1)[:] = np.frombuffer(decompress(chunk, into.nbytes), into.dtype)


def _check(pairs: Pairs) -> None:
    arrays = (pairs.images, pairs.masks, pairs.slice_index, pairs.spacing_mm)
    dtypes = [str(array.dtype) for array in arrays]
    if dtypes != ["float32", "uint8", "int32", "float64"]:
        raise ValueError(f"dtypes are {', '.join(dtypes)}, expected float32, uint8, int32, float64")
    if not pairs.images.size:
        raise ValueError("no pairs, or images of no size; expected at least one pixel to write")
    # Written so that a NaN fails it too.
    if not (pairs.images.min() >= 0 and pairs.images.max() <= 1):
        raise ValueError(
            f"images run from {pairs.images.min()} to {pairs.images.max()}, expected [0, 1]"
        )
    if pairs.masks.max() > 1:
        raise ValueError(f"masks hold {pairs.masks.max()}, expected 0 and 1")
    if any("\0" in text for text in pairs.case_ids + pairs.source_sha256):
        raise ValueError("a case id or hash holds a zero byte, which the format cannot keep")


def _combine(pairs: Pairs, row_hashes: Sequence[str], text: str) -> str:
    return content_hash([SHARD_SCHEMA, list(pairs.images.shape), list(row_hashes), text])


def _write_plainly(
    path: Path, pairs: Pairs, row_hashes: Sequence[str], text: str, digest: str
) -> None:
    """Write, and say what the disk said: HDF5 wraps it in a page of its own words, and in other kinds of errors."""
    try:
        _write(path, pairs, row_hashes, text, digest)
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _write(path: Path, pairs: Pairs, row_hashes: Sequence[str], text: str, digest: str) -> None:
    chunk = (1, *pairs.images.shape[1:])
    with h5py.File(path, "w", locking=False) as file:
        file.attrs["schema"] = SHARD_SCHEMA
        file.attrs["content_sha256"] = digest
        for name, rows in (("images", pairs.images), ("masks", pairs.masks)):
            # No shuffle filter: MR slices have few distinct values and take 0.15 of
            # their size instead of 0.24.
            dataset = file.create_dataset(
                name,
                rows.shape,
                rows.dtype.newbyteorder("<"),
                chunks=chunk,
                compression="gzip",
                compression_opts=1,
            )
            for row, values in enumerate(rows):
                stream = compress(np.ascontiguousarray(values, dtype=dataset.dtype).tobytes())
                dataset.id.write_direct_chunk((row, 0, 0), stream)
        file["slice_index"] = pairs.slice_index
        file["spacing_mm"] = pairs.spacing_mm
        # Fixed-length bytes: HDF5's variable-length strings make files whose bytes differ
        # from run to run.
        file["case_ids"] = _to_bytes(pairs.case_ids)
        file["source_sha256"] = _to_bytes(pairs.source_sha256)
        file["row_sha256"] = _to_bytes(row_hashes)
        file["attributes"] = np.bytes_(text.encode())


def _to_bytes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
