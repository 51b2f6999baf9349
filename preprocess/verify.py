"""Is a packed data set what its manifest says, to the last pixel, and are its sources the same?"""

from collections.abc import Callable, Iterable
from pathlib import Path

from hvae_hpc.config.loader import load
from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.parallel import map_in_order
from hvae_hpc.preprocess.read.find_cases import find_cases
from hvae_hpc.preprocess.read.scan import read_source
from hvae_hpc.preprocess.recipes.recipe import Recipe
from hvae_hpc.preprocess.store.manifest import CaseEntry, read_manifest
from hvae_hpc.preprocess.store.shards import read_pairs


def verify(folder: Path, raw: Path | None, workers: int, report: Callable[[str], None]) -> None:
    """Read everything and compare it with the manifest.

    Args:
        folder: of the packed data set.
        raw: compare the source files' hashes as well; None leaves them alone.
        workers: processes.
        report: is called with lines of what was seen to hold.

    Raises:
        UserError: something differs; every difference is named, one per line.
    """
    manifest = read_manifest(folder)
    n_shards, n_cases = len(manifest.shards), len(manifest.cases)

    shards = [
        (folder / s.file, s.content_sha256, [c for c in manifest.cases if c.shard == s.file])
        for s in manifest.shards
    ]
    faults = map_in_order(check_shard, shards, workers)
    _refuse_faults(folder, f"of {n_shards} shards are bad", faults)
    pairs = sum(shard.pairs for shard in manifest.shards)
    report(f"{folder}: {n_shards} shards, {n_cases} cases, {pairs} pairs: all as in the manifest")

    if raw is None:
        return
    recipe = load(Recipe, manifest.recipe, "the manifest's recipe")
    paths = {files.case_id: files.paths for files in find_cases(recipe, raw).scans}
    sources = [(case, paths.get(case.case_id, {})) for case in manifest.cases]
    faults = map_in_order(check_sources, sources, min(workers, n_cases // 8))
    _refuse_faults(raw, "cases differ from what was packed", faults)
    report(f"{raw}: the files of all {n_cases} cases are those that were packed")


def _refuse_faults(where: Path, what: str, found: Iterable[str]) -> None:
    faults = [f"\n  {fault}" for fault in found if fault]
    if faults:
        raise UserError(f"{where}: {len(faults)} {what}; pack again:{''.join(faults)}")


def check_shard(item: tuple[Path, str, list[CaseEntry]]) -> str:
    """Read a shard whole: its path, content hash and cases; return what is wrong, or ""."""
    path, digest, cases = item
    try:
        pairs, _ = read_pairs(path, content_sha256=digest)
    except UserError as error:
        return str(error)
    areas = [int(mask.sum()) for mask in pairs.masks]
    stored = list(zip(pairs.case_ids, pairs.slice_index.tolist(), areas, strict=True))
    listed = [
        (case.case_id, index, area)
        for case in cases
        for index, area in zip(case.slices, case.tumour_px, strict=True)
    ]
    if stored == listed:
        return ""
    return f"{path}: its cases, slices or tumour areas are not the manifest's"


def check_sources(item: tuple[CaseEntry, dict[str, Path]]) -> str:
    """Compare a packed case's files by role with their hashes; return what differs, or ""."""
    case, paths = item
    if paths.keys() != case.sources.keys():
        got, expected = ", ".join(paths) or "no files", ", ".join(case.sources)
        return f"{case.case_id}: has {got}, expected {expected}"
    try:
        changed = [
            str(path) for role, path in paths.items() if read_source(path)[1] != case.sources[role]
        ]
    except UserError as error:
        return f"{case.case_id}: {error}"
    return f"{case.case_id}: {', '.join(changed)} changed" if changed else ""
