"""Runs to SLURM arrays: short runs bundled into elements, elements into arrays, parents first.

There is one array per stage, data set, source and set of parents. What needs no generator starts
at once, and what does waits for just the elements that make it. A run in a bundle keeps its folder,
its checkpoint and its result, and fails alone.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.sweeps.costs import Seconds, minutes_for
from hvae_hpc.runs.plan import Array, Plan

MOST_GROUPS = 16
"""Arrays of one stage, data set and source; more become one, which waits for all parents."""
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
    builder = _Builder(plan, seconds, queued, max_array_size)
    usual = arrays = builder.build(run_ids, fill=1.0)
    fill = 1.0
    while 0 < max_elements < sum(len(array.elements) for array in arrays):
        if fill > 1e4:
            return usual
        fill *= 1.25
        arrays = builder.build(run_ids, fill)
    return arrays


@dataclass(frozen=True)
class _Builder:
    """What is known of the runs while arrays are built."""

    plan: Plan
    seconds: Mapping[str, Seconds]
    queued: Mapping[str, str]
    max_array_size: int

    def build(self, run_ids: Sequence[str], fill: float) -> list[Array]:
        """Return the arrays with elements that are so many times fuller than usual."""
        arrays: list[Array] = []
        place_of: dict[str, Place] = {}
        for stage in CONFIGS:  # parents' stages first
            of_stage = [run_id for run_id in run_ids if self.plan.runs[run_id].stage == stage]
            for ids in self._group(of_stage, place_of):
                elements = bundle(ids, self.seconds, self._capacity_s(ids[0]), fill)
                for start in range(0, len(elements), self.max_array_size):
                    part = elements[start : start + self.max_array_size]
                    array = self._make_array(_arms_first(self.plan, part), place_of)
                    for place, element in enumerate(array.elements):
                        place_of |= dict.fromkeys(element, (len(arrays), place))
                    arrays.append(array)
        return arrays

    def _group(self, run_ids: Sequence[str], place_of: Mapping[str, Place]) -> Iterator[list[str]]:
        """Yield runs of one stage that share data, source, resources and what they wait for."""
        by_kind = defaultdict[Hashable, dict[Hashable, list[str]]](dict)
        for run_id in run_ids:
            run, parents = self.plan.runs[run_id], self.plan.parents(run_id).values()
            changes = tuple(self.plan.changes.get(run_id, {}).items())
            waits = frozenset(place_of.get(p) or self.queued.get(p) for p in parents)
            by_waits = by_kind[run.config.data, run.source, changes]
            by_waits.setdefault(waits, []).append(run_id)

        for by_waits in by_kind.values():
            if len(by_waits) <= MOST_GROUPS:
                yield from by_waits.values()
            else:
                yield [run_id for ids in by_waits.values() for run_id in ids]

    def _capacity_s(self, run_id: str) -> float:
        """Return the seconds of a full element; 0 where a run has an element for itself.

        These are runs of several processes, and runs that got a longer time limit after a failure.
        """
        resources = self.plan.resources[self.plan.runs[run_id].stage]
        alone = resources.tasks > 1 or self.plan.changes.get(run_id, {}).get("minutes")
        return 0.0 if alone else 60 * resources.element_minutes

    def _make_array(
        self, elements: Sequence[tuple[str, ...]], place_of: Mapping[str, Place]
    ) -> Array:
        run_ids = [run_id for element in elements for run_id in element]
        plan, run = self.plan, self.plan.runs[run_ids[0]]
        parents = {parent for run_id in run_ids for parent in plan.parents(run_id).values()}
        minutes = self._time_limit(elements, plan.resources[run.stage])
        return Array(
            name="-".join(filter(None, (plan.sweep, run.stage, run.config.data, run.source))),
            stage=run.stage,
            elements=tuple(elements),
            after=tuple(sorted({place_of[p] for p in parents & place_of.keys()})),
            after_jobs=tuple(sorted({self.queued[p] for p in parents & self.queued.keys()})),
            minutes=max(minutes, plan.changes.get(run_ids[0], {}).get("minutes", 0)),
            seconds=sum(self.seconds[run_id].expected for run_id in run_ids),
        )

    def _time_limit(self, elements: Sequence[Sequence[str]], resources: Resources) -> int:
        """Return the elements' time limit in minutes, close to what was measured.

        A short limit lets them fit into gaps. Where nothing was measured, it is the stage's own.
        """
        longest = 0.0
        for element in elements:
            highs = [self.seconds[run_id].high for run_id in element]
            if None in highs:
                return resources.minutes
            longest = max(longest, sum(high or 0.0 for high in highs))
        return minutes_for(longest, resources)


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
    """Put one element of each arm before the others: those that go ahead are of different arms."""
    arms = [getattr(plan.runs[element[0]].config, "arm", None) for element in elements]
    return [elements[n] for n in sorted(range(len(arms)), key=lambda n: arms.index(arms[n]) != n)]
