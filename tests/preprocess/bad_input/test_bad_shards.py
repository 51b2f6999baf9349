"""Packed data that goes bad is found, named and mended."""

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest
from hvae_hpc.preprocess.store.reader import DatasetReader
from tests.preprocess.bad_input.command import run_quietly
from tests.preprocess.bad_input.folders import IMAGE, LABEL, arguments, data_set, is_line, lay_out
from tests.preprocess.bad_input.spoil import as_parameters, flip_bit, with_voxels


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
        line="<file>: not valid JSON (...); it may be truncated, make it again",
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
