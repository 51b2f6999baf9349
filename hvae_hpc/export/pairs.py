"""A generate run's pairs, handed over: to nnU-Net beside the real pairs, or as PNG files.

``manifest.json`` links each pair to what made it, down to the number of its draw, and to the
training image that is nearest to it. Pairs that copy a training image are left out. The folder is
made under another name, and gets its own when all of it is there. docs/EXPORT.md is the user's
page.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hvae_hpc.config.loader import dump
from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.export.formats import Part, write_nnunet, write_png
from hvae_hpc.metrics.memorisation import Copies, find_copies
from hvae_hpc.preprocess.store.manifest import MANIFEST, Manifest, require_content
from hvae_hpc.preprocess.store.pairs import Pairs, take
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import read_pairs
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import PAIRS, SNAPSHOT, write_json
from hvae_hpc.runs.identity import file_sha256
from hvae_hpc.runs.plan import Plan
from hvae_hpc.training.batches import require_unseen, to_tensors
from hvae_hpc.training.train import read_split

EXPORT_SCHEMA = 1
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made.

    Attributes:
        form: of the files.
        folder: which is not there yet, or is empty.
        keep_copies: pairs that copy a training image go along, marked.
        synthetic_only: nnunet: no real pairs.
        dataset_id: nnunet: 1 to 999.
    """

    form: Literal["nnunet", "png"]
    folder: Path
    keep_copies: bool = False
    synthetic_only: bool = False
    dataset_id: int = 501

    def __post_init__(self) -> None:
        if not 1 <= self.dataset_id <= 999:
            raise UserError(f"data set number is {self.dataset_id}, expected 1 to 999")
        if self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise UserError(
                f"{self.folder}: is there and is no empty folder; name a new one, or delete it"
            )


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """A generate run's pairs, and the real ones of its split, all of one size.

    Attributes:
        synthetic: their spacing is the median of the real ones', NaN where one of those is unknown.
        real, test: of the cases that the generator was trained on, and of those that it must not
            have seen.
        attributes: of pairs.h5.
        manifest: of the real data.
    """

    synthetic: Pairs
    real: Pairs
    test: Pairs
    attributes: dict[str, str]
    manifest: Manifest


def export_pairs(plan: Plan, run_id: str, order: Order) -> list[str]:
    """Write the pairs of a generate run, without those that copy a training image.

    Returns:
        Lines for a person: what was made, what was left out.

    Raises:
        UserError: it is no generate run or not done, its data is missing or was repacked, all its
            pairs are copies, or the folder cannot be made.
    """
    # Find the copies.
    source = _read_source(plan, run_id)
    copies = find_copies(
        source.synthetic.images,
        source.real.images,
        source.test.images,
        source.real.case_ids,
        source.test.case_ids,
    )
    is_kept = ~copies.flagged | order.keep_copies
    if not is_kept.any():
        raise UserError(
            f"each of the {len(is_kept)} pairs copies a training image; "
            "--keep-copies hands them over"
        )

    # Write the pairs and their manifest.
    records = _describe(source, copies)
    parts = [_synthetic_part(source, records, np.flatnonzero(is_kept).tolist())]
    name = "."
    if order.form == "nnunet":
        name = f"Dataset{order.dataset_id:03d}_{_plain(plan.runs[run_id].label)}"
        if not order.synthetic_only:
            parts += [_real_part("real", source.real), _real_part("test", source.test)]
    with _new_folder(order.folder) as folder:
        if order.form == "nnunet":
            places = write_nnunet(folder / name, parts, source.manifest.modality)
        else:
            places = write_png(folder, parts[0])
        written = [{"kind": part.kind, **record} for part in parts for record in part.records]
        content = {
            "schema": EXPORT_SCHEMA,
            "form": order.form,
            **_tell_origin(plan, run_id, source, copies),
            "folder": name,
            "pairs": [{**record, **place} for record, place in zip(written, places, strict=True)],
            "left_out": [record for record, kept in zip(records, is_kept, strict=True) if not kept],
        }
        write_json(folder / MANIFEST, content)
    return list(_sum_up(order, order.folder / name, parts, copies))


def _read_source(plan: Plan, run_id: str) -> ExportedRun:
    """Read a finished generate run's pairs and the real pairs of its split."""
    run, config = plan.runs[run_id], plan.runs[run_id].config
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
    require_unseen(path, attributes, split.test)
    real = _shrink(read_dataset(data, json.loads(attributes["source_cases"])), config.image_px)
    spacing = np.repeat(np.median(real.spacing_mm, 0, keepdims=True), len(pairs), 0)
    return ExportedRun(
        synthetic=replace(pairs, spacing_mm=spacing),
        real=real,
        test=_shrink(read_dataset(data, split.test), config.image_px),
        attributes=attributes,
        manifest=manifest,
    )


def _shrink(pairs: Pairs, image_px: int) -> Pairs:
    """Return real pairs as the generator saw them."""
    tensors = to_tensors(pairs, image_px)
    images, masks = (values[:, 0].numpy() for values in (tensors.images, tensors.masks))
    spacing = pairs.spacing_mm * (pairs.images.shape[1] / images.shape[1])
    return replace(pairs, images=images, masks=masks.astype(np.uint8), spacing_mm=spacing)


def _describe(source: ExportedRun, copies: Copies) -> list[Record]:
    """Return what the manifest says of each synthetic pair."""
    # Earlier versions' pairs.h5 has no numbers of draws.
    draws = json.loads(source.attributes.get("draw_numbers", "null"))
    return [
        {
            "name": _plain(source.synthetic.case_ids[row]),
            "pair": row,
            "draw": draws[row] if draws else None,
            "nearest_case": source.real.case_ids[nearest],
            "nearest_slice": int(source.real.slice_index[nearest]),
            "distance": float(copies.distance[row]),
            "score": float(copies.score[row]),
            "copy": bool(copies.flagged[row]),
            "spacing_mm": _spacing(source.synthetic, row),
        }
        for row, nearest in enumerate(copies.nearest)
    ]


def _synthetic_part(source: ExportedRun, records: Sequence[Record], rows: Sequence[int]) -> Part:
    chosen = [records[row] for row in rows]
    names = [record["name"] for record in chosen]
    return Part(kind="synthetic", pairs=take(source.synthetic, rows), names=names, records=chosen)


def _real_part(kind: Literal["real", "test"], pairs: Pairs) -> Part:
    names = [f"{kind}-{row:04d}-{_plain(case_id)}" for row, case_id in enumerate(pairs.case_ids)]
    records = [
        {
            "name": name,
            "case": pairs.case_ids[row],
            "slice": int(pairs.slice_index[row]),
            "spacing_mm": _spacing(pairs, row),
        }
        for row, name in enumerate(names)
    ]
    return Part(kind=kind, pairs=pairs, names=names, records=records)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def _spacing(pairs: Pairs, row: int) -> list[float] | None:
    spacing = pairs.spacing_mm[row]
    return None if np.isnan(spacing).any() else [float(value) for value in spacing]


def _tell_origin(plan: Plan, run_id: str, source: ExportedRun, copies: Copies) -> Record:
    run, train_id = plan.runs[run_id], plan.parents(run_id)["generator"]
    snapshot, attributes = plan.folder(train_id) / SNAPSHOT, source.attributes
    return {
        "generate": {
            "run_id": run_id,
            "label": run.label,
            "config": dump(run.config),  # its sampler, seed and split
            "pairs_sha256": file_sha256(plan.folder(run_id) / PAIRS),
            "counts": {name: int(attributes[name]) for name in ("draws", "accepted", "rejected")},
        },
        "train": {
            "run_id": train_id,
            "label": plan.runs[train_id].label,
            "snapshot_sha256": file_sha256(snapshot) if snapshot.is_file() else None,
            "source_cases": json.loads(attributes["source_cases"]),
        },
        "data": {"name": source.manifest.name, "content_hash": source.manifest.content_hash},
        "copies": {
            "flagged": int(copies.flagged.sum()),
            "of": len(copies.flagged),
            "held_out_images": len(source.test),
            "threshold": copies.threshold,
            "p_value": copies.p_value,
            "copying": copies.copying,
        },
    }


def _sum_up(order: Order, folder: Path, parts: Sequence[Part], copies: Copies) -> Iterator[str]:
    yield f"{folder}: {', '.join(f'{len(part.pairs)} {part.kind}' for part in parts)} pairs"
    flagged, n = int(copies.flagged.sum()), len(copies.flagged)
    what = "handed over, and marked in" if order.keep_copies else "left out, and listed in"
    yield f"{flagged} of {n} pairs copy a training image" + (
        f": {what} {MANIFEST}" if flagged else ""
    )
    if copies.copying:
        yield f"so many that the generator copies its training set (p = {copies.p_value:.1g})"
    if order.form == "nnunet" and any(np.isnan(part.pairs.spacing_mm).any() for part in parts):
        yield "the spacing is not known: the files say 1 mm"
    if order.form == "nnunet" and order.synthetic_only:
        yield (
            "no real pairs, so nothing to validate on and no splits_final.json: "
            "train nnU-Net with fold all"
        )


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that takes its name in the end; where that fails, nothing is left of it."""
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(folder)
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"{folder}: cannot be made ({cause.strerror or cause}); nothing was left there"
        ) from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
