"""A packed data set, read: all pairs of some cases, or any of their rows.

A reader holds no open file: it can be used at any time, forked, pickled and sent to other
processes. Every row is verified whenever it is read.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.manifest import Manifest, read_manifest
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.shards import Shard

_BYTES_PER_PIXEL = 5
"""float32 image and uint8 mask."""


class DatasetReader:
    """Random access to the pairs of some cases.

    Pair i is the i-th in the order of the cases asked for, each case's own pairs in stored order.

    Attributes:
        folder: where manifest.json lies.
        case_ids: the case of each pair.
        image_size: rows and columns of every pair.
    """

    def __init__(
        self, folder: Path, case_ids: Sequence[str] | None = None, manifest: Manifest | None = None
    ) -> None:
        """Look up where the pairs lie; nothing but the manifest is read yet.

        Args:
            folder: of the packed data set.
            case_ids: which cases, at least one; None for all.
            manifest: the folder's, if it has been read already.

        Raises:
            UserError: the manifest is missing or damaged, or a case is not in it.
        """
        self.folder = folder
        manifest = manifest or read_manifest(folder)
        entries = {entry.case_id: entry for entry in manifest.cases}
        wanted = list(entries) if case_ids is None else list(case_ids)
        for case_id in wanted:
            if case_id not in entries:
                raise UserError(
                    f"{folder}: got case {case_id!r}, expected one of its {len(entries)}; pack it"
                )

        chosen = [entries[case_id] for case_id in wanted]
        self._places = [
            (entry.shard, entry.first_row + row) for entry in chosen for row in range(entry.pairs)
        ]
        self.case_ids = tuple(entry.case_id for entry in chosen for _ in range(entry.pairs))
        self._shards = {shard.file: shard for shard in manifest.shards}
        self.image_size = manifest.size_px

    def __len__(self) -> int:
        return len(self._places)

    def read(self, rows: Sequence[int]) -> Pairs:
        """Read some pairs, in the order given.

        Args:
            rows: at least one index from 0 to len(self) - 1; numpy's negative ones are refused.

        Raises:
            UserError: a shard is missing, damaged, or is not the manifest's, or the pairs do not
                fit into memory.
        """
        if not len(rows) or min(rows) < 0 or max(rows) >= len(self):
            raise IndexError(
                f"rows {list(rows)[:5]} ..., expected at least one from 0 to {len(self) - 1}"
            )
        shape = (len(rows), *self.image_size)
        needed, free = math.prod(shape) * _BYTES_PER_PIXEL, available_memory()
        if needed > free:
            raise UserError(
                f"{self.folder}: {len(rows)} pairs need {needed / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} GiB are free; ask for more memory (memory_gb), "
                "or pack fewer slices per case"
            )
        images, masks = np.empty(shape, np.float32), np.empty(shape, np.uint8)
        slices, spacing = np.empty(len(rows), np.int32), np.empty((len(rows), 2))
        sources = np.empty(len(rows), object)

        positions = dict[str, list[int]]()  # by shard: each is opened once
        for position, row in enumerate(rows):
            positions.setdefault(self._places[row][0], []).append(position)
        for name, to in positions.items():
            path, entry = self.folder / name, self._shards[name]
            with Shard(path, entry.content_sha256) as shard:
                expected = (entry.pairs, self.image_size)
                if (len(shard), shard.image_size) != expected:
                    raise UserError(
                        f"{path}: has {len(shard)} pairs of {shard.image_size} px, "
                        f"the manifest says {entry.pairs} of {self.image_size}; "
                        "pack the data again"
                    )
                part = shard.read([self._places[rows[position]][1] for position in to])
            images[to], masks[to] = part.images, part.masks
            slices[to], spacing[to] = part.slice_index, part.spacing_mm
            sources[to] = part.source_sha256

        return Pairs(
            images=images,
            masks=masks,
            case_ids=tuple(self.case_ids[row] for row in rows),
            slice_index=slices,
            spacing_mm=spacing,
            source_sha256=tuple(sources),
        )

    def read_all(self) -> Pairs:
        """Read everything to memory.

        Raises:
            UserError: as :meth:`read`.
        """
        return self.read(range(len(self)))


def read_dataset(folder: Path, case_ids: Sequence[str]) -> Pairs:
    """Read all pairs of some cases of a packed data set, verified.

    Args:
        folder: where manifest.json lies.
        case_ids: which cases, at least one; the pairs come in this order, each case's own in stored
            order.

    Raises:
        UserError: a case is not in the manifest, a shard is damaged, or all this does not fit into
            memory.
    """
    return DatasetReader(folder, case_ids).read_all()


def available_memory() -> float:
    """Return how many bytes the machine can still give; infinity where it does not say."""
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return math.inf
    return int(found[1]) * 1024.0 if found else math.inf
