"""The verdict: one sentence per data set on whether pairs help, which ones, and by how much.

The arm that looks best flatters itself: it was chosen by the scores that it is then praised for. So the choice is made
on half of the seeds and half of the cases, and the gain is estimated on the other seeds and the other cases; then the
other way about, and the gain is the mean of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.results.arms_table import LEVEL, ArmScores, differences, pair, rows_of
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import REFERENCE, arm_label
from hvae_hpc.results.statistics import Estimate, bootstrap_mean, holm, paired_p

MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the runs of one data set say.

    Attributes:
        best: the arm with synthetic pairs whose mean Dice is highest; "" where none is done.
        gain: its gain over the reference, estimated on seeds and cases that did not choose it; None where there are too
            few of either.
        stable: both halves choose the same arm.
        helps: the best arm is above the reference, beyond chance (Holm over all arms).
        sentence: all of it for people.
    """

    data: str
    best: str
    gain: Estimate | None
    stable: bool
    helps: bool
    sentence: str


def judge(collected: Collected, scores: Sequence[ArmScores]) -> list[Verdict]:
    """Return the verdict on every data set, given the scores of all arms."""
    names = dict.fromkeys(of_arm.data for of_arm in scores)
    return [_judge(collected, data, [of_arm for of_arm in scores if of_arm.data == data]) for data in names]


def _judge(collected: Collected, data: str, scores: Sequence[ArmScores]) -> Verdict:
    candidates = [
        s for s in scores if s.arm.generator and s.versus == REFERENCE and s.difference and not s.arm.shuffled
    ]
    if not candidates:
        said = f"{data}: no arm with synthetic pairs can be compared with the reference yet."
        return Verdict(data=data, best="", gain=None, stable=False, helps=False, sentence=said)
    best = max(candidates, key=lambda s: s.difference.mean if s.difference else -1.0)
    name = arm_label(best.arm)
    gain, chosen = cross_estimate(_tables(collected, data, [s.arm.name for s in candidates]))
    stable = len(set(chosen)) == 1
    beyond = best.p is not None and best.p < LEVEL
    helps = beyond and best.difference is not None and best.difference.mean > 0
    parts = []
    if gain is None:
        parts.append(f"{data}: too few seeds or cases to choose an arm and to judge it by others")
    else:
        verb = "raises" if gain.mean >= 0 else "lowers"
        parts.append(
            f"{data}: {name} {verb} Dice by {abs(gain.mean):.3f} [{gain.low:+.3f}, {gain.high:+.3f}] against the "
            "reference"
        )
    parts.append("beyond chance" if beyond else "not beyond chance" + _why_not(best, scores))
    if gain is not None and not stable:
        parts.append("halves of the data choose different arms, so take it as one of several that are alike")
    parts.append(_against_standard(collected, data, scores, candidates))
    return Verdict(
        data=data,
        best=best.arm.name,
        gain=gain,
        stable=stable,
        helps=helps,
        sentence="; ".join(part for part in parts if part) + ".",
    )


def cross_estimate(tables: Sequence[NDArray[np.float64]]) -> tuple[Estimate | None, list[int]]:
    """Choose the table with the highest mean on half of rows and columns, and estimate that mean on the other half.

    Args:
        tables: differences (runs, cases) of each arm, one shape.

    Returns:
        The mean of both ways with its interval, and what each half chose; None and nothing with fewer than two runs or
        cases.
    """
    if not tables or min(tables[0].shape) < 2:
        return None, []
    blocks, chosen = [], []
    for half in (0, 1):
        chooser = [table[half::2, half::2].mean() for table in tables]
        chosen.append(int(np.argmax(chooser)))
        blocks.append(tables[chosen[-1]][1 - half :: 2, 1 - half :: 2])
    return bootstrap_mean(blocks), chosen


def _tables(collected: Collected, data: str, arms: Sequence[str]) -> list[NDArray[np.float64]]:
    """Return each arm's differences to the reference (runs, cases), of the runs that all of these arms have."""
    seeds = dict(zip(collected.segment["run_id"], collected.segment["seed"], strict=True))
    found: list[dict[tuple[int, int], NDArray[np.float64]]] = []
    for arm in arms:
        pairs = pair(rows_of(collected, data, arm), rows_of(collected, data, REFERENCE))
        by_seed: dict[tuple[int, int], list[tuple[int, str, str]]] = {}
        for one in pairs:
            by_seed.setdefault((one[0], seeds[one[1]]), []).append(one)
        # One row per split and seed: the mean over trainings of the generator.
        found.append({key: differences(collected, of_seed)[0].mean(0) for key, of_seed in by_seed.items()})
    common = sorted(set.intersection(*map(set, found)))
    if len({len(of_arm[key]) for of_arm in found for key in common}) != 1:
        return []  # no such run, or splits with other numbers of cases
    return [np.stack([of_arm[key] for key in common]) for of_arm in found]


def _why_not(best: ArmScores, scores: Sequence[ArmScores]) -> str:
    family = sum(s.p is not None for s in scores)
    least = min(1.0, family * 2 / 2**best.paired)
    if least >= LEVEL:
        return f" ({best.paired} seeds cannot show it among {family} arms: no p is below {least:.2g})"
    return f" (p = {best.p:.2g})"


def _against_standard(
    collected: Collected, data: str, scores: Sequence[ArmScores], candidates: Sequence[ArmScores]
) -> str:
    """Say which arms differ from the largest standard augmentation, where there is one."""
    standard = [s for s in scores if s.arm.n_standard and not s.arm.generator and s.versus == REFERENCE and s.n]
    if not standard:
        return ""
    largest = max(standard, key=lambda s: s.arm.n_standard)
    compared = [
        (s, blocks)
        for s in candidates
        if (
            blocks := differences(
                collected, pair(rows_of(collected, data, s.arm.name), rows_of(collected, data, largest.arm.name))
            )
        )
    ]
    adjusted = holm([paired_p(blocks) for _, blocks in compared])
    above = [arm_label(s.arm) for (s, b), p in zip(compared, adjusted, strict=True) if p < LEVEL and _mean(b) > 0]
    below = [arm_label(s.arm) for (s, b), p in zip(compared, adjusted, strict=True) if p < LEVEL and _mean(b) < 0]
    than = arm_label(largest.arm)
    if not above and not below:
        return f"no arm with synthetic pairs differs from {than} beyond chance"
    said = f"better than {than}: {_listed(above)}" if above else f"none is better than {than}"
    return said + (f"; worse: {_listed(below)}" if below else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} arms"


def _mean(blocks: Sequence[NDArray[np.float64]]) -> float:
    return float(np.mean([block.mean() for block in blocks]))
