"""What looks odd and is read all the same."""

import gzip
import json
import struct
import zlib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.reader import DatasetReader
from tests.preprocess.bad_input.folders import (
    Store,
    arguments,
    data_set,
    lay_out,
    pairs_of,
    store,
    write_recipes,
)
from tests.preprocess.bad_input.spoil import Spoil, with_bytes, with_header
from tests.preprocess.scans import LPS, draw_case, save


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


def renamed_in_capitals(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))


def renamed_as_unzipped(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(""))


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
    "not zipped, with the name .nii.gz": changed_after(with_bytes(ODD_IMAGE, gzip.decompress)),
    "gzip with the name .nii": changed_after(renamed_as_unzipped),
    "float32": store(image_as=np.float32),
    "float64": store(image_as=np.float64),
    "scaled by scl_slope and scl_inter": scaled_voxels,
    "a fourth axis of one": lambda stem, image, label: store()(
        stem, image[..., None], label[..., None]
    ),
    "orientation by the qform alone": changed_after(
        *(with_header(name, sform_code=0, qform_code=1) for name in (ODD_IMAGE, ODD_LABEL))
    ),
    "a qform with pixdim[0] = 0": changed_after(
        *(
            with_header(name, sform_code=0, qform_code=1, pixdim=[0, *[1] * 7])
            for name in (ODD_IMAGE, ODD_LABEL)
        )
    ),
    "a quaternion longer than 1 by rounding": changed_after(
        with_header(ODD_IMAGE, sform_code=0, qform_code=1, quatern_d=1.0001)
    ),
    "names in capitals (.NII.GZ)": changed_after(renamed_in_capitals),
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


@pytest.mark.parametrize("write", [pytest.param(write, id=name) for name, write in ODD.items()])
def test_what_looks_odd_gives_the_pairs_of_the_plain_scan_bit_for_bit(write, here, run):
    write_recipes(here)
    store()(here / "raw" / "plain" / "plain", *draw_case(5))
    write(here / "raw" / "odd" / "odd", *draw_case(5))
    done = run(*arguments("repeated"))
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
