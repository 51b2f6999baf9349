"""How much the best synthetic pairs gain over the best arm that goes without them.

Whichever arms look best were chosen by the scores that are then to judge them. So no bound rests on
that choice. Let p be the truly best arm with pairs and f the truly best free arm, without them: two
fixed arms, though nobody knows which. The intervals of all arms with pairs against f hold at once
(:func:`compare`), and the least of an arm's intervals over all free arms is no higher than that
against f. So ``low`` holds for any arm that is named. The intervals of p against all free arms hold
at once too, and no arm gains more than p. So the highest of all arms' intervals against a free arm,
``high``, holds for any free arm that is named (Hsu 1984, multiple comparisons with the best).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.results.scores import ArmScores, to_blocks
from hvae_hpc.results.statistics import Block, Comparison, compare, estimate_mean
from hvae_hpc.runs.plan import Plan

Arms = Mapping[str, Sequence[Block]]


class Gain(NamedTuple):
    """What the best pairs gain over the best free arm.

    Attributes:
        pairs: the arm with synthetic pairs for which most can be promised. Where none promises a
            gain, that of the highest mean Dice.
        free: the arm of the highest mean Dice of those without.
        low: ``pairs`` gains no less over any free arm.
        high: no arm with pairs gains more over ``free``. Each bound holds with 97.5 %.
        difference: of these two arms, as if nobody had chosen them.
        splits: how many there are.
        with_pairs: free arm to each arm with pairs to their difference.
        seeds: of all splits.
        above, first: for how many of these ``pairs`` is above ``free``, and above all arms.
    """

    pairs: ArmScores
    free: ArmScores
    low: float
    high: float
    difference: Comparison
    splits: int
    with_pairs: Mapping[str, Mapping[str, Comparison]]
    seeds: int
    above: int
    first: int


def conclude(low: float, high: float, smallest: float) -> str:
    """Return what an interval of a difference says, given the smallest one of interest.

    Returns:
        "better", "worse", "equivalent" or "undecided".
    """
    if -smallest < low and high < smallest:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def measure_gain(plan: Plan, scores: Sequence[ArmScores]) -> Gain | None:
    """Compare the arms with and without synthetic pairs; None where one of both kinds is missing.

    Args:
        scores: of a data set's arms. Those that have fewer seeds than others, or other ones, are
            left out: a lucky one is not compared with arms that have all of theirs.
    """
    free_sources = {"", *(c.source for c in plan.configs(GenerateConfig) if c.mixing)}
    arms = {s.arm.name: s for s in scores if s.n and _is_comparable(s.arm)}
    blocks = {name: to_blocks(s.by_case) for name, s in arms.items()}
    seeds = {name: [seed for block in of for seed in block.seeds] for name, of in blocks.items()}
    of_arms = list(seeds.values())
    most = max(of_arms, key=lambda of: (len(of), of_arms.count(of)), default=[])
    same = [name for name in blocks if seeds[name] == most]
    free = {name: blocks[name] for name in same if arms[name].arm.generator in free_sources}
    pairs = {name: blocks[name] for name in same if name not in free}
    if not pairs or not free:
        return None

    with_pairs, lows, highs = bound_gain(pairs, free)
    # An arm that promises no gain has no claim to be named before one of a higher mean.
    best = max(pairs, key=lambda name: (max(lows[name], 0.0), arms[name].mean_dice))
    rival = max(free, key=lambda name: arms[name].mean_dice)
    means = {
        name: np.concatenate([block.scores.mean((0, 2)) for block in blocks[name]]) for name in same
    }
    highest = np.max([*means.values()], 0)
    return Gain(
        pairs=arms[best],
        free=arms[rival],
        low=lows[best],
        high=highs[rival],
        difference=estimate_mean(subtract_blocks(blocks[best], blocks[rival])),
        splits=len(blocks[best]),
        with_pairs=with_pairs,
        seeds=highest.size,
        above=int((means[best] > means[rival]).sum()),
        first=int((means[best] == highest).sum()),
    )


def _is_comparable(arm: ArmConfig) -> bool:
    """Return whether an arm has the sweep's real cases and budget, and uses pairs as they are."""
    return "@" not in arm.name and not any(
        (arm.n_cases, arm.alone, arm.first_share, arm.shuffled, arm.nearest)
    )


def bound_gain(
    pairs: Arms, free: Arms
) -> tuple[dict[str, dict[str, Comparison]], dict[str, float], dict[str, float]]:
    """Compare arms with pairs and free ones, whichever of them are truly the best.

    Returns:
        Every free arm's comparison with all arms with pairs; what each arm with pairs gains at
        least over all free ones; and what the best of them gains at most over each free one. The
        head of this module says why.
    """
    against = {(p, f): subtract_blocks(pairs[p], free[f]) for p in pairs for f in free}
    with_pairs = {f: compare({p: against[p, f] for p in pairs}) for f in free}
    with_free = [compare({f: against[p, f] for f in free}) for p in pairs]
    lows = {p: min(with_pairs[f][p].low for f in free) for p in pairs}
    highs = {f: max(compared[f].high for compared in with_free) for f in free}
    return with_pairs, lows, highs


def subtract_blocks(scores: Sequence[Block], others: Sequence[Block]) -> list[Block]:
    """Return the differences of two arms that have the same splits, seeds and cases.

    Of two generators, as many trainings count as both have: one may not be done.
    """
    differences = []
    for one, other in zip(scores, others, strict=True):
        trained = one.has_trainings, other.has_trainings
        n = min(len(one.scores), len(other.scores)) if all(trained) else None
        differences.append(Block(one.scores[:n] - other.scores[:n], one.cases, any(trained)))
    return differences
