"""One case: its files -> its pairs, or one line that says why not."""

from dataclasses import dataclass

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.journal import CaseRecord, stamp_files
from hvae_hpc.preprocess.read.find_cases import CaseFiles
from hvae_hpc.preprocess.read.slices import cut_pairs
from hvae_hpc.preprocess.read.volume import read_volume
from hvae_hpc.preprocess.recipes.recipe import Recipe
from hvae_hpc.preprocess.store.manifest import CaseEntry
from hvae_hpc.preprocess.store.pairs import Pairs


@dataclass(frozen=True, kw_only=True)
class PackedCase:
    """What a worker hands back, or what is taken over.

    Attributes:
        case_id: the case.
        record: without place where ``pairs`` are given, else where the pairs lie; None for a bad
            case.
        pairs: just cut; None for a case that is taken over, or a bad one.
        fault: what is wrong with a bad case.
    """

    case_id: str
    record: CaseRecord | None
    pairs: Pairs | None = None
    fault: str = ""


def pack_case(recipe: Recipe, known: tuple[int, ...], files: CaseFiles) -> PackedCase:
    """Turn one case into pairs; a fault of the files is returned, a bug of ours is raised."""
    if files.fault or files.image is None:
        return PackedCase(case_id=files.case_id, record=None, fault=files.fault)
    stamps = stamp_files(files)  # before reading: a file changed meanwhile is read again next time
    try:
        volume = read_volume(recipe, files.image, files.labels, known)
        pairs, cut_px = cut_pairs(volume, recipe, files.case_id)
    except UserError as error:
        return PackedCase(case_id=files.case_id, record=None, fault=str(error))
    entry = CaseEntry(
        case_id=files.case_id,
        shard="",
        first_row=0,
        pairs=len(pairs),
        slices=tuple(int(index) for index in pairs.slice_index),
        tumour_px=tuple(int(mask.sum()) for mask in pairs.masks),
        spacing_mm=tuple(
            round(float(side), 6) for side in pairs.spacing_mm[0] if side == side
        ),  # not NaN
        sources=volume.sources,
    )
    record = CaseRecord(entry=entry, facts=volume.facts, cut_px=cut_px, stamps=stamps)
    return PackedCase(case_id=files.case_id, record=record, pairs=pairs)
