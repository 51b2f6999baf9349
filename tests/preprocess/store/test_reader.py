"""Reading a packed data set: in any order, from any process, within memory."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.recipes.recipe import SlicesConfig
from hvae_hpc.preprocess.store import reader as reader_module
from hvae_hpc.preprocess.store.pairs import take
from hvae_hpc.preprocess.store.reader import DatasetReader, available_memory, read_dataset
from tests.preprocess.scans import save_cases, tiny_recipe


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
    expected = [
        sum_of(reader, row) for row in range(15)
    ]  # opens files here, before the processes start
    _SHARED["reader"] = reader
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        if method == "fork":  # inherited with open files
            got = list(pool.map(sum_of_inherited, range(15)))
        else:  # pickled with each call
            got = list(pool.map(sum_of, [reader] * 15, range(15)))
    assert got == expected
    assert [sum_of(reader, row) for row in range(15)] == expected


_SHARED: dict[str, DatasetReader] = {}


def sum_of_inherited(row):
    return sum_of(_SHARED["reader"], row)


def test_a_pickled_reader_brings_no_open_file_and_no_trust(packed):
    reader = DatasetReader(packed)
    reader.read([0])
    spoil(packed, reader, 0)
    with pytest.raises(UserError, match="shard is damaged"):
        pickle.loads(pickle.dumps(reader)).read([0])


def spoil(packed, reader, row):
    name, place = reader._places[row]
    reader._open.clear()
    with h5py.File(packed / name, "r+") as file:
        file["masks"][place, 0, 0] ^= 1


def test_every_row_is_verified_when_it_is_first_read_and_once(packed, monkeypatch):
    reader = DatasetReader(packed)
    hashed = []
    real = reader_module.Shard.read
    monkeypatch.setattr(
        reader_module.Shard,
        "read",
        lambda self, rows, *, verify: (
            hashed.append(list(verify)) or real(self, rows, verify=verify)
        ),
    )
    reader.read([0, 1])
    reader.read([1, 2])
    assert hashed == [[True, True], [False, True]]
    spoil(packed, reader, 2)
    with pytest.raises(UserError, match="shard is damaged"):
        DatasetReader(packed).read([2])
    assert (
        len(DatasetReader(packed).read([0, 1])) == 2
    )  # rows beside a damaged one can still be read


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(packed, monkeypatch):
    reader = DatasetReader(packed)
    assert reader.memory_bytes == 15 * 16 * 16 * 5
    monkeypatch.setattr(
        reader_module, "available_memory", lambda: reader.memory_bytes * (1 + 6 / 15) - 1
    )
    with pytest.raises(UserError, match=r"15 pairs need .* GiB are free; ask for more memory"):
        read_dataset(packed, ["case0", "case1", "case2", "case3", "case4"])
    assert len(read_dataset(packed, ["case0"])) == 3
    assert len(reader.read([0, 14])) == 2


def test_the_memory_that_is_free_is_that_of_the_control_group_where_it_has_less(
    tmp_path, monkeypatch
):
    free = available_memory()
    assert 0 < free < 2**50
    group = tmp_path / "job"
    group.mkdir()
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 300\ninactive_file 600\n")
    assert reader_module._left_in_group(group) == 700
    (group / "memory.max").write_text("max\n")
    assert reader_module._left_in_group(group) == float("inf")
    assert reader_module._left_in_group(tmp_path / "none") == float("inf")


def test_an_unknown_case_is_named(packed):
    with pytest.raises(UserError, match="got case 'x', expected one of its 5"):
        DatasetReader(packed, ["case0", "x"])
