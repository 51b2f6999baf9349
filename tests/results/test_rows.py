"""Rows as files: what the tables are made of, read back without loss."""

from pathlib import Path

import pandas as pd
import pytest

from hvae_hpc.results.collect import Collected, collect
from hvae_hpc.results.rows import write_rows
from hvae_hpc.runs.folder import METRICS
from hvae_hpc.runs.plan import read_plan
from tests.results.made_up import folder_of, make_runs, segments, write_sweep


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Collected, Path]:
    folder = tmp_path_factory.mktemp("runs")
    lost = segments(make_runs(), "vae+100")[1]
    write_sweep(folder, likelihoods=True, skip=lambda run: run.run_id == lost.run_id)
    collected = collect(read_plan(folder / "plans/small.json"))
    write_rows(collected, folder)
    return collected, folder / "rows"


@pytest.mark.parametrize("name", ["segment", "quality", "likelihood", "costs"])
def test_csv_and_parquet_hold_the_rows(written: tuple[Collected, Path], name: str) -> None:
    collected, folder = written
    rows = getattr(collected, name).reset_index(drop=True)
    rows = rows.drop(columns="dice_with_tumour", errors="ignore")  # every case has one
    pd.testing.assert_frame_equal(pd.read_parquet(folder / f"{name}.parquet"), rows)
    read = pd.read_csv(
        folder / f"{name}.csv",
        keep_default_na=False,
        na_values={c: [""] for c in rows.select_dtypes(float)},
    )
    # Run ids such as 4485685e9282, which a spreadsheet would take for a number, are marked.
    read = read.map(lambda cell: cell.removeprefix("'") if isinstance(cell, str) else cell)
    pd.testing.assert_frame_equal(read, rows, check_dtype=False, check_exact=True)


def test_every_case_of_every_done_run_has_a_row(written: tuple[Collected, Path]) -> None:
    collected, folder = written
    cases = pd.read_parquet(folder / "cases.parquet")
    assert list(cases["run_id"].unique()) == list(collected.segment["run_id"])
    for run_id, of_run in cases.groupby("run_id"):
        assert (
            dict(zip(of_run["case"], of_run["dice"], strict=True))
            == collected.results[str(run_id)].case_dice
        )


def test_a_kind_of_run_that_is_not_there_has_no_file(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=(), sources=("real",))
    paths = write_rows(collect(read_plan(tmp_path / "plans/small.json")), tmp_path)
    assert [path.name for path in paths] == [
        "quality.csv",
        "quality.parquet",
        "costs.csv",
        "costs.parquet",
    ]


def test_rows_of_an_earlier_time_do_not_lie_beside_those_of_now(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    plan = read_plan(tmp_path / "plans/small.json")
    write_rows(collect(plan), tmp_path)
    for run in runs:
        if run.stage == "quality":
            (tmp_path / folder_of(run) / METRICS).unlink()
    paths = write_rows(collect(plan), tmp_path)
    assert sorted((tmp_path / "rows").iterdir()) == sorted(paths)
    assert not (tmp_path / "rows/quality.csv").exists()
