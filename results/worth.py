"""What synthetic pairs are worth: the number of real cases that would give the same Dice."""

import re
from collections.abc import Sequence

import numpy as np

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.results.labels import REFERENCE, arm_label
from hvae_hpc.results.scores import ArmScores, subtract, to_blocks
from hvae_hpc.results.statistics import estimate_mean
from hvae_hpc.results.tables.table import Table, format_estimate
from hvae_hpc.runs.plan import Plan

COLUMNS = ("data", "trained on", "real cases", "gain in Dice", "worth, real cases")
NOTE = """
Gain: mean Dice less that of the same training without synthetic pairs, with its 95 % interval.
Worth: so many real cases in all would give this Dice without synthetic pairs. It is read off
the arms with other numbers of real cases (straight lines over the logarithm of the number), for
the gain and both ends of its interval. The uncertainty of these arms is left out.
"""


def build_worth(plan: Plan, scores: Sequence[ArmScores]) -> Table | None:
    """Return how many real cases the pairs of each arm are worth.

    Returns:
        None where no arm stands beside arms with several numbers of real cases.
    """
    n_train = {config.data: config.split.train for config in plan.configs(SegmentConfig)}
    rows = []
    for s in scores:
        name = s.arm.name.replace(f"{s.arm.generator}+{s.arm.n_synthetic}", "")
        curve = {
            c.arm.n_cases or n_train[c.data]: c
            for c in scores
            if c.data == s.data and c.dice and not c.arm.generator
            if _name_curve(c.arm.name) == _name_curve(name)
        }
        size = s.arm.n_cases or n_train[s.data]
        if not s.arm.generator or not s.dice or len(curve) < 2 or size not in curve:
            continue
        if blocks := to_blocks(subtract(s.by_case, curve[size].by_case)):
            gain = estimate_mean(blocks)
            points = {n: curve[n].mean_dice for n in sorted(curve)}
            ends = (points[size] + end for end in (gain.mean, gain.low, gain.high))
            mean, low, high = (_look_up(points, end) for end in ends)
            cells = str(size), format_estimate(gain, "+"), f"{mean} [{low}, {high}]"
            rows.append((s.data, arm_label(s.arm), *cells))
    if not rows:
        return None
    return Table(
        title=f"Worth ({plan.sweep}): real cases that synthetic pairs replace",
        columns=COLUMNS,
        rows=rows,
        notes=[NOTE],
    )


def _name_curve(arm: str) -> str:
    """Return what an arm is called without its number of real cases."""
    return re.sub(r"\+?real-\d+", "", arm).strip("+") or REFERENCE


def _look_up(points: dict[int, float], dice: float) -> str:
    """Return how many cases give this Dice, given the Dice by number of cases, in order."""
    sizes, means = list(points), np.maximum.accumulate(list(points.values()))
    if not means[0] <= dice <= means[-1]:
        return f"fewer than {sizes[0]}" if dice < means[0] else f"more than {sizes[-1]}"
    return f"{np.exp(np.interp(dice, means, np.log(sizes))):.0f}"
