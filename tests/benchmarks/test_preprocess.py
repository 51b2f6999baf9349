"""The peers in benchmarks/preprocess.py do what ours does, or nothing is compared."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvae_hpc.preprocess.read.find_cases import find_cases
from tests import ROOT
from tests.preprocess.scans import save_cases, tiny_recipe


@pytest.fixture(scope="module")
def bench() -> Any:
    folder = str(ROOT / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)  # a script finds what lies beside it
        return importlib.import_module("preprocess_sides")


def make_work(bench: Any, raw: Path) -> Any:
    save_cases(raw, 2)
    recipe = tiny_recipe()
    return bench.Work(recipe=recipe, known=(0, 1, 2, 4), cases=find_cases(recipe, raw).cases)


def as_side(work: Any, name: str, cut: Any) -> Any:
    return SimpleNamespace(name=name, cut=lambda place: cut(work.cases[place]))


@pytest.mark.parametrize("join", ["remap", "lambda"])
def test_torchio_gives_the_same_slices_and_other_ones_are_refused(
    bench: Any, tmp_path: Path, join: str
) -> None:
    work = make_work(bench, tmp_path)
    ours = as_side(work, "ours", bench.make_ours(work))
    torchio = bench.make_torchio(work, join)
    assert torchio is not None
    assert bench.check_same_slices(work, ours, [as_side(work, "torchio", torchio)]) <= bench.CLOSEST

    def brighter(files: Any) -> Any:
        image, mask, index = torchio(files)
        return np.float32(0.999) * image, mask, index

    def emptier(files: Any) -> Any:
        image, mask, index = torchio(files)
        return image, 0 * mask, index

    for wrong in (brighter, emptier):
        with pytest.raises(SystemExit, match="ours and wrong have"):
            bench.check_same_slices(work, ours, [as_side(work, "wrong", wrong)])


def test_linked_cases_are_packed_as_cases_of_their_own(bench: Any, tmp_path: Path) -> None:
    work = make_work(bench, tmp_path / "few")
    bench.link_cases(work, tmp_path / "many", 5)
    found = find_cases(work.recipe, tmp_path / "many").cases
    assert [case.case_id for case in found] == [f"CASE_{number:05d}" for number in range(5)]
    assert not any(case.fault for case in found)
