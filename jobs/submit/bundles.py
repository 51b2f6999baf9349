"""Runs to SLURM arrays: short runs bundled into elements, elements into arrays, parents first.

There is one array per stage, data set, source and kind of parents. What needs no generator starts
at once, and what does waits for just the elements that make it. A run in a bundle keeps its folder,
its checkpoint and its result, and fails alone.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.sweeps.costs import Seconds, minutes_for
from hvae_hpc.runs.plan import Array, Plan

Place = tuple[int, int]
"""Number of an array of the submission, and place of an element in it."""


def make_arrays(
    plan: Plan,
    run_ids: Sequence[str],
    seconds: Mapping[str, Seconds],
    *,
    queued: Mapping[str, str],
    max_array_size: int = 1001,
) -> list[Array]:
    """Sort runs into elements and arrays.

    Args:
        plan: of the whole sweep, with every stage's resources.
        run_ids: what to make.
        seconds: what each is expected to take.
        queued: run id to SLURM element of what waits or runs already.
        max_array_size: the highest index of an array, plus one.

    Returns:
        Arrays without sbatch text, parents' arrays first.
    """
    arrays: list[Array] = []
    place_of: dict[str, Place] = {}
    for ids in _group(plan, run_ids):
        # Runs of several processes, and runs that got a longer time limit, are not bundled.
        resources = plan.resources[plan.runs[ids[0]].stage]
        alone = resources.tasks > 1 or plan.changes.get(ids[0], {}).get("minutes")
        elements = bundle(ids, seconds, 0.0 if alone else 60 * resources.element_minutes)
        for start in range(0, len(elements), max_array_size):
            part = elements[start : start + max_array_size]
            for place, element in enumerate(part):
                place_of |= dict.fromkeys(element, (len(arrays), place))
            arrays.append(_make_array(plan, part, seconds, place_of, queued))
    return arrays


def _group(plan: Plan, run_ids: Sequence[str]) -> list[list[str]]:
    """Sort runs by what those of an array share, parents' stages first.

    Runs of several draws, or of several trainings of a generator, share an array: it waits for all
    of them.
    """
    stages = list(CONFIGS)
    groups = defaultdict[Hashable, list[str]](list)
    for run_id in sorted(run_ids, key=lambda run_id: stages.index(plan.runs[run_id].stage)):
        run, waits_for = plan.runs[run_id], frozenset(plan.parents(run_id))
        changes = tuple(plan.changes.get(run_id, {}).items())
        groups[run.stage, run.config.data, run.source, changes, waits_for].append(run_id)
    return list(groups.values())


def _make_array(
    plan: Plan,
    elements: Sequence[tuple[str, ...]],
    seconds: Mapping[str, Seconds],
    place_of: Mapping[str, Place],
    queued: Mapping[str, str],
) -> Array:
    """Return an array of elements, with the places of their parents, which are in arrays before it.

    Its time limit is close to what was measured: short elements fit into gaps. Where nothing was
    measured, it is the stage's own.
    """
    run_ids = [run_id for element in elements for run_id in element]
    run = plan.runs[run_ids[0]]
    parents = {parent for run_id in run_ids for parent in plan.parents(run_id).values()}
    longest_s = max(sum(seconds[run_id].high for run_id in element) for element in elements)
    minutes = minutes_for(longest_s, plan.resources[run.stage])
    return Array(
        name="-".join(filter(None, (plan.sweep, run.stage, run.config.data, run.source))),
        stage=run.stage,
        elements=tuple(elements),
        after=tuple(sorted({place_of[p] for p in parents & place_of.keys()})),
        after_jobs=tuple(sorted({queued[p] for p in parents & queued.keys()})),
        minutes=max(minutes, plan.changes.get(run_ids[0], {}).get("minutes", 0)),
        seconds=sum(seconds[run_id].expected for run_id in run_ids),
    )


def bundle(
    run_ids: Sequence[str], seconds: Mapping[str, Seconds], capacity_s: float
) -> list[tuple[str, ...]]:
    """Cut a list of runs into as few elements as their expected times need, all about equally long.

    Args:
        run_ids: in order; a run that is longer than an element has one for itself.
        seconds: what each is expected to take.
        capacity_s: expected seconds of a full element; 0 for one run each.
    """
    elements = [(run_id,) for run_id in run_ids if seconds[run_id].expected >= capacity_s]
    short = [run_id for run_id in run_ids if seconds[run_id].expected < capacity_s]
    total_s = sum(seconds[run_id].expected for run_id in short)
    number = math.ceil(total_s / capacity_s) if short else 0

    bundles: list[list[str]] = [[] for _ in range(number)]
    before_s = 0.0
    for run_id in short:
        middle_s = before_s + seconds[run_id].expected / 2
        bundles[int(number * middle_s / total_s)].append(run_id)
        before_s += seconds[run_id].expected
    return elements + [tuple(each) for each in bundles if each]
