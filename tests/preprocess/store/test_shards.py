"""The shard format."""

import hashlib
import json
import os
import tracemalloc

import h5py
import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.store.pairs import Pairs, concatenate, take
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import hash_pairs, read_pairs, write_pairs
from tests.preprocess.scans import reseal, save_cases, tiny_recipe


def make_pairs(count=5, size=12, seed=0):
    rng = np.random.default_rng(seed)
    return Pairs(
        images=rng.random((count, size, size), dtype=np.float32),
        masks=rng.integers(0, 2, (count, size, size), dtype=np.uint8),
        case_ids=tuple(f"fäll-{number}" for number in range(count)),
        slice_index=rng.integers(0, 155, count).astype(np.int32),
        spacing_mm=np.array([[1.0, np.nan]] * count),
        source_sha256=("",) * count,
    )


def assert_equal(got, expected):
    for name in ("images", "masks", "slice_index", "spacing_mm"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
        assert getattr(got, name).dtype == getattr(expected, name).dtype
    assert (got.case_ids, got.source_sha256) == (expected.case_ids, expected.source_sha256)


def test_pairs_and_attributes_come_back_as_they_were_written(tmp_path):
    attributes = {
        "source_cases": json.dumps(["ä" * 200] * 500),
        "kind": "generated",
    }  # more than HDF5's 64 KB
    digest = write_pairs(tmp_path / "a.h5", make_pairs(), attributes)
    pairs, back = read_pairs(tmp_path / "a.h5", content_sha256=digest)
    assert_equal(pairs, make_pairs())
    assert back == attributes
    assert digest == hash_pairs(make_pairs(), attributes)


def test_rows_come_in_the_order_asked_for(tmp_path):
    write_pairs(tmp_path / "a.h5", make_pairs(), {})
    assert_equal(read_pairs(tmp_path / "a.h5", [4, 0, 4])[0], take(make_pairs(), [4, 0, 4]))


def test_equal_pairs_give_equal_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_pairs(tmp_path / name, make_pairs(), {"kind": "real"})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("field", ["images", "masks", "slice_index", "spacing_mm"])
def test_the_hash_changes_with_one_value_of_any_array(field):
    pairs, other = make_pairs(), make_pairs()
    getattr(other, field).flat[-2] = 0 if getattr(other, field).flat[-2] else 1
    assert hash_pairs(other, {}) != hash_pairs(pairs, {})
    assert hash_pairs(pairs, {"kind": "real"}) != hash_pairs(pairs, {})


def test_damaged_bytes_are_known_before_hdf5_sees_them(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write_pairs(path, make_pairs(size=40), {"kind": "real"})
    content = path.read_bytes()
    monkeypatch.setattr(h5py, "File", lambda *_, **__: pytest.fail("HDF5 was asked"))
    for place in np.linspace(0, len(content) - 1, 150).astype(int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError, match="its bytes do not match their hash"):
            read_pairs(path)


def test_a_changed_pixel_is_caught_also_where_the_bytes_match(tmp_path):
    write_pairs(tmp_path / "a.h5", make_pairs(), {})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["masks"][2, 0, 0] ^= 1
    reseal(tmp_path / "a.h5")
    with pytest.raises(UserError, match="shard is damaged"):
        read_pairs(tmp_path / "a.h5", [2])
    read_pairs(tmp_path / "a.h5", [0, 1])


def test_a_shard_of_an_earlier_version_has_no_seal_and_is_read(tmp_path):
    path = tmp_path / "a.h5"
    write_pairs(path, make_pairs(), {})
    with h5py.File(path) as sealed, h5py.File(tmp_path / "old.h5", "w") as old:
        for name in sealed:
            sealed.copy(name, old)
        old.attrs.update(sealed.attrs)
    assert_equal(read_pairs(tmp_path / "old.h5")[0], make_pairs())


def replace_dataset(name, make):
    """Return what puts another dataset of that name into a file; ``make`` gets the file."""

    def change(file):
        del file[name]
        make(file)

    return change


def make_hollow(name, shape, kind):
    """Return what makes a dataset of any shape that takes no place on the disk."""
    chunks = (1, *shape[1:])
    return replace_dataset(
        name, lambda file: file.create_dataset(name, shape, kind, chunks=chunks, compression="gzip")
    )


def make_virtual(file):
    layout = h5py.VirtualLayout((5,), "S8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (5,))
    file.create_virtual_dataset("case_ids", layout)


HOSTILE = {
    "10^11 rows of text": make_hollow("row_sha256", (10**11,), "S64"),
    "pairs of 60000 x 15000 px": make_hollow("images", (5, 60000, 15000), "<f4"),
    "10^9 pairs": make_hollow("masks", (10**9, 12, 12), "u1"),
    "an external link": replace_dataset(
        "images", lambda file: file.__setitem__("images", h5py.ExternalLink("fifo", "/images"))
    ),
    "a soft link to itself": replace_dataset(
        "images", lambda file: file.__setitem__("images", h5py.SoftLink("/images"))
    ),
    "values in another file": replace_dataset(
        "case_ids",
        lambda file: file.create_dataset("case_ids", (5,), "S8", external=[("/etc/passwd", 0, 40)]),
    ),
    "a virtual dataset": replace_dataset("case_ids", make_virtual),
    "numbers for texts": replace_dataset(
        "case_ids", lambda file: file.create_dataset("case_ids", data=np.arange(5))
    ),
    "texts of any length": replace_dataset(
        "case_ids",
        lambda file: file.create_dataset("case_ids", data=["a"] * 5, dtype=h5py.string_dtype()),
    ),
    "a group": replace_dataset("attributes", lambda file: file.create_group("attributes")),
    "no attributes": replace_dataset("attributes", lambda file: None),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_leads_elsewhere_or_asks_for_memory_is_refused(tmp_path, change):
    path = tmp_path / "a.h5"
    os.mkfifo(tmp_path / "fifo")
    write_pairs(path, make_pairs(), {})
    with h5py.File(path, "r+") as file:
        change(file)
    reseal(path)
    tracemalloc.start()
    with pytest.raises(UserError, match="shard is damaged"):
        read_pairs(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_shard_cut_short_is_damaged(tmp_path):
    path = tmp_path / "a.h5"
    write_pairs(path, make_pairs(), {})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"a.h5: shard is damaged"):
        read_pairs(path)


def test_a_missing_shard_another_schema_and_other_content_are_told_apart(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(UserError, match="no such shard"):
        read_pairs(path)
    write_pairs(path, make_pairs(), {})
    with pytest.raises(UserError, match="the manifest says 000000000000"):
        read_pairs(path, content_sha256="0" * 64)
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 2
    reseal(path)
    with pytest.raises(UserError, match="shard schema 2, expected 1"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("images", 1.5), ("images", -0.1), ("images", np.nan), ("images", np.inf), ("masks", 2)],
)
def test_pairs_outside_their_range_are_refused_at_writing(tmp_path, field, value):
    pairs = make_pairs()
    getattr(pairs, field)[1, 2, 3] = value
    with pytest.raises(ValueError, match="expected"):
        write_pairs(tmp_path / "a.h5", pairs, {})
    assert not list(tmp_path.iterdir())


def test_arrays_of_unlike_lengths_are_refused():
    pairs = make_pairs()
    with pytest.raises(ValueError, match="expected 4 each"):
        Pairs(**{**vars(pairs), "case_ids": pairs.case_ids[:4]})


def test_cases_are_read_from_several_shards_in_the_order_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 2)
    save_cases(tmp_path / "raw", 5)
    manifest = pack(tiny_recipe(), tmp_path / "raw", tmp_path / "out", workers=1)
    assert len(manifest.shards) == 3
    order = ["case4", "case0", "case3", "case1"]
    got = read_dataset(tmp_path / "out", order)
    assert got.case_ids == tuple(order)
    assert_equal(got, concatenate([read_dataset(tmp_path / "out", [case]) for case in order]))
    with pytest.raises(UserError, match="got case 'case9', expected one of its 5"):
        read_dataset(tmp_path / "out", ["case9"])


def test_the_page_about_the_format_is_enough_to_read_and_check_a_shard(tmp_path):
    """Written from docs/SHARDS.md alone, without the product's code: h5py, hashlib and json."""

    def sha256(*parts):
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def canonical(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    save_cases(tmp_path / "raw", 3)
    manifest = pack(tiny_recipe(), tmp_path / "raw", tmp_path / "out", workers=1)
    entry = manifest.cases[1]
    with h5py.File(tmp_path / "out" / manifest.shards[0].file) as file:
        assert file["images"].dtype == np.dtype("<f4")
        assert file["images"].chunks == (1, 16, 16)
        assert [case.decode() for case in file["case_ids"]] == ["case0", "case1", "case2"]
        rows = [
            sha256(
                file["images"][row].tobytes(),
                file["masks"][row].tobytes(),
                file["spacing_mm"][row].tobytes(),
                canonical(
                    [
                        file["case_ids"][row].decode(),
                        int(file["slice_index"][row]),
                        file["source_sha256"][row].decode(),
                    ]
                ),
            )
            for row in range(3)
        ]
        assert rows == [value.decode() for value in file["row_sha256"]]
        assert file["source_sha256"][1].decode() == sha256(canonical(entry.sources))
        text = file["attributes"][()].decode()
        assert json.loads(text) == {"kind": "real", "modality": "FLAIR"}
        whole = sha256(canonical([1, list(file["images"].shape), rows, text]))
        assert file.attrs["content_sha256"] == whole == manifest.shards[0].content_sha256
        assert file.attrs["schema"] == 1
    raw = (tmp_path / "raw" / "case1" / "case1_flair.nii.gz").read_bytes()
    assert entry.sources["image"] == sha256(raw)


def test_a_shard_is_closed_by_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr("hvae_hpc.preprocess.pack.BYTES_PER_SHARD", 2 * 16 * 16 * 5)
    save_cases(tmp_path / "raw", 5)
    manifest = pack(tiny_recipe(), tmp_path / "raw", tmp_path / "out", workers=1)
    assert [shard.pairs for shard in manifest.shards] == [2, 2, 1]
