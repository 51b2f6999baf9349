"""The table of held-out likelihoods: how likely generators with an encoder find pairs that they never saw."""

from collections import Counter

from hvae_hpc.config.stages import LikelihoodConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import generator_label
from hvae_hpc.results.statistics import summarise
from hvae_hpc.results.tables.dice import Table, cell_of, remarks, tidy_of
from hvae_hpc.runs.plan import Plan

TIDY_LIKELIHOOD = ("data", "generator", "metric", "n", "n_expected", "mean", "sd")
LIKELIHOOD_CELLS = {
    "log_likelihood": ("log p(x, m), nats", 1),
    "bits_per_pixel": ("bits per pixel", 4),
    "spread": ("spread, nats", 2),
    "effective_samples": ("effective chains", 1),
    "importance_bound": ("importance bound, nats", 1),
    "elbo": ("ELBO, K = 0", 1),
    "elbo_flow": ("ELBO, flow", 1),
}
"""Metric of the likelihood stage to its column's name and digits."""


def build_likelihoods(plan: Plan, collected: Collected) -> Table | None:
    """Return the held-out likelihood of each generator with an encoder; None for a plan without likelihood runs."""
    expected = Counter((config.data, config.generator) for config in plan.configs(LikelihoodConfig))
    if not expected:
        return None
    rows, tidy = [], []
    for (data, generator), n_expected in expected.items():
        table = collected.likelihood
        of_generator = table[(table["data"] == data) & (table["generator"] == generator)]
        cells = [data, generator_label(generator)]
        for metric, (_, digits) in LIKELIHOOD_CELLS.items():
            values = of_generator[metric].dropna()
            found = summarise(values) if len(values) else None
            counted = n_expected if metric != "elbo_flow" or found or of_generator.empty else 0
            cells.append(cell_of(found, counted, digits))
            n, _, mean, sd = tidy_of(found, counted)
            tidy.append((data, generator, metric, n, counted, mean, sd))
        rows.append(tuple(cells))
    config = plan.configs(LikelihoodConfig)[0]
    return Table(
        title=f"Held-out likelihood ({plan.sweep}): how likely generators find test pairs",
        columns=("data", "generator", *(name for name, _ in LIKELIHOOD_CELLS.values())),
        rows=tuple(rows),
        notes=(_caption(config), *remarks(plan, collected)),
        tidy_columns=TIDY_LIKELIHOOD,
        tidy_rows=tuple(tidy),
    )


def _caption(config: LikelihoodConfig) -> str:
    return (
        "Means over held-out pairs; ± is the standard deviation (ddof 1) over trainings (their number in brackets), "
        "not over cases. log p(x, m) at mask weight 1 by annealed importance sampling from the "
        f"{config.start}, {config.chains} chains of {config.temperatures} temperatures per pair, which uses no flow: "
        f"compare generators by it, where the spread of its {config.estimates} estimates is small against their "
        f"difference. Effective chains: of {config.chains}. The importance bound takes {config.importance_samples} "
        "draws of the encoder and, as the ELBOs, rewards the encoder too."
    )
