"""Every bad input of a packing, on real files and by the command: what the user sees, and what is on the disk then.

The tables of this module are docs/BAD_INPUT.md as well; ``python -m tests.test_bad_input`` writes
it anew. In a line ``<file>`` stands for the path of the file that is named, and ``...`` for words
of a library that change from version to version.
"""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hvae_hpc.errors import UserError, run_command
from hvae_hpc.preprocess.__main__ import main
from hvae_hpc.preprocess.journal import JOURNAL
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest
from hvae_hpc.preprocess.store.reader import DatasetReader
from hvae_hpc.runs.lease import is_held
from tests import ROOT
from tests.preprocess.scans import LPS, draw_case, save

PAGE = ROOT / "docs" / "BAD_INPUT.md"
NOBODY = 65534
ZOE = unicodedata.normalize("NFC", "zoé")
IMAGE, LABEL = "case1/case1_flair.nii.gz", "case1/case1_seg.nii.gz"


# Good folders, one per recipe: four cases each.

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


# Ways to spoil one. All of them get the raw folder.

Spoil = Callable[[Path], object]


def with_bytes(file: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda raw: (raw / file).write_bytes(change((raw / file).read_bytes()))


def with_unzipped(file: str, change: Callable[[bytes], bytes]) -> Spoil:
    return with_bytes(file, lambda content: gzip.compress(change(gzip.decompress(content))))


def with_header(file: str, **fields: object) -> Spoil:
    """Write fields of a NIfTI header (nifti1.h has their names), whatever they then say."""

    def change(content: bytes) -> bytes:
        header = nib.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            header[name] = value
        return header.binaryblock + content[348:]

    return with_unzipped(file, change)


def with_voxels(
    file: str, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = LPS
) -> Spoil:
    """Save changed voxels anew, with a header that fits them."""
    return lambda raw: save(
        raw / file, change(np.asarray(nib.load(raw / file).dataobj).copy()), affine
    )


def put(
    value: float, at: tuple[int, ...] = (7, 6, 3), kind: type = np.float32
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that writes one voxel, by itself inside the tumour."""

    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(kind)
        voxels[at] = value
        return voxels

    return change


def without(*files: str) -> Spoil:
    return lambda raw: [(raw / file).unlink() for file in files]


def with_picture(file: str, change: Callable[[Image.Image], Image.Image]) -> Spoil:
    def spoil(raw: Path) -> None:
        with Image.open(raw / file) as picture:
            changed = change(picture)
        changed.save(raw / file)

    return spoil


def with_index(**entries: object) -> Spoil:
    return lambda raw: (raw / "dataset.json").write_text(
        json.dumps({**json.loads((raw / "dataset.json").read_text()), **entries})
    )


def flip_bit(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def moved(x: float = 0, y: float = 0, z: float = 0) -> np.ndarray:
    affine = LPS.copy()
    affine[:3, 3] = x, y, z
    return affine


def scaled(side: float) -> dict[str, object]:
    return {"srow_x": [-side, 0, 0, 0], "srow_y": [0, -side, 0, 0], "srow_z": [0, 0, side, 0]}


def add_zipped_and_plain(raw: Path) -> None:
    (raw / IMAGE).with_suffix("").write_bytes(gzip.decompress((raw / IMAGE).read_bytes()))


def replace_by_folder(raw: Path) -> None:
    """As some unpackers do: x.nii becomes a folder with the file in it."""
    content = (raw / IMAGE).read_bytes()
    (raw / IMAGE).unlink()
    (raw / IMAGE).mkdir()
    (raw / IMAGE / "flair.nii.gz").write_bytes(content)


def replace_by_link_to_nothing(raw: Path) -> None:
    (raw / IMAGE).unlink()
    (raw / IMAGE).symlink_to(raw / "gone.nii.gz")


def add_twin(raw: Path) -> None:
    other = unicodedata.normalize("NFD", ZOE)
    shutil.copytree(raw / ZOE, raw / other)
    for path in (raw / other).iterdir():
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))


def rename_case(raw: Path, name: str) -> None:
    for path in (raw / "case1").iterdir():
        path.rename(path.with_name(path.name.replace("case1", name)))
    (raw / "case1").rename(raw / name)


def dicom(content: bytes = b"") -> bytes:
    return bytes(128) + b"DICM" + content[:200]


def replace_by_dicom(raw: Path) -> None:
    """Rename nothing: a folder of slices as they come from the scanner."""
    for path in list(raw.glob("*/*")):
        path.unlink()
    for folder in raw.iterdir():
        for number in range(3):
            (folder / f"IM{number:04}").write_bytes(dicom())


def replace_all(raw: Path) -> None:
    shutil.rmtree(raw)
    raw.write_text("not a folder")


def empty(raw: Path) -> None:
    shutil.rmtree(raw)
    raw.mkdir()


def forbid(raw: Path, name: str) -> None:
    (raw / name).chmod(0)


def two_pages(raw: Path) -> None:
    with Image.open(raw / "images" / "case1.tif") as picture:
        picture.save(raw / "images" / "case1.tif", save_all=True, append_images=[picture.copy()])


def break_second_page(content: bytes) -> bytes:
    """Let a TIFF's list of pages lead to a page that has no entries."""
    first = int.from_bytes(content[4:8], "little")
    following = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    return (
        content[:following]
        + len(content).to_bytes(4, "little")
        + content[following + 4 :]
        + bytes(6)
    )


def in_colour(mask: Image.Image) -> Image.Image:
    return Image.merge("RGB", [mask, mask, mask.point(lambda value: value // 2)])


def ask_for_jpeg_labels(raw: Path) -> None:
    (raw.parent / "pictures.toml").write_text(
        'extends = "pictures"\nlayout = {label = "masks/{case}.jpg"}\n'
    )


def write_uncountable(raw: Path) -> None:
    image = nib.load(raw / IMAGE)
    save(raw / IMAGE, np.asarray(image.dataobj), image.affine, nib.Nifti2Image)
    with_unzipped(
        IMAGE, lambda content: content[:24] + (2**62).to_bytes(8, "little") + content[32:]
    )(raw)  # dim[1]


def rename_images(raw: Path) -> None:
    for path in raw.glob("*/*_flair.nii.gz"):
        path.rename(path.with_name(path.name.replace("flair", "t1")))


# The table.


@dataclass(frozen=True, kw_only=True)
class Bad:
    """One bad input.

    Attributes:
        wrong: what was wrong, in words.
        spoil: spoils a good folder.
        line: what the user sees of it.
        file: what ``<file>`` stands for, below the raw folder.
        case: the case's id then; ``shown`` is how a line has it.
        recipe: of :data:`RECIPES`.
        whole: the whole command is refused, not the case alone.
        process: "own" for a process of its own, "nobody" for one without root's rights.
    """

    wrong: str
    spoil: Spoil
    line: str
    file: str = IMAGE
    case: str = "case1"
    shown: str = ""
    recipe: str = "scans"
    whole: bool = False
    process: str = ""


TWIN = unicodedata.normalize("NFD", ZOE)
PICTURE, MASK = "images/case1.png", "masks/case1.png"
bad_picture = partial(Bad, recipe="pictures", file=PICTURE)
bad_index = partial(Bad, recipe="nnunet", file="dataset.json", whole=True)
bad_label = partial(Bad, file=LABEL)
bad_folder = partial(Bad, file="", whole=True)

BAD: dict[str, list[Bad]] = {
    "Damaged and foreign files": [
        Bad(
            wrong="a .nii.gz cut short",
            spoil=with_bytes(IMAGE, lambda content: content[:-60]),
            line="<file>: the gzip file ends early (truncated); copy or download it anew",
        ),
        bad_label(
            wrong="a .nii.gz label cut short",
            spoil=with_bytes(LABEL, lambda content: content[:-20]),
            line="<file>: the gzip file ends early (truncated); copy or download it anew",
        ),
        Bad(
            wrong="a web page with the name .nii.gz",
            spoil=with_bytes(IMAGE, lambda _: b"<html>please log in</html>"),
            line="<file>: not a sound gzip file (Not a gzipped file (b'<h')); copy or download it anew",
        ),
        Bad(
            wrong="a plain .nii with the name .nii.gz",
            spoil=with_bytes(IMAGE, gzip.decompress),
            line="<file>: is not zipped though its name says so; rename it to .nii",
        ),
        Bad(
            wrong="a .nii.gz with the name .nii",
            spoil=lambda raw: (raw / IMAGE).rename((raw / IMAGE).with_suffix("")),
            file=IMAGE.removesuffix(".gz"),
            line="<file>: is gzip though its name does not say so; rename it to .nii.gz",
        ),
        Bad(
            wrong="gzip's checksum with a flipped bit",
            spoil=with_bytes(IMAGE, partial(flip_bit, at=-6)),
            line="<file>: not a sound gzip file (CRC check failed); copy or download it anew",
        ),
        Bad(
            wrong="zipped voxels with a flipped bit",
            spoil=with_bytes(IMAGE, partial(flip_bit, at=1500)),
            line="<file>: not a sound gzip file (...); copy or download it anew",
        ),
        Bad(
            wrong="a file of 0 bytes",
            spoil=with_bytes(IMAGE, lambda _: b""),
            line="<file>: is empty; copy or download it anew",
        ),
        Bad(
            wrong="a header and no voxels",
            spoil=with_unzipped(IMAGE, lambda content: content[:352]),
            line="<file>: ends before its last voxel (truncated); copy it anew",
        ),
        Bad(
            wrong="some voxels missing, gzip sound",
            spoil=with_unzipped(IMAGE, lambda content: content[:-20]),
            line="<file>: ends before its last voxel (truncated); copy it anew",
        ),
        Bad(
            wrong="a DICOM file with the name .nii.gz",
            spoil=with_bytes(IMAGE, dicom),
            line="<file>: is DICOM, expected NIfTI; convert with dcm2niix",
        ),
        Bad(
            wrong="a DICOM file with the name .nii",
            spoil=lambda raw: (
                (raw / IMAGE).unlink(),
                (raw / IMAGE).with_suffix("").write_bytes(dicom()),
            ),
            file=IMAGE.removesuffix(".gz"),
            line="<file>: is DICOM, expected NIfTI; convert with dcm2niix",
        ),
        Bad(
            wrong="a file that you may not read",
            spoil=partial(forbid, name=IMAGE),
            process="nobody",
            line="<file>: cannot be read (Permission denied); check path and permission",
        ),
        Bad(
            wrong="a link to a file that is gone",
            spoil=replace_by_link_to_nothing,
            line="<file>: cannot be read (No such file or directory); check path and permission",
        ),
    ],
    "NIfTI headers": [
        Bad(
            wrong="a wrong magic",
            spoil=with_header(IMAGE, magic=b"nope"),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); convert it to .nii.gz",
        ),
        Bad(
            wrong="a header overwritten by zeros",
            spoil=with_unzipped(IMAGE, lambda content: bytes(348) + content[348:]),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); convert it to .nii.gz",
        ),
        Bad(
            wrong="an unknown type of voxels",
            spoil=with_header(IMAGE, datatype=999),
            line="<file>: NIfTI header is damaged (data type 999 is unknown); copy it anew",
        ),
        Bad(
            wrong="voxels that begin inside the header",
            spoil=with_header(IMAGE, vox_offset=16),
            line="<file>: NIfTI header is damaged (...); copy it anew",
        ),
        Bad(
            wrong="a header's fault, seen by a terminal",
            spoil=with_header(IMAGE, vox_offset=16),
            process="own",
            line="<file>: NIfTI header is damaged (...); copy it anew",
        ),
        Bad(
            wrong="voxels that begin at NaN",
            spoil=with_header(IMAGE, vox_offset=np.nan),
            line="<file>: NIfTI header is damaged (voxels start at byte nan); copy it anew",
        ),
        Bad(
            wrong="voxels that begin at infinity",
            spoil=with_header(IMAGE, vox_offset=np.inf),
            line="<file>: NIfTI header is damaged (...); copy it anew",
        ),
        Bad(
            wrong="a scaling by NaN",
            spoil=with_header(IMAGE, scl_slope=1, scl_inter=np.nan),
            line="<file>: NIfTI header is damaged (...); copy it anew",
        ),
        Bad(
            wrong="an unknown unit of length",
            spoil=with_header(IMAGE, xyzt_units=5),
            line="<file>: header counts in ..., expected mm; repair it",
        ),
        Bad(
            wrong="a header in metres",
            spoil=with_header(IMAGE, xyzt_units=1, **scaled(0.02)),
            line="<file>: header counts in meter, expected mm; repair it",
        ),
        Bad(
            wrong="a negative number of voxels along an axis",
            spoil=with_header(IMAGE, dim=[3, -20, 18, 6, 1, 1, 1, 1]),
            line="<file>: shape (-20, 18, 6), expected ...",
        ),
        Bad(
            wrong="a negative number of voxels along two axes",
            spoil=with_header(IMAGE, dim=[3, -20, -18, 6, 1, 1, 1, 1]),
            line="<file>: shape (-20, -18, 6), expected ...",
        ),
        Bad(
            wrong="no voxels along an axis",
            spoil=with_header(IMAGE, dim=[3, 0, 18, 6, 1, 1, 1, 1]),
            line="<file>: shape (0, 18, 6), expected sides of 1 or more; copy it anew",
        ),
        Bad(
            wrong="more voxels than can be counted (NIfTI-2)",
            spoil=write_uncountable,
            line="<file>: ...; copy it anew",
        ),
        Bad(
            wrong="no orientation",
            spoil=with_header(IMAGE, sform_code=0, qform_code=0),
            line="<file>: the header says no orientation (sform_code and qform_code are 0); set one",
        ),
        Bad(
            wrong="sheared axes",
            spoil=with_header(IMAGE, srow_x=[-1, 0.3, 0, 0]),
            line="<file>: the header's axes are not at right angles (sheared); resample it first",
        ),
        Bad(
            wrong="an axis that is NaN",
            spoil=with_header(IMAGE, srow_x=[np.nan, 0, 0, 0]),
            line="<file>: header has voxel spacing nan x 1 x 1 mm, expected positive; repair it",
        ),
        Bad(
            wrong="an origin that is NaN",
            spoil=with_header(IMAGE, srow_x=[-1, 0, 0, np.nan]),
            line="<file>: header has origin nan, 0, 0 mm, expected numbers; repair it",
        ),
        Bad(
            wrong="voxels of 1000 mm",
            spoil=with_header(IMAGE, **scaled(1000)),
            line="<file>: header has voxel spacing 1000 x 1000 x 1000 mm, expected 0.01 to 50; repair it",
        ),
        Bad(
            wrong="voxels of 0.00001 mm",
            spoil=with_header(IMAGE, **scaled(1e-5)),
            line="<file>: header has voxel spacing 1e-05 x 1e-05 x 1e-05 mm, expected 0.01 to 50; repair it",
        ),
        Bad(
            wrong="voxels of 0 mm (sform)",
            spoil=with_header(IMAGE, srow_x=[0, 0, 0, 0]),
            line="<file>: header has voxel spacing 0 x 1 x 1 mm, expected positive; repair it",
        ),
        Bad(
            wrong="voxels of 0 mm (qform)",
            spoil=with_header(IMAGE, sform_code=0, qform_code=1, pixdim=[1, 0, 1, 1, 1, 1, 1, 1]),
            line="<file>: header has voxel spacing 0 x 1 x 1 mm, expected positive; repair it",
        ),
    ],
    "Images": [
        Bad(
            wrong="a 4D image",
            spoil=with_voxels(IMAGE, lambda voxels: np.stack([voxels] * 2, axis=3)),
            line="<file>: shape (20, 18, 6, 2), expected one 3D volume; split it, or say layout.channel in the recipe",
        ),
        Bad(
            wrong="a 2D NIfTI file",
            spoil=with_voxels(IMAGE, lambda voxels: voxels[:, :, 0]),
            line="<file>: shape (20, 18), expected one 3D volume; split it first",
        ),
        Bad(
            wrong="complex voxels",
            spoil=with_voxels(IMAGE, lambda voxels: voxels.astype(np.complex64)),
            line="<file>: voxels are complex64, expected plain numbers; convert it",
        ),
        Bad(
            wrong="voxels in colours (RGB)",
            spoil=with_voxels(
                IMAGE,
                lambda voxels: np.zeros(voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
            ),
            line="<file>: voxels are [('R', 'u1'), ('G', 'u1'), ('B', 'u1')], expected plain numbers; convert it",
        ),
        Bad(
            wrong="a voxel that is NaN",
            spoil=with_voxels(IMAGE, put(np.nan)),
            line="<file>: voxels that are NaN or infinite: 1, expected none; repair the file",
        ),
        Bad(
            wrong="a voxel that is infinite",
            spoil=with_voxels(IMAGE, put(np.inf)),
            line="<file>: voxels that are NaN or infinite: 1, expected none; repair the file",
        ),
        Bad(
            wrong="every voxel the same",
            spoil=with_voxels(IMAGE, lambda voxels: voxels * 0 + 5),
            line="<file>: every voxel is 5; check that this is the image",
        ),
        Bad(
            wrong="every voxel negative",
            spoil=with_voxels(IMAGE, lambda voxels: -1 - voxels),
            line="<file>: no voxel is above 0; check that this is the image",
        ),
        Bad(
            wrong="a mask in the image's place",
            spoil=with_voxels(IMAGE, lambda voxels: (voxels > 0).astype(np.uint8)),
            line="<file>: all foreground is 1; check that this is the image",
        ),
        Bad(
            wrong="intensities above the recipe's window",
            spoil=with_voxels(IMAGE, lambda voxels: voxels + np.int16(2000)),
            recipe="window",
            line="every pixel of the image's slices becomes 1 in the intensity window 0 to 1000; "
            "is the image in the recipe's unit?",
        ),
        Bad(
            wrong="intensities above the window, in a plane smaller than the crop",
            spoil=with_voxels(IMAGE, lambda voxels: voxels + np.int16(2000)),
            recipe="wide",
            line="every pixel of the image's slices becomes 1 in the intensity window 0 to 1000; "
            "is the image in the recipe's unit?",
        ),
        Bad(
            wrong="image and label of two places, to be resampled",
            spoil=with_voxels(IMAGE, lambda voxels: voxels, moved(z=500)),
            recipe="resampled",
            line="<file>: does not cover the tumour of .../case1_seg.nii.gz; are both of one patient?",
        ),
    ],
    "Labels": [
        bad_label(
            wrong="no tumour",
            spoil=with_voxels(LABEL, lambda voxels: voxels * 0),
            line="<file>: no tumour voxel (label values 1, 2, 4); leave this case out",
        ),
        bad_label(
            wrong="another shape than the image's",
            spoil=with_voxels(LABEL, lambda voxels: voxels[:-1]),
            line="<file>: shape (19, 18, 6), case1_flair.nii.gz has (20, 18, 6); give the pair one grid, "
            "or set grid.spacing_mm in the recipe to resample",
        ),
        bad_label(
            wrong="the label lies 2 mm off",
            spoil=with_voxels(LABEL, lambda voxels: voxels, moved(x=2)),
            line="<file>: lies 2.00 mm off case1_flair.nii.gz by the headers; give the pair one grid, "
            "or set grid.spacing_mm in the recipe to resample",
        ),
        bad_label(
            wrong="a value of 0.5",
            spoil=with_voxels(LABEL, put(0.5)),
            line="<file>: label value 0.5, expected integers; resample it with nearest",
        ),
        bad_label(
            wrong="a value of NaN",
            spoil=with_voxels(LABEL, put(np.nan)),
            line="<file>: label value nan, expected integers; resample it with nearest",
        ),
        bad_label(
            wrong="an infinite value",
            spoil=with_voxels(LABEL, put(np.inf)),
            line="<file>: label value inf, expected integers; resample it with nearest",
        ),
        bad_label(
            wrong="an unknown value",
            spoil=with_voxels(LABEL, put(3, kind=np.uint8)),
            line="<file>: label value 3, expected 0, 1, 2, 4; see label.known in the recipe",
        ),
        bad_label(
            wrong="a negative value",
            spoil=with_voxels(LABEL, put(-1, kind=np.int16)),
            line="<file>: label value -1, expected 0, 1, 2, 4; see label.known in the recipe",
        ),
        bad_label(
            wrong="a negative value where any is tumour",
            spoil=with_voxels(LABEL, put(-1, kind=np.int16)),
            recipe="any",
            line="<file>: label value -1, expected whole numbers from 0; see label.known in the recipe",
        ),
        bad_label(
            wrong="the tumour outside the crop",
            spoil=with_voxels(
                LABEL, lambda voxels: (np.indices(voxels.shape)[0] == 0).astype(np.uint8)
            ),
            line="<file>: the largest tumour slice has 0 px inside the crop of 16 x 16, expected at least 1; "
            "leave the case out or enlarge grid.size_px",
        ),
    ],
    "Cases and their names": [
        Bad(
            wrong="the label is missing",
            spoil=without(LABEL),
            line="<file> has no label ({case}/{case}_seg.nii*); add it or remove the image",
        ),
        bad_label(
            wrong="the image is missing",
            spoil=without(IMAGE),
            line="<file> has no image ({case}/{case}_flair.nii*); add it or remove the label",
        ),
        bad_label(
            wrong="a folder in the image's place",
            spoil=replace_by_folder,
            line="<file> has no image ({case}/{case}_flair.nii*); add it or remove the label",
        ),
        Bad(
            wrong="x.nii and x.nii.gz are both there",
            spoil=add_zipped_and_plain,
            file="case1",
            line="<file>: 2 files fit as its image (case1_flair.nii, case1_flair.nii.gz), expected one; "
            "narrow the recipe's pattern",
        ),
        Bad(
            wrong="two case ids that look the same (é is one letter, or e and an accent)",
            spoil=add_twin,
            case=ZOE,
            file=f"{TWIN}/{TWIN}_flair.nii.gz",
            line="<file>: case id is there twice, written in two ways of Unicode; rename one",
        ),
        Bad(
            wrong="a line break in a case id",
            spoil=partial(rename_case, name="case\n1"),
            case="case\n1",
            shown=r"case\n1",
            line=r"case id 'case\n1' has control characters; rename its files",
        ),
        Bad(
            wrong="an escape sequence for the terminal in a case id",
            spoil=partial(rename_case, name="case\x1b[31m1"),
            case="case\x1b[31m1",
            shown=r"case\x1b[31m1",
            line=r"case id 'case\x1b[31m1' has control characters; rename its files",
        ),
        Bad(
            wrong="a case id that is not UTF-8",
            spoil=partial(rename_case, name="case\udcff1"),
            case="case\udcff1",
            shown=r"case\udcff1",
            process="own",
            line=r"case id 'case\udcff1' has control characters; rename its files",
        ),
    ],
    "2D pictures": [
        bad_picture(
            wrong="a PNG cut short",
            spoil=with_bytes(PICTURE, lambda content: content[:100]),
            line="<file>: not a sound picture (image file is truncated); copy it anew",
        ),
        bad_picture(
            wrong="not an image",
            spoil=with_bytes(PICTURE, lambda _: b"hello"),
            line="<file>: not a sound picture (cannot identify image file); copy it anew",
        ),
        bad_picture(
            wrong="a picture of 0 bytes",
            spoil=with_bytes(PICTURE, lambda _: b""),
            line="<file>: not a sound picture (cannot identify image file); copy it anew",
        ),
        bad_picture(
            wrong="a picture of one colour",
            spoil=with_picture(PICTURE, lambda pixels: pixels.point(lambda _: 9)),
            line="<file>: every voxel is 9; check that this is the image",
        ),
        bad_picture(
            wrong="a picture of 16 bits for a window of 8",
            spoil=with_picture(
                PICTURE,
                lambda pixels: Image.fromarray(
                    np.asarray(pixels).astype(np.uint16) * 200 + np.uint16(300)
                ),
            ),
            line="every pixel of the image's slices becomes 1 in the intensity window 0 to 255; "
            "is the image in the recipe's unit?",
        ),
        bad_picture(
            wrong="several pages in a TIFF",
            spoil=two_pages,
            file="images/case1.tif",
            recipe="pages",
            line="<file>: holds 2 pages, expected one picture; split it",
        ),
        bad_picture(
            wrong="a TIFF with a broken second page",
            spoil=with_bytes("images/case1.tif", break_second_page),
            file="images/case1.tif",
            recipe="pages",
            line="<file>: not a sound picture (...); copy it anew",
        ),
        bad_picture(
            wrong="a label in colours",
            spoil=with_picture(MASK, in_colour),
            file=MASK,
            line="<file>: a label in colours, expected one number per pixel; convert it to grey values",
        ),
        bad_picture(
            wrong="a mask of another size",
            spoil=with_picture(MASK, lambda mask: mask.resize((24, 32))),
            file=MASK,
            line="<file>: 32 x 24 px, its image has 16 x 12; give the pair one size",
        ),
        bad_picture(
            wrong="the mask is missing",
            spoil=without(MASK),
            line="<file> has no label (masks/{case}*.png); add it or remove the image",
        ),
        bad_picture(
            wrong="a mask's picture is missing",
            spoil=without(PICTURE),
            file=MASK,
            line="<file> has no image (images/{case}.png); add it or remove the label",
        ),
        bad_picture(
            wrong="a recipe with JPEG labels",
            spoil=ask_for_jpeg_labels,
            whole=True,
            line="pictures.toml.layout: label 'masks/{case}.jpg': JPEG changes label values; "
            "convert from the source to PNG",
        ),
    ],
    "dataset.json (nnU-Net, Decathlon)": [
        bad_index(
            wrong="it is missing",
            spoil=without("dataset.json"),
            line="<file>: is missing; give the folder that holds it as --raw",
        ),
        bad_index(
            wrong="not JSON",
            spoil=with_bytes("dataset.json", lambda content: content[:-9]),
            line="<file>: not valid JSON (...); it may be truncated, make it anew",
        ),
        bad_index(
            wrong="a list, not a table",
            spoil=with_bytes("dataset.json", lambda _: b"[]"),
            line="<file>: got list, expected a table with labels; check the file",
        ),
        bad_index(
            wrong="labels without values",
            spoil=with_index(labels=["background", "tumour"]),
            line="<file>: labels, channels or training make no sense (...); check the file",
        ),
        bad_index(
            wrong="no names of channels, no modality in the recipe",
            spoil=with_index(channel_names={}),
            line="dataset.json names no channels; say the recipe's modality",
        ),
        bad_index(
            wrong="numTraining above what is there",
            spoil=with_index(numTraining=5),
            line="<file>: numTraining is 5, 4 images fit; copy the rest, or correct it",
        ),
        bad_index(
            wrong="numTraining is a text",
            spoil=with_index(numTraining="4"),
            line="<file>: numTraining is '4', expected a whole number; correct it",
        ),
        bad_index(
            wrong="another file_ending",
            spoil=with_index(file_ending=".mha"),
            line="<file>: file_ending is '.mha', expected .nii.gz; convert, or write a recipe of your own",
        ),
        bad_index(
            wrong="a listed case that is not there",
            spoil=without("imagesTr/case1.nii.gz", "labelsTr/case1.nii.gz"),
            recipe="msd",
            whole=False,
            line="dataset.json lists it, but it has no image (imagesTr/{case}.nii*); add it",
        ),
        bad_index(
            wrong="a listed case without its image",
            spoil=without("imagesTr/case1.nii.gz"),
            file="labelsTr/case1.nii.gz",
            recipe="msd",
            whole=False,
            line="<file> has no image (imagesTr/{case}.nii*); add it or remove the label",
        ),
        bad_index(
            wrong="an image without the recipe's channel",
            spoil=with_voxels("imagesTr/case1.nii.gz", lambda voxels: voxels[..., 0]),
            file="imagesTr/case1.nii.gz",
            recipe="second",
            whole=False,
            line="<file>: shape (20, 18, 6), expected a 4D image with a channel 1 (layout.channel)",
        ),
        bad_index(
            wrong="a value that is not in its labels",
            spoil=with_voxels("labelsTr/case1.nii.gz", put(2, kind=np.uint8)),
            file="labelsTr/case1.nii.gz",
            whole=False,
            line="<file>: label value 2, expected 0, 1; see labels in dataset.json",
        ),
    ],
    "The raw folder": [
        bad_folder(
            wrong="it is missing",
            spoil=shutil.rmtree,
            line="<file>: no such folder; give the folder with the image files as --raw",
        ),
        bad_folder(
            wrong="it is a file",
            spoil=replace_all,
            line="<file>: is a file, expected a folder; give the folder with the image files as --raw",
        ),
        bad_folder(
            wrong="it is empty",
            spoil=empty,
            line="<file>: nothing fits '{case}/{case}_flair.nii*' (it holds no files); "
            "check --raw, or the recipe's layout",
        ),
        bad_folder(
            wrong="another layout",
            spoil=rename_images,
            line="<file>: nothing fits '{case}/{case}_flair.nii*' (it holds case0/case0_seg.nii.gz, "
            "case0/case0_t1.nii.gz, case1/case1_seg.nii.gz ...); check --raw, or the recipe's layout",
        ),
        bad_folder(
            wrong="DICOM slices",
            spoil=replace_by_dicom,
            line="<file>: holds DICOM files (IM0000), expected NIfTI; convert with dcm2niix",
        ),
        bad_folder(
            wrong="a case's folder that you may not list",
            spoil=partial(forbid, name="case1"),
            file="case1",
            process="nobody",
            line="<file>: cannot be listed (Permission denied); give yourself access, or move it",
        ),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One way in which a packed data set goes bad.

    Attributes:
        wrong: what was wrong, in words.
        spoil: gets the packed folder, another packed folder, and the raw one.
        line: what ``--verify`` says.
        file: what ``<file>`` stands for: SHARD, or a path.
        raw: ``--raw`` is given as well, and the pairs themselves are sound.
    """

    wrong: str
    spoil: Callable[[Path, Path, Path], object]
    line: str
    file: str
    raw: bool = False


SHARD = "shard-*.h5"


def first_shard(out: Path) -> Path:
    return out / read_manifest(out).shards[0].file


def edit_manifest(out: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((out / MANIFEST).read_text())
    change(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest))


def in_shard(change: Callable[[bytes], bytes]) -> Callable[[Path, Path, Path], object]:
    return lambda out, *_: first_shard(out).write_bytes(change(first_shard(out).read_bytes()))


def in_manifest(change: Callable[[dict], object]) -> Callable[[Path, Path, Path], object]:
    return lambda out, *_: edit_manifest(out, change)


def flip_pixel(out: Path, *_: Path) -> None:
    with h5py.File(first_shard(out)) as file:
        place = file["images"].id.get_chunk_info(0)
    content = first_shard(out).read_bytes()
    first_shard(out).write_bytes(flip_bit(content, place.byte_offset + place.size // 2))


DAMAGE = [
    Damage(
        wrong="a shard cut short",
        spoil=in_shard(lambda content: content[:-1000]),
        file=SHARD,
        line="<file>: shard is damaged (...); delete it, and pack the data or run the stage again",
    ),
    Damage(
        wrong="a flipped bit in a pixel",
        spoil=flip_pixel,
        file=SHARD,
        line="<file>: shard is damaged (...); delete it, and pack the data or run the stage again",
    ),
    Damage(
        wrong="a shard deleted",
        spoil=lambda out, *_: first_shard(out).unlink(),
        file=SHARD,
        line="<file>: no such shard; pack the data or run the stage again",
    ),
    Damage(
        wrong="a shard of another data set in its place",
        spoil=lambda out, other, _: shutil.copy(first_shard(other), first_shard(out)),
        file=SHARD,
        line="<file>: has content ..., the manifest says ...; pack the data again",
    ),
    Damage(
        wrong="manifest.json edited",
        spoil=in_manifest(lambda manifest: manifest["cases"][1].update(tumour_px=[7])),
        file=MANIFEST,
        line="<file>: its checksum does not hold; it was edited or damaged, pack the data set again",
    ),
    Damage(
        wrong="manifest.json edited: the size of a pair",
        spoil=in_manifest(lambda manifest: manifest.update(size_px=[8, 8])),
        file=MANIFEST,
        line="<file>: ...",
    ),
    Damage(
        wrong="manifest.json edited: the pairs of a shard",
        spoil=in_manifest(lambda manifest: manifest["shards"][0].update(pairs=99)),
        file=MANIFEST,
        line="<file>: ...",
    ),
    Damage(
        wrong="manifest.json cut short",
        spoil=lambda out, *_: (out / MANIFEST).write_bytes((out / MANIFEST).read_bytes()[:-50]),
        file=MANIFEST,
        line="<file>: not valid JSON (...); it may be truncated, make it anew",
    ),
    Damage(
        wrong="manifest.json deleted",
        spoil=lambda out, *_: (out / MANIFEST).unlink(),
        file="",
        line="no manifest.json in ...; pack a data set there with: python -m hvae_hpc.preprocess RECIPE --raw DIR ...",
    ),
    Damage(
        wrong="a source file changed after packing (--raw)",
        spoil=lambda out, other, raw: with_voxels(IMAGE, lambda voxels: voxels + np.int16(1))(raw),
        file=f"raw/{IMAGE}",
        raw=True,
        line="case1: <file> changed",
    ),
    Damage(
        wrong="a source file gone after packing (--raw)",
        spoil=lambda out, other, raw: (raw / LABEL).unlink(),
        file="",
        raw=True,
        line="case1: has image, expected image, label",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen of what the machine does, and of other processes."""

    wrong: str
    line: str


UNTOUCHED = "what was there before is untouched"
FULL = Seen(
    wrong="the disk is full in the middle of a shard",
    line=f"<file>: cannot be written (No space left on device); {UNTOUCHED}",
)
LIMIT = Seen(
    wrong="a limit or quota ends a shard",
    line=f"<file>: cannot be written (File too large); {UNTOUCHED}",
)
NO_BYTE = Seen(
    wrong="the disk has not a byte left",
    line="<file>: cannot be written (No space left on device); make room there, or choose another folder",
)
AT_ONCE = Seen(
    wrong="two packings of one folder at once",
    line="<file>: another packing is writing there; wait for it, or choose another --out",
)
DISK = [FULL, LIMIT, NO_BYTE, AT_ONCE]


# What looks odd and is read all the same.

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


def turned(codes: str, label_codes: str = "") -> Store:
    def write(stem: Path, image: np.ndarray, label: np.ndarray) -> None:
        for name, voxels, axes in (("flair", image, codes), ("seg", label, label_codes or codes)):
            turn = nib.orientations.ornt_transform(
                nib.orientations.io_orientation(LPS), nib.orientations.axcodes2ornt(tuple(axes))
            )
            stored = nib.Nifti1Image(voxels, LPS).as_reoriented(turn)
            assert nib.aff2axcodes(stored.affine) == tuple(axes)
            save(
                stem.with_name(f"{stem.name}_{name}.nii.gz"),
                np.asarray(stored.dataobj),
                stored.affine,
            )

    return write


def rotated(degrees: float) -> np.ndarray:
    angle, turn = np.deg2rad(degrees), np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ LPS


def big_endian(stem: Path, image: np.ndarray, label: np.ndarray) -> None:
    for name, voxels in (("flair", image), ("seg", label.astype(np.int16))):
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(np.dtype(">i2"))
        path = stem.with_name(f"{stem.name}_{name}.nii")
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, LPS, header), path)
        assert path.read_bytes()[:4] == (348).to_bytes(4, "big")


def changed_after(image: Spoil, label: Spoil | None = None) -> Store:
    """Return a way to save a pair, and then to change its files' bytes."""

    def write(stem: Path, *pair: np.ndarray) -> None:
        store()(stem, *pair)
        image(stem.parent)
        if label:
            label(stem.parent)

    return write


def in_members(content: bytes, size: int) -> bytes:
    plain = gzip.decompress(content)
    return b"".join(
        gzip.compress(plain[start : start + size]) for start in range(0, len(plain), size)
    )


def like_bgzip(content: bytes) -> bytes:
    """Zip in blocks that tell their size, and an empty one at the end (the SAM/BAM specification's BGZF)."""
    plain, blocks = gzip.decompress(content), []
    for part in [*(plain[start : start + 700] for start in range(0, len(plain), 700)), b""]:
        deflate = zlib.compressobj(wbits=-15)
        body = deflate.compress(part) + deflate.flush()
        head = (
            b"\x1f\x8b\x08\x04"
            + bytes(4)
            + b"\0\xff"
            + struct.pack("<HBBHH", 6, 66, 67, 2, len(body) + 25)
        )
        blocks.append(head + body + struct.pack("<II", zlib.crc32(part), len(part)))
    return b"".join(blocks)


def with_extension(stem: Path, image: np.ndarray, label: np.ndarray) -> None:
    for ending, voxels in (("flair", image), ("seg", label)):
        scan = nib.Nifti1Image(voxels, LPS)
        scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made by hand " * 99))
        stem.parent.mkdir(parents=True, exist_ok=True)
        nib.save(scan, stem.with_name(f"{stem.name}_{ending}.nii.gz"))


def scaled_voxels(stem: Path, image: np.ndarray, label: np.ndarray) -> None:
    """Store 2 * voxel - 200, and say so in the header."""
    store()(stem, 2 * image - np.int16(200), label)
    with_header("odd_flair.nii.gz", scl_slope=0.5, scl_inter=100)(stem.parent)


def linked(stem: Path, image: np.ndarray, label: np.ndarray) -> None:
    elsewhere = stem.parents[2] / "elsewhere"
    store()(elsewhere / stem.name, image, label)
    stem.parent.symlink_to(elsewhere)


ODD_IMAGE, ODD_LABEL = "odd_flair.nii.gz", "odd_seg.nii.gz"
ODD: dict[str, Store] = {
    "orientation LAS": turned("LAS"),
    "orientation RAS": turned("RAS"),
    "orientation LPI": turned("LPI"),
    "other axes (SPL)": turned("SPL"),
    "image RAS and label LPS": turned("RAS", "LPS"),
    "an oblique pair (15 degrees)": store(rotated(15)),
    "NIfTI-2": store(kind=nib.Nifti2Image),
    "big-endian": big_endian,
    "not zipped (.nii)": store(ending=".nii"),
    "float32": store(image_as=np.float32),
    "float64": store(image_as=np.float64),
    "scaled by scl_slope and scl_inter": scaled_voxels,
    "a fourth axis of one": lambda stem, image, label: store()(
        stem, image[..., None], label[..., None]
    ),
    "orientation by the qform alone": changed_after(
        *(with_header(name, sform_code=0, qform_code=1) for name in (ODD_IMAGE, ODD_LABEL))
    ),
    "words in the header's extension": with_extension,
    "no unit of length": changed_after(with_header(ODD_IMAGE, xyzt_units=0)),
    "gzip of two members": changed_after(with_bytes(ODD_IMAGE, partial(in_members, size=3000))),
    "gzip of two members of one size": changed_after(
        with_bytes(ODD_IMAGE, partial(in_members, size=2336))
    ),
    "gzip of many members (bgzip)": changed_after(with_bytes(ODD_IMAGE, like_bgzip)),
    "zeros after the gzip stream": changed_after(
        with_bytes(ODD_IMAGE, lambda content: content + bytes(512))
    ),
    "a link to a folder elsewhere": linked,
    "an unknown unit of time": changed_after(with_header(ODD_IMAGE, xyzt_units=2 | 56)),
}
ODD_NAMES = (
    "with space",
    "ünïcode",
    "co$t$",
    "it's",
    'say "hi"',
    "a..b",
    "a;b&c",
    "100%",
    "-v",
    "[1]",
    "{x}",
    "a*b",
    "Ωλ",
)


# Running the command.


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What stood on stderr, less the progress bar, which others may write behind."""
        return [
            line for line in re.split(r"[\r\n]", re.sub(r" *\d+%\|.*?\]", "", self.err)) if line
        ]


AS_NOBODY = f"""
import os, sys
import hvae_hpc.preprocess.__main__, hvae_hpc.results.figures.contact_sheet  # python itself may lie where nobody may read
from hvae_hpc.errors import run_command
try:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
except PermissionError as error:
    print(error)
    sys.exit(77)
sys.exit(run_command(hvae_hpc.preprocess.__main__.main, sys.argv[1:]))
"""


def environment() -> dict[str, str]:
    """Return that of a plain terminal on a machine without SLURM: its stdout takes sound UTF-8 alone."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")
    }
    return {
        **kept,
        "PATH": "/nowhere",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "MPLCONFIGDIR": ".",
    }


def run_process(*argv: str, code: str = "", **options: object) -> Outcome:
    """Run the command in a process of its own, or a driver's code with the command's arguments."""
    start = ["-c", code] if code else ["-m", "hvae_hpc.preprocess"]
    done = subprocess.run(
        [sys.executable, *start, *argv], capture_output=True, env=environment(), **options
    )
    texts = [stream.decode(errors="backslashreplace") for stream in (done.stdout, done.stderr)]
    return Outcome(code=done.returncode, out=texts[0], err=texts[1])


def run_quietly(*argv: str) -> Outcome:
    """Run the command in this process, outside of a test."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = run_command(main, argv)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


def run_as_nobody(*argv: str) -> Outcome:
    """Run the command without root's rights, which no file's mode can hold."""
    if os.geteuid() != 0:
        return run_process(*argv)
    for path in (Path(), *Path().rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    done = run_process(*argv, code=AS_NOBODY)
    if done.code == 77:
        pytest.skip(f"root here cannot become nobody ({done.out.strip()})")
    return done


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


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a maker of the folder with a recipe's good cases, raw and packed in one go."""
    made: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        if recipe not in made:
            place = tmp_path_factory.mktemp(recipe)
            write_recipes(place)
            GOOD.get(recipe, save_scans)(place / "raw")
            with contextlib.chdir(place):
                assert run_quietly(*arguments(recipe)).code == 0
            made[recipe] = place
        return made[recipe]

    return make


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder of its own, on a machine without SLURM."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, capfd):
    """Return the command: run(*argv, process="") -> Outcome."""

    def run(*argv: str, process: str = "") -> Outcome:
        if process:
            return run_as_nobody(*argv) if process == "nobody" else run_process(*argv)
        capfd.readouterr()
        code = run_command(main, argv)
        out, err = capfd.readouterr()
        return Outcome(code=code, out=out, err=err)

    return run


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


def as_parameters(entries):
    return [pytest.param(one, id=one.wrong) for one in entries]


# A bad case among good ones.


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


@pytest.mark.parametrize(
    "bad", as_parameters(bad for entries in BAD.values() for bad in entries if not bad.whole)
)
def test_a_bad_case_is_named_in_one_line_and_the_good_ones_are_kept(bad, good, here, run, recwarn):
    whole = good(bad.recipe)
    lay_out(whole, here)
    bad.spoil(Path("raw"))
    others = [
        entry.case_id
        for entry in read_manifest(whole / "out").cases
        if entry.case_id not in ("case1", bad.case)
    ]
    others += ["case1"] * (bad.case == ZOE)
    expected = f"  {bad.shown or bad.case}: {bad.line}"
    file = str(Path("raw", bad.file))

    done = run(*arguments(bad.recipe), process=bad.process)
    assert done.code == 2
    heading, *named = done.lines
    assert heading.startswith("error: bad cases: 1, good ones packed: 3;")
    assert "--skip-bad" in heading
    assert len(named) == 1, named
    assert is_line(named[0], expected, file), named[0]
    assert not recwarn.list

    assert not Path("out", MANIFEST).exists()
    with pytest.raises(UserError, match="no manifest"):
        DatasetReader(Path("out"))
    assert len(list(Path("out").glob("shard-*.h5"))) == 1
    kept = [json.loads(line) for line in Path("out", JOURNAL).read_text().splitlines()[1:] if line]
    assert sorted(one["entry"]["case_id"] for shard in kept for one in shard["records"]) == sorted(
        others
    )

    skipping = run(*arguments(bad.recipe, "skipping", "--skip-bad"), process=bad.process)
    assert skipping.code == 0, skipping.err
    manifest = read_manifest(Path("skipping"))
    assert [entry.case_id for entry in manifest.skipped] == [bad.case]
    assert is_line(manifest.skipped[0].reason, bad.line, file)
    assert sorted(entry.case_id for entry in manifest.cases) == sorted(others)
    for case in others:
        assert pairs_of(Path("skipping"), case) == pairs_of(whole / "out", case)

    lay_out(whole, here)
    repaired = run(*arguments(bad.recipe))
    assert repaired.code == 0, repaired.err
    assert "3 of them are packed already" in repaired.out
    assert data_set(Path("out")) == data_set(whole / "out")


@pytest.mark.parametrize(
    "bad", as_parameters(bad for entries in BAD.values() for bad in entries if bad.whole)
)
def test_a_folder_that_cannot_be_packed_is_one_line_and_nothing_is_written(bad, good, here, run):
    whole = good(bad.recipe)
    lay_out(whole, here)
    bad.spoil(Path("raw"))
    for more in ((), ("--skip-bad",)):
        done = run(*arguments(bad.recipe, "out", *more), process=bad.process)
        assert done.code == 2
        assert len(done.lines) == 1
        assert is_line(done.lines[0], f"error: {bad.line}", str(Path("raw", bad.file))), done.lines[
            0
        ]
        assert not Path("out").exists()
    lay_out(whole, here)
    assert run(*arguments(bad.recipe)).code == 0
    assert data_set(Path("out")) == data_set(whole / "out")


# Good ones that look odd.


@pytest.mark.parametrize("write", [pytest.param(write, id=name) for name, write in ODD.items()])
def test_what_looks_odd_gives_the_pairs_of_the_plain_scan_bit_for_bit(write, here, run):
    write_recipes(here)
    store()(here / "raw" / "plain" / "plain", *draw_case(5))
    write(here / "raw" / "odd" / "odd", *draw_case(5))
    done = run(*arguments("scans"))
    assert done.code == 0, done.err
    assert not done.lines
    assert [entry.case_id for entry in read_manifest(here / "out").cases] == ["odd", "plain"]
    assert pairs_of(here / "out", "odd") == pairs_of(here / "out", "plain")


def test_unlike_spacings_are_recorded_row_before_column(here, run):
    write_recipes(here)
    store(np.diag([-0.5, -0.75, 5.0, 1.0]))(
        here / "raw" / "a" / "a", *draw_case()
    )  # columns, rows, slices
    assert run(*arguments("scans")).code == 0
    assert read_manifest(here / "out").cases[0].spacing_mm == (0.75, 0.5)
    assert json.loads((here / "out" / "summary.json").read_text())["spacings"] == {
        "0.5 x 0.75 x 5 mm": 1
    }
    assert DatasetReader(here / "out").read_all().spacing_mm.tolist() == [[0.75, 0.5]]


def test_odd_case_ids_are_packed_drawn_and_verified_as_they_are(here, run):
    write_recipes(here)
    for number, name in enumerate(ODD_NAMES):
        store()(here / "raw" / name / name, *draw_case(number))
        store()(here / "plain" / f"case{number}" / f"case{number}", *draw_case(number))
    done = run(*arguments("scans", "out", "--sheet", str(len(ODD_NAMES))))
    assert done.code == 0, done.err
    assert not done.lines
    assert (here / "out" / "contact.png").stat().st_size > 10_000
    assert [entry.case_id for entry in read_manifest(here / "out").cases] == sorted(ODD_NAMES)
    assert run(*arguments("scans", "reference", "--raw", "plain")).code == 0
    for number, name in enumerate(ODD_NAMES):
        assert pairs_of(here / "out", name) == pairs_of(here / "reference", f"case{number}")
    assert run("--verify", "out", "--raw", "raw", "--workers", "1").code == 0


def test_what_a_file_manager_leaves_behind_changes_nothing(good, here, run):
    lay_out(good("scans"), here)
    for name in (
        "._case0/._case0_flair.nii.gz",
        "case1/._case1_flair.nii.gz",
        "case1/.DS_Store",
        "Thumbs.db",
    ):
        (here / "raw" / name).parent.mkdir(exist_ok=True)
        (here / "raw" / name).write_bytes(b"not an image")
    assert run(*arguments("scans")).code == 0
    assert data_set(here / "out") == data_set(good("scans") / "out")


def test_a_folder_of_links_packs_to_the_same_bytes(good, here, run):
    whole = good("scans")
    write_recipes(here)
    for path in (whole / "raw").glob("*/*"):
        link = here / "raw" / path.relative_to(whole / "raw")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert run(*arguments("scans")).code == 0
    assert data_set(here / "out") == data_set(whole / "out")


# The disk.

LIMITED = """
import resource, sys
from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
sys.exit(run_command(main, sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A packing that the disk stopped in the middle of a shard, and what came before and after it.

    Attributes:
        seen: what should be seen.
        stopped: what was.
        emptied: of the same command on a disk without a byte left, where there is such a disk.
        before, after: the data set's bytes before, and after every stopped one.
        names: what lay in the folder, after every stopped one.
        verified: what ``--verify`` said, after every stopped one.
        again: the same command, with room.
        final, reference: the bytes then, and those of a packing that was never stopped.
    """

    seen: Seen
    stopped: Outcome
    emptied: Outcome | None
    before: dict[str, bytes]
    after: list[dict[str, bytes]]
    names: list[set[str]]
    verified: list[int]
    again: Outcome
    final: dict[str, bytes]
    reference: dict[str, bytes]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """Mount a disk of 2 MiB; yields a function that enlarges it."""
    folder.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        return (
            subprocess.run(
                command, check=False, capture_output=True, env={"PATH": os.defpath}
            ).returncode
            == 0
        )

    if os.geteuid() != 0 or not mount("size=2m"):
        pytest.skip(
            "this machine lets nobody mount a small disk here; the limit of a file's size stands for it"
        )
    try:
        yield lambda: mount("remount", "size=64m")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, env={"PATH": os.defpath})


@pytest.fixture(scope="module", params=[FULL, LIMIT], ids=lambda seen: seen.wrong)
def stop(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("disk")
    with contextlib.ExitStack() as stack:
        enlarge = stack.enter_context(small_disk(place / "disk")) if request.param is FULL else None
        stack.enter_context(contextlib.chdir(place))
        write_recipes(place)
        store()(Path("raw/small/small"), *draw_case())
        argv, out = arguments("noise", "disk/out"), Path("disk/out")
        assert run_quietly(*argv).code == 0
        before = data_set(out)
        noise = (
            np.random.default_rng(0).random((256, 256, 12)).astype(np.float32) + 1
        )  # nothing makes this smaller
        tumour = np.zeros(noise.shape, np.uint8)
        tumour[100:120, 100:120] = 1
        store(ending=".nii", image_as=np.float32)(Path("raw/noise/noise"), noise, tumour)

        after, names, verified, emptied = [], [], [], None

        def look() -> None:
            after.append(data_set(out))
            names.append({path.name for path in out.iterdir()})
            verified.append(run_quietly("--verify", str(out), "--workers", "1").code)

        # In a process of its own: HDF5 may keep a file open that it could not write.
        stopped = run_process(*argv, code="" if enlarge else LIMITED)
        look()
        if enlarge:
            with contextlib.suppress(OSError), open("disk/filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1024))
            emptied = run_quietly(*argv)
            look()
            Path("disk/filler").unlink()
            enlarge()
        again = run_quietly(*argv)
        final = data_set(out)
        assert run_quietly(*arguments("noise", "reference")).code == 0
        yield Stop(
            seen=request.param,
            stopped=stopped,
            emptied=emptied,
            before=before,
            after=after,
            names=names,
            verified=verified,
            again=again,
            final=final,
            reference=data_set(Path("reference")),
        )


def test_a_disk_that_refuses_is_one_line_and_exit_code_2(stop):
    assert stop.stopped.code == 2, stop.stopped.err
    (shard,) = {name for name in stop.final if name.startswith("shard-")}
    assert len(stop.stopped.lines) == 1, stop.stopped.lines
    assert is_line(stop.stopped.lines[0], f"error: {stop.seen.line}", f"disk/out/{shard}"), (
        stop.stopped.lines
    )


def test_a_disk_without_a_byte_left_is_one_line_and_exit_code_2(stop):
    if stop.emptied is None:
        pytest.skip("a limit of a file's size is no full disk")
    assert stop.emptied.code == 2
    assert len(stop.emptied.lines) == 1
    assert is_line(stop.emptied.lines[0], f"error: {NO_BYTE.line}", "disk/out")


def test_a_disk_that_refuses_leaves_the_older_data_set_whole_and_no_temporary_files(stop):
    assert stop.stopped.code != 0
    assert all(after == stop.before for after in stop.after)
    assert set(stop.verified) == {0}
    for names in stop.names:
        assert names - set(stop.before) == {JOURNAL, "summary.json", ".lock"}


def test_with_room_the_same_command_ends_as_if_nothing_had_happened(stop):
    assert stop.again.code == 0, stop.again.err
    assert "1 of them are packed already" in stop.again.out
    assert stop.final == stop.reference


# Other processes.

WAITING = """
import sys, time
from pathlib import Path
import hvae_hpc.preprocess.pack as pack
from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
inner = pack.pack_case
def wait(*given):
    while not Path("go").exists():
        time.sleep(0.01)
    return inner(*given)
pack.pack_case = wait
sys.exit(run_command(main, sys.argv[1:]))
"""
SLOW = """
import sys, time
import hvae_hpc.preprocess.pack as pack
from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
pack.PAIRS_PER_SHARD = 4
inner = pack.add_to_journal
def add(*given):
    inner(*given)
    time.sleep(0.3)  # the kill comes in the middle on a slow machine too
pack.add_to_journal = add
sys.exit(run_command(main, sys.argv[1:]))
"""


def start_driver(code: str, *argv: str) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv], env=environment(), start_new_session=True, **quiet
    )


def wait_for(what: Callable[[], object], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def alive_in(session: int) -> list[str]:
    """Return the processes of a session that still run: a driver and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(path.parent.name)
    return found


def test_of_two_packings_of_one_folder_the_second_is_told_and_the_first_ends_well(good, here):
    lay_out(good("scans"), here)
    first = start_driver(WAITING, *arguments("scans"))
    try:
        assert wait_for(lambda: first.poll() is not None or is_held(Path("out")))
        assert first.poll() is None
        second = run_process(*arguments("scans"))
        assert second.code == 2
        assert len(second.lines) == 1
        assert is_line(second.lines[0], f"error: {AT_ONCE.line}", "out")
        Path("go").touch()
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.wait()
    assert data_set(Path("out")) == data_set(good("scans") / "out")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_packing_killed_in_the_middle_is_taken_up_and_leaves_no_process(
    here, run, monkeypatch, workers
):
    write_recipes(here)
    for number in range(40):
        store(ending=".nii")(
            here / "raw" / f"case{number:02}" / f"case{number:02}", *draw_case(number)
        )
    out, argv = Path("out"), [*arguments("scans"), "--workers", workers]
    killed = start_driver(SLOW, *argv)
    try:
        # The first shard is in the journal before the second one is begun.
        assert wait_for(lambda: killed.poll() is not None or len(list(out.glob("shard-*.h5"))) > 1)
        assert killed.poll() is None
        n_processes = len(alive_in(killed.pid))
    finally:
        killed.kill()
        killed.wait()
    assert n_processes >= (3 if workers == "2" else 1)
    assert wait_for(lambda: not alive_in(killed.pid), seconds=10), alive_in(killed.pid)
    assert not (out / MANIFEST).exists()
    with pytest.raises(UserError, match="no manifest"):
        DatasetReader(out)

    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 4)
    again = run(*argv)
    assert again.code == 0, again.err
    known = int(re.search(r"^(\d+) of them are packed already", again.out, re.MULTILINE)[1])
    assert 4 <= known < 40
    assert run(*arguments("scans", "reference")).code == 0
    assert data_set(out) == data_set(Path("reference"))
    assert len(list(out.glob("shard-*.h5"))) == 10


# Packed data that goes bad.


@pytest.fixture(scope="module")
def packed(good, tmp_path_factory):
    """Return a folder with raw, the data set packed as two shards in out, and another one in other."""
    place = tmp_path_factory.mktemp("packed")
    lay_out(good("scans"), place)
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 2)
        assert run_quietly(*arguments("scans")).code == 0
        assert run_quietly(*arguments("window", "other")).code == 0
    return place


@pytest.mark.parametrize("damage", as_parameters(DAMAGE))
def test_packed_data_that_went_bad_is_found_named_and_mended(
    damage, packed, here, run, monkeypatch
):
    shutil.copytree(packed, here, dirs_exist_ok=True)
    out, sound = Path("out"), data_set(Path("out"))
    file = {SHARD: str(first_shard(out)), MANIFEST: str(out / MANIFEST)}.get(
        damage.file, damage.file
    )
    look = ["--verify", "out", "--workers", "1", *(["--raw", "raw"] if damage.raw else [])]
    assert run(*look).code == 0
    damage.spoil(out, Path("other"), Path("raw"))

    done = run(*look)
    assert done.code == 2, done.out
    (*heading, named) = done.lines
    assert is_line(named.removeprefix("error: ").strip(), damage.line, file), named
    assert [line for line in heading if "pack again" not in line] == []
    if damage.raw:
        assert len(DatasetReader(out).read_all()) == 4
        return
    with pytest.raises(UserError) as caught:
        DatasetReader(out).read_all()
    assert is_line(str(caught.value), damage.line, file)

    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 2)
    assert run(*arguments("scans")).code == 0
    assert data_set(out) == sound


# The page.


def render() -> str:
    """Write docs/BAD_INPUT.md: what the tests above have seen, and nothing that waits for a repair."""
    lines = [
        "# Bad input, and what you see",
        "",
        "A packing says of each case that it cannot pack, in one line, what it found, what it expected and what to do.",
        "It looks at all cases before it ends with exit code 2, keeps the good ones packed, and writes no",
        "`manifest.json` (one of before stays), so that nothing reads a data set with holes. Repair the files and give the same command",
        "again: only what was bad is packed then, to the same bytes as if nothing had been wrong. `--skip-bad` accepts",
        "the data set without the bad cases and lists them in the manifest.",
        "",
        "Every line below is checked by `tests/test_bad_input.py`, which makes each of these files and gives the",
        "command; `python -m tests.test_bad_input` writes this page from the same table. Paths are shortened to their",
        "last part; `...` stands for words that change.",
    ]
    for heading, entries in BAD.items():
        rows = [
            (
                bad.wrong,
                f"{'error' if bad.whole else bad.shown or bad.case}: {shorten(bad.line, bad.file or 'raw')}",
            )
            for bad in entries
        ]
        lines += table(heading, rows)
    lines += table("The disk, and other processes", [seen_row(seen) for seen in DISK])
    lines += table(
        "A packed data set: `--verify DIR`, and every reader",
        [(damage.wrong, shorten(damage.line, damage.file)) for damage in DAMAGE],
    )
    lines += [
        "",
        "## What looks odd and is read as it is",
        "",
        "All of these give the pairs of the plain scan, bit for bit:",
        "",
        *(f"- {name}" for name in ODD),
        "",
        "So do case ids such as " + ", ".join(f"`{name}`" for name in ODD_NAMES) + ".",
        "Names that begin with a dot (`._x.nii.gz`) are passed over. Spacings that differ are recorded as they are:",
        "the manifest has a row's first, then a column's.",
    ]
    return "\n".join(lines) + "\n"


def seen_row(seen: Seen) -> tuple[str, str]:
    return seen.wrong, f"error: {shorten(seen.line, 'out')}"


def shorten(line: str, file: str) -> str:
    return line.replace("<file>", Path(file).name)


def table(heading: str, rows: list[tuple[str, str]]) -> list[str]:
    cells = [f"| {wrong} | `{line.replace('|', chr(92) + '|')}` |" for wrong, line in rows]
    return ["", f"## {heading}", "", "| what was wrong | what the user sees |", "|---|---|", *cells]


def test_the_page_says_what_was_seen():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "write it anew: python -m tests.test_bad_input"
    )


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
