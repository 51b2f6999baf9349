"""The HDF5 shard format, schema 1: image+mask pairs, written once, verified whenever they are read.

A shard holds N pairs of H x W pixels, real, moved or generated alike:

====================  ==============  =================================================================
``images``            float32 (N,H,W) in [0, 1]; one chunk per pair, gzip 1
``masks``             uint8 (N,H,W)   0 or 1 (tumour); one chunk per pair, gzip 1
``case_ids``          bytes (N,)      UTF-8; the patient's scan that the pair comes from
``slice_index``       int32 (N,)      index of the slice in its volume
``spacing_mm``        float64 (N,2)   row, column, mm; NaN where unknown
``source_sha256``     bytes (N,)      hash of the source files
``row_sha256``        bytes (N,)      hash of all of the above for that row
``attributes``        bytes ()        free text keys and values as canonical JSON
====================  ==============  =================================================================

The file's HDF5 attributes are ``schema`` (1) and ``content_sha256``, the hash of shape, ``row_sha256``
and ``attributes``. So a reader of a few rows verifies just these rows, and the whole chain up to the
manifest. Equal pairs give equal bytes: no times, no library objects.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.identity import canonical_json, content_hash
from hvae_hpc.preprocess.manifest import read_manifest
from hvae_hpc.rundir import write_atomic_by

SHARD_SCHEMA = 1

_REMEDY = "delete it, and pack the data or run the stage again"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """N image+mask pairs.

    Attributes:
        images: (N, H, W) float32 in [0, 1].
        masks: (N, H, W) uint8, 1 is tumour.
        case_ids: N ids; several pairs may share one.
        slice_index: (N,) int32.
        spacing_mm: (N, 2) float64, row and column, mm; NaN where unknown.
        source_sha256: N hashes of what the pair was made from, or "".
    """

    images: NDArray[np.float32]
    masks: NDArray[np.uint8]
    case_ids: tuple[str, ...]
    slice_index: NDArray[np.int32]
    spacing_mm: NDArray[np.float64]
    source_sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.case_ids)
        if self.images.ndim != 3 or self.images.shape != self.masks.shape:
            raise ValueError(f"images {self.images.shape}, masks {self.masks.shape}, expected (N, H, W) both")
        shapes = (len(self.images), self.slice_index.shape, self.spacing_mm.shape, len(self.source_sha256))
        if shapes != (n, (n,), (n, 2), n):
            raise ValueError(f"images, slice_index, spacing_mm, source_sha256: {shapes}, expected {n} each")

    def __len__(self) -> int:
        return len(self.case_ids)


def write_pairs(path: Path, pairs: Pairs, attributes: Mapping[str, str] | None = None) -> str:
    """Write a shard atomically.

    Args:
        path: the shard's file.
        pairs: at least one pair.
        attributes: free text that belongs to the pairs ("source_cases": a JSON list).

    Returns:
        The content's SHA-256, 64 hexadecimal digits.

    Raises:
        ValueError: pairs that no stage may make: other dtypes, an image outside [0, 1] or not finite, a
            mask with other values than 0 and 1.
        UserError: the disk refused.
    """
    _check(pairs)
    rows = _hash_rows(pairs)
    text = canonical_json(dict(attributes or {}))
    digest = _combine(pairs, rows, text)
    write_atomic_by(path, lambda temporary: _write(temporary, pairs, rows, text, digest))
    return digest


def hash_pairs(pairs: Pairs, attributes: Mapping[str, str] | None = None) -> str:
    """Return the content hash that :func:`write_pairs` would return."""
    return _combine(pairs, _hash_rows(pairs), canonical_json(dict(attributes or {})))


def read_pairs(
    path: Path, rows: Sequence[int] | None = None, content_sha256: str | None = None
) -> tuple[Pairs, dict[str, str]]:
    """Read all or some rows of a shard and verify them.

    Args:
        path: the shard's file.
        rows: which rows, in the order wanted; None for all.
        content_sha256: the hash that the shard must have (a manifest's); None for its own.

    Returns:
        The pairs, and the attributes.

    Raises:
        UserError: the shard is missing, of another schema, damaged, or is not the one that was meant.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such shard; {_REMEDY}")
    try:
        # No file locks: shards are never changed in place, and network file systems often refuse locks.
        with h5py.File(path, "r", locking=False) as file:
            schema = file.attrs.get("schema")
            if schema != SHARD_SCHEMA:
                raise UserError(f"{path}: shard schema {schema}, expected {SHARD_SCHEMA}; {_REMEDY}")
            pairs, stored, text = _read(file, rows)
            intact = _intact(file, pairs, rows, stored, text)
            digest = str(file.attrs["content_sha256"])
            attributes = json.loads(text)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: shard is damaged ({_first_line(error)}); {_REMEDY}") from error
    if not intact:
        raise UserError(f"{path}: shard is damaged (its content does not match its hash); {_REMEDY}")
    if content_sha256 is not None and digest != content_sha256:
        raise UserError(
            f"{path}: has content {digest[:12]}, the manifest says {content_sha256[:12]}; pack the data again"
        )
    return pairs, attributes


def read_dataset(folder: Path, case_ids: Sequence[str]) -> Pairs:
    """Read all pairs of some cases of a packed data set.

    Args:
        folder: where manifest.json lies.
        case_ids: which cases, at least one; the pairs come in this order, each case's own in stored order.

    Raises:
        UserError: a case is not in the manifest, or a shard is damaged.
    """
    manifest = read_manifest(folder)
    entries = {entry.case_id: entry for entry in manifest.cases}
    for case_id in case_ids:
        if case_id not in entries:
            raise UserError(f"{folder}: got case {case_id!r}, expected one of its {len(entries)}; pack it")
    wanted: dict[str, list[int]] = {}
    for case_id in case_ids:
        entry = entries[case_id]
        wanted.setdefault(entry.shard, []).extend(range(entry.first_row, entry.first_row + entry.pairs))
    hashes = {shard.file: shard.content_sha256 for shard in manifest.shards}
    read = {name: read_pairs(folder / name, rows, hashes[name])[0] for name, rows in wanted.items()}
    # Rows come shard by shard; bring them back into the order that was asked for.
    starts = dict(zip(read, np.cumsum([0, *map(len, read.values())]).tolist(), strict=False))
    order: list[int] = []
    for case_id in case_ids:
        entry = entries[case_id]
        order.extend(range(starts[entry.shard], starts[entry.shard] + entry.pairs))
        starts[entry.shard] += entry.pairs
    return take(concatenate(list(read.values())), order)


def concatenate(parts: Sequence[Pairs]) -> Pairs:
    """Join pairs of one image size, in order."""
    return Pairs(
        images=np.concatenate([part.images for part in parts]),
        masks=np.concatenate([part.masks for part in parts]),
        case_ids=tuple(case_id for part in parts for case_id in part.case_ids),
        slice_index=np.concatenate([part.slice_index for part in parts]),
        spacing_mm=np.concatenate([part.spacing_mm for part in parts]),
        source_sha256=tuple(sha for part in parts for sha in part.source_sha256),
    )


def take(pairs: Pairs, rows: Sequence[int]) -> Pairs:
    """Return some rows, in the order given."""
    index = np.asarray(rows, dtype=np.intp)
    return Pairs(
        images=pairs.images[index],
        masks=pairs.masks[index],
        case_ids=tuple(pairs.case_ids[row] for row in rows),
        slice_index=pairs.slice_index[index],
        spacing_mm=pairs.spacing_mm[index],
        source_sha256=tuple(pairs.source_sha256[row] for row in rows),
    )


def _check(pairs: Pairs) -> None:
    arrays = (pairs.images, pairs.masks, pairs.slice_index, pairs.spacing_mm)
    dtypes = [str(array.dtype) for array in arrays]
    if dtypes != ["float32", "uint8", "int32", "float64"]:
        raise ValueError(f"dtypes are {', '.join(dtypes)}, expected float32, uint8, int32, float64")
    if not pairs.images.size:
        raise ValueError("no pairs, or images of no size; expected at least one pixel to write")
    # Written so that a NaN fails it too.
    if not (pairs.images.min() >= 0 and pairs.images.max() <= 1):
        raise ValueError(f"images run from {pairs.images.min()} to {pairs.images.max()}, expected [0, 1]")
    if pairs.masks.max() > 1:
        raise ValueError(f"masks hold {pairs.masks.max()}, expected 0 and 1")
    if any("\0" in text for text in pairs.case_ids + pairs.source_sha256):
        raise ValueError("a case id or hash holds a zero byte, which the format cannot keep")


def _hash_rows(pairs: Pairs) -> list[str]:
    hashes = []
    for row, case_id in enumerate(pairs.case_ids):
        words = canonical_json([case_id, int(pairs.slice_index[row]), pairs.source_sha256[row]])
        digest = hashlib.sha256(pairs.images[row].astype("<f4", copy=False).tobytes())
        digest.update(pairs.masks[row].tobytes())
        digest.update(pairs.spacing_mm[row].astype("<f8", copy=False).tobytes())
        digest.update(words.encode())
        hashes.append(digest.hexdigest())
    return hashes


def _combine(pairs: Pairs, row_hashes: Sequence[str], text: str) -> str:
    return content_hash([SHARD_SCHEMA, list(pairs.images.shape), list(row_hashes), text])


def _write(path: Path, pairs: Pairs, row_hashes: Sequence[str], text: str, digest: str) -> None:
    chunk = (1, *pairs.images.shape[1:])
    with h5py.File(path, "w", locking=False) as file:
        file.attrs["schema"] = SHARD_SCHEMA
        file.attrs["content_sha256"] = digest
        options: dict[str, Any] = {"chunks": chunk, "compression": "gzip", "compression_opts": 1}
        # No shuffle filter: MR slices have few distinct values and take 0.15 of their size instead of 0.24.
        file.create_dataset("images", data=pairs.images, **options)
        file.create_dataset("masks", data=pairs.masks, **options)
        file["slice_index"] = pairs.slice_index
        file["spacing_mm"] = pairs.spacing_mm
        # Fixed-length bytes: HDF5's variable-length strings make files whose bytes differ from run to run.
        file["case_ids"] = _to_bytes(pairs.case_ids)
        file["source_sha256"] = _to_bytes(pairs.source_sha256)
        file["row_sha256"] = _to_bytes(row_hashes)
        file["attributes"] = np.bytes_(text.encode())


def _read(file: h5py.File, rows: Sequence[int] | None) -> tuple[Pairs, list[str], str]:
    count = len(file["row_sha256"])
    index = list(range(count)) if rows is None else list(rows)
    if any(not 0 <= row < count for row in index):
        raise IndexError(f"rows {index} asked of a shard of {count} pairs")
    shape = (len(index), *file["images"].shape[1:])
    images, masks = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for place, row in enumerate(index):  # row by row: a chunk is a row, and HDF5 asks for rising indices
        images[place] = file["images"][row]
        masks[place] = file["masks"][row]
    pairs = Pairs(
        images=images,
        masks=masks,
        case_ids=tuple(value.decode() for value in file["case_ids"][()][index]),
        slice_index=file["slice_index"][()][index],
        spacing_mm=file["spacing_mm"][()][index],
        source_sha256=tuple(value.decode() for value in file["source_sha256"][()][index]),
    )
    return pairs, [value.decode() for value in file["row_sha256"][()]], file["attributes"][()].decode()


def _intact(file: h5py.File, pairs: Pairs, rows: Sequence[int] | None, stored: list[str], text: str) -> bool:
    wanted = stored if rows is None else [stored[row] for row in rows]
    whole = content_hash([SHARD_SCHEMA, list(file["images"].shape), stored, text])
    return bool(_hash_rows(pairs) == wanted and whole == file.attrs["content_sha256"])


def _to_bytes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
