"""Tables against numpy by hand, against the published numbers, and against hostile names."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.stages import QualityConfig, SplitConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.labels import arm_label, method_of, ordered_arms
from hvae_hpc.results.scores import score_arms
from hvae_hpc.results.tables.build import build_tables, sweep_remarks
from hvae_hpc.results.tables.dice import build_table1
from hvae_hpc.results.tables.likelihood import build_likelihoods
from hvae_hpc.results.tables.published import read_published
from hvae_hpc.results.tables.quality import build_table2
from hvae_hpc.results.tables.table import Table
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import (
    GENERATORS,
    PAPER_ARMS,
    SMALL_ARMS,
    fake_dice,
    fake_metrics,
    finish,
    make_runs,
    segments,
    write_plan,
    write_sweep,
)


def tables_of(folder: Path, sweep: str = "small") -> tuple[Table | None, Table | None]:
    plan = read_plan(folder / f"plans/{sweep}.json")
    collected = collect(plan)
    tables = (
        build_table1(plan, score_arms(plan, collected)),
        build_table2(plan, collected),
    )
    remarks = tuple(sweep_remarks(plan, collected))
    first, second = (table and dataclasses.replace(table, remarks=remarks) for table in tables)
    return first, second


def table1_of(folder: Path) -> Table:
    table, _ = tables_of(folder)
    assert table is not None
    return table


def table2_of(folder: Path) -> Table:
    _, table = tables_of(folder)
    assert table is not None
    return table


def cell(table: Table, row: str, column: str) -> str:
    (line,) = [line for line in table.rows if line[0] == row]
    return line[table.columns.index(column)]


def test_a_cell_of_table_1_is_numpys_mean_and_sd_over_the_seeds(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=5)
    dice = [fake_dice(run) for run in segments(runs, "hvae+300")]
    table = table1_of(tmp_path)
    assert (
        cell(table, "HVAE + 300", "brats2021")
        == f"{np.mean(dice):.3f} ± {np.std(dice, ddof=1):.3f} (5)"
    )


def test_the_csv_holds_all_digits(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=5)
    rows = list(csv.DictReader(io.StringIO(table1_of(tmp_path).to_csv())))
    (row,) = [row for row in rows if row["arm"] == "lsgan+100"]
    dice = [fake_dice(run) for run in segments(runs, "lsgan+100")]
    assert float(row["mean"]) == pytest.approx(np.mean(dice), rel=1e-15)
    assert float(row["sd"]) == pytest.approx(np.std(dice, ddof=1), rel=1e-15)
    assert (row["n"], row["n_expected"], row["published_mean"], row["published_sd"]) == (
        "5",
        "5",
        "0.680",
        "0.03",
    )


def test_table_1_has_the_papers_rows_in_the_papers_order(tmp_path: Path) -> None:
    write_sweep(tmp_path, data=("brats2021", "hecktor2022"), arms=PAPER_ARMS[::-1], seeds=1)
    table = table1_of(tmp_path)
    standard = [f"Standard aug. ×{f}" for f in (2, 3, 5)]
    doses = [f"{name} + {n}" for name in ("LSGAN", "VAE", "HVAE") for n in (100, 200, 300, 500)]
    assert [row[0] for row in table.rows] == ["Reference", *standard, *doses]
    data = ["brats2021", "brats2021, published", "hecktor2022", "hecktor2022, published"]
    assert list(table.columns) == ["arm", *data]
    assert all("—" not in row[2] for row in table.rows)
    assert len(table.numbers) == 32


def test_the_published_numbers_stand_beside_ours_as_printed(tmp_path: Path) -> None:
    write_sweep(tmp_path, data=("brats2021", "hecktor2022"), arms=PAPER_ARMS, seeds=1)
    table = table1_of(tmp_path)
    assert cell(table, "Reference", "brats2021, published") == "0.633 ± 0.14"
    assert cell(table, "Standard aug. ×5", "brats2021, published") == "0.800 ± 0.18"
    assert cell(table, "HVAE + 300", "hecktor2022, published") == "0.705 ± 0.01"


def test_a_dose_or_data_set_that_the_paper_does_not_have_shows_no_published_number(
    tmp_path: Path,
) -> None:
    arms = (*SMALL_ARMS, ArmConfig(name="hvae+40", generator="hvae", n_synthetic=40))
    write_sweep(tmp_path, data=("brats2021", "lgg"), arms=arms)
    table = table1_of(tmp_path)
    assert cell(table, "HVAE + 40", "brats2021, published") == "—"
    assert list(table.columns) == ["arm", "brats2021", "brats2021, published", "lgg"]


def test_a_sweep_on_other_data_only_has_no_published_columns(tmp_path: Path) -> None:
    write_sweep(tmp_path, data=("lgg",))
    assert list(table1_of(tmp_path).columns) == ["arm", "lgg"]
    assert list(table2_of(tmp_path).columns) == ["data", "images", "PSNR (dB)", "SSIM"]
    assert not any(
        "Published" in table.notes[0] for table in (table1_of(tmp_path), table2_of(tmp_path))
    )


def test_a_single_seed_shows_a_dash_for_its_sd(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, seeds=1)
    dice = fake_dice(segments(runs, "reference")[0])
    assert cell(table1_of(tmp_path), "Reference", "brats2021") == f"{dice:.3f} ± — (1)"


def test_missing_seeds_are_counted_in_the_cell(tmp_path: Path) -> None:
    def lost(run: Run) -> bool:
        return any(run in segments([run], arm) and run.config.seed >= n for arm, n in gaps.items())

    gaps = {"vae+100": 7, "vae+300": 0}
    runs = write_sweep(tmp_path, seeds=10, skip=lost)
    table = table1_of(tmp_path)
    dice = [fake_dice(run) for run in segments(runs, "vae+100")[:7]]
    expected = f"{np.mean(dice):.3f} ± {np.std(dice, ddof=1):.3f} (7/10)"
    assert cell(table, "VAE + 100", "brats2021") == expected
    assert cell(table, "VAE + 300", "brats2021") == "— (0/10)"
    assert any(
        note.startswith(f"Partial: 13 of {len(runs)} expected runs") for note in table.remarks
    )


def test_nan_is_never_printed(tmp_path: Path) -> None:
    runs = write_sweep(
        tmp_path, seeds=1, skip=lambda run: run.config.seed == 0 and run.stage == "segment"
    )
    one_draw = {"psnr_mean": 13.0, "psnr_sd": 0.0, "ssim_mean": 0.6, "ssim_sd": 0.0, "n": 1.0}
    for run in runs[::3]:
        if run.stage == "quality":
            finish(tmp_path, run, one_draw)
    for table in tables_of(tmp_path):
        assert table is not None
        for text in (table.to_text(), table.to_markdown(), table.to_csv()):
            assert "nan" not in text.lower()


def test_table_2_has_the_generators_then_the_two_reference_rows(tmp_path: Path) -> None:
    write_sweep(tmp_path, data=("brats2021", "hecktor2022"))
    table = table2_of(tmp_path)
    names = ["LSGAN", "VAE", "HVAE", "Real (training images)", "Mean training image"]
    assert [tuple(row[:2]) for row in table.rows] == [
        (d, n) for d in ("brats2021", "hecktor2022") for n in names
    ]
    vae = ("13.143 ± 0.040 (10)", "17.966 ± 0.03", "0.633 ± 0.020 (10)", "0.826 ± 0.04")
    assert tuple(table.rows[6][2:]) == vae
    assert [row[3] for row in table.rows[3:5]] == ["—", "—"]


def test_the_captions_say_what_the_numbers_are(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    first, second = table1_of(tmp_path).notes[0], table2_of(tmp_path).notes[0]
    for words in (
        "Hard Dice per case",
        "ddof 1",
        "one split and with one generator seed",
        "20 training and 12 test",
    ):
        assert words in first
    for words in ("unrelated images", "constant mean image", "over the draws"):
        assert words in second


@pytest.mark.parametrize(("seeds", "is_tested"), [(2, False), (10, True)])
def test_bold_is_explained_where_there_is_any(tmp_path: Path, seeds: int, is_tested: bool) -> None:
    write_sweep(tmp_path, seeds=seeds)
    table = table1_of(tmp_path)
    assert bool(table.bold) is ("Bold: the highest" in table.notes[0]) is is_tested


def test_several_splits_change_what_the_caption_says(tmp_path: Path) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], sources=())
    other = [
        dataclasses.replace(run, config=dataclasses.replace(run.config, split=SplitConfig(seed=1)))
        for run in runs
    ]
    write_plan(tmp_path, [*runs, *other])
    for run in (*runs, *other):
        finish(tmp_path, run, fake_metrics(run))
    assert "2 split(s)" in table1_of(tmp_path).notes[0]


def test_draws_of_two_splits_are_pooled(tmp_path: Path) -> None:
    (run,) = make_runs(arms=(), sources=("real",))
    assert isinstance(run.config, QualityConfig)
    other = dataclasses.replace(
        run, config=dataclasses.replace(run.config, split=SplitConfig(seed=1))
    )
    write_plan(tmp_path, [run, other])
    values = np.random.default_rng(1).normal(13, 0.1, (2, 10))
    for one, draws in zip((run, other), values, strict=True):
        numbers = {
            f"{m}_{s}": float(v)
            for m, d in (("psnr", draws), ("ssim", draws / 20))
            for s, v in _moments(d).items()
        }
        finish(tmp_path, one, {**fake_metrics(one), **numbers, "n": 10.0})
    expected = f"{values.mean():.3f} ± {values.std(ddof=1):.3f} (20)"
    assert table2_of(tmp_path).rows[0][2] == expected


def test_missing_draws_are_counted_in_the_cell(tmp_path: Path) -> None:
    (run,) = make_runs(arms=(), sources=("real",))
    assert isinstance(run.config, QualityConfig)
    other = dataclasses.replace(
        run, config=dataclasses.replace(run.config, split=SplitConfig(seed=1))
    )
    write_plan(tmp_path, [run, other])
    for cells, done in (("— (0/20)", None), ("13.429 ± 0.040 (10/20)", run)):
        if done:
            finish(tmp_path, done, fake_metrics(done))
        _, table = tables_of(tmp_path)
        assert table is not None
        assert table.rows[0][2] == cells


def _moments(draws: np.ndarray) -> dict[str, float]:
    return {"mean": draws.mean(), "sd": draws.std(ddof=1)}


def test_mixed_code_is_noted_under_both_tables(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    finish(tmp_path, runs[-1], fake_metrics(runs[-1]), code_sha="def")
    for table in tables_of(tmp_path):
        assert table is not None
        assert any("abc" in note and "def (1 runs)" in note for note in table.remarks)


def test_a_table_without_planned_runs_is_not_made(tmp_path: Path) -> None:
    write_sweep(tmp_path, sources=())
    assert tables_of(tmp_path)[1] is None
    write_sweep(tmp_path, "quality", arms=())
    assert tables_of(tmp_path, "quality")[0] is None


def test_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    evil = "a|b<script>alert(1)</script>\n\x1b[31m`x`"
    write_sweep(tmp_path, arms=(PAPER_ARMS[0], ArmConfig(name=evil, n_standard=3)))
    table = table1_of(tmp_path)
    markdown = table.to_markdown()
    assert "<script" not in markdown
    line = next(line for line in markdown.splitlines() if "alert" in line)
    assert r"a\|b&lt;script&gt;" in line
    assert line.replace(r"\|", "").count("|") == len(table.columns) + 1
    assert "\x1b" not in markdown + table.to_text()
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert rows[1]["arm"] == evil


def test_every_line_of_the_text_has_its_columns_under_the_header(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    lines = table1_of(tmp_path).to_text().splitlines()
    start = lines[2].index("brats2021")
    assert all(
        line[start].isdigit() and line[start - 1] == " " for line in lines[4 : 4 + len(SMALL_ARMS)]
    )


def test_an_arm_that_only_resembles_a_published_one_is_not_compared_with_it() -> None:
    shuffled = ArmConfig(name="hvae-shuffled+100", generator="hvae", n_synthetic=100)
    both = {"generator": "hvae", "n_standard": 400, "n_synthetic": 100}
    for arm in (
        shuffled,
        ArmConfig(name="standard-x5", **both),
        ArmConfig(name="hvae+100", **both),
    ):
        assert method_of(arm) == (arm.name, "")


def test_an_arm_with_a_name_that_says_nothing_keeps_it() -> None:
    for name in ("mine", "mine+100", "hvae-twice+100"):
        assert arm_label(ArmConfig(name=name, generator="hvae", n_synthetic=100)) == name


def test_arms_of_our_own_come_last(tmp_path: Path) -> None:
    arms = (ArmConfig(name="copies-x5"), *PAPER_ARMS)
    names = [
        arm.name
        for arm in ordered_arms(read_plan(write_plan(tmp_path, make_runs(arms=arms, seeds=1))))
    ]
    assert names[0] == "reference"
    assert names[-1] == "copies-x5"


def test_published_table_1_is_16_arms_of_2_data_sets() -> None:
    table = read_published("table1")
    assert len(table) == 32
    methods = {(method, amount) for _, method, amount in table}
    assert methods == {method_of(arm) for arm in PAPER_ARMS}
    values = {
        ("brats2021", "reference", ""): ("0.633", "0.14"),
        ("hecktor2022", "standard", "x2"): ("0.584", "0.06"),
        ("brats2021", "lsgan", "+500"): ("0.667", "0.08"),
        ("hecktor2022", "lsgan", "+100"): ("0.576", "0.11"),
        ("brats2021", "vae", "+200"): ("0.760", "0.01"),
        ("hecktor2022", "vae", "+500"): ("0.712", "0.01"),
        ("brats2021", "hvae", "+300"): ("0.803", "0.03"),
        ("hecktor2022", "hvae", "+500"): ("0.713", "0.01"),
    }
    for key, (mean, sd) in values.items():
        assert (table[key]["mean"], table[key]["sd"]) == (mean, sd)


def test_published_table_2_is_3_generators_of_2_data_sets() -> None:
    table = read_published("table2")
    assert {key[:2] for key in table} == {
        (d, g) for d in ("brats2021", "hecktor2022") for g in GENERATORS
    }
    hvae = table["hecktor2022", "hvae", ""]
    numbers = [hvae[name] for name in ("psnr_mean", "psnr_sd", "ssim_mean", "ssim_sd")]
    assert numbers == ["18.628", "0.05", "0.839", "0.05"]
    assert table["brats2021", "lsgan", ""]["ssim_mean"] == "0.612"


def test_likelihoods_are_means_over_trainings_and_a_vae_has_no_bound_with_a_flow(
    tmp_path: Path,
) -> None:
    write_sweep(tmp_path, likelihoods=True)
    plan = read_plan(tmp_path / "plans/small.json")
    table = build_likelihoods(plan, collect(plan))
    assert table is not None
    cells = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(cells) == ["VAE", "HVAE"]
    assert cells["HVAE"]["log p(x, m) ≥, nats"] == "-90.0 ± — (1)"
    assert cells["VAE"]["log p(x, m) ≥, nats"] == "-92.2 ± — (1)"
    assert (cells["VAE"]["ELBO, flow"], cells["HVAE"]["ELBO, flow"]) == ("—", "-95.0 ± — (1)")
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    (row,) = [r for r in rows if (r["generator"], r["metric"]) == ("vae", "log_likelihood")]
    assert (row["mean"], row["sd"], row["n"], row["n_expected"]) == ("-92.25", "", "1", "1")
    assert "a stochastic lower bound by annealed importance sampling" in table.notes[0]
    assert "The 100 temperatures are doubled until two bounds agree" in table.notes[0]
    assert "differ by less than the largest gap (3.0 nats)" in table.notes[0]


def test_likelihoods_that_are_missing_are_shown_as_such(tmp_path: Path) -> None:
    write_sweep(
        tmp_path,
        skip=lambda run: run.stage == "likelihood" and run.config.generator == "hvae",
        likelihoods=True,
    )
    plan = read_plan(tmp_path / "plans/small.json")
    collected = collect(plan)
    table = build_tables(plan, collected, [])["likelihoods"]
    assert table is not None
    assert table.rows[1][1] == "— (0/1)"
    assert any("Partial" in note for note in table.remarks)
