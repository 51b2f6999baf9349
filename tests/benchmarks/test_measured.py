"""The tables under benchmarks/measured are those of the runs that are kept beside them, byte for byte."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.keep import MEASURED, unpack
from hvae_hpc.jobs.sweeps.expand import expand
from hvae_hpc.results.write import write_results
from hvae_hpc.sweep import read_sweep
from tests.jobs.sweeps.test_expand import paper_data

SWEEPS = sorted(
    path
    for path in MEASURED.parent.glob("**/*.toml")
    if path.name != "recipe.toml"  # of the packing
)
KEPT = sorted(path.parent for path in MEASURED.glob("*/runs.json.gz"))


def test_something_is_kept() -> None:
    assert KEPT


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_sweep_of_the_benchmarks_can_be_planned(path: Path) -> None:
    sweep = read_sweep(str(path))
    stages = {run.stage for run in expand(sweep, [paper_data(name, 240) for name in sweep.data])}
    assert {"segment", *(("train", "quality") if sweep.generators else ())} <= stages


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_kept_tables_follow_from_the_kept_runs(folder: Path, tmp_path: Path) -> None:
    sweep = unpack(folder / "runs.json.gz", tmp_path)
    assert sweep == folder.name == json.loads((folder / "sweep.json").read_text())["name"]
    made = {path.name: path for path in write_results(tmp_path, sweep) if path.parent.name == sweep}
    tables = [path for path in folder.iterdir() if path.suffix in (".md", ".csv", ".txt")]
    assert {"arms.md", "arms.csv", "table1.csv", "verdict.txt"} <= {path.name for path in tables}
    for path in tables:
        assert path.read_bytes() == made[path.name].read_bytes(), path.name


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_what_is_kept_has_no_image_and_no_name_of_a_case(folder: Path, tmp_path: Path) -> None:
    unpack(folder / "runs.json.gz", tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "metrics.json",
        f"{folder.name}.json",
    }
    for path in tmp_path.rglob("metrics.json"):
        result = json.loads(path.read_text())
        assert all(
            re.fullmatch(r"case-\d+", case)
            for case in [*result["per_case"], *result["details"].get("train_cases", [])]
        )
        assert result["provenance"]["host"] == "node"
