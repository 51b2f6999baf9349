"""Every arm's Dice against its reference: means, intervals and tests for tables and figures."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.frozen import frozen
from hvae_hpc.results.collect import MORE_MEASURES, Collected, rows_of
from hvae_hpc.results.labels import REFERENCE, ordered_arms
from hvae_hpc.results.statistics import (
    LEVEL,
    Block,
    Comparison,
    Summary,
    compare,
    estimate_mean,
    sign_flip_test,
    summarise,
)
from hvae_hpc.runs.plan import Plan

TRAINING = "generator_seed"
SEED = ["split_seed", "seed"]
OTHERS = ("hausdorff_95", "precision", "recall", *MORE_MEASURES)
"""Measures of masks beside Dice."""


@frozen
class ArmScores:
    """What the done runs of one arm on one data set say.

    Attributes:
        arm: which.
        n, n_expected: runs done and planned.
        run_ids: of those that are done.
        by_case: their Dice, see :func:`dice_of`.
        differences: less that of the arm of ``versus``, see :func:`subtract`; a reference has none.
        summary: of the runs' Dice; None without runs.
        dice: mean over runs and cases; None without runs.
        versus: name of the arm that it is compared with; "" for a reference.
        difference: mean Dice less that arm's, over the splits and U-Net seeds that both have, with
            an interval that allows for all arms with that reference (:func:`compare`).
        better, paired: for how many of these it is above, and how many there are.
        p_seeds: of a sign-flip test over these alone, for this arm alone; a check.
        others: means of the other measures of masks, hausdorff_95 in ``unit``; NaN for one that
            not every run has.
    """

    data: str
    arm: ArmConfig
    n: int
    n_expected: int
    run_ids: tuple[str, ...]
    by_case: pd.DataFrame
    differences: pd.DataFrame
    summary: Summary | None
    dice: Comparison | None
    versus: str
    difference: Comparison | None
    better: int
    paired: int
    p_seeds: float | None
    others: dict[str, float]
    unit: str

    @property
    def mean_dice(self) -> float:
        """Mean Dice; minus infinity without runs."""
        return self.dice.mean if self.dice else -np.inf

    @property
    def p(self) -> float | None:
        """Of no difference, as the interval says it; None where a single seed tells nothing."""
        if self.difference and "seed" not in self.difference.not_covered:
            return self.difference.p
        return None


def score_arms(plan: Plan, collected: Collected) -> list[ArmScores]:
    """Score every arm of every data set, in the tables' order."""
    expected = Counter((config.data, config.arm.name) for config in plan.configs(SegmentConfig))
    scores: list[ArmScores] = []
    for data in plan.data:
        arms = [arm for arm in ordered_arms(plan) if expected[data, arm.name]]
        differences = subtract_references(plan, collected, data)
        compared: dict[str, Comparison] = {}
        for reference in dict.fromkeys(map(reference_of, arms)):
            family = [arm.name for arm in arms if reference_of(arm) == reference]
            blocks = {name: to_blocks(differences[name]) for name in family}
            compared |= compare({name: of_arm for name, of_arm in blocks.items() if of_arm})

        for arm in arms:
            runs, rows = rows_of(collected.segment, data=data, arm=arm.name), differences[arm.name]
            dice, versus = dice_of(collected, data, arm.name), reference_of(arm)
            by_seed = rows.mean(axis=1).groupby(level=SEED).mean().to_numpy()
            scores.append(
                ArmScores(
                    data=data,
                    arm=arm,
                    n=len(runs),
                    n_expected=expected[data, arm.name],
                    run_ids=tuple(runs["run_id"]),
                    by_case=dice,
                    differences=rows,
                    summary=summarise(runs["dice"]),
                    dice=estimate_mean(to_blocks(dice)) if len(dice) else None,
                    versus="" if versus == arm.name else versus,
                    difference=compared.get(arm.name),
                    better=int((by_seed > 0).sum()),
                    paired=len(by_seed),
                    p_seeds=sign_flip_test(by_seed) if len(rows) else None,
                    others={
                        name: float(runs[name].mean(skipna=False)) for name in OTHERS if len(runs)
                    },
                    unit=next(iter(runs["hausdorff_95_unit"]), ""),
                )
            )
    return scores


def supported_best(scores: Sequence[ArmScores]) -> dict[str, str]:
    """Return each data set's arm of the highest mean Dice, if its gain is beyond chance.

    Arms of another budget than the sweep's have another reference and are left out.
    """
    best = {}
    for data in dict.fromkeys(s.data for s in scores):
        done = [s for s in scores if s.data == data and "@" not in s.arm.name]
        highest = max(done, key=lambda s: s.mean_dice, default=None)
        if highest and highest.p is not None and highest.p < LEVEL:
            best[data] = highest.arm.name
    return best


def reference_of(arm: ArmConfig) -> str:
    """Return the name of the arm that an arm is compared with: the reference of the same budget."""
    _, at, budget = arm.name.partition("@")
    return REFERENCE + at + budget


def subtract_references(plan: Plan, collected: Collected, data: str) -> dict[str, pd.DataFrame]:
    """Return each arm's Dice less its reference's, by name; no rows for a reference."""
    differences = {}
    for arm in ordered_arms(plan):
        dice, versus = dice_of(collected, data, arm.name), reference_of(arm)
        reference = dice_of(collected, data, versus)
        differences[arm.name] = dice.iloc[:0] if versus == arm.name else subtract(dice, reference)
    return differences


def dice_of(collected: Collected, data: str, arm: str) -> pd.DataFrame:
    """Return an arm's Dice: a row per split, generator training and U-Net seed, a column per case.

    An arm without a generator has no level for its training. A case that a split does not test is
    NaN in its rows.
    """
    rows = rows_of(collected.segment, data=data, arm=arm)
    levels = ["split_seed", TRAINING, "seed"] if rows["generator"].any() else SEED
    of_runs = [collected.results[run_id].case_dice for run_id in rows["run_id"]]
    index = pd.MultiIndex.from_frame(rows[levels])
    return pd.DataFrame(of_runs, index=index).sort_index().sort_index(axis=1)


def subtract(dice: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the differences of runs whose split and seed, and training, the other arm has too.

    An arm without a generator is subtracted from every training of the other's.
    """
    if TRAINING in other.index.names and TRAINING not in dice.index.names:
        return -subtract(other, dice)
    keys = pd.MultiIndex.from_frame(dice.index.to_frame()[list(other.index.names)])
    known = keys.isin(other.index)
    return dice[known] - other.reindex(index=keys[known], columns=dice.columns).to_numpy()


def to_blocks(dice: pd.DataFrame) -> list[Block]:
    """Return the scores of each split's runs on its own cases.

    Seeds count that all trainings of a split have: in a sweep that is not done some have fewer.
    """
    has_trainings = TRAINING in dice.index.names
    blocks = []
    for split, of_split in dice.groupby(level="split_seed"):
        tested = of_split.dropna(axis=1).droplevel("split_seed")
        trainings = [tested]
        if has_trainings:
            trainings = [rows.droplevel(TRAINING) for _, rows in tested.groupby(level=TRAINING)]
        seeds = sorted(set.intersection(*(set(rows.index) for rows in trainings)))
        scores = np.stack([rows.loc[seeds].to_numpy() for rows in trainings])
        if seeds:
            named = [(split, seed) for seed in seeds]
            blocks.append(Block(scores, list(tested.columns), has_trainings, named))
    return blocks
