"""Runs to SLURM arrays: short runs bundled into elements, elements into arrays that fit, parents' arrays first.

There is one array per (stage, data set, source): what needs no generator starts at once, and what does waits for the
arrays that make it. A run in a bundle keeps its folder, its checkpoint and its result, and fails alone.
"""

import math
from collections.abc import Mapping, Sequence

from hvae_hpc.jobs.costs import Seconds
from hvae_hpc.plan import Array, Plan
from hvae_hpc.resources import START_S, Resources
from hvae_hpc.stages import QualityConfig, Run, SegmentConfig


def make_arrays(
    plan: Plan,
    run_ids: Sequence[str],
    seconds: Mapping[str, Seconds],
    *,
    queued: Mapping[str, str],
    max_array_size: int = 1001,
    max_elements: int = 0,
) -> list[Array]:
    """Sort runs into elements and arrays.

    Args:
        plan: of the whole sweep, with every stage's resources.
        run_ids: what to make.
        seconds: what each is expected to take.
        queued: run id to SLURM element of what waits or runs already.
        max_array_size: the highest index of an array, plus one.
        max_elements: of all arrays together, where SLURM takes no more: then elements carry more; 0 for no limit.

    Returns:
        Arrays without sbatch text, parents' arrays first.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for run_id in run_ids:
        run = plan.runs[run_id]
        groups.setdefault((run.stage, run.config.data, _source(run)), []).append(run_id)
    fill = _find_fill(plan, groups, seconds, max_elements)
    arrays: list[Array] = []
    array_of: dict[str, int] = {}
    for (stage, data, source), ids in groups.items():
        resources = plan.resources[stage]
        elements = bundle(ids, seconds, fill * _capacity(resources))
        for start in range(0, len(elements), max_array_size):
            part = elements[start : start + max_array_size]
            runs = [run_id for element in part for run_id in element]
            parents = {parent for run_id in runs for parent in plan.parents(run_id).values()}
            array_of |= dict.fromkeys(runs, len(arrays))
            arrays.append(
                Array(
                    name="-".join(filter(None, (plan.sweep, stage, data, source))),
                    stage=stage,
                    elements=tuple(part),
                    after=tuple(sorted({array_of[parent] for parent in parents if parent in array_of})),
                    after_jobs=tuple(sorted({queued[p].partition("_")[0] for p in parents if p in queued})),
                    minutes=_limit(part, seconds, resources),
                    seconds=sum(seconds[run_id].expected for run_id in runs),
                )
            )
    return arrays


def _source(run: Run) -> str:
    config = run.config
    if isinstance(config, SegmentConfig):
        return config.arm.generator or ("standard" if config.arm.n_standard else "reference")
    if isinstance(config, QualityConfig):
        return config.source
    return getattr(config, "generator", "")


def bundle(run_ids: Sequence[str], seconds: Mapping[str, Seconds], capacity_s: float) -> list[tuple[str, ...]]:
    """Cut a list of runs into as few elements as their expected times need, all about equally long.

    Args:
        run_ids: in order; a run that is longer than an element has one for itself.
        seconds: what each is expected to take.
        capacity_s: expected seconds of a full element; 0 for one run each.
    """
    if capacity_s <= 0:
        return [(run_id,) for run_id in run_ids]
    total = sum(seconds[run_id].expected for run_id in run_ids)
    number = min(len(run_ids), max(1, math.ceil(total / capacity_s)))
    elements: list[list[str]] = [[] for _ in range(number)]
    before = 0.0
    for run_id in run_ids:
        middle = before + seconds[run_id].expected / 2
        elements[min(number - 1, int(number * middle / total))].append(run_id)
        before += seconds[run_id].expected
    return [tuple(element) for element in elements if element]


def _capacity(resources: Resources) -> float:
    """Return an element's expected seconds; a run of several processes has an element for itself."""
    return 60 * resources.element_minutes if resources.tasks == 1 else 0.0


def _find_fill(
    plan: Plan, groups: Mapping[tuple[str, str, str], list[str]], seconds: Mapping[str, Seconds], max_elements: int
) -> float:
    """Return how much fuller than usual elements must be, so that there are no more of them than SLURM takes.

    They may then be longer than their time limit: an element goes on where its limit cut it.
    """
    fill = 1.0
    while (
        0
        < max_elements
        < sum(len(bundle(ids, seconds, fill * _capacity(plan.resources[stage]))) for (stage, *_), ids in groups.items())
    ):
        if fill > 1e6:  # as few as there can be, and still too many: what does not fit is submitted later
            return fill
        fill *= 1.25
    return fill


def _limit(elements: Sequence[Sequence[str]], seconds: Mapping[str, Seconds], resources: Resources) -> int:
    """Return the elements' time limit in minutes: close to what was measured, so that they fit into gaps."""
    highs = [[seconds[run_id].high for run_id in element] for element in elements]
    if any(high is None for element in highs for high in element):
        return resources.minutes
    longest = max(sum(high or 0.0 for high in element) for element in highs)
    return min(resources.minutes, math.ceil((longest + START_S + resources.signal_lead_s) / 60) + 2)
