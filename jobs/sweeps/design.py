"""What a sweep can show: its power for gains of a given size.

The variances are those of the sweep's own done runs, else assumed ones, and the lines say which.
"""

from collections.abc import Iterator, Mapping

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.power import ASSUMED_SD, Design, find_power, median_variances
from hvae_hpc.results.scores import subtract_references
from hvae_hpc.runs.plan import Plan

GAINS = (0.01, 0.02, 0.04)


def describe_power(plan: Plan, n_cases: Mapping[str, int]) -> Iterator[str]:
    """Yield a few lines per data set.

    Args:
        plan: of the sweep.
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
