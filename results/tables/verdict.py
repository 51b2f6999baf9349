"""The verdict: a sentence or two per data set on whether pairs help, which ones, and by how much.

The arm that looks best flatters itself: it was chosen by the scores that it is then praised for. So
    the choice is made
on half of the seeds and half of the cases, and the gain is estimated on the other seeds and the
other cases; then the other way about, and the gain is the mean of both. Only arms that add
synthetic pairs to the real ones, and nothing else, are chosen among: what an arm with copies or
    moves gains, it may gain by these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import REFERENCE, arm_label
from hvae_hpc.results.statistics import Estimate, bootstrap_mean, holm, paired_p
from hvae_hpc.results.tables.arms import LEVEL, ArmScores, DiceTable, dice_of, subtract, to_blocks
from hvae_hpc.results.tables.dice import NOTHING

MOST_NAMED = 3
FEWEST_SEEDS = 4
"""Of fewer, halves are one seed each, and the interval covers the truth in two cases of three at most."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the runs of one data set say.

    Attributes:
        best: the arm with the highest mean gain over the reference; "" where none is done.
        gain: of the arms that halves of the data chose, on the other halves; None with too few
            seeds or cases.
        chosen: these arms, one per half.
        helps: the best arm is above the reference, beyond chance (Holm over all arms).
        sentence: all of it for people.
    """

    data: str
    best: str
    gain: Estimate | None
    chosen: tuple[str, ...]
    helps: bool
    sentence: str


def judge(collected: Collected, scores: Sequence[ArmScores]) -> list[Verdict]:
    """Return the verdict on every data set, given the scores of all arms."""
    names = dict.fromkeys(of_arm.data for of_arm in scores)
    return [
        _judge(collected, data, [of_arm for of_arm in scores if of_arm.data == data])
        for data in names
    ]


def _judge(collected: Collected, data: str, scores: Sequence[ArmScores]) -> Verdict:
    plain = [
        s for s in scores if _only_adds_pairs(s.arm) and s.versus == REFERENCE and s.difference
    ]
    # An arm with one lucky seed is not compared with arms that have all of theirs.
    most = max((s.paired for s in plain), default=0)
    candidates = {s.arm.name: s for s in plain if s.paired == most}
    if not candidates:
        said = f"{data}: no arm with synthetic pairs can be compared with the reference yet."
        return Verdict(data=data, best="", gain=None, chosen=(), helps=False, sentence=said)
    best = max(candidates.values(), key=_mean_gain)
    reference = dice_of(collected, data, REFERENCE)
    gain, chosen = cross_estimate(
        {n: subtract(dice_of(collected, data, n), reference) for n in candidates}
    )
    parts = [
        f"{data}: {_gain_said(best, gain, chosen, candidates)}",
        _chance_said(best, gain),
        _standard_said(collected, data, scores, list(candidates.values())),
        *_on_top_said(collected, data, scores),
    ]
    return Verdict(
        data=data,
        best=best.arm.name,
        gain=gain,
        chosen=chosen,
        helps=best.p is not None and best.p < LEVEL and _mean_gain(best) > 0,
        sentence="; ".join(part for part in parts if part) + ".",
    )


def _only_adds_pairs(arm: ArmConfig) -> bool:
    others = (
        arm.n_standard or arm.n_copies or arm.n_cases or arm.moves or arm.alone or arm.first_share
    )
    return bool(arm.generator) and not (others or arm.shuffled)


def _mean_gain(scores: ArmScores) -> float:
    return scores.difference.mean if scores.difference else -1.0


def cross_estimate(tables: Mapping[str, DiceTable]) -> tuple[Estimate | None, tuple[str, ...]]:
    """Choose the arm with the highest mean on half of seeds and cases, and estimate its mean on the others.

    A case belongs to one half in all splits.

    Args:
        tables: each arm's differences to the reference.

    Returns:
        The mean of both ways with its interval, and what each half chose; None and nothing with
        fewer than four seeds that all arms have, or two cases.
    """
    common = sorted(set.intersection(*(set(table) for table in tables.values())))
    seeds = sorted({seed for _, seed in common})
    cases = sorted({case for table in tables.values() for key in common for case in table[key]})
    if len(seeds) < FEWEST_SEEDS or len(cases) < 2:
        return None, ()

    def part(table: DiceTable, of_seeds: set[int], of_cases: set[str]) -> DiceTable:
        rows = {key: table[key] for key in common if key[1] in of_seeds}
        return {
            key: {c: value for c, value in row.items() if c in of_cases}
            for key, row in rows.items()
        }

    blocks, chosen = [], []
    for half in (0, 1):
        mine, others = (
            {arm: part(table, set(seeds[h::2]), set(cases[h::2])) for arm, table in tables.items()}
            for h in (half, 1 - half)
        )
        means = {arm: _mean(table) for arm, table in mine.items()}
        chosen.append(max(means, key=means.__getitem__))
        blocks += [block for block in to_blocks(others[chosen[-1]]) if block.scores.size]
    return bootstrap_mean(blocks), tuple(chosen)


def _mean(table: DiceTable) -> float:
    return float(np.mean([value for row in table.values() for value in row.values()]))


def _gain_said(
    best: ArmScores,
    gain: Estimate | None,
    chosen: Sequence[str],
    candidates: Mapping[str, ArmScores],
) -> str:
    name = arm_label(best.arm)
    if gain is None:
        leads = "looks best" if _mean_gain(best) > 0 else "comes nearest"
        return (
            f"of the arms that add nothing but synthetic pairs {name} {leads}: {shown_gain(best)} Dice against the "
            "reference, a flattering number since the same runs chose the arm (they are too few to choose by some and "
            "judge by others)"
        )
    interval = f"[{gain.low:+.3f}, {gain.high:+.3f}] against the reference"
    if set(chosen) == {best.arm.name}:
        return f"{name} {'raises' if gain.mean >= 0 else 'lowers'} Dice by {abs(gain.mean):.3f} {interval}"
    halves = " and ".join(dict.fromkeys(arm_label(candidates[arm].arm) for arm in chosen))
    return (
        f"{name} looks best; what halves of the data choose ({halves}) changes Dice by {gain.mean:+.3f} {interval} on "
        "the other halves, so take these arms as alike"
    )


def _chance_said(best: ArmScores, gain: Estimate | None) -> str:
    if best.p is None:
        return f"{best.paired} seeds are too few for a test, so take it as a hint"
    if best.p >= LEVEL:
        return f"not beyond chance (p = {best.p:.2g})"
    hidden = gain is not None and gain.low <= 0 <= gain.high
    return (
        "beyond chance"
        + " by the test over all seeds and cases, though these halves alone do not show it" * hidden
    )


def shown_gain(scores: ArmScores) -> str:
    """Return an arm's mean gain over its reference with its interval."""
    gain = scores.difference
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain else NOTHING


def _largest_standard(scores: Sequence[ArmScores]) -> ArmScores | None:
    standard = [
        s
        for s in scores
        if s.arm.n_standard and not s.arm.generator and s.versus == REFERENCE and s.n
    ]
    return max(standard, key=lambda s: s.arm.n_standard, default=None)


def _standard_said(
    collected: Collected, data: str, scores: Sequence[ArmScores], candidates: Sequence[ArmScores]
) -> str:
    """Say which arms differ from the largest standard augmentation, where there is one and enough seeds."""
    largest = _largest_standard(scores)
    if not largest:
        return ""
    with_it = dice_of(collected, data, largest.arm.name)
    tables = {
        s.arm.name: subtract(dice_of(collected, data, s.arm.name), with_it) for s in candidates
    }
    tested = [s for s in candidates if 2 / 2 ** len(tables[s.arm.name]) < LEVEL]
    if not tested:
        return (
            f"{arm_label(largest.arm)} alone gives {shown_gain(largest)}"
            if largest.difference
            else ""
        )
    adjusted = holm([paired_p(to_blocks(tables[s.arm.name])) for s in tested])
    differ = [s for s, p in zip(tested, adjusted, strict=True) if p < LEVEL]
    above = [arm_label(s.arm) for s in differ if _mean(tables[s.arm.name]) > 0]
    below = [arm_label(s.arm) for s in differ if _mean(tables[s.arm.name]) < 0]
    than = arm_label(largest.arm)
    if not above and not below:
        return f"no arm with synthetic pairs differs from {than} beyond chance"
    said = f"better than {than}: {_listed(above)}" if above else f"none is better than {than}"
    return said + (f"; worse: {_listed(below)}" if below else "")


def _on_top_said(collected: Collected, data: str, scores: Sequence[ArmScores]) -> list[str]:
    """Say what pairs change on top of copies or moves, for each arm that has both and a counterpart without pairs."""
    there = {s.arm.name for s in scores if s.n}
    said = []
    for s in scores:
        base = s.arm.name.removesuffix(f"+{s.arm.generator}+{s.arm.n_synthetic}")
        if not s.arm.generator or base == s.arm.name or base not in there or s.versus != REFERENCE:
            continue
        table = subtract(dice_of(collected, data, s.arm.name), dice_of(collected, data, base))
        if not table:
            continue
        change = bootstrap_mean(to_blocks(table))
        better = sum(_mean({key: row}) > 0 for key, row in table.items())
        without = replace(s.arm, name=base, generator="", n_synthetic=0)
        shown = "" if change.low > 0 or change.high < 0 else ", which shows no difference"
        said.append(
            f"{arm_label(s.arm)} against {arm_label(without)} alone: {change.mean:+.3f} [{change.low:+.3f}, "
            f"{change.high:+.3f}], better for {better} of {len(table)} seeds{shown}"
        )
    return said


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} arms"
