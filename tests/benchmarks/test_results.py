"""benchmarks/results.py: every side reads all that was made up, and the second time nothing is read again."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.runs import done
from hvae_hpc.runs.folder import RunResult, read_result
from hvae_hpc.runs.plan import plan_path, read_plan
from tests import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("benchmarks.results")


def test_every_side_has_a_row_for_every_run_and_reads_what_it_says(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(folder: Path, run_id: str) -> RunResult | None:
        read.append(run_id)
        return read_result(folder, run_id)

    monkeypatch.setattr(done, "read_result", counting)
    n = bench.make_runs(tmp_path, 32)
    assert n == len(read_plan(plan_path(tmp_path, bench.SWEEP)).runs)
    by_side = {}
    for side in bench.SIDES:
        read.clear()
        found = bench.run_side(side, tmp_path)
        assert found["rows"] == n
        assert found["seconds"] > 0
        by_side[side] = len(read)
    assert by_side == {"plain loop": 0, "cold": n, "again": 0, "one new": 1}
