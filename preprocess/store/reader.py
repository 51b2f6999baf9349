"""A packed data set, read: all of some cases to memory, or any rows at any time from any process.

A reader can be forked, pickled and sent to other processes: each of them opens its own files. Every
    row is
verified when a process reads it for the first time.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        self.image_size = manifest.size_px
        self._hashes = {shard.file: shard.content_sha256 for shard in manifest.shards}
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: dict[str, Shard] = {}
        self._verified: set[tuple[str, int]] = set()

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_verified": set()}

    @property
    def memory_bytes(self) -> int:
        """What all of its pairs take in memory."""
        return len(self) * self.image_size[0] * self.image_size[1] * _BYTES_PER_PIXEL

    def read(self, rows: Sequence[int]) -> Pairs:
        """Read some pairs, in the order given.

        Args:
            rows: at least one index from 0 to len(self) - 1; numpy's negative ones are refused.

        Raises:
            UserError: a shard is missing, damaged, or is not the manifest's.
        """
        if self._process != os.getpid():  # forked: an open HDF5 file must not be shared
            self._forget()
        if not len(rows) or min(rows) < 0 or max(rows) >= len(self):
            raise IndexError(
                f"rows {list(rows)[:5]} ..., expected at least one from 0 to {len(self) - 1}"
            )
        images, masks = (
            np.empty((len(rows), *self.image_size), kind) for kind in (np.float32, np.uint8)
        )
        slices, spacing = np.empty(len(rows), np.int32), np.empty((len(rows), 2))
        sources = [""] * len(rows)
        for name, positions in self._by_shard(rows).items():
            if name not in self._open:
                self._open[name] = Shard(self.folder / name, self._hashes[name])
            places = [self._places[rows[position]] for position in positions]
            new = [place not in self._verified for place in places]
            part = self._open[name].read([row for _, row in places], verify=new)
            self._verified.update(places)
            images[positions], masks[positions] = part.images, part.masks
            slices[positions], spacing[positions] = part.slice_index, part.spacing_mm
            for position, source in zip(positions, part.source_sha256, strict=True):
                sources[position] = source
        return Pairs(
            images=images,
            masks=masks,
            case_ids=tuple(self.case_ids[row] for row in rows),
            slice_index=slices,
            spacing_mm=spacing,
            source_sha256=tuple(sources),
        )

    def _by_shard(self, rows: Sequence[int]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for position, row in enumerate(rows):
            found.setdefault(self._places[row][0], []).append(position)
        return found

    def read_all(self) -> Pairs:
        """Read everything to memory.

        Raises:
            UserError: it does not fit, or as :meth:`read`.
        """
        # The whole, and beside it one shard after the other.
        largest = max(map(len, self._by_shard(range(len(self))).values()), default=0)
        needed, free = self.memory_bytes * (1 + largest / max(1, len(self))), available_memory()
        if needed > free:
            raise UserError(
                f"{self.folder}: {len(self)} pairs need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                "ask for more memory (memory_gb), or pack fewer slices per case"
            )
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
    """Return how many bytes this process may still take: of the machine, and of its control group (SLURM's limit)."""
    free: float = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            lowest = Path("/sys/fs/cgroup", controllers, group.lstrip("/"))
            free = min(
                [free, *map(_left_in_group, (lowest, *lowest.parents))]
            )  # a parent's limit holds as well
    return free


def _left_in_group(folder: Path) -> float:
    """Return a control group's limit less what it uses, in bytes; file cache that can be dropped is not used."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        numbers = [*_lines(folder / limit), *_lines(folder / used)]
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            stat = dict(line.split() for line in _lines(folder / "memory.stat"))
            cache = int(stat.get("inactive_file", 0))
            return max(0, int(numbers[0]) - int(numbers[1]) + cache)
    return float("inf")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
