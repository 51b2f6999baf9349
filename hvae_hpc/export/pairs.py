"""A generate run's pairs, handed over: to nnU-Net beside the real pairs, or as PNG files.

``manifest.json`` links each pair to what made it, down to the number of its draw, and to the
training image that is nearest to it. Pairs that copy a training image are left out. The folder is
made under another name, and gets its own when all of it is there. docs/EXPORT.md is the user's
page.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hvae_hpc.config.loader import dump
from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.export.formats import Part, Record, write_nnunet, write_png
from hvae_hpc.metrics.memorisation import Copies, find_copies
from hvae_hpc.preprocess.store.manifest import MANIFEST, Manifest, require_content
from hvae_hpc.preprocess.store.pairs import Pairs, take
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import read_pairs
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.files import plain_name
from hvae_hpc.runs.folder import PAIRS, SNAPSHOT, write_json
from hvae_hpc.runs.identity import file_sha256
from hvae_hpc.runs.plan import Plan
from hvae_hpc.training.batches import require_unseen, to_tensors
from hvae_hpc.training.train import read_split

EXPORT_SCHEMA = 1


class ExportedRun(NamedTuple):
    """A generate run's pairs, and the real ones of its split, all of one size.

    Attributes:
        synthetic: their spacing is the median of the real ones', NaN where one of those is unknown.
        real, test: of the cases that the generator was trained on, and of those that it must not
            have seen.
        train_cases: what the generator was trained on.
        counts: of draws, accepted and rejected ones.
        draw_numbers: of each pair; earlier versions' pairs.h5 has none.
        manifest: of the real data.
    """

    synthetic: Pairs
    real: Pairs
    test: Pairs
    train_cases: list[str]
    counts: dict[str, int]
    draw_numbers: list[int] | None
    manifest: Manifest


def export_pairs(
    plan: Plan,
    run_id: str,
    form: Literal["nnunet", "png"],
    folder: Path,
    *,
    keep_copies: bool,
    synthetic_only: bool,
    dataset_id: int,
) -> list[str]:
    """Write the pairs of a generate run, without those that copy a training image.

    Args:
        plan: of the sweep.
        run_id: of the generate run.
        form: of the files.
        folder: which is not there yet, or is empty.
        keep_copies: pairs that copy a training image go along, marked.
        synthetic_only: nnunet: no real pairs.
        dataset_id: nnunet: 1 to 999.

    Returns:
        Lines for a person: what was made, what was left out.

    Raises:
        UserError: it is no generate run or not done, its data is missing or was repacked, all its
            pairs are copies, or the folder cannot be made.
    """
    _check(dataset_id, folder)

    # Find the copies.
    source = _read_source(plan, run_id)
    # Test images have no part in this: they may be what results are judged by.
    real = source.real
    copies = find_copies(source.synthetic.images, real.images, None, real.case_ids)
    chosen, left_out = list[Record](), list[Record]()
    for record in _describe_synthetic(source, copies):
        (left_out if record["copy"] and not keep_copies else chosen).append(record)
    if not chosen:
        what = f"each of the {len(left_out)} pairs copies a training image"
        raise UserError(f"{what}; --keep-copies hands them over")

    # Write the pairs and their manifest.
    kept = take(source.synthetic, [record["pair"] for record in chosen])
    parts = [Part(kind="synthetic", pairs=kept, records=chosen)]
    if form == "nnunet" and not synthetic_only:
        parts += [_real_part("real", real), _real_part("test", source.test)]
    label = plain_name(plan.runs[run_id].label)
    name = f"Dataset{dataset_id:03d}_{label}" if form == "nnunet" else "."
    content = {"schema": EXPORT_SCHEMA, "form": form, "folder": name, "left_out": left_out}
    content |= _describe_origin(plan, run_id, source, copies)
    with _new_folder(folder) as new_folder:
        if form == "nnunet":
            write_nnunet(new_folder / name, parts, source.manifest.modality)
        else:
            write_png(new_folder, parts[0])
        content["pairs"] = [record for part in parts for record in part.records]
        write_json(new_folder / MANIFEST, content)
    lines = [*_sum_up(folder / name, parts, copies, len(left_out))]
    return lines if form == "png" else [*lines, *_remark_on_nnunet(parts, synthetic_only)]


def _check(dataset_id: int, folder: Path) -> None:
    if not 1 <= dataset_id <= 999:
        raise UserError(f"data set number is {dataset_id}, expected 1 to 999")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: is there and is no empty folder; name a new one, or delete it")


def _remark_on_nnunet(parts: Sequence[Part], synthetic_only: bool) -> Iterator[str]:
    """Yield what a person must know of the data set before training on it."""
    if any(np.isnan(part.pairs.spacing_mm).any() for part in parts):
        yield "the spacing is not known: the files say 1 mm"
    if synthetic_only:
        yield (
            "no real pairs, so nothing to validate on and no splits_final.json: "
            "train nnU-Net with fold all"
        )


def _read_source(plan: Plan, run_id: str) -> ExportedRun:
    """Read a finished generate run's pairs and the real pairs of its split."""
    run = plan.runs[run_id]
    config = run.config
    if not isinstance(config, GenerateConfig):
        known = ", ".join(run.label for run in plan.runs.values() if run.stage == "generate")
        raise UserError(
            f"{run.stage} {run.label} makes no pairs to export; expected a generate run ({known})"
        )
    result = read_results(plan)[run_id]
    if not result.done:
        why = f" ({result.reason})" if result.reason else ""
        raise UserError(
            f"generate {run.label} ({run_id}) is not done{why}; "
            "give the sweep command again, then export"
        )

    data, path = Path(plan.data[config.data]["folder"]), plan.folder(run_id) / PAIRS
    manifest = require_content(data, run.parents["data"])
    pairs, attributes = read_pairs(path)
    split = read_split(data, config.split)
    try:
        train_cases = [str(case) for case in json.loads(attributes["source_cases"])]
        counts = {name: int(attributes[name]) for name in ("draws", "accepted", "rejected")}
        draw_numbers = json.loads(attributes.get("draw_numbers", "null"))
        if draw_numbers is not None and len(draw_numbers) != len(pairs):
            raise ValueError(f"{len(draw_numbers)} numbers of draws for {len(pairs)} pairs")
        if len(set(map(plain_name, pairs.case_ids))) < len(pairs):
            raise ValueError("two pairs would get one file name")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: lacks what made its pairs, or it is damaged ({error}); "
            "delete its folder, and give the sweep command again"
        ) from error
    require_unseen(path, train_cases, split.test)
    real = _shrink(read_dataset(data, train_cases), config.image_px)
    spacing = np.repeat(np.median(real.spacing_mm, 0, keepdims=True), len(pairs), 0)
    return ExportedRun(
        synthetic=replace(pairs, spacing_mm=spacing),
        real=real,
        test=_shrink(read_dataset(data, split.test), config.image_px),
        train_cases=train_cases,
        counts=counts,
        draw_numbers=draw_numbers,
        manifest=manifest,
    )


def _shrink(pairs: Pairs, image_px: int) -> Pairs:
    """Return real pairs as the generator saw them."""
    tensors = to_tensors(pairs, image_px)
    images, masks = (values[:, 0].numpy() for values in (tensors.images, tensors.masks))
    spacing = pairs.spacing_mm * (pairs.images.shape[1] / images.shape[1])
    return replace(pairs, images=images, masks=masks.astype(np.uint8), spacing_mm=spacing)


def _describe_synthetic(source: ExportedRun, copies: Copies) -> list[Record]:
    """Return what the manifest says of each synthetic pair."""
    draws = source.draw_numbers
    return [
        {
            "kind": "synthetic",
            "name": plain_name(source.synthetic.case_ids[row]),
            "pair": row,
            "draw": draws[row] if draws else None,
            "nearest_case": source.real.case_ids[nearest],
            "nearest_slice": int(source.real.slice_index[nearest]),
            "distance": float(copies.distance[row]),
            "score": float(copies.score[row]),
            "copy": bool(copies.flagged[row]),
        }
        for row, nearest in enumerate(copies.nearest)
    ]


def _real_part(kind: Literal["real", "test"], pairs: Pairs) -> Part:
    records = [
        {
            "kind": kind,
            "name": f"{kind}-{row:04d}-{plain_name(case_id)}",
            "case": case_id,
            "slice": int(pairs.slice_index[row]),
        }
        for row, case_id in enumerate(pairs.case_ids)
    ]
    return Part(kind=kind, pairs=pairs, records=records)


def _describe_origin(plan: Plan, run_id: str, source: ExportedRun, copies: Copies) -> Record:
    run, train_id = plan.runs[run_id], plan.parents(run_id).get("generator")
    train: Record = {"source_cases": source.train_cases}
    if train_id:  # mixed pairs have none
        snapshot = plan.folder(train_id) / SNAPSHOT
        train |= {
            "run_id": train_id,
            "label": plan.runs[train_id].label,
            "snapshot_sha256": file_sha256(snapshot) if snapshot.is_file() else None,
        }
    return {
        "generate": {
            "run_id": run_id,
            "label": run.label,
            "config": dump(run.config),  # its sampler, seed and split
            "pairs_sha256": file_sha256(plan.folder(run_id) / PAIRS),
            "counts": source.counts,
        },
        "train": train,
        "data": {"name": source.manifest.name, "content_hash": source.manifest.content_hash},
        "copies": {
            "flagged": int(copies.flagged.sum()),
            "of": len(copies.flagged),
            "held_out": "each training case in turn",
            "held_out_images": len(source.real),
            "threshold": copies.threshold,
            "p_value": copies.p_value,
            "copying": copies.copying,
        },
    }


def _sum_up(folder: Path, parts: Sequence[Part], copies: Copies, left_out: int) -> Iterator[str]:
    yield f"{folder}: {', '.join(f'{len(part.pairs)} {part.kind}' for part in parts)} pairs"
    flagged = int(copies.flagged.sum())
    line = f"{flagged} of {len(copies.flagged)} pairs copy a training image"
    if flagged:
        what = "left out, and listed in" if left_out else "handed over, and marked in"
        line += f": {what} {MANIFEST}"
    yield line
    if copies.copying:
        yield f"so many that the generator copies its training set (p = {copies.p_value:.1g})"


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that takes its name in the end; where that fails, nothing is left of it."""
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); nothing was left there"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
