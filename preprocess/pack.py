"""A whole data set: every case of a raw folder -> shards and, last, manifest.json.

Shards are named after their content and never changed, and the manifest is replaced in one step: a
packing that is killed, or that fails, leaves the data set that was there before. The bytes written are
the same for any number of workers.
"""

import contextlib
import functools
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvae_hpc.config import dump
from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.manifest import (
    MANIFEST,
    MANIFEST_SCHEMA,
    CaseEntry,
    Manifest,
    ShardEntry,
    SkippedEntry,
    compute_content_hash,
    read_manifest,
    write_manifest,
)
from hvae_hpc.preprocess.parallel import map_in_order
from hvae_hpc.preprocess.recipe import CASE, Recipe
from hvae_hpc.preprocess.shards import Pairs, concatenate, hash_pairs, read_pairs, write_pairs
from hvae_hpc.preprocess.slices import cut_pairs
from hvae_hpc.preprocess.volumes import read_volume
from hvae_hpc.rundir import LOCK, locked, remove_temporaries

PAIRS_PER_SHARD = 256
"""A shard is closed at this many pairs (59 MB of 240 x 240 before compression); a case is never cut."""

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """A case's files; one of them may be missing."""

    case_id: str
    image: Path | None
    label: Path | None


@dataclass(frozen=True, kw_only=True)
class PackedCase:
    """What a worker hands back: the pairs and the hashes of their source files, or what is wrong."""

    case_id: str
    pairs: Pairs | None
    sources: dict[str, str]
    fault: str


def pack(
    recipe: Recipe, raw: Path, out: Path, workers: int, skip_bad: bool = False, report: Report | None = None
) -> Manifest:
    """Pack all cases that the recipe's layout finds.

    Args:
        recipe: what the data set is.
        raw: folder with the NIfTI files.
        out: folder for shards and manifest.
        workers: processes; 1 works in this one.
        skip_bad: leave cases out that cannot be packed, and record them; otherwise one such case fails
            the packing, after all have been looked at.
        report: is called with lines of progress.

    Raises:
        UserError: no cases, or bad ones (all named, one per line); then nothing is written.
    """
    say = report or (lambda line: None)
    cases = find_cases(recipe, raw)
    say(f"{len(cases)} cases in {raw}")
    with locked(out) as mine:
        if not mine:
            raise UserError(f"{out}: another packing is writing there; wait for it, or choose another --out")
        remove_temporaries(out)
        before = {path.name for path in out.glob("shard-*.h5")}
        try:
            manifest = _pack_into(out, recipe, _process(recipe, cases, workers, say), skip_bad)
        except BaseException:
            _clear(out, keep=before)
            raise
        if _is_up_to_date(out, manifest):
            say(f"{out} is up to date")
        else:
            write_manifest(out, manifest)
        _clear(out, keep={entry.file for entry in manifest.shards})
    return manifest


def find_cases(recipe: Recipe, raw: Path) -> list[CaseFiles]:
    """Find all cases by the recipe's patterns, sorted by id; one with a missing file is among them.

    Raises:
        UserError: raw is no folder, or nothing in it fits.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; give the folder with the NIfTI files as --raw")
    images = _match(raw, recipe.layout.image)
    labels = _match(raw, recipe.layout.label)
    if not images:
        raise UserError(f"{raw}: nothing fits {recipe.layout.image!r}; check --raw, or the recipe's layout")
    return [
        CaseFiles(case_id=case_id, image=images.get(case_id), label=labels.get(case_id))
        for case_id in sorted({*images, *labels})
    ]


def _match(raw: Path, pattern: str) -> dict[str, Path]:
    """Map case ids to the files that fit a pattern; all its ``{case}`` must stand for the same text.

    Names that begin with a dot are none: some systems leave ``._x.nii.gz`` beside x.nii.gz.
    """
    first, *others = pattern.split(CASE)
    regex = re.compile(re.escape(first) + "(?P<case>[^/.][^/]*)" + "(?P=case)".join(map(re.escape, others)))
    found = {}
    for path in raw.glob("*".join(map(glob.escape, (first, *others)))):
        match = regex.fullmatch(path.relative_to(raw).as_posix())
        if match:
            found[match["case"]] = path
    return found


def pack_case(recipe: Recipe, files: CaseFiles) -> PackedCase:
    """Turn one case into pairs; a fault of the files is returned, a bug of ours is raised."""
    try:
        if files.image is None:
            raise UserError(f"{files.label} has no image ({recipe.layout.image}); add it or remove the label")
        if files.label is None:
            raise UserError(f"{files.image} has no label ({recipe.layout.label}); add it or remove the image")
        volume = read_volume(recipe, files.image, files.label)
        pairs = cut_pairs(volume, recipe, files.case_id)
    except UserError as error:
        return PackedCase(case_id=files.case_id, pairs=None, sources={}, fault=str(error))
    return PackedCase(case_id=files.case_id, pairs=pairs, sources=volume.sources, fault="")


def _process(recipe: Recipe, cases: Sequence[CaseFiles], workers: int, say: Report) -> Iterator[PackedCase]:
    step = max(1, len(cases) // 10)
    packed = map_in_order(functools.partial(pack_case, recipe), cases, min(workers, len(cases)))
    for done, case in enumerate(packed, start=1):
        if done % step == 0 or done == len(cases):
            say(f"read {done} of {len(cases)} cases")
        yield case


def _pack_into(out: Path, recipe: Recipe, packed: Iterator[PackedCase], skip_bad: bool) -> Manifest:
    shards: list[ShardEntry] = []
    entries: list[CaseEntry] = []
    skipped: list[SkippedEntry] = []
    held: list[PackedCase] = []
    for case in packed:
        if case.pairs is None:
            skipped.append(SkippedEntry(case_id=case.case_id, reason=case.fault))
            held = held if skip_bad else []  # nothing will be written: no need to keep pairs
        elif skip_bad or not skipped:
            held.append(case)
            if sum(len(one.pairs or ()) for one in held) >= PAIRS_PER_SHARD:
                _close_shard(out, recipe, held, shards, entries)
                held = []
    _refuse(skipped, len(entries) + len(held), skip_bad)
    if held:
        _close_shard(out, recipe, held, shards, entries)
    plain = dump(recipe)
    return Manifest(
        schema=MANIFEST_SCHEMA,
        name=recipe.name,
        modality=recipe.modality,
        recipe=plain,
        size_px=recipe.grid.size_px,
        shards=tuple(shards),
        cases=tuple(entries),
        skipped=tuple(skipped),
        content_hash=compute_content_hash(schema=MANIFEST_SCHEMA, recipe=plain, shards=shards, cases=entries),
    )


def _refuse(skipped: Sequence[SkippedEntry], good: int, skip_bad: bool) -> None:
    lines = "".join(f"\n  {entry.case_id}: {entry.reason}" for entry in skipped)
    if skipped and not skip_bad:
        raise UserError(f"{len(skipped)} bad cases, nothing was written; repair them, or --skip-bad:{lines}")
    if not good:
        raise UserError(f"none of the cases can be packed; nothing was written:{lines}")


def _close_shard(
    out: Path, recipe: Recipe, held: Sequence[PackedCase], shards: list[ShardEntry], entries: list[CaseEntry]
) -> None:
    pairs = concatenate([case.pairs for case in held if case.pairs is not None])
    attributes = {"kind": "real", "modality": recipe.modality}
    digest = hash_pairs(pairs, attributes)
    path = out / f"shard-{digest[:16]}.h5"
    if not _is_sound(path, digest):
        write_pairs(path, pairs, attributes)
    shards.append(ShardEntry(file=path.name, pairs=len(pairs), content_sha256=digest))
    row = 0
    for case in held:
        assert case.pairs is not None
        count = len(case.pairs)
        entries.append(
            CaseEntry(
                case_id=case.case_id,
                shard=path.name,
                first_row=row,
                pairs=count,
                slices=tuple(int(index) for index in case.pairs.slice_index),
                tumour_px=tuple(int(mask.sum()) for mask in case.pairs.masks),
                spacing_mm=tuple(round(float(value), 6) for value in case.pairs.spacing_mm[0]),
                sources=case.sources,
            )
        )
        row += count


def _is_sound(path: Path, digest: str) -> bool:
    with contextlib.suppress(UserError):
        read_pairs(path, content_sha256=digest)
        return True
    return False


def _is_up_to_date(out: Path, manifest: Manifest) -> bool:
    with contextlib.suppress(UserError):
        return read_manifest(out) == manifest
    return False


def _clear(out: Path, keep: set[str]) -> None:
    """Remove shards that no manifest needs; a folder that is then as good as empty goes as well."""
    for path in out.glob("shard-*.h5"):
        if path.name not in keep:
            path.unlink(missing_ok=True)
    if not (out / MANIFEST).exists() and {path.name for path in out.iterdir()} <= {LOCK}:
        (out / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            out.rmdir()
