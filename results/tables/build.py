"""All tables of a sweep: which there are, and what must be said below each of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hvae_hpc.results.collect import Collected
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.tables.arms import build_arms, build_measures
from hvae_hpc.results.tables.claims import build_claims
from hvae_hpc.results.tables.dice import build_table1
from hvae_hpc.results.tables.draws import build_draws
from hvae_hpc.results.tables.likelihood import build_likelihoods
from hvae_hpc.results.tables.quality import build_quality, build_table2
from hvae_hpc.results.tables.table import Table
from hvae_hpc.results.tables.variance import build_variance
from hvae_hpc.results.worth import build_worth
from hvae_hpc.runs.plan import Plan

_MOST_NAMED = 6


def build_tables(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores]
) -> dict[str, Table | None]:
    """Build every table of a sweep. A new table is one line here.

    Args:
        plan: what is expected.
        collected: what is done.
        scores: of all arms.

    Returns:
        File name without ending to table, in the order in which they are printed and shown; None
        for a table that has nothing to say of this sweep.
    """
    tables = {
        "table1": build_table1(plan, scores),
        "arms": build_arms(plan, scores),
        "worth": build_worth(plan, scores),
        "measures": build_measures(plan, scores),
        "variance": build_variance(plan, scores),
        "table2": build_table2(plan, collected),
        "quality": build_quality(plan, collected),
        "likelihoods": build_likelihoods(plan, collected),
        "draws": build_draws(plan, collected),
        "claims": build_claims(plan, collected, scores),
    }
    remarks = tuple(sweep_remarks(plan, collected))
    return {
        name: table and replace(table.without_constant_columns(), remarks=remarks)
        for name, table in tables.items()
    }


def sweep_remarks(plan: Plan, collected: Collected) -> list[str]:
    """Return what must be said below any table, such as missing runs and failed trainings."""
    remarks = []
    if made_up := [name for name, data in plan.data.items() if "made_up" in data]:
        remarks.append(f"Made-up cases: {', '.join(made_up)}. They say nothing about patients.")
    if collected.missing:
        count = f"{len(collected.missing)} of {len(plan.runs)}"
        remarks.append(f"Partial: {count} expected runs have no result; (7/10) means 7 of 10.")

    versions = Counter(collected.costs["code_sha"])
    code = [f"{sha} ({count} runs)" for sha, count in sorted(versions.items())]
    if len(code) > 1:
        remarks.append(
            f"Mixed code: {len(code)} versions of the code made the runs: {', '.join(code)}."
        )

    with_tumour = collected.segment["dice_with_tumour"]
    failed = collected.segment[with_tumour.fillna(collected.segment["dice"]) == 0]
    if len(failed):
        shown = failed[["data", "arm", "seed"]].head(_MOST_NAMED).itertuples(index=False)
        named = ", ".join(f"{data} {arm} seed {seed}" for data, arm, seed in shown)
        if len(failed) > _MOST_NAMED:
            named += f" and {len(failed) - _MOST_NAMED} more"
        cases = "case with a tumour" if with_tumour.notna().any() else "case"
        remarks.append(
            f"Dice 0 on every test {cases}: {named}. Such a training failed; it counts in means,"
            " intervals and p as it is."
        )
    return remarks
