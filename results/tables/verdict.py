"""The verdict: a sentence or two per data set on whether pairs help, which ones, and by how much.

The arm that looks best flatters itself: it was chosen by the scores that it is then praised for. So
half of the seeds and half of the cases choose an arm, and the other seeds and cases estimate its
gain; then the other way about. The gain is the mean of both. Only arms that add synthetic pairs to
the real ones, and nothing else, are chosen among: another arm may gain by its copies or moves.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import REFERENCE, arm_label
from hvae_hpc.results.max_t import LEVEL
from hvae_hpc.results.scores import (
    ArmScores,
    count_above,
    dice_of,
    mean_by_seed,
    subtract,
    to_blocks,
)
from hvae_hpc.results.statistics import Estimate, compare, estimate_mean
from hvae_hpc.results.tables.table import format_estimate

MOST_NAMED = 3
FEWEST_SEEDS = 4
"""Of fewer, halves are one seed each, and the interval covers the truth in 2 of 3 cases at most."""


def judge(collected: Collected, scores: Sequence[ArmScores]) -> list[str]:
    """Return a sentence on every data set, given the scores of all arms."""
    names = dict.fromkeys(s.data for s in scores)
    return [_judge(collected, data, [s for s in scores if s.data == data]) for data in names]


def _judge(collected: Collected, data: str, scores: Sequence[ArmScores]) -> str:
    candidates = [
        s for s in scores if _only_adds_pairs(s.arm) and s.versus == REFERENCE and s.difference
    ]
    # An arm with one lucky seed is not compared with arms that have all of theirs.
    most = max((s.paired for s in candidates), default=0)
    candidates = [s for s in candidates if s.paired == most]
    if not candidates:
        return f"{data}: no arm with synthetic pairs can be compared with the reference yet."

    best = max(candidates, key=lambda s: s.mean_gain)
    reference = dice_of(collected, data, REFERENCE)
    gain, chosen = cross_estimate(
        {s.arm.name: subtract(dice_of(collected, data, s.arm.name), reference) for s in candidates}
    )
    arms = {s.arm.name: s.arm for s in candidates}
    parts = [
        f"{data}: {_describe_gain(best, gain, [arms[name] for name in dict.fromkeys(chosen)])}",
        _describe_chance(best, gain),
        _compare_with_standard(collected, data, scores, candidates),
        *_compare_combinations(collected, data, scores),
    ]
    return "; ".join(filter(None, parts)) + "."


def _only_adds_pairs(arm: ArmConfig) -> bool:
    """Return whether an arm adds synthetic pairs as they are to the real ones, and no more."""
    others = (
        *(arm.n_standard, arm.n_copies, arm.n_cases, arm.moves),
        *(arm.alone, arm.first_share, arm.shuffled),
    )
    return bool(arm.generator) and not any(others)


def cross_estimate(
    differences: Mapping[str, pd.DataFrame],
) -> tuple[Estimate | None, tuple[str, ...]]:
    """Choose an arm on half of the seeds and cases, and estimate its mean on the others.

    The arm with the highest mean is chosen. A case belongs to one half in all splits.

    Args:
        differences: each arm's differences to the reference, as :func:`subtract` returns them.

    Returns:
        The mean of both ways with its interval, and what each half chose; None and nothing with
        fewer than four seeds that all arms have, or two cases.
    """
    common = set.intersection(*(set(of_arm.index) for of_arm in differences.values()))
    tables = {
        arm: of_arm[[key in common for key in of_arm.index]].dropna(axis=1, how="all")
        for arm, of_arm in differences.items()
    }
    seeds = sorted({seed for *_, seed in common})
    cases = sorted({case for table in tables.values() for case in table.columns})
    if len(seeds) < FEWEST_SEEDS or len(cases) < 2:
        return None, ()

    def take_half(table: pd.DataFrame, half: int) -> pd.DataFrame:
        rows = table.index.isin(seeds[half::2], level="seed")
        return table.loc[rows, table.columns.isin(cases[half::2])]

    blocks, chosen = [], []
    for half in (0, 1):
        means = {arm: np.nanmean(take_half(table, half)) for arm, table in tables.items()}
        best = max(means, key=means.__getitem__)
        chosen.append(best)
        others = to_blocks(take_half(tables[best], 1 - half))
        blocks += [block for block in others if block.scores.size]
    return estimate_mean(blocks), tuple(chosen)


def _describe_gain(best: ArmScores, gain: Estimate | None, chosen: Sequence[ArmConfig]) -> str:
    """Say what the best arm gains, or what the arms do that halves of the data chose instead."""
    name = arm_label(best.arm)
    if gain is None:
        leads = "looks best" if best.mean_gain > 0 else "comes nearest"
        return (
            f"of the arms that add nothing but synthetic pairs {name} {leads}:"
            f" {format_estimate(best.difference, '+')} Dice against the reference, a flattering"
            " number since the same runs chose the arm (they are too few to choose by some and"
            " judge by others)"
        )
    interval = f"[{gain.low:+.3f}, {gain.high:+.3f}] against the reference"
    if list(chosen) == [best.arm]:
        verb = "raises" if gain.mean >= 0 else "lowers"
        return f"{name} {verb} Dice by {abs(gain.mean):.3f} {interval}"
    halves = " and ".join(map(arm_label, chosen))
    return (
        f"{name} looks best; what halves of the data choose ({halves}) changes Dice by"
        f" {gain.mean:+.3f} {interval} on the other halves, so take these arms as alike"
    )


def _describe_chance(best: ArmScores, gain: Estimate | None) -> str:
    if best.p is None:
        return f"{best.paired} seeds are too few for a test, so take it as a hint"
    if best.p >= LEVEL:
        return f"not beyond chance (p = {best.p:.2g})"
    if gain is not None and gain.low <= 0 <= gain.high:
        return (
            "beyond chance by the test over all seeds and cases, though these halves alone do not"
            " show it"
        )
    return "beyond chance"


def _compare_with_standard(
    collected: Collected, data: str, scores: Sequence[ArmScores], candidates: Sequence[ArmScores]
) -> str:
    """Say which arms differ from the largest standard augmentation; "" where there is none."""
    standard = [
        s
        for s in scores
        if s.arm.n_standard and not s.arm.generator and s.versus == REFERENCE and s.n
    ]
    if not standard:
        return ""
    largest = max(standard, key=lambda s: s.arm.n_standard)
    name = arm_label(largest.arm)

    dice = dice_of(collected, data, largest.arm.name)
    differences = {
        s.arm.name: to_blocks(subtract(dice_of(collected, data, s.arm.name), dice))
        for s in candidates
    }
    if not all(differences.values()) or largest.p is None:
        alone = f"{name} alone gives {format_estimate(largest.difference, '+')}"
        return alone if largest.difference else ""

    above: list[str] = []
    below: list[str] = []
    compared = compare(differences)
    for s in candidates:
        if compared[s.arm.name].p < LEVEL:
            side = above if compared[s.arm.name].mean > 0 else below
            side.append(arm_label(s.arm))
    if not above and not below:
        return f"no arm with synthetic pairs differs from {name} beyond chance"
    better = f"better than {name}: {_list_some(above)}" if above else f"none is better than {name}"
    return better + (f"; worse: {_list_some(below)}" if below else "")


def _compare_combinations(
    collected: Collected, data: str, scores: Sequence[ArmScores]
) -> list[str]:
    """Say what pairs change on top of copies, moves or more cases.

    The same arm without pairs must be done.
    """
    done = {s.arm.name: s.arm for s in scores if s.n}
    sentences = []
    for s in scores:
        without = s.arm.name.removesuffix(f"+{s.arm.generator}+{s.arm.n_synthetic}")
        is_combination = bool(s.arm.generator) and without != s.arm.name
        if not is_combination or without not in done or s.versus != REFERENCE:
            continue
        dice = dice_of(collected, data, s.arm.name)
        difference = subtract(dice, dice_of(collected, data, without))
        if difference.empty:
            continue
        change = estimate_mean(to_blocks(difference))
        unclear = ", which shows no difference" if change.low <= 0 <= change.high else ""
        sentences.append(
            f"{arm_label(s.arm)} against {arm_label(done[without])} alone:"
            f" {format_estimate(change, '+')}, better for"
            f" {count_above(difference)} of {len(mean_by_seed(difference))} seeds{unclear}"
        )
    return sentences


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} arms"
