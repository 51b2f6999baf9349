"""Reading a packed data set: in any order, from any process, within memory."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.recipes.recipe import SlicesConfig
from hvae_hpc.preprocess.store import reader as reader_module
from hvae_hpc.preprocess.store.manifest import read_manifest, write_manifest
from hvae_hpc.preprocess.store.pairs import take
from hvae_hpc.preprocess.store.reader import DatasetReader, available_memory, read_dataset
from tests.preprocess.scans import reseal, save_cases, tiny_recipe


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 4)
    save_cases(tmp_path / "raw", 5)
    manifest = pack(
        tiny_recipe(slices=SlicesConfig(choose="all")),
        tmp_path / "raw",
        tmp_path / "out",
        workers=1,
    )
    assert len(manifest.shards) == 3
    return tmp_path / "out"


def same(first, second):
    return (
        np.array_equal(first.images, second.images)
        and np.array_equal(first.masks, second.masks)
        and first.case_ids == second.case_ids
        and first.slice_index.tolist() == second.slice_index.tolist()
    )


def test_any_rows_come_as_from_the_whole(packed):
    reader = DatasetReader(packed)
    whole = reader.read_all()
    assert len(reader) == len(whole) == 15
    assert reader.case_ids == whole.case_ids
    for rows in ([14, 0, 7, 7, 3], [2], list(range(14, -1, -1))):
        assert same(reader.read(rows), take(whole, rows))
    assert same(DatasetReader(packed, ["case3", "case1"]).read([0, 5]), take(whole, [9, 5]))


@pytest.mark.parametrize("rows", [[], [-1], [15], [0, 99]])
def test_rows_that_are_not_there_are_an_error_of_the_caller(packed, rows):
    with pytest.raises(IndexError, match="expected at least one from 0 to 14"):
        DatasetReader(packed).read(rows)


def sum_of(reader, row):
    return float(reader.read([row]).images.sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_reader_that_is_in_use(packed, method):
    reader = DatasetReader(packed)
    expected = [sum_of(reader, row) for row in range(15)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert list(pool.map(sum_of, [reader] * 15, range(15))) == expected
    assert [sum_of(reader, row) for row in range(15)] == expected


def test_every_row_is_verified_whenever_it_is_read(packed):
    reader = DatasetReader(packed)
    reader.read([2])
    with h5py.File(packed / read_manifest(packed).shards[0].file, "r+") as file:
        file["masks"][2, 0, 0] ^= 1
    reseal(packed / read_manifest(packed).shards[0].file)
    with pytest.raises(UserError, match="shard is damaged"):
        reader.read([2])
    assert len(reader.read([0, 1])) == 2  # rows beside a damaged one can still be read


def test_a_manifest_that_says_another_size_than_its_shards_is_refused(packed):
    manifest = read_manifest(packed)
    write_manifest(packed, dataclasses.replace(manifest, size_px=(8, 8)))
    with pytest.raises(UserError, match=r"has 6 pairs of \(16, 16\) px, the manifest says 6 of"):
        read_dataset(packed, ["case0"])
    write_manifest(packed, dataclasses.replace(manifest, size_px=(10**6, 10**6)))
    with pytest.raises(UserError, match="GiB are free"):
        DatasetReader(packed).read([0])
    case = dataclasses.replace(manifest.cases[0], slices=(1,))
    with pytest.raises(ValueError, match="has rows that its shard does not have"):
        dataclasses.replace(manifest, cases=(case, *manifest.cases[1:]))


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(packed, monkeypatch):
    reader = DatasetReader(packed)
    monkeypatch.setattr(reader_module, "available_memory", lambda: 15 * 16 * 16 * 5 - 1)
    with pytest.raises(UserError, match=r"15 pairs need .* GiB are free; ask for more memory"):
        read_dataset(packed, ["case0", "case1", "case2", "case3", "case4"])
    assert len(read_dataset(packed, ["case0"])) == 3
    assert len(reader.read([0, 14])) == 2


def test_the_machine_says_how_much_memory_is_free():
    assert 0 < available_memory() < 2**50


def test_an_unknown_case_is_named(packed):
    with pytest.raises(UserError, match="got case 'x', expected one of its 5"):
        DatasetReader(packed, ["case0", "x"])
