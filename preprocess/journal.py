"""packing.jsonl: what a folder's shards hold, case by case.

By it the next packing reads only what is missing or changed. Each closed shard adds one line as
soon as it is on the disk; a packing that is killed loses the pairs that were not in a shard yet. It
is no part of the data set: without it everything is packed again, to the same content.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hvae_hpc.config.loader import dump, load
from hvae_hpc.frozen import frozen
from hvae_hpc.preprocess.read.find_cases import CaseFiles
from hvae_hpc.preprocess.read.scan import source_files
from hvae_hpc.preprocess.read.volume import Facts
from hvae_hpc.preprocess.recipes.recipe import Recipe
from hvae_hpc.preprocess.store.manifest import CaseEntry, ShardEntry, require_rows
from hvae_hpc.runs.folder import append_line, read_records, write_atomic
from hvae_hpc.runs.identity import canonical_json, content_hash

JOURNAL = "packing.jsonl"
PACKING_VERSION = 2
"""Raised when the same files and recipe give other pairs than before, or none."""


@frozen
class CaseRecord:
    """One packed case.

    Attributes:
        entry: where its pairs lie.
        facts: of its image.
        cut_px: tumour pixels of its slices that the crop cut off.
        accepted: names of what is implausible about it, but accepted by the recipe.
        images_sha256: of its pairs' images.
        stamps: role of a source file to [bytes, times of the last change of content and of
            anything, ns], as they were when it was packed; no copy can fake the second time. The
            numbers of a second file follow (.mhd).
    """

    entry: CaseEntry
    facts: Facts
    cut_px: int
    accepted: tuple[str, ...]
    images_sha256: str
    stamps: dict[str, tuple[int, ...]]


@frozen
class ShardRecords:
    """One closed shard and its cases."""

    shard: ShardEntry
    records: tuple[CaseRecord, ...]

    def __post_init__(self) -> None:
        require_rows([self.shard], [record.entry for record in self.records])


def packing_key(recipe: Recipe, modality: str, known: Sequence[int]) -> str:
    """Return what must be the same for a packed case to be taken over.

    Args:
        recipe: all of it but its words.
        modality: also where dataset.json says it.
        known: label values that may occur, likewise.
    """
    rules = {key: value for key, value in dump(recipe).items() if key not in ("name", "about")}
    return content_hash([PACKING_VERSION, rules, modality, list(known)])


def read_journal(folder: Path, key: str) -> dict[str, ShardRecords]:
    """Read what earlier packings with the same key left, by shard file."""

    def check(record: Any) -> Any:
        return record if record.keys() == {"key"} else load(ShardRecords, record, JOURNAL)

    records = read_records(folder / JOURNAL, check)
    if records[:1] != [{"key": key}]:
        return {}
    return {each.shard.file: each for each in records if isinstance(each, ShardRecords)}


def write_journal(folder: Path, key: str, shards: Iterable[ShardRecords]) -> None:
    """Replace the journal, atomically."""
    records = [{"key": key}, *map(dump, shards)]
    write_atomic(folder / JOURNAL, "\n".join(map(canonical_json, records)) + "\n")


def add_to_journal(folder: Path, shard: ShardRecords) -> None:
    """Add a shard that has just been closed.

    Raises:
        UserError: the disk refused.
    """
    append_line(folder / JOURNAL, canonical_json(dump(shard)))


def stamp_files(files: CaseFiles) -> dict[str, tuple[int, ...]]:
    """Return size and times of change of a case's files, by role; {} if one is out of reach."""
    stamps = {}
    try:
        for role, path in files.paths.items():
            stats = [file.stat() for file in source_files(path)]
            stamps[role] = tuple(
                number
                for stat in stats
                for number in (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            )
    except OSError:
        return {}
    return stamps
