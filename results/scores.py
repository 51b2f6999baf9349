"""Every arm's Dice against its reference: means, intervals and tests for tables and figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.results.collect import MORE_MEASURES, Collected, rows_of
from hvae_hpc.results.labels import REFERENCE, ordered_arms
from hvae_hpc.results.statistics import Block, Estimate, bootstrap_mean, effect_size, holm, paired_p
from hvae_hpc.runs.plan import Plan

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """What the done runs of one arm on one data set say.

    Attributes:
        arm: which.
        n, n_expected: runs done and planned.
        seeds: different U-Net seeds of the done runs, the most on one split.
        dice: mean over runs and cases; None without runs; so the following.
        versus: name of the arm that it is compared with; "" for a reference.
        difference: mean Dice less that arm's, over the splits and U-Net seeds that both have.
        better, paired: for how many of these it is above, and how many there are.
        p: of no difference (:func:`paired_p`), adjusted by Holm for all arms of the data set that
            are tested; None where there are too few seeds for any test.
        effect: Cohen's d over cases.
        others: means of the other measures of masks, hausdorff_95 in ``unit``; NaN for one that
            not every run has.
    """

    data: str
    arm: ArmConfig
    n: int
    n_expected: int
    seeds: int
    dice: Estimate | None
    versus: str
    difference: Estimate | None
    better: int
    paired: int
    p: float | None
    effect: float | None
    others: dict[str, float]
    unit: str

    @property
    def mean_dice(self) -> float:
        """Mean Dice; minus infinity without runs."""
        return self.dice.mean if self.dice else -np.inf

    @property
    def mean_gain(self) -> float:
        """Mean difference to the reference; minus infinity where there is none."""
        return self.difference.mean if self.difference else -np.inf

    @property
    def is_significant(self) -> bool:
        """Whether the difference was tested and is beyond chance."""
        return self.p is not None and self.p < LEVEL


def score_arms(plan: Plan, collected: Collected) -> list[ArmScores]:
    """Score every arm of every data set, in the tables' order."""
    expected = Counter((config.data, config.arm.name) for config in plan.configs(SegmentConfig))
    scores: list[ArmScores] = []
    for data in plan.data:
        arms = [arm for arm in ordered_arms(plan) if expected[data, arm.name]]
        of_data = [_score(collected, data, arm, expected[data, arm.name]) for arm in arms]
        adjusted = iter(holm([s.p for s in of_data if s.p is not None]))
        scores += [s if s.p is None else replace(s, p=next(adjusted)) for s in of_data]
    return scores


def supported_best(scores: Sequence[ArmScores]) -> dict[str, str]:
    """Return each data set's arm of the highest mean Dice, if its gain is beyond chance.

    Arms of another budget than the sweep's have another reference and are left out.
    """
    best = {}
    for data in dict.fromkeys(s.data for s in scores):
        done = [s for s in scores if s.data == data and "@" not in s.arm.name]
        highest = max(done, key=lambda s: s.mean_dice, default=None)
        if highest and highest.is_significant:
            best[data] = highest.arm.name
    return best


def reference_of(arm: ArmConfig) -> str:
    """Return the name of the arm that an arm is compared with: the reference of the same budget."""
    _, at, budget = arm.name.partition("@")
    return REFERENCE + at + budget


def _score(collected: Collected, data: str, arm: ArmConfig, n_expected: int) -> ArmScores:
    rows = rows_of(collected.segment, data=data, arm=arm.name)
    measures = ("hausdorff_95", "precision", "recall", *MORE_MEASURES)
    dice = dice_of(collected, data, arm.name)

    versus = reference_of(arm)
    if versus == arm.name:
        versus, difference = "", dice.iloc[:0]
    else:
        difference = subtract(dice, dice_of(collected, data, versus))
    blocks = to_blocks(difference)

    return ArmScores(
        data=data,
        arm=arm,
        n=len(rows),
        n_expected=n_expected,
        seeds=int(dice.groupby(level="split_seed").size().max()) if len(dice) else 0,
        dice=bootstrap_mean(to_blocks(dice)) if len(dice) else None,
        versus=versus,
        difference=bootstrap_mean(blocks) if blocks else None,
        better=count_above(difference),
        paired=len(difference),
        p=paired_p(blocks) if can_be_tested(difference) else None,
        effect=effect_size(blocks) if blocks else None,
        others={name: float(rows[name].mean(skipna=False)) for name in measures if len(rows)},
        unit=str(rows["hausdorff_95_unit"].iloc[0]) if len(rows) else "",
    )


def dice_of(collected: Collected, data: str, arm: str) -> pd.DataFrame:
    """Return an arm's Dice: a row per split and U-Net seed, a column per case.

    Several trainings of the arm's generator share their U-Net seeds, so a row is their mean. A case
    that a split does not test is NaN in its rows.
    """
    rows = rows_of(collected.segment, data=data, arm=arm)
    of_runs = pd.DataFrame(
        [collected.case_dice[run_id] for run_id in rows["run_id"]],
        index=pd.MultiIndex.from_frame(rows[["split_seed", "seed"]]),
    ).sort_index(axis=1)
    by_seed = of_runs.groupby(level=["split_seed", "seed"])
    means = [of_seed.to_numpy().mean(axis=0) for _, of_seed in by_seed]
    return pd.DataFrame(means, index=by_seed.size().index, columns=of_runs.columns)


def subtract(dice: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the differences for the splits and seeds that two arms have in common."""
    common = dice[dice.index.isin(other.index)]
    return common - other.reindex(common.index)


def to_blocks(dice: pd.DataFrame) -> list[Block]:
    """Return the scores of each split's runs on its own cases."""
    splits = (of_split.dropna(axis=1) for _, of_split in dice.groupby(level="split_seed"))
    return [Block(np.ascontiguousarray(rows), list(rows.columns)) for rows in splits]


def count_above(differences: pd.DataFrame) -> int:
    """Return for how many splits and seeds the mean difference is above 0."""
    return int((differences.mean(axis=1) > 0).sum())


def can_be_tested(differences: pd.DataFrame) -> bool:
    """Return whether there are seeds enough for a sign-flip test to find anything beyond chance."""
    return 2 / 2 ** len(differences) < LEVEL
