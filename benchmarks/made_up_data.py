"""Data sets as the planner sees them, without any file of theirs."""

from pathlib import Path

from hvae_hpc.jobs.dag import DataSet
from hvae_hpc.preprocess.manifest import MANIFEST_SCHEMA, CaseEntry, Manifest


def make_data_set(name: str, cases: int = 200, px: int = 240) -> DataSet:
    """Make up a data set of so many cases of px x px, one slice each."""
    entries = tuple(
        CaseEntry(
            case_id=f"{name}-{i:04d}",
            shard="a.h5",
            first_row=i,
            pairs=1,
            slices=(0,),
            tumour_px=(9,),
            spacing_mm=(1.0, 1.0),
            sources={},
        )
        for i in range(cases)
    )
    manifest = Manifest(
        schema=MANIFEST_SCHEMA,
        name=name,
        modality="T2",
        recipe={},
        size_px=(px, px),
        shards=(),
        cases=entries,
        skipped=(),
        content_hash=name[0] * 64,
    )
    return DataSet(name=name, folder=Path(name), manifest=manifest)
