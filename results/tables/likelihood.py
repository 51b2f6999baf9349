"""The table of held-out likelihoods: lower bounds of how likely generators find unseen pairs."""

from collections import Counter

from hvae_hpc.config.stages import LikelihoodConfig
from hvae_hpc.results.collect import Collected, rows_of
from hvae_hpc.results.labels import name_label
from hvae_hpc.results.statistics import summarise
from hvae_hpc.results.tables.table import Table, format_summary, summary_numbers
from hvae_hpc.runs.plan import Plan

COLUMNS = {
    "log_likelihood": ("log p(x, m) ≥, nats", 1),
    "log_likelihood_before": ("half the temperatures", 1),
    "gap": ("gap, nats", 1),
    "bits_per_pixel": ("bits per pixel", 4),
    "effective_samples": ("effective chains", 1),
    "importance_bound": ("importance bound, nats", 1),
    "elbo": ("ELBO, K = 0", 1),
    "elbo_flow": ("ELBO, flow", 1),
}
"""Metric of the likelihood stage to its column's name and digits."""


def build_likelihoods(plan: Plan, collected: Collected) -> Table | None:
    """Return a lower bound of the held-out likelihood of each generator with an encoder.

    Returns:
        None for a plan without likelihood runs.
    """
    configs = plan.configs(LikelihoodConfig)
    if not configs:
        return None
    rows, numbers = [], []
    for (data, generator), n in Counter((c.data, c.generator) for c in configs).items():
        runs = rows_of(collected.likelihood, data=data, generator=generator)
        cells = [data, name_label(generator)]
        for metric, (_, digits) in COLUMNS.items():
            summary = summarise(runs[metric].dropna())
            # A VAE has no flow: nothing is missing where its runs have no such bound.
            has_none = metric == "elbo_flow" and summary is None and not runs.empty
            expected = 0 if has_none else n
            cells.append(format_summary(summary, expected, digits))
            key = {"data": data, "generator": generator, "metric": metric}
            numbers.append({**key, **summary_numbers(summary, n_expected=expected)})
        rows.append(cells)
    config, gap = configs[0], collected.likelihood["gap"].max()
    note = f"""
    Means over held-out pairs; ± is the standard deviation (ddof 1) over trainings (their number
    in brackets), not over cases. log p(x, m) at mask weight 1: a stochastic lower bound by
    annealed importance sampling from the {config.start}, {config.chains} chains per pair, which
    uses no flow. The {config.temperatures} temperatures are doubled until two bounds agree
    within {config.agree_nats:g} nats, {config.estimates - 1} times at most. The gap is what
    lies between it and an upper bound, on pairs that the generator makes itself. Do not
    compare generators that differ by less than the largest gap ({gap:.1f} nats). Effective
    chains: of {config.chains}. The importance bound takes {config.importance_samples} draws of
    the encoder and, as the ELBOs, rewards the encoder too.
    """
    return Table(
        title=f"Held-out likelihood ({plan.sweep}): lower bounds for test pairs",
        columns=("data", "generator", *(name for name, _ in COLUMNS.values())),
        rows=rows,
        notes=[note],
        numbers=numbers,
    )
