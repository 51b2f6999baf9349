"""One case: its files -> its pairs, or one line that says why not."""

import contextlib
import hashlib
import os
from collections.abc import Iterator

import numpy as np

from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.preprocess.journal import CaseRecord, stamp_files
from hvae_hpc.preprocess.read.find_cases import CaseFiles
from hvae_hpc.preprocess.read.volume import read_volume
from hvae_hpc.preprocess.recipes.recipe import Recipe
from hvae_hpc.preprocess.slices import cut_pairs
from hvae_hpc.preprocess.store.manifest import CaseEntry, SkippedEntry
from hvae_hpc.preprocess.store.pairs import Pairs


@frozen
class PackedCase:
    """A good case: just packed, or taken over from an earlier packing.

    Attributes:
        record: where its pairs lie in a shard; without a shard where they are in ``pairs``.
        pairs: just cut; None for a case that is taken over.
    """

    record: CaseRecord
    pairs: Pairs | None = None


def pack_case(
    recipe: Recipe, known: tuple[int, ...], files: CaseFiles
) -> PackedCase | SkippedEntry:
    """Turn one case into pairs; a fault of the files is returned, a bug of ours is raised."""
    if files.fault:
        return SkippedEntry(case_id=files.case_id, reason=files.fault)
    stamps = stamp_files(files)  # before reading: a file changed meanwhile is read again next time
    try:
        with _silence_libraries():
            volume = read_volume(recipe, files, known)
        pairs, cut_px, accepted = cut_pairs(volume, recipe, files.case_id)
    except UserError as error:
        return SkippedEntry(case_id=files.case_id, reason=str(error))
    except MemoryError:
        reason = f"{files.images[0]}: the case does not fit into memory; use fewer --workers"
        return SkippedEntry(case_id=files.case_id, reason=reason)

    spacing = pairs.spacing_mm[0]
    entry = CaseEntry(
        case_id=files.case_id,
        shard="",
        first_row=0,
        pairs=len(pairs),
        slices=tuple(pairs.slice_index.tolist()),
        tumour_px=tuple(int(mask.sum()) for mask in pairs.masks),
        spacing_mm=tuple(round(float(side), 6) for side in spacing[~np.isnan(spacing)]),
        sources=volume.sources,
    )
    record = CaseRecord(
        entry=entry,
        facts=volume.facts,
        cut_px=cut_px,
        accepted=accepted,
        images_sha256=hashlib.sha256(pairs.images.data).hexdigest(),
        stamps=stamps,
    )
    return PackedCase(record=record, pairs=pairs)


@contextlib.contextmanager
def _silence_libraries() -> Iterator[None]:
    """Drop what SimpleITK and Pillow write to stderr: our own line says what is wrong."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
