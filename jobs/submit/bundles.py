"""Runs to SLURM arrays: short runs bundled into elements, elements into arrays that fit, parents' arrays first.

There is one array per (stage, data set, source, parents in the same elements): what needs no
    generator starts at once,
and what does waits for just the elements that make it. A run in a bundle keeps its folder, its
checkpoint and its result, and fails alone.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.sweeps.costs import Seconds, minutes_for
from hvae_hpc.runs.plan import Array, Plan

MOST_GROUPS = 16
"""Arrays of one stage, data set and source before they are made one, which waits for all their parents."""
LONG_S = 900.0
"""A run that takes so long is not put into an element with others to save elements."""
Place = tuple[int, int]
"""Number of an array of the submission, and place of an element in it."""


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
        max_elements: of all arrays together, where SLURM takes no more: then elements carry more
            short runs, and may be longer than their time limit, at which they go on. 0 for no
            limit; with one that cannot be met, what does not fit is submitted later.

    Returns:
        Arrays without sbatch text, parents' arrays first.
    """
    usual = arrays = _build(plan, run_ids, seconds, queued, max_array_size, 1.0)
    fill = 1.0
    while 0 < max_elements < sum(len(array.elements) for array in arrays):
        if fill > 1e4:
            return usual
        fill *= 1.25
        arrays = _build(plan, run_ids, seconds, queued, max_array_size, fill)
    return arrays


def _build(
    plan: Plan,
    run_ids: Sequence[str],
    seconds: Mapping[str, Seconds],
    queued: Mapping[str, str],
    max_array_size: int,
    fill: float,
) -> list[Array]:
    arrays: list[Array] = []
    place_of: dict[str, Place] = {}
    for stage in CONFIGS:  # parents' stages first
        mine = [run_id for run_id in run_ids if plan.runs[run_id].stage == stage]
        for (data, source), ids in _group(plan, mine, place_of, queued):
            resources, longest = (
                plan.resources[stage],
                plan.changes.get(ids[0], {}).get("minutes", 0),
            )
            capacity_s = (
                60 * resources.element_minutes if resources.tasks == 1 and not longest else 0.0
            )
            elements = bundle(ids, seconds, capacity_s, fill)
            for start in range(0, len(elements), max_array_size):
                part = _arms_first(plan, elements[start : start + max_array_size])
                place_of |= {
                    i: (len(arrays), place) for place, element in enumerate(part) for i in element
                }
                runs = [run_id for element in part for run_id in element]
                parents = {parent for run_id in runs for parent in plan.parents(run_id).values()}
                arrays.append(
                    Array(
                        name="-".join(filter(None, (plan.sweep, stage, data, source))),
                        stage=stage,
                        elements=tuple(part),
                        after=tuple(
                            sorted({place_of[parent] for parent in parents if parent in place_of})
                        ),
                        after_jobs=tuple(
                            sorted({queued[parent] for parent in parents if parent in queued})
                        ),
                        minutes=max(longest, _limit(part, seconds, resources)),
                        seconds=sum(seconds[run_id].expected for run_id in runs),
                    )
                )
    return arrays


def _group(
    plan: Plan, run_ids: Sequence[str], place_of: Mapping[str, Place], queued: Mapping[str, str]
) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield (data set, source) and the runs of one stage that wait for the same elements and ask for the same."""
    keys = {}
    for run_id in run_ids:
        run, parents = plan.runs[run_id], plan.parents(run_id).values()
        waits = frozenset(place_of.get(parent) or queued.get(parent) for parent in parents)
        changes = tuple(sorted(plan.changes.get(run_id, {}).items()))
        keys[run_id] = (run.config.data, run.source, changes, waits)
    number = Counter((data, source) for data, source, *_ in set(keys.values()))
    groups: dict[object, list[str]] = {}
    for run_id, (data, source, changes, waits) in keys.items():
        key = (data, source, changes, waits if number[data, source] <= MOST_GROUPS else None)
        groups.setdefault(key, []).append(run_id)
    for ids in groups.values():
        data, source, *_ = keys[ids[0]]
        yield (data, source), ids


def bundle(
    run_ids: Sequence[str], seconds: Mapping[str, Seconds], capacity_s: float, fill: float = 1.0
) -> list[tuple[str, ...]]:
    """Cut a list of runs into as few elements as their expected times need, all about equally long.

    Args:
        run_ids: in order; a run that is longer than an element has one for itself.
        seconds: what each is expected to take.
        capacity_s: expected seconds of a full element; 0 for one run each.
        fill: how much fuller than that elements of several runs are to be.
    """
    longest_s = capacity_s if fill == 1.0 else max(capacity_s, min(LONG_S, fill * capacity_s))
    short = [run_id for run_id in run_ids if seconds[run_id].expected < longest_s]
    elements = [[run_id] for run_id in run_ids if seconds[run_id].expected >= longest_s]
    total = sum(seconds[run_id].expected for run_id in short)
    number = max(1, math.ceil(total / (fill * capacity_s))) if short else 0
    bundles: list[list[str]] = [[] for _ in range(number)]
    before = 0.0
    for run_id in short:
        middle = before + seconds[run_id].expected / 2
        bundles[min(number - 1, int(number * middle / total))].append(run_id)
        before += seconds[run_id].expected
    return [tuple(element) for element in (*elements, *bundles) if element]


def _arms_first(plan: Plan, elements: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Put one element of each arm before the others, so that the first few, which go ahead, are of different arms."""
    arms = [getattr(plan.runs[element[0]].config, "arm", None) for element in elements]
    return [elements[n] for n in sorted(range(len(arms)), key=lambda n: arms.index(arms[n]) != n)]


def _limit(
    elements: Sequence[Sequence[str]], seconds: Mapping[str, Seconds], resources: Resources
) -> int:
    """Return the elements' time limit in minutes: close to what was measured, so that they fit into gaps."""
    highs = [[seconds[run_id].high for run_id in element] for element in elements]
    if any(high is None for element in highs for high in element):
        return resources.minutes
    return minutes_for(max(sum(high or 0.0 for high in element) for element in highs), resources)
