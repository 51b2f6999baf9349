"""What runs of one process read again and again: once, unless it is something else by now."""

from pathlib import Path

import pytest
import torch

from hvae_hpc.preprocess.store.shards import Shard, write_pairs
from hvae_hpc.training import dataset_cache as resident
from hvae_hpc.training.dataset_cache import read_cases, read_first, read_packed
from tests.tiny import make_data_set, make_pairs

CASES = ("case-003", "case-001")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each read of a shard's pixels; nothing is in memory at first."""
    monkeypatch.setattr(resident, "_kept", type(resident._kept)())
    rows, read = list[int](), Shard.read

    def counted(shard: Shard, asked: list[int], **how: list[bool]) -> object:
        rows.append(len(asked))
        return read(shard, asked, **how)

    monkeypatch.setattr(Shard, "read", counted)
    return rows


def test_pairs_are_read_and_checked_once_and_are_those_of_the_data_set(
    tmp_path: Path, reads: list[int]
) -> None:
    data = make_data_set(tmp_path)
    first = read_cases(data, CASES, 0)
    assert read_cases(data, CASES, 0) is first
    assert reads == [2]
    pairs = make_pairs(12, 16)
    assert torch.equal(first.images[:, 0], torch.from_numpy(pairs.images[[3, 1]]))
    assert torch.equal(first.masks[:, 0], torch.from_numpy(pairs.masks[[3, 1]]).float())


def test_other_cases_sizes_and_forms_are_read_by_themselves(
    tmp_path: Path, reads: list[int]
) -> None:
    data = make_data_set(tmp_path)
    assert (
        read_cases(data, CASES[::-1], 0).images[0, 0, 0, 0]
        == read_cases(data, CASES, 0).images[1, 0, 0, 0]
    )
    assert read_cases(data, CASES, 8).image_size == (8, 8)
    assert read_packed(data, CASES).case_ids == CASES
    assert reads == [2, 2, 2, 2]


def test_data_that_were_packed_anew_are_read_anew(tmp_path: Path, reads: list[int]) -> None:
    before = read_cases(make_data_set(tmp_path), CASES, 0).images
    packed = read_packed(make_data_set(tmp_path), CASES)
    data = make_data_set(tmp_path, seed=1)
    assert not torch.equal(read_cases(data, CASES, 0).images, before)
    assert (read_packed(data, CASES).images != packed.images).any()
    assert torch.equal(read_cases(make_data_set(tmp_path, seed=0), CASES, 0).images, before)
    assert len(reads) == 4


def test_added_pairs_that_were_made_anew_are_read_anew(tmp_path: Path, reads: list[int]) -> None:
    found = []
    for seed in (0, 0, 1):
        write_pairs(tmp_path / "pairs.h5", make_pairs(5, 16, seed))
        for n in (3, 5):
            with Shard(tmp_path / "pairs.h5") as shard:
                found.append(read_first(shard, n))
    assert reads == [3, 5, 3, 5]
    assert [len(pairs) for pairs in found] == [3, 5, 3, 5, 3, 5]
    assert torch.equal(found[1].images[:3], found[0].images)
    assert not torch.equal(found[4].images, found[0].images)


def test_what_was_used_longest_ago_goes_first_when_there_is_too_much(
    tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data_set(tmp_path)
    of_two = 2 * 16 * 16 * 8
    monkeypatch.setattr(resident, "LIMIT", 2 * of_two)
    a, b, c = (tuple(f"case-{i:03d}" for i in pair) for pair in ((0, 1), (2, 3), (4, 5)))
    for cases in (a, b, a, c, a, b):  # b goes when c comes, and c when b comes again
        read_cases(data, cases, 0)
    assert len(reads) == 4
    read_cases(data, (*a, *b, *c), 0)  # more than may be kept: used, not kept
    read_cases(data, a, 0)
    assert len(reads) == 6
