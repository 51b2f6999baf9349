"""Ways to spoil a good folder, and the check that the command says so and keeps what is good."""

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.journal import JOURNAL
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest
from hvae_hpc.preprocess.store.reader import DatasetReader
from tests.preprocess.bad_input.folders import (
    IMAGE,
    ZOE,
    arguments,
    data_set,
    is_line,
    lay_out,
    pairs_of,
)
from tests.preprocess.scans import LPS, save

Spoil = Callable[[Path], object]
"""Spoils a good folder: gets the raw one."""


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
    """Save changed voxels again, with a header that fits them."""
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


def with_picture(
    file: str, change: Callable[[Image.Image], Image.Image], form: str | None = None
) -> Spoil:
    def spoil(raw: Path) -> None:
        with Image.open(raw / file) as picture:
            changed = change(picture)
        changed.save(raw / file, form)

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


def dicom(content: bytes = b"") -> bytes:
    return bytes(128) + b"DICM" + content[:200]


def forbid(raw: Path, name: str) -> None:
    (raw / name).chmod(0)


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
        process: "own" for a process of its own, "without rights" for one that cannot read everything as root can.
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


def as_parameters(entries: Iterable) -> list:
    return [pytest.param(one, id=one.wrong) for one in entries]


def check_bad_case(bad, good, here, run, recwarn):
    """A bad case is named in one line, the good ones are kept, and a repaired one is packed alone."""
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

    process = bad.process if bad.process == "without rights" else ""
    skipping = run(*arguments(bad.recipe, "skipping", "--skip-bad"), process=process)
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


def check_bad_folder(bad, good, here, run):
    """A folder that cannot be packed is one line, and nothing is written."""
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
