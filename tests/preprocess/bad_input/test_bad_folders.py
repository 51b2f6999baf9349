"""Cases and folders that cannot be packed: names, dataset.json, the raw folder."""

import gzip
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.preprocess.bad_input.folders import IMAGE, LABEL, ZOE
from tests.preprocess.bad_input.spoil import (
    Bad,
    as_parameters,
    check_bad_case,
    check_bad_folder,
    dicom,
    forbid,
    put,
    with_bytes,
    with_index,
    with_voxels,
    without,
)


def add_zipped_and_plain(raw: Path) -> None:
    (raw / IMAGE).with_suffix("").write_bytes(gzip.decompress((raw / IMAGE).read_bytes()))


def replace_by_folder(raw: Path) -> None:
    """As some unpackers do: x.nii becomes a folder with the file in it."""
    content = (raw / IMAGE).read_bytes()
    (raw / IMAGE).unlink()
    (raw / IMAGE).mkdir()
    (raw / IMAGE / "flair.nii.gz").write_bytes(content)


def add_twin(raw: Path) -> None:
    other = unicodedata.normalize("NFD", ZOE)
    shutil.copytree(raw / ZOE, raw / other)
    for path in (raw / other).iterdir():
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))


def rename_case(raw: Path, name: str) -> None:
    for path in (raw / "case1").iterdir():
        path.rename(path.with_name(path.name.replace("case1", name)))
    (raw / "case1").rename(raw / name)


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


def rename_images(raw: Path) -> None:
    for path in raw.glob("*/*_flair.nii.gz"):
        path.rename(path.with_name(path.name.replace("flair", "t1")))


TWIN = unicodedata.normalize("NFD", ZOE)
bad_index = partial(Bad, recipe="nnunet", file="dataset.json", whole=True)
bad_label = partial(Bad, file=LABEL)
bad_folder = partial(Bad, file="", whole=True)


FOLDERS: dict[str, list[Bad]] = {
    "Cases and their names": [
        Bad(
            wrong="the label is missing",
            spoil=without(LABEL),
            line="<file> has no label ({case}/{case}_seg.nii*); add it, or remove the case",
        ),
        bad_label(
            wrong="the image is missing",
            spoil=without(IMAGE),
            line="<file> has no image ({case}/{case}_flair.nii*); add it, or remove the case",
        ),
        bad_label(
            wrong="a folder in the image's place",
            spoil=replace_by_folder,
            line="<file> has no image ({case}/{case}_flair.nii*; there is case1/case1_flair.nii.gz/); "
            "add it, or remove the case",
        ),
        Bad(
            wrong="x.nii and x.nii.gz are both there",
            spoil=add_zipped_and_plain,
            file="case1",
            line="<file>: 2 files fit as its image (case1_flair.nii, case1_flair.nii.gz), expected one; "
            "remove the others, or narrow the recipe's pattern",
        ),
        Bad(
            wrong="two case ids that look the same (é is one letter, or e and an accent)",
            spoil=add_twin,
            case=ZOE,
            file=f"{TWIN}/{TWIN}_flair.nii.gz",
            line="...: 2 files fit as its image (...), expected one; remove the others, or narrow the recipe's pattern",
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
    "dataset.json (nnU-Net, Decathlon)": [
        bad_index(
            wrong="it is missing",
            spoil=without("dataset.json"),
            line="<file>: is missing; give the folder that holds it as --raw",
        ),
        bad_index(
            wrong="not JSON",
            spoil=with_bytes("dataset.json", lambda content: content[:-9]),
            line="<file>: not valid JSON (...); it may be truncated, make it again",
        ),
        bad_index(
            wrong="a list, not a table",
            spoil=with_bytes("dataset.json", lambda _: b"[]"),
            line="<file>: got list, expected a table with labels; check the file",
        ),
        bad_index(
            wrong="labels without values",
            spoil=with_index(labels=["background", "tumour"]),
            line="<file>.labels: got ['background', 'tumour'], expected a table; write it as ...",
        ),
        bad_index(
            wrong="no names of channels, no modality in the recipe",
            spoil=with_index(channel_names={}),
            line="dataset.json names no channel 0 (); say the recipe's modality",
        ),
        bad_index(
            wrong="numTraining above what is there",
            spoil=with_index(numTraining=5),
            line="<file>: numTraining is 5, but there are 4 cases; copy the rest, or correct it",
        ),
        bad_index(
            wrong="numTraining is a text",
            spoil=with_index(numTraining="4"),
            line="<file>.numTraining: got '4', expected int; write it as ...",
        ),
        bad_index(
            wrong="another file_ending",
            spoil=with_index(file_ending=".mnc"),
            line="<file>.file_ending: got '.mnc', which does not suit the recipe (...); "
            "convert the files, or write a recipe of your own",
        ),
        bad_index(
            wrong="a listed case that is not there",
            spoil=without("imagesTr/case1.nii.gz", "labelsTr/case1.nii.gz"),
            recipe="msd",
            whole=False,
            line="the entry in dataset.json has no image (imagesTr/{case}.nii*); add it, or remove the case",
        ),
        bad_index(
            wrong="a listed case without its image",
            spoil=without("imagesTr/case1.nii.gz"),
            file="labelsTr/case1.nii.gz",
            recipe="msd",
            whole=False,
            line="<file> has no image (imagesTr/{case}.nii*); add it, or remove the case",
        ),
        bad_index(
            wrong="an image without the recipe's channel",
            spoil=with_voxels("imagesTr/case1.nii.gz", lambda voxels: voxels[..., 0]),
            file="imagesTr/case1.nii.gz",
            recipe="second",
            whole=False,
            line="<file>: shape (20, 18, 6), expected 4D with a channel 1 (layout.channel, of a label: label.channel)",
        ),
        bad_index(
            wrong="a value that is not in its labels",
            spoil=with_voxels("labelsTr/case1.nii.gz", put(2, kind=np.uint8)),
            file="labelsTr/case1.nii.gz",
            whole=False,
            line="<file>: label value 2, expected 0, 1; see label.known in the recipe, or the labels in dataset.json",
        ),
    ],
    "The raw folder": [
        bad_folder(
            wrong="it is missing",
            spoil=shutil.rmtree,
            line="<file>: is no folder; give the folder with the image files as --raw",
        ),
        bad_folder(
            wrong="it is a file",
            spoil=replace_all,
            line="<file>: is no folder; give the folder with the image files as --raw",
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
            process="without rights",
            line="<file>: cannot be listed (Permission denied); give yourself access, or move it",
        ),
    ],
}


@pytest.mark.parametrize(
    "bad", as_parameters(bad for bads in FOLDERS.values() for bad in bads if not bad.whole)
)
def test_a_bad_case_is_named_in_one_line_and_the_good_ones_are_kept(bad, good, here, run, recwarn):
    check_bad_case(bad, good, here, run, recwarn)


@pytest.mark.parametrize(
    "bad", as_parameters(bad for bads in FOLDERS.values() for bad in bads if bad.whole)
)
def test_a_folder_that_cannot_be_packed_is_one_line_and_nothing_is_written(bad, good, here, run):
    check_bad_folder(bad, good, here, run)
