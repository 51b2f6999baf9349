"""A share of ``make fuzz``: every kind of damaged file ends in pairs, a result or one line."""

from pathlib import Path

import pytest

from tests.fuzz.__main__ import describe
from tests.fuzz.fuzz import run_inputs
from tests.fuzz.inputs import KINDS, make_good_folders
from tests.fuzz.worker import run_input


def test_undamaged_inputs_of_every_kind_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    make_good_folders(tmp_path / "good")
    ends = {
        (kind, seed): run_input(tmp_path / "good", tmp_path, kind, seed, intact=True)
        for kind in KINDS
        for seed in range(3)
    }
    assert {key: end for key, end in ends.items() if end[0] != "done"} == {}


def test_damaged_inputs_end_in_pairs_a_result_or_one_line(tmp_path: Path) -> None:
    inputs = [(kind, seed) for seed in range(12) for kind in KINDS]
    results = list(run_inputs(inputs, tmp_path, 1))
    wrong = [f"{r.command}: {r.outcome}: {r.text}" for r in results if not r.is_right]
    assert not wrong, "\n".join([*wrong, describe(results)])
