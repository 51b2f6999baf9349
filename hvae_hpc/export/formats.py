"""How exported pairs lie on the disk: a raw data set of nnU-Net v2, or PNG files.

A writer gets the pairs by kind and returns, in their order, where each one lies.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.runs.folder import write_json

FOLDS = 5
"""nnU-Net's number of folds; fewer where there are fewer training cases."""
LABELS = {"background": 0, "tumour": 1}
Place = dict[str, str]
"""Paths of a pair's "image" and "mask", below the folder."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pairs of one kind.

    Attributes:
        names: what each pair's files are called; all of them differ.
        records: what the manifest says of each pair.
    """

    kind: Literal["synthetic", "real", "test"]
    pairs: Pairs
    names: list[str]
    records: list[dict[str, Any]]


def write_nnunet(folder: Path, parts: Sequence[Part], modality: str) -> list[Place]:
    """Write a raw data set of nnU-Net v2: one 2D file per image, NIfTI, float32 as generated.

    Where there are real pairs, ``splits_final.json`` has folds over their cases, with the synthetic
    pairs in each one's training part. nnU-Net copies it to the preprocessed folder when it plans.

    Args:
        folder: ``DatasetXXX_Name``.
        parts: synthetic, and real and test where wanted.
        modality: the channel's name.
    """
    places = []
    for part in parts:
        where = "Ts" if part.kind == "test" else "Tr"
        for row, name in enumerate(part.names):
            place = {
                "image": f"images{where}/{name}_0000.nii.gz",
                "mask": f"labels{where}/{name}.nii.gz",
            }
            _write_nifti(
                folder / place["image"], part.pairs.images[row], part.pairs.spacing_mm[row]
            )
            _write_nifti(folder / place["mask"], part.pairs.masks[row], part.pairs.spacing_mm[row])
            places.append(place)
    training = {part.kind: part for part in parts if part.kind != "test"}
    description = {
        "channel_names": {"0": modality},
        "labels": LABELS,
        "numTraining": sum(len(part.pairs) for part in training.values()),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    write_json(folder / "dataset.json", description)
    if "real" in training:
        folds = make_folds(training["real"], training["synthetic"].names)
        write_json(folder / "splits_final.json", folds)
    return places


def make_folds(real: Part, synthetic: Sequence[str]) -> list[dict[str, list[str]]]:
    """Return nnU-Net's folds: each real case validates in one, no synthetic pair ever does."""
    cases = list(dict.fromkeys(real.pairs.case_ids))
    if len(cases) < 2:
        raise UserError(
            "one real training case makes no folds, expected 2 or more; give --synthetic-only"
        )
    count = min(FOLDS, len(cases))
    fold_of = {case: place % count for place, case in enumerate(cases)}
    named = list(zip(real.names, real.pairs.case_ids, strict=True))
    return [
        {
            "train": [name for name, case in named if fold_of[case] != fold] + list(synthetic),
            "val": [name for name, case in named if fold_of[case] == fold],
        }
        for fold in range(count)
    ]


def _write_nifti(path: Path, pixels: NDArray[Any], spacing_mm: NDArray[np.float64]) -> None:
    """Write (rows, columns) so that SimpleITK, and with it nnU-Net, reads the same array.

    An unknown spacing becomes 1 mm.
    """
    row, column = np.nan_to_num(spacing_mm, nan=1.0)
    # The file's axes are column and row. NIfTI's world counts to the right and front, a
    # scan's columns and rows (LPS) to the left and back.
    image = nib.Nifti1Image(np.ascontiguousarray(pixels.T), np.diag([-column, -row, 1, 1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def write_png(folder: Path, part: Part) -> list[Place]:
    """Write ``images/`` with 8 bits a pixel, to look at, and ``masks/`` with 0 and 255."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for row, name in enumerate(part.names):
        image = np.round(255 * part.pairs.images[row]).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(255 * part.pairs.masks[row]).save(folder / "masks" / f"{name}.png")
    return [{"image": f"images/{name}.png", "mask": f"masks/{name}.png"} for name in part.names]
