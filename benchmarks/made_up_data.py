"""Made-up data sets without files, as the planner sees them, and made-up results of runs."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hvae_hpc.config.loader import dump
from hvae_hpc.jobs.sweeps.expand import DataSet
from hvae_hpc.preprocess.store.manifest import MANIFEST_SCHEMA, CaseEntry, Manifest, ShardEntry
from hvae_hpc.results.collect import BOUNDS
from hvae_hpc.runs.folder import Provenance, RunResult, read_result, result_stamp
from hvae_hpc.runs.identity import content_hash
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run

BLOCKS = 50
CASE_METRICS = ("dice", "hausdorff_95", "precision", "recall")


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
        shards=(ShardEntry(file="a.h5", pairs=cases, content_sha256="0" * 64),),
        cases=entries,
        skipped=(),
        content_hash=content_hash(name),
    )
    return DataSet(name=name, folder=Path(name), manifest=manifest)


def write_results(plan: Plan, cases: int = 100) -> None:
    """Write every run's metrics.json as its stage would.

    The files are written without fsync: 10,000 of those would take minutes. The numbers per case
    come from 50 made-up blocks, because drawing and printing them for each run takes a minute.
    """
    random = np.random.default_rng(0)
    blocks = make_case_blocks(random, cases)
    provenance = make_provenance(plan)
    parents = {parent for run in plan.runs.values() for parent in run.parents.values()}

    stamps: dict[str, str] = {}
    texts: dict[tuple[str, ...], str] = {}
    for run_id, run in plan.runs.items():
        # Runs that differ only in their seed share a text: json.dumps takes milliseconds.
        alike = (run.stage, run.label.rpartition("-s")[0], *run.parents.values())
        if alike not in texts:
            parent_stamps = {role: stamps[parent] for role, parent in plan.parents(run_id).items()}
            result = make_result(run, parent_stamps, provenance, random, cases)
            texts[alike] = json.dumps(dump(result), indent=1, sort_keys=True)

        text = texts[alike].replace("@RUN@", run_id).replace('"@SEED@"', str(run.config.seed))
        if run.stage == "segment":
            per_case, dice = blocks[random.integers(BLOCKS)]
            text = text.replace('"per_case": {}', per_case).replace('"dice": -1.0', dice)
        plan.folder(run_id).mkdir(parents=True)
        (plan.folder(run_id) / "metrics.json").write_text(text + "\n")

        # A child's result holds its parents' stamps.
        if run_id in parents and (written := read_result(plan.folder(run_id), run_id)):
            stamps[run_id] = result_stamp(written)


def make_case_blocks(random: np.random.Generator, cases: int) -> list[tuple[str, str]]:
    """Draw blocks of numbers per case; return each as JSON text, and its mean Dice as JSON text."""
    blocks = []
    for _ in range(BLOCKS):
        numbers = random.random((cases, len(CASE_METRICS)))
        per_case = {
            f"case-{i:04d}": dict(zip(CASE_METRICS, row.tolist(), strict=True))
            for i, row in enumerate(numbers)
        }
        text = json.dumps(per_case, indent=1).replace("\n", "\n ")
        dice = numbers[:, CASE_METRICS.index("dice")].mean()
        blocks.append((f'"per_case": {text}', f'"dice": {dice}'))
    return blocks


def make_provenance(plan: Plan) -> Provenance:
    """Make up where and how all runs of a plan were computed."""
    return Provenance(
        code_sha=plan.code_sha,
        versions={"torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7", "h5py": "3.16.0"},
        device="NVIDIA H200",
        host="n1",
        job_id="1_0",
        attempt=1,
        started_at=1795853889.273,
        wall_s=301.007,
        peak_memory_mib=1008.12,
        threads=4,
    )


def make_result(
    run: Run,
    parent_stamps: Mapping[str, str],
    provenance: Provenance,
    random: np.random.Generator,
    cases: int,
) -> RunResult:
    """Make up a run's result, with placeholders for its id, seed, numbers per case and Dice."""
    names = BOUNDS.get(run.stage, ())
    metrics = dict(zip(names, random.random(99).tolist(), strict=False))
    train_cases = [f"train-{i:04d}" for i in range(cases)]
    return RunResult(
        schema=1,
        run_id="@RUN@",
        stage=run.stage,
        config={**dump(run.config), "seed": "@SEED@"},
        parents=dict(run.parents),
        parent_results=dict(parent_stamps),
        metrics=metrics | {"n": 10.0, "dice": -1.0},
        per_case={},
        provenance=provenance,
        details={"train_cases": train_cases} if run.stage == "segment" else {},
    )
