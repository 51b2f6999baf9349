"""The table of draws: how many of a generator's draws had no tumour and were left out."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from hvae_hpc.results.collect import Collected, rows_of
from hvae_hpc.results.labels import generators_of, name_label
from hvae_hpc.results.tables.table import NOTHING, Table
from hvae_hpc.runs.plan import Plan

COUNTS = ["draws", "rejected", "smallest_mask_px"]
STUCK = 0.95
"""Acceptance above which steps are too short for chains to mix."""
LEAST_MOVEMENT = 0.5
"""Of chains given a mask alone, in distances of independent draws of the prior."""


def build_draws(plan: Plan, collected: Collected) -> Table | None:
    """Return draws and rejections per data set, generator and sampler.

    Returns:
        None where no run counted them.
    """
    counted = collected.generate.dropna(subset=COUNTS)
    if counted.empty:
        return None
    rows, warnings, numbers = [], list[str](), list[dict[str, Any]]()
    for data in plan.data:
        for source in generators_of(plan):
            runs = rows_of(counted, data=data, source=source)
            if len(runs):
                n, rejected = runs["draws"].sum(), runs["rejected"].sum()
                share = f"{100 * rejected / n:.0f} %" if n else NOTHING
                acceptance = runs["acceptance"].mean()
                rows.append(
                    (
                        data,
                        name_label(source),
                        f"{n:,.0f}",
                        f"{rejected:,.0f} ({share})",
                        f"{runs['smallest_mask_px'].min():.0f}",
                        NOTHING if pd.isna(acceptance) else f"{acceptance:.2f}",
                    )
                )
                warnings += _describe_stuck(f"{name_label(source)} ({data})", runs)
            numbers += [_numbers_of(plan, row) for row in runs.to_dict("records")]

    config: Any = plan.runs[counted["run_id"].iloc[0]].config
    note = f"""
    A draw whose mask (probability above {config.threshold:g}) has fewer than
    {config.min_mask_px} px is rejected: a pair without a tumour teaches segmentation nothing.
    The more are rejected, the less the pairs are what the generator makes. All trainings and
    splits together.
    """
    if counted["acceptance"].notna().any():
        note += " Acceptance: of the Metropolis proposals by which chains draw pairs."
    return Table(
        title=f"Draws ({plan.sweep}): what was left out of the generated pairs",
        columns=(
            *("data", "generator", "draws", "without a tumour"),
            *("smallest mask kept, px", "chains' acceptance"),
        ),
        rows=rows,
        notes=[*warnings, note],
        numbers=numbers,
    )


def _describe_stuck(name: str, runs: pd.DataFrame) -> list[str]:
    """Say where chains that are given a mask stay near the pairs from which they start."""
    acceptance, movement = runs["acceptance"].max(), runs["movement"].min()
    if pd.isna(movement) or (acceptance <= STUCK and movement >= LEAST_MOVEMENT):
        return []
    return [
        f"""
        {name}: its chains do not mix (acceptance up to {acceptance:.2f}, movement down to
        {movement:.2f} of the prior's), so its images stay near real ones. Raise
        generate.hmc_proposals or generate.hmc_leaps.
        """
    ]


def _numbers_of(plan: Plan, row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return a run's row of the CSV."""
    config: Any = plan.runs[row["run_id"]].config
    return {
        **{name: row[name] for name in ("data", "source", "split_seed", "seed")},
        **{name: int(row[name]) for name in COUNTS},
        "acceptance": None if pd.isna(row["acceptance"]) else row["acceptance"],
        "threshold": config.threshold,
        "min_mask_px": config.min_mask_px,
    }
