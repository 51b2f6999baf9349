"""The table of measures, and the rows of lesions and tissue, with new runs, with old ones, and with both."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.results.collect import MORE_MEASURES, SET_MEASURES, collect
from hvae_hpc.results.scores import score_arms
from hvae_hpc.results.tables.build import build_tables
from hvae_hpc.results.tables.table import Table
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import fake_dice, fake_metrics, finish, segments, write_sweep

TISSUE = SET_MEASURES[-5:]


def tables_of(folder: Path) -> dict[str, Table | None]:
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    return build_tables(plan, collected, score_arms(plan, collected))


def rewrite_as_old(folder: Path, runs: list[Run]) -> None:
    """Write results of an earlier version, which had fewer measures."""
    for run in runs:
        tissue = (f"{name}{end}" for name in TISSUE for end in ("", "_low", "_high"))
        lacking = {*MORE_MEASURES, *tissue}
        finish(folder, run, {k: v for k, v in fake_metrics(run).items() if k not in lacking})


def numbers_of(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def test_the_measures_are_means_over_runs_in_their_units(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    table = tables_of(tmp_path)["measures"]
    assert table is not None
    dice = np.mean([fake_dice(run) for run in segments(runs, "reference")])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["HD95"] == f"{10 * (1 - dice):.1f} mm"
    assert cells["NSD"] == f"{dice / 2:.3f}"
    assert cells["small"] == cells["large"] == f"{dice:.3f}"
    (row,) = [row for row in numbers_of(table) if row["arm"] == "reference"]
    assert float(row["area_error"]) == pytest.approx(1.5 * dice)
    assert "the 95th percentile of the distances" in table.notes[0]


def test_the_mean_over_cases_with_a_tumour_stands_there_where_some_have_none(
    tmp_path: Path,
) -> None:
    runs = write_sweep(tmp_path)
    before = tables_of(tmp_path)["measures"]
    for run in segments(runs, "reference"):
        finish(tmp_path, run, {**fake_metrics(run), "dice_with_tumour": fake_dice(run) / 2})
    table = tables_of(tmp_path)["measures"]
    assert before is not None
    assert table is not None
    assert {*table.columns} - {*before.columns} == {"with tumour"}
    half = np.mean([fake_dice(run) / 2 for run in segments(runs, "reference")])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["with tumour"] == f"{half:.3f}"


def test_runs_of_an_earlier_version_have_empty_cells_and_no_mean_of_some_runs(
    tmp_path: Path,
) -> None:
    runs = write_sweep(tmp_path)
    rewrite_as_old(tmp_path, segments(runs, "hvae+300")[:1])
    table = tables_of(tmp_path)["measures"]
    assert table is not None
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (cells["HVAE + 300"]["NSD"], cells["HVAE + 300"]["area error"]) == ("—", "—")
    assert cells["HVAE + 300"]["HD95"].endswith(" mm")
    assert cells["VAE + 300"]["NSD"] != "—"

    rewrite_as_old(tmp_path, runs)
    tables = tables_of(tmp_path)
    assert tables["measures"] is not None
    assert tuple(tables["measures"].columns) == ("arm", "HD95", "precision", "recall")
    assert tables["quality"] is not None
    assert not [row for row in tables["quality"].rows if row[0].startswith(("lesion", "tissue"))]


def test_lesions_and_tissue_have_a_row_each_in_the_table_of_quality(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    table = tables_of(tmp_path)["quality"]
    assert table is not None
    rows = [row for row in table.rows if row[0].startswith(("lesion", "tissue"))]
    assert len(rows) == len(TISSUE)
    sources = dict(zip(table.columns, rows[0], strict=True))
    assert sources["HVAE"] == sources["Real (training images)"] == "0.05 [0.05, 0.06]"
    assert sources["Mean training image"] == "—"
