"""How many draws had no tumour, told beside the other tables and not only in the runs' folders."""

from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.tables.draws import build_draws
from hvae_hpc.results.write import write_results
from hvae_hpc.runs.plan import plan_path, read_plan
from hvae_hpc.runs.run import Run
from tests.results import made_up

COUNTS = {
    "lsgan": {"draws": 640.0, "rejected": 140.0, "smallest_mask_px": 9.0},
    "vae": {"draws": 1280.0, "rejected": 780.0, "smallest_mask_px": 8.0},
    "hvae": {"draws": 500.0, "rejected": 0.0, "smallest_mask_px": 12.0, "acceptance": 0.75},
}


def test_draws_without_a_tumour_are_counted_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_others = made_up.fake_metrics

    def metrics(run: Run) -> dict[str, float]:
        return (
            COUNTS[run.config.generator]
            if isinstance(run.config, GenerateConfig)
            else of_others(run)
        )

    monkeypatch.setattr(made_up, "fake_metrics", metrics)
    made_up.write_sweep(tmp_path)
    plan = replace(read_plan(plan_path(tmp_path, "small")), runs_folder=tmp_path)
    table = build_draws(plan, collect(plan))
    assert table is not None
    assert [row[1:] for row in table.rows] == [
        ("LSGAN", "640", "140 (22 %)", "9", "—"),
        ("VAE", "1,280", "780 (61 %)", "8", "—"),
        ("HVAE", "500", "0 (0 %)", "12", "0.75"),
    ]
    assert "fewer than 8 px" in table.notes[0]
    assert "Acceptance" in table.notes[0]
    assert tuple(table.numbers[0].values()) == (
        "brats2021",
        "lsgan",
        0,
        0,
        640,
        140,
        9,
        None,
        0.5,
        8,
    )
    names = {path.name for path in write_results(tmp_path, "small")}
    assert {"draws.md", "draws.csv", "draws.tex"} <= names
    assert "780 (61 %)" in (tmp_path / "results/small/report.html").read_text()


@pytest.mark.parametrize(
    ("acceptance", "movement", "warns"), [(0.8, 0.9, False), (0.99, 0.9, True), (0.8, 0.2, True)]
)
def test_chains_that_do_not_mix_are_named_with_what_to_do(
    acceptance: float, movement: float, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = {**COUNTS["hvae"], "acceptance": acceptance, "movement": movement}
    of_others = made_up.fake_metrics

    def metrics(run: Run) -> dict[str, float]:
        return chains if isinstance(run.config, GenerateConfig) else of_others(run)

    monkeypatch.setattr(made_up, "fake_metrics", metrics)
    made_up.write_sweep(tmp_path)
    plan = replace(read_plan(plan_path(tmp_path, "small")), runs_folder=tmp_path)
    table = build_draws(plan, collect(plan))
    assert table is not None
    said = [note for note in table.notes if "do not mix" in note]
    assert bool(said) == warns
    assert all("generate.hmc_proposals" in note for note in said)
    assert not said or said[-1].startswith("HVAE (brats2021)")


def test_runs_that_say_nothing_of_draws_make_no_table(tmp_path: Path) -> None:
    made_up.write_sweep(tmp_path)
    plan = replace(read_plan(plan_path(tmp_path, "small")), runs_folder=tmp_path)
    assert build_draws(plan, collect(plan)) is None
