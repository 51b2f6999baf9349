"""The table of set measures: its cells, what a source does not have, and the faults that it says in words."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np

from hvae_hpc.config.stages import QualityConfig, SplitConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.tables.build import sweep_remarks
from hvae_hpc.results.tables.quality import MEASURES, build_quality
from hvae_hpc.results.tables.table import Table
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import (
    fake_measures,
    fake_metrics,
    finish,
    make_runs,
    write_plan,
    write_sweep,
)


def table_of(folder: Path) -> Table:
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    table = build_quality(plan, collected)
    assert table is not None
    return dataclasses.replace(table, remarks=tuple(sweep_remarks(plan, collected)))


def cell(table: Table, measure: str, source: str) -> str:
    (line,) = [line for line in table.rows if line[1] == measure]
    return line[table.columns.index(source)]


def test_a_cell_is_the_value_with_its_interval_and_a_dash_where_the_source_has_no_such_thing(
    tmp_path: Path,
) -> None:
    write_sweep(tmp_path)
    table = table_of(tmp_path)
    assert table.columns == (
        "data",
        "measure",
        "LSGAN",
        "VAE",
        "HVAE",
        "Real (training images)",
        "Mean training image",
    )
    assert cell(table, "near-duplicates ↓", "LSGAN") == "0.83 [0.75, 0.91]"
    assert cell(table, "tumour area, distance in px ↓", "HVAE") == "12.5 [11.2, 13.8]"
    assert cell(table, "median area, px (test)", "HVAE") == "40 (42)"
    assert cell(table, "copies of training images ↓", "Real (training images)") == "—"
    assert cell(table, "KID ↓", "Mean training image") == "0.250 [0.225, 0.275]"
    assert [
        cell(table, name, "Mean training image")
        for name in ("image-mask Dice ↑", "median row, px (test)")
    ] == [
        "—",
        "—",
    ]
    assert len(table.rows) == len(MEASURES) + 4


def test_the_csv_holds_all_digits_and_the_medians(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    rows = {
        (r["source"], r["metric"]): r
        for r in csv.DictReader(io.StringIO(table_of(tmp_path).to_csv()))
    }
    row, fake = rows["lsgan", "distinct"], fake_measures("lsgan")
    assert [float(row[key]) for key in ("mean", "low", "high")] == [
        fake[f"distinct{end}"] for end in ("", "_low", "_high")
    ]
    assert (rows["vae", "copying"]["mean"], rows["vae", "area_median_test"]["mean"]) == (
        "1.0",
        "42.0",
    )
    assert (rows["mean", "agreement"]["n"], rows["mean", "agreement"]["mean"]) == ("0", "")


def test_what_repeats_itself_and_what_copies_is_said_in_words_before_all_else(
    tmp_path: Path,
) -> None:
    write_sweep(tmp_path)
    notes = table_of(tmp_path).notes
    assert notes[0].startswith(
        "brats2021, LSGAN repeats itself: 83 % of its pairs are near-duplicates"
    )
    assert "amount to 6 different ones" in notes[0]
    assert notes[1].startswith("brats2021, VAE copies its training set: 5 % of its pairs")
    assert not any("HVAE repeats" in note or "HVAE copies" in note for note in notes)
    for words in (
        "leaving out one case at a time",
        "a perfect copy of the training set",
        "(k = 5)",
    ):
        assert any(words in note for note in notes)


def test_no_more_near_duplicates_than_real_images_have_is_no_fault(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, sources=("lsgan", "hvae", "real"))
    (real,) = [
        run for run in runs if isinstance(run.config, QualityConfig) and run.config.source == "real"
    ]
    finish(tmp_path, real, {**fake_metrics(real), "duplicates_high": 0.8})
    first = table_of(tmp_path).notes[0]
    assert (
        first
        == "None of the 2 sets of pairs was found to repeat itself or to copy its training set."
    )


def test_several_splits_are_a_mean_and_sd_and_each_fault_names_its_own(tmp_path: Path) -> None:
    runs = make_runs(arms=(), sources=("lsgan", "real"))
    other = [
        dataclasses.replace(run, config=dataclasses.replace(run.config, split=SplitConfig(seed=1)))
        for run in runs
    ]
    write_plan(tmp_path, [*runs, *other])
    for run, kid in zip((*runs, *other), (0.1, 0.2, 0.4, 0.3), strict=True):
        finish(tmp_path, run, {**fake_metrics(run), "kid": kid})
    table = table_of(tmp_path)
    assert cell(table, "KID ↓", "LSGAN") == f"0.250 ± {np.std([0.1, 0.4], ddof=1):.3f} (2)"
    assert table.notes[0].startswith("brats2021, LSGAN (split 0, generator seed 0) repeats itself")
    assert table.notes[1].startswith("brats2021, LSGAN (split 1, generator seed 0) repeats itself")


def test_missing_runs_are_counted_and_nan_is_never_printed(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return isinstance(run.config, QualityConfig) and run.config.source == "hvae"

    write_sweep(tmp_path, skip=lost)
    table = table_of(tmp_path)
    assert cell(table, "KID ↓", "HVAE") == "— (0/1)"
    assert any(note.startswith("Partial: 1 of") for note in table.remarks)
    for text in (table.to_text(), table.to_markdown(), table.to_csv()):
        assert "nan" not in text.lower()


def test_a_sweep_whose_quality_runs_have_no_features_has_no_such_table(tmp_path: Path) -> None:
    (run,) = make_runs(arms=(), sources=("real",))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, features=False))
    plan = read_plan(write_plan(tmp_path, [run]))
    assert build_quality(plan, collect(plan)) is None
