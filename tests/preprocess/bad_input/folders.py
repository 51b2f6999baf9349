"""Good folders, one per recipe, to be spoiled; and what is compared of a packed one."""

import json
import re
import shutil
import textwrap
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from hvae_hpc.preprocess.store.manifest import MANIFEST
from hvae_hpc.preprocess.store.reader import DatasetReader
from tests.preprocess.scans import LPS, draw_case, save

IMAGE, LABEL = "case1/case1_flair.nii.gz", "case1/case1_seg.nii.gz"

ZOE = unicodedata.normalize("NFC", "zoé")


RECIPES = {
    "scans": """
        name = "scans"
        modality = "FLAIR"
        [layout]
        image = "{case}/{case}_flair.nii*"
        label = "{case}/{case}_seg.nii*"
        [label]
        tumour = [1, 2, 4]
        [grid]
        size_px = [16, 16]
        centre = "image"
        [intensity]
        rule = "percentile"
        low = 0.0
        high = 99.5
        [slices]
        choose = "largest"
        """,
    "any": 'extends = "scans.toml"\nlabel = {tumour = "any"}',
    "window": 'extends = "scans.toml"\nintensity = {rule = "window", low = 0.0, high = 1000.0}',
    "resampled": 'extends = "scans.toml"\ngrid = {spacing_mm = 1.5}',
    "pictures": 'extends = "pictures"\ngrid = {size_px = [16, 16]}',
    "pages": 'extends = "pictures.toml"\nlayout = {image = "images/{case}.tif", label = "masks/{case}.tif"}',
    "nnunet": 'extends = "nnunet"\ngrid = {size_px = [16, 16]}',
    "msd": 'extends = "msd"\ngrid = {size_px = [16, 16]}',
    "second": 'extends = "msd.toml"\nlayout = {channel = 1}',
    "noise": 'extends = "scans.toml"\ngrid = {size_px = [256, 256]}\nslices = {choose = "all"}',
    "repeated": 'accept = ["repeated"]\nextends = "scans.toml"',
    "wide": 'extends = "window.toml"\ngrid = {size_px = [32, 32]}',
}


def save_scans(raw: Path) -> None:
    for number, name in enumerate(("case0", "case1", "case2", ZOE)):
        image, label = draw_case(number)
        save(raw / name / f"{name}_flair.nii.gz", image)
        save(raw / name / f"{name}_seg.nii.gz", label)


def save_pictures(raw: Path, ending: str = "png") -> None:
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 12)).astype(np.uint8)
        mask = np.zeros((16, 12), np.uint8)
        mask[4:9, 3 : 7 + number] = 255
        for folder, picture in (("images", pixels), ("masks", mask)):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(raw / folder / f"case{number}.{ending}")


def save_indexed(raw: Path, channels: int) -> None:
    """Write a data set with a dataset.json: of nnU-Net, or with several channels in one file of the Decathlon."""
    for number in range(4):
        image, label = draw_case(number)
        name = f"case{number}"
        if channels == 1:
            save(raw / "imagesTr" / f"{name}_0000.nii.gz", image)
        else:
            save(raw / "imagesTr" / f"{name}.nii.gz", np.stack([image, 2 * image], axis=3))
        save(raw / "labelsTr" / f"{name}.nii.gz", (label > 0).astype(np.uint8))
    index = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
    }
    if channels > 1:
        names = [f"./imagesTr/case{number}.nii.gz" for number in range(4)]
        index = {
            "modality": {"0": "FLAIR", "1": "T1w"},
            "labels": {"0": "background", "1": "tumour"},
            "training": [
                {"image": name, "label": name.replace("images", "labels")} for name in names
            ],
        }
    (raw / "dataset.json").write_text(json.dumps({**index, "numTraining": 4}))


GOOD: dict[str, Callable[[Path], None]] = {
    "pictures": save_pictures,
    "pages": partial(save_pictures, ending="tif"),
    "nnunet": partial(save_indexed, channels=1),
    "msd": partial(save_indexed, channels=2),
    "second": partial(save_indexed, channels=2),
}


def arguments(recipe: str, out: str = "out", *more: str) -> list[str]:
    return [
        f"{recipe}.toml",
        "--raw",
        "raw",
        "--out",
        out,
        "--sheet",
        "0",
        "--workers",
        "1",
        "--local",
        *more,
    ]


def data_set(out: Path) -> dict[str, bytes]:
    """Return the bytes of all that readers read."""
    return {path.name: path.read_bytes() for path in (*out.glob("shard-*"), out / MANIFEST)}


def is_line(line: str, expected: str, file: str) -> bool:
    pattern = re.escape(expected).replace("<file>", re.escape(file)).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, line) is not None


def write_recipes(to: Path) -> None:
    for name, text in RECIPES.items():
        (to / f"{name}.toml").write_text(textwrap.dedent(text))


def lay_out(good: Path, here: Path) -> None:
    """Put the good folder, and the recipes, where the command is run: for the first time, or as a repair."""
    raw = here / "raw"
    if raw.is_file():
        raw.unlink()
    for path in raw.rglob("*"):
        if not path.is_symlink() and path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(raw, ignore_errors=True)
    shutil.copytree(good / "raw", raw)
    write_recipes(here)


def pairs_of(out: Path, case: str) -> list[object]:
    pairs = DatasetReader(out, [case]).read_all()
    spacing = np.round(
        pairs.spacing_mm, 6
    )  # as the manifest has it: a turned header's 32 bits are not quite 1 mm
    return [
        pairs.images.tobytes(),
        pairs.masks.tobytes(),
        pairs.slice_index.tolist(),
        spacing.tobytes(),
    ]


Store = Callable[[Path, np.ndarray, np.ndarray], object]


def store(
    affine: np.ndarray = LPS,
    kind: type = nib.Nifti1Image,
    ending: str = ".nii.gz",
    image_as: type = np.int16,
) -> Store:
    """Return a way to save a pair: below a path without its ending, as save_scans names it."""

    def write(stem: Path, image: np.ndarray, label: np.ndarray) -> None:
        save(stem.with_name(f"{stem.name}_flair{ending}"), image.astype(image_as), affine, kind)
        save(stem.with_name(f"{stem.name}_seg{ending}"), label, affine, kind)

    return write
