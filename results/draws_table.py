"""The table of draws: how many of a generator's draws had no tumour and were left out of its pairs."""

from collections.abc import Mapping

from hvae_hpc.plan import Plan
from hvae_hpc.results.collect import Collected, generators_of
from hvae_hpc.results.labels import generator_label
from hvae_hpc.results.tables import NOTHING, Cell, Table, remarks
from hvae_hpc.rundir import read_result
from hvae_hpc.stages import GenerateConfig

TIDY_DRAWS = (
    *("data", "source", "split_seed", "seed", "draws", "rejected", "smallest_mask_px", "acceptance"),
    *("threshold", "min_mask_px"),
)
CHAINS = " Acceptance: of the Metropolis proposals by which chains draw pairs."
_NUMBERS = ("draws", "rejected", "smallest_mask_px")


def build_draws(plan: Plan, collected: Collected) -> Table | None:
    """Return draws and rejections per data set, generator and sampler; None where no run has told of them."""
    found: dict[tuple[str, str], list[tuple[GenerateConfig, Mapping[str, float]]]] = {}
    for run_id, run in plan.runs.items():
        if isinstance(run.config, GenerateConfig) and run_id in collected.done:
            result = read_result(plan.folder(run_id), run_id)
            if result and all(name in result.metrics for name in _NUMBERS):
                found.setdefault((run.config.data, run.config.source), []).append((run.config, result.metrics))
    if not found:
        return None
    rows: list[tuple[str, ...]] = []
    tidy: list[tuple[Cell, ...]] = []
    for data in plan.data:
        for source in generators_of(plan):
            if of_source := found.get((data, source)):
                rows.append((data, generator_label(source), *_cells([metrics for _, metrics in of_source])))
                for config, metrics in of_source:
                    numbers = [int(metrics[name]) for name in _NUMBERS]
                    asked = config.threshold, config.min_mask_px
                    tidy.append(
                        (data, source, config.split.seed, config.seed, *numbers, metrics.get("acceptance"), *asked)
                    )
    chained = any(row[-1] != NOTHING for row in rows)
    (config, _), *_ = next(iter(found.values()))
    return Table(
        title=f"Draws ({plan.sweep}): what was left out of the generated pairs",
        columns=("data", "generator", "draws", "without a tumour", "smallest mask kept, px", "chains' acceptance"),
        rows=tuple(rows),
        notes=(
            f"A draw whose mask (probability above {config.threshold:g}) has fewer than {config.min_mask_px} px is "
            "rejected: a pair without a tumour teaches segmentation nothing. The more are rejected, the less the pairs "
            "are what the generator makes. All trainings and splits together." + (CHAINS if chained else ""),
            *remarks(plan, collected),
        ),
        tidy_columns=TIDY_DRAWS,
        tidy_rows=tuple(tidy),
    )


def _cells(runs: list[Mapping[str, float]]) -> tuple[str, ...]:
    draws, rejected = (sum(metrics[name] for metrics in runs) for name in ("draws", "rejected"))
    smallest = min(metrics["smallest_mask_px"] for metrics in runs)
    accepted = [metrics["acceptance"] for metrics in runs if "acceptance" in metrics]
    acceptance = f"{sum(accepted) / len(accepted):.2f}" if accepted else NOTHING
    share = f"{100 * rejected / draws:.0f} %" if draws else NOTHING
    return f"{draws:,.0f}", f"{rejected:,.0f} ({share})", f"{smallest:.0f}", acceptance
