"""How exported pairs lie on the disk: a raw data set of nnU-Net v2, or PNG files.

A writer notes in each pair's record where its "image" and "mask" lie, below the folder.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
Record = dict[str, Any]
"""What the manifest says of a pair."""


class Part(NamedTuple):
    """Pairs of one kind.

    Attributes:
        records: of each pair; its "name" is what the files are called, and all names differ.
    """

    kind: Literal["synthetic", "real", "test"]
    pairs: Pairs
    records: list[Record]


def write_nnunet(folder: Path, parts: Sequence[Part], modality: str) -> None:
    """Write a raw data set of nnU-Net v2: one 2D file per image, NIfTI, float32 as generated.

    Where there are real pairs, ``splits_final.json`` has folds over their cases, with the synthetic
    pairs in each one's training part. nnU-Net copies it to the preprocessed folder when it plans.

    Args:
        folder: ``DatasetXXX_Name``.
        parts: synthetic, and real and test where wanted.
        modality: the channel's name.
    """
    for part in parts:
        where = "Ts" if part.kind == "test" else "Tr"
        for row, record in enumerate(part.records):
            record["image"] = f"images{where}/{record['name']}_0000.nii.gz"
            record["mask"] = f"labels{where}/{record['name']}.nii.gz"
            for what, pixels in (("image", part.pairs.images), ("mask", part.pairs.masks)):
                _write_nifti(folder / record[what], pixels[row], part.pairs.spacing_mm[row])

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
        write_json(
            folder / "splits_final.json", make_folds(training["real"], training["synthetic"])
        )


def make_folds(real: Part, synthetic: Part) -> list[dict[str, list[str]]]:
    """Return nnU-Net's folds: each real case validates in one, no synthetic pair ever does."""
    cases = list(dict.fromkeys(real.pairs.case_ids))
    if len(cases) < 2:
        raise UserError(
            "one real training case makes no folds, expected 2 or more; give --synthetic-only"
        )

    folds = []
    for fold in range(min(FOLDS, len(cases))):
        validating = cases[fold::FOLDS]
        train = [record["name"] for record in synthetic.records]
        val = list[str]()
        for record in real.records:
            (val if record["case"] in validating else train).append(record["name"])
        folds.append({"train": train, "val": val})
    return folds


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


def write_png(folder: Path, part: Part) -> None:
    """Write ``images/`` with 8 bits a pixel, to look at, and ``masks/`` with 0 and 255."""
    for what, pixels in (("image", part.pairs.images), ("mask", part.pairs.masks)):
        (folder / f"{what}s").mkdir()
        for record, values in zip(part.records, pixels, strict=True):
            record[what] = f"{what}s/{record['name']}.png"
            Image.fromarray(np.round(255 * values).astype(np.uint8)).save(folder / record[what])
