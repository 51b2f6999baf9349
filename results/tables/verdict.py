"""The verdict: for each data set one sentence to act on, and a few that say what it rests on.

The sentence answers whether synthetic pairs are worth adding: which, how many, how much better than
the best arm that goes without them, how sure, and at what cost. :mod:`hvae_hpc.results.gain` says
why choosing the best arms does not flatter them.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import Collected, needed_runs, network_cost
from hvae_hpc.results.gain import Gain, conclude, measure_gain
from hvae_hpc.results.labels import REFERENCE, arm_label, name_label
from hvae_hpc.results.power import ASSUMED_SD
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.tables.arms import describe_cover
from hvae_hpc.runs.plan import Plan

MOST_NAMED = 3
FAR = 2.5
"""Standard errors from a mean to the end of its interval, with many splits and several arms."""


def judge(plan: Plan, collected: Collected, scores: Sequence[ArmScores]) -> list[str]:
    """Return two lines on every data set: the answer, and what it rests on.

    Args:
        plan, collected: what is expected, and what is there.
        scores: of all arms.
    """
    lines = []
    for data in dict.fromkeys(s.data for s in scores):
        of_data = [s for s in scores if s.data == data]
        gain = measure_gain(plan, of_data)
        if gain is None:
            lines += [
                f"{data}: No answer: no arm with synthetic pairs is done beside one without.",
                "Both kinds need the same splits and seeds.",
            ]
            continue
        cost = _describe_cost(plan, collected, gain.pairs)
        rest = [*_describe_gain(gain, cost), *_describe_sets(plan, gain, of_data)]
        lines += [f"{data}: {answer(gain, plan.smallest_effect, cost)}", " ".join(rest)]
    return lines


def answer(gain: Gain, smallest: float, cost: str) -> str:
    """Return the sentence from which alone one may decide; under 25 words.

    Args:
        gain: of the best pairs.
        smallest: difference in Dice that is of interest.
        cost: of the pairs, for people.
    """
    pairs, base, rival = _name_pairs(gain.pairs.arm), base_of(gain.pairs.arm), gain.free.arm
    free = "training on real pairs" if rival.name == REFERENCE else arm_label(rival)
    free += " alone"
    against = "it alone" if rival.name == base != REFERENCE else free
    is_wide = gain.high - gain.low > 1
    if gain.seeds < 3 or (gain.seeds == 3 and is_wide):
        return (
            f"Too early: too few U-Net seeds ({gain.seeds}) to tell; {pairs} look best, at"
            f" {gain.difference.mean:+.3f} Dice against {against}. Run four or more."
        )
    conclusion = conclude(gain.low, gain.high, smallest)
    if conclusion == "equivalent":
        return (
            f"No need: {free} equals {pairs} within {smallest:g} Dice (95 % sure);"
            f" these cost {cost}."
        )
    if conclusion == "better":
        return (
            f"Yes: {pairs} raise Dice by at least {gain.low:.2g} over {against}, the best otherwise"
            f" (95 % sure), for {cost}."
        )
    if conclusion == "worse":
        return (
            f"No: {free} beats all pairs that were tried by at least {-gain.high:.2g} Dice"
            f" (95 % sure); the best of these cost {cost}."
        )
    if gain.high < smallest:
        return (
            f"No need: none of the pairs tried raises Dice by {smallest:g} over {free} (95 % sure);"
            f" the best of these cost {cost}."
        )
    more = _count_more_splits(gain, smallest)
    return (
        f"Undecided: {pairs} change Dice by {gain.low:+.3f} to {gain.high:+.3f} (95 %) against"
        f" {against}; about {more} more split{'s' * (more > 1)} would decide."
    )


def _count_more_splits(gain: Gain, smallest: float) -> int:
    """Return how many more splits would decide, if the mean stays as it is.

    An interval decides where it excludes 0, or lies within the smallest effect of interest. More
    seeds would leave the chance of the test cases as it is. One split does not tell how much splits
    differ: it is what a plan assumes. Few splits tell their spread badly: t, of one split less.
    """
    from scipy.special import stdtrit

    mean = abs(gain.difference.mean)
    largest_error = max(mean, smallest - mean) / FAR
    unseen = ASSUMED_SD["split"] ** 2 + ASSUMED_SD["training"] ** 2 if gain.splits == 1 else 0.0
    share = (gain.difference.standard_error**2 + unseen) / largest_error**2
    total = max(gain.splits + 1, math.ceil(gain.splits * share))
    while gain.splits * share * (stdtrit(total - 1, 0.975) / 1.96) ** 2 > total:
        total += 1
    return total - gain.splits


def _name_pairs(arm: ArmConfig) -> str:
    """Return "300 HVAE pairs", and what they stand on top of."""
    base = base_of(arm)
    on_top = "" if base == REFERENCE else f" on {arm_label(replace(arm, name=base))}"
    return f"{arm.n_synthetic} {name_label(arm.generator)} pairs{on_top}"


def _describe_cost(plan: Plan, collected: Collected, pairs: ArmScores) -> str:
    """Return the device hours of the pairs: the generator's training, and the making of them."""
    needed = [needed_runs(plan, run_id) - {run_id} for run_id in pairs.run_ids]
    seconds, devices = network_cost(collected, needed)
    hours, unit = seconds / 3600, "CPU" if devices == {"cpu"} else "GPU"
    return f"{hours:,.0f} {unit}-hours" if hours >= 10 else f"{hours:.2g} {unit}-hours"


def _describe_gain(gain: Gain, cost: str) -> list[str]:
    """Say against what the answer was found, how far apart they are, and how stable that is."""
    free, pairs = arm_label(gain.free.arm), arm_label(gain.pairs.arm)
    low, high = np.clip([gain.low, gain.high], -1, 1)
    chance = gain.difference.p / 2
    chance = 1 - chance if gain.difference.mean > 0 else chance
    return [
        f"Of the arms without synthetic pairs, {free} is best.",
        f"The best with them gains {low:+.3f} to {high:+.3f} over it (95 %), and its"
        f" pairs cost {cost}.",
        f"This covers {describe_cover(gain.difference.not_covered)}",
        f"{pairs} is above it for {gain.above} of {gain.seeds} seeds, and above all arms for"
        f" {gain.first}.",
        f"Taken alone, it is better with {100 * chance:.0f} % probability.",
    ]


def _describe_sets(plan: Plan, gain: Gain, scores: Sequence[ArmScores]) -> list[str]:
    """Say of the pairs on top of each arm without them whether they help there."""
    names: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for s in scores:
        base = base_of(s.arm)
        difference = gain.with_pairs.get(base, {}).get(s.arm.name)
        if difference and base == REFERENCE:  # as the table of arms has it
            difference = s.difference
        if difference:
            said = conclude(difference.low, difference.high, plan.smallest_effect)
            names[arm_label(replace(s.arm, name=base))][said].append(arm_label(s.arm))
    return [
        f"Against {base} alone, "
        + "; ".join(
            f"{said}: {', '.join(of) if len(of) <= MOST_NAMED else f'{len(of)} arms'}"
            for said, of in sorted(arms.items())
        )
        + "."
        for base, arms in names.items()
    ]


def base_of(arm: ArmConfig) -> str:
    """Return the name of the arm that is the same but for its synthetic pairs."""
    pairs = f"{arm.generator}+{arm.n_synthetic}"
    return REFERENCE if arm.name == pairs else arm.name.removesuffix(f"+{pairs}")
