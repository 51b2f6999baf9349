"""Image+mask pairs in memory, and the hashes that name them."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.frozen import frozen
from hvae_hpc.runs.identity import canonical_json


@frozen
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
            raise ValueError(
                f"images {self.images.shape}, masks {self.masks.shape}, expected (N, H, W) both"
            )
        shapes = (
            len(self.images),
            self.slice_index.shape,
            self.spacing_mm.shape,
            len(self.source_sha256),
        )
        if shapes != (n, (n,), (n, 2), n):
            raise ValueError(
                f"images, slice_index, spacing_mm, source_sha256: {shapes}, expected {n} each"
            )

    def __len__(self) -> int:
        return len(self.case_ids)


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


def hash_rows(pairs: Pairs) -> list[str]:
    """Return the SHA-256 of each row: its pixels, mask, spacing, case, slice and sources."""
    hashes = []
    for row, case_id in enumerate(pairs.case_ids):
        words = canonical_json([case_id, int(pairs.slice_index[row]), pairs.source_sha256[row]])
        digest = hashlib.sha256(np.ascontiguousarray(pairs.images[row], dtype="<f4").data)
        digest.update(np.ascontiguousarray(pairs.masks[row]).data)
        digest.update(pairs.spacing_mm[row].astype("<f8", copy=False).tobytes())
        digest.update(words.encode())
        hashes.append(digest.hexdigest())
    return hashes
