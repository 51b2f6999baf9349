"""manifest.json: what a packed data set holds, and the one hash that names its content.

Packing writes it last, so a folder with a manifest is a complete data set. Its content hash is a
parent of every run that reads the data: repacked data gives new run ids, a moved or renamed folder
does not.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hvae_hpc.config.loader import dump, load, read_json
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.identity import NAME, SHA256, content_hash, require_form

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1

_WORDS = ("name", "about", "layout")
"""Parts of a recipe that name things and change no pixel: they stay out of the content hash."""


@frozen
class ShardEntry:
    """One shard of the data set.

    Attributes:
        file: name in the manifest's folder.
        pairs: number of pairs in it.
        content_sha256: what :func:`hvae_hpc.preprocess.store.shards.hash_pairs` says of its
            content.
    """

    file: str
    pairs: int
    content_sha256: str

    def __post_init__(self) -> None:
        require_form("file", self.file, NAME)
        require_form("content_sha256", self.content_sha256, SHA256)


@frozen
class CaseEntry:
    """One patient's pairs.

    Attributes:
        case_id: the patient's scan.
        shard: file name of the shard that holds all pairs of the case.
        first_row, pairs: they are rows first_row to first_row + pairs - 1 of the shard.
        slices: index of each pair's slice in the volume.
        tumour_px: tumour area of each pair, px.
        spacing_mm: of a row and of a column, mm; () where unknown.
        sources: role of a source file ("image", "label") to the SHA-256 of its bytes.
    """

    case_id: str
    shard: str
    first_row: int
    pairs: int
    slices: tuple[int, ...]
    tumour_px: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    sources: dict[str, str]


@frozen
class SkippedEntry:
    """A case that could not be packed, and why."""

    case_id: str
    reason: str


@frozen
class Manifest:
    """What manifest.json holds.

    Attributes:
        schema: version of this format.
        name: the recipe's name.
        modality: "FLAIR", "PET".
        recipe: the fully resolved recipe, plain data.
        size_px: rows and columns of every pair.
        shards, cases: in the order in which they are stored (cases by id).
        skipped: cases left out on the user's request; not in the content hash.
        content_hash: see :func:`compute_content_hash`.
    """

    schema: int
    name: str
    modality: str
    recipe: dict[str, Any]
    size_px: tuple[int, ...]
    shards: tuple[ShardEntry, ...]
    cases: tuple[CaseEntry, ...]
    skipped: tuple[SkippedEntry, ...]
    content_hash: str

    def __post_init__(self) -> None:
        require_form("content_hash", self.content_hash, SHA256)
        require_rows(self.shards, self.cases)


def require_rows(shards: Sequence[ShardEntry], cases: Sequence[CaseEntry]) -> None:
    """Raise ``ValueError`` where the cases' rows are not those of their shards, one by one."""
    rows = {shard.file: 0 for shard in shards}
    for case in cases:
        is_whole = 0 < case.pairs == len(case.slices) == len(case.tumour_px)
        if not is_whole or case.first_row != rows.get(case.shard) or len(case.spacing_mm) == 1:
            raise ValueError(f"case {case.case_id!r} has rows that its shard does not have")
        rows[case.shard] += case.pairs
    if rows != {shard.file: shard.pairs for shard in shards}:
        raise ValueError("the cases' pairs are not those of their shards")


def compute_content_hash(
    recipe: Mapping[str, Any], shards: Sequence[ShardEntry], cases: Sequence[CaseEntry]
) -> str:
    """Return 64 digits that change with the data, and with no path or word of the recipe."""
    rules = {key: value for key, value in recipe.items() if key not in _WORDS}
    digests = [entry.content_sha256 for entry in shards]
    return content_hash([MANIFEST_SCHEMA, rules, digests, dump(cases)])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, atomically: from now on the folder is this data set."""
    plain = dump(manifest)
    write_json(folder / MANIFEST, {**plain, "checksum": content_hash(plain)})


def require_content(folder: Path, content_hash: str) -> Manifest:
    """Read a data set's manifest and refuse it where it is not of the content that a run reads."""
    manifest = read_manifest(folder)
    if manifest.content_hash != content_hash:
        raise UserError(
            f"{folder}: was repacked (content {manifest.content_hash[:12]}, "
            f"this run reads {content_hash[:12]}); give the sweep command again"
        )
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read and check a data set's manifest.

    Raises:
        UserError: it is missing, truncated, of another schema, or was edited by hand.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"no {MANIFEST} in {folder}; pack a data set there with: "
            f"python -m hvae_hpc.preprocess RECIPE --raw DIR --out {shlex.quote(str(folder))}"
        )
    data = read_json(path)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != MANIFEST_SCHEMA:
        raise UserError(f"{path}: schema {schema}, expected {MANIFEST_SCHEMA}; pack it again")
    checksum = data.pop("checksum", "")
    manifest = load(Manifest, data, str(path))
    if checksum != content_hash(data):
        raise UserError(
            f"{path}: its checksum does not hold; it was edited or damaged, pack the data set again"
        )
    return manifest
