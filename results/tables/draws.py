"""The table of draws: how many of a generator's draws had no tumour and were left out of its pairs."""

import pandas as pd

from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.results.collect import DRAW_METRICS, Collected
from hvae_hpc.results.labels import generator_label, generators_of
from hvae_hpc.results.tables.dice import NOTHING, Cell, Table, remarks
from hvae_hpc.runs.plan import Plan

COUNTS = ["draws", "rejected", "smallest_mask_px"]
TIDY_DRAWS = ("data", "source", "split_seed", "seed", *DRAW_METRICS, "threshold", "min_mask_px")
CHAINS = " Acceptance: of the Metropolis proposals by which chains draw pairs."


def build_draws(plan: Plan, collected: Collected) -> Table | None:
    """Return draws and rejections per data set, generator and sampler; None where no run has told of them."""
    told = collected.draws.dropna(subset=COUNTS)
    configs = {
        run_id: run.config
        for run_id, run in plan.runs.items()
        if isinstance(run.config, GenerateConfig)
    }
    rows: list[tuple[str, ...]] = []
    tidy: list[tuple[Cell, ...]] = []
    for data in plan.data:
        for source in generators_of(plan):
            of_source = told[(told["data"] == data) & (told["source"] == source)]
            if of_source.empty:
                continue
            rows.append((data, generator_label(source), *_cells(of_source)))
            for row in of_source.to_dict("records"):
                config = configs[str(row["run_id"])]
                accepted = None if pd.isna(row["acceptance"]) else row["acceptance"]
                counts = [int(row[name]) for name in COUNTS]
                of_run = (
                    row["split_seed"],
                    row["seed"],
                    *counts,
                    accepted,
                    config.threshold,
                    config.min_mask_px,
                )
                tidy.append((data, source, *of_run))
    if not rows:
        return None
    config = configs[told["run_id"].iloc[0]]
    return Table(
        title=f"Draws ({plan.sweep}): what was left out of the generated pairs",
        columns=(
            "data",
            "generator",
            "draws",
            "without a tumour",
            "smallest mask kept, px",
            "chains' acceptance",
        ),
        rows=tuple(rows),
        notes=(
            f"A draw whose mask (probability above {config.threshold:g}) has fewer than {config.min_mask_px} px is "
            "rejected: a pair without a tumour teaches segmentation nothing. The more are rejected, the less the pairs "
            "are what the generator makes. All trainings and splits together."
            + (CHAINS if told["acceptance"].notna().any() else ""),
            *remarks(plan, collected),
        ),
        tidy_columns=TIDY_DRAWS,
        tidy_rows=tuple(tidy),
    )


def _cells(runs: pd.DataFrame) -> tuple[str, ...]:
    draws, rejected, accepted = (
        runs["draws"].sum(),
        runs["rejected"].sum(),
        runs["acceptance"].mean(),
    )
    share = f"{100 * rejected / draws:.0f} %" if draws else NOTHING
    acceptance = NOTHING if pd.isna(accepted) else f"{accepted:.2f}"
    return (
        f"{draws:,.0f}",
        f"{rejected:,.0f} ({share})",
        f"{runs['smallest_mask_px'].min():.0f}",
        acceptance,
    )
