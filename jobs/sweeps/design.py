"""What a sweep can show: its power for gains of a given size, and the cheapest design with enough.

The variances are those of the sweep's own done runs, else assumed ones, and the lines say which.
"""

from collections.abc import Iterator, Mapping
from itertools import product

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.jobs.sweeps.costs import expected_seconds
from hvae_hpc.results.collect import collect
from hvae_hpc.results.power import ASSUMED_SD, Design, find_power, median_variances
from hvae_hpc.results.scores import subtract_references
from hvae_hpc.runs.done import Results
from hvae_hpc.runs.plan import Plan

GAINS = (0.01, 0.02, 0.04)
AIM = 0.8
"""The chance with which the cheapest design shows a gain."""
SPLITS, TRAININGS, SEEDS = (3, 4, 6, 8, 12, 24), (1, 2), (1, 2, 4, 8)
"""What is searched. Fewer than three splits tell little about another draw of cases."""


def describe_power(plan: Plan, results: Results, n_cases: Mapping[str, int]) -> Iterator[str]:
    """Yield a few lines per data set.

    Args:
        plan: of the sweep.
        results: what is known of each run.
        n_cases: data set to the number of its cases.
    """
    collected = collect(plan)
    for data in plan.data:
        configs = [config for config in plan.configs(SegmentConfig) if config.data == data]
        n_arms = len({config.arm.name for config in configs if "@" not in config.arm.name}) - 1
        if n_arms < 1:
            continue
        design = Design(
            splits=len({config.split.seed for config in configs}),
            trainings=len({config.arm.generator_seed for config in configs}),
            seeds=len({config.seed for config in configs}),
            cases=configs[0].split.test,
            of_all=n_cases[data],
        )
        measured = median_variances(subtract_references(plan, collected, data).values())
        variances = {name: sd**2 for name, sd in ASSUMED_SD.items()} | measured
        chances = {gain: find_power(gain, variances, design, n_arms) for gain in GAINS}

        yield f"  design of {data}: {_describe(design)}"
        yield (
            f"    chance to show a true gain of one of {n_arms} arms"
            f"{'' if design.splits > 1 else ', on this split alone'}: "
            + ", ".join(f"{100 * chance:.0f} % of {gain:g}" for gain, chance in chances.items())
        )
        yield from _search(plan, results, data, variances, design, n_arms)
        sds = ", ".join(f"{name} {variance**0.5:.3f}" for name, variance in variances.items())
        assumed = ", ".join(name for name in variances if name not in measured)
        yield f"    from sd of differences: {sds}" + (f" (assumed: {assumed})" if assumed else "")


def _describe(design: Design) -> str:
    """Return a design for people, with what it costs an arm that has a generator."""
    splits, trainings, seeds = design[:3]
    n = splits * trainings * seeds
    as_many = f", as {n} seeds of one split" if n > seeds else ""
    return (
        f"splits {splits}, generator trainings {trainings}, U-Net seeds {seeds}"
        f" ({n} U-Nets of an arm with a generator{as_many})"
    )


def _search(
    plan: Plan,
    results: Results,
    data: str,
    variances: Mapping[str, float],
    design: Design,
    n_arms: int,
) -> Iterator[str]:
    """Yield which designs reach the aim for the least device hours."""
    # Per split: generators take hours by training, U-Nets by seed, or by training and seed.
    of_training = of_seed = of_both = 0.0
    for run_id, seconds in expected_seconds(plan, results, plan.runs).items():
        config, resources = plan.runs[run_id].config, plan.resources_of(run_id)
        hours = seconds.expected / 3600 * max(1, resources.nodes * resources.gpus) / design.splits
        if config.data != data:
            continue
        if not isinstance(config, SegmentConfig):
            of_training += hours / design.trainings
        elif config.arm.generator:
            of_both += hours / design.trainings / design.seeds
        else:
            of_seed += hours / design.seeds

    def cost(splits: int, trainings: int, seeds: int) -> float:
        return splits * (trainings * of_training + seeds * of_seed + trainings * seeds * of_both)

    choices = sorted(product(SPLITS, TRAININGS, SEEDS), key=lambda choice: cost(*choice))
    designs = [Design(*choice, design.cases, design.of_all) for choice in choices]
    for gain in GAINS[1:]:
        enough = (d for d in designs if find_power(gain, variances, d, n_arms) >= AIM)
        cheapest = next(enough, None)
        text = f"takes more than {SPLITS[-1]} splits and {SEEDS[-1]} U-Net seeds; ask fewer arms"
        if cheapest:
            ratio = cost(*cheapest[:3]) / cost(*design[:3])
            text = f"at least cost, {ratio:.2g} times this: {_describe(cheapest)}"
        yield f"    {100 * AIM:.0f} % of {gain:g} {text}"
