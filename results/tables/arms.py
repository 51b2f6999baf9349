"""The table of arms: how much better or worse than the reference each is, with an interval, and not by Dice alone."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import REFERENCE, arm_label, ordered_arms
from hvae_hpc.results.statistics import Block, Estimate, bootstrap_mean, effect_size, holm, paired_p
from hvae_hpc.results.tables.dice import NOTHING, Cell, Table, remarks
from hvae_hpc.runs.plan import Plan

TIDY_ARMS = (
    *("data", "arm", "n", "n_expected", "dice", "dice_low", "dice_high"),
    *(
        "versus",
        "difference",
        "difference_low",
        "difference_high",
        "better",
        "paired",
        "p_holm",
        "effect_size",
    ),
    *("hausdorff_95", "unit", "precision", "recall"),
)
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """What the done runs of one arm on one data set say.

    Attributes:
        arm: which.
        n, n_expected: runs done and planned.
        dice: None without runs; so the following.
        versus: name of the arm that it is compared with; "" for a reference.
        difference: mean Dice less that arm's, over the splits and U-Net seeds that both have.
        better, paired: for how many of these it is above, and how many there are.
        p: of no difference (:func:`paired_p`), adjusted by Holm for all arms of the data set that
            are tested; None where there are too few seeds for any test.
        effect: Cohen's d over cases.
        others: means of hausdorff_95 (in ``unit``), precision and recall.
    """

    data: str
    arm: ArmConfig
    n: int
    n_expected: int
    dice: Estimate | None
    versus: str
    difference: Estimate | None
    better: int
    paired: int
    p: float | None
    effect: float | None
    others: dict[str, float]
    unit: str


def score_arms(plan: Plan, collected: Collected) -> list[ArmScores]:
    """Score every arm of every data set, in the tables' order."""
    expected = Counter((config.data, config.arm.name) for config in plan.configs(SegmentConfig))
    scores: list[ArmScores] = []
    for data in plan.data:
        arms = [arm for arm in ordered_arms(plan) if expected[data, arm.name]]
        of_data = [_score(collected, data, arm, expected[data, arm.name]) for arm in arms]
        adjusted = iter(holm([of_arm.p for of_arm in of_data if of_arm.p is not None]))
        scores += [
            of_arm if of_arm.p is None else replace(of_arm, p=next(adjusted)) for of_arm in of_data
        ]
    return scores


def supported_best(scores: Sequence[ArmScores]) -> dict[str, str]:
    """Return each data set's arm of the highest mean Dice, where its gain over the reference is beyond chance.

    Arms of another budget than the sweep's have another reference, and stand apart.
    """
    best: dict[str, ArmScores] = {}
    for of_arm in scores:
        if "@" in of_arm.arm.name or not of_arm.dice:
            continue
        if of_arm.data not in best or of_arm.dice.mean > _mean(best[of_arm.data]):
            best[of_arm.data] = of_arm
    return {
        data: s.arm.name
        for data, s in best.items()
        if s.difference and s.p is not None and s.p < LEVEL
    }


def _mean(scores: ArmScores) -> float:
    return scores.dice.mean if scores.dice else -1.0


def build_arms(plan: Plan, collected: Collected, scores: Sequence[ArmScores]) -> Table | None:
    """Return each arm's scores and its paired difference to the reference; None for a plan without segment runs."""
    if not scores:
        return None
    best = supported_best(scores)
    return Table(
        title=f"Arms ({plan.sweep}): segmentation of the test cases",
        columns=(
            "data",
            "arm",
            "runs",
            "Dice",
            "against the reference",
            "better",
            "p",
            "HD95",
            "precision",
            "recall",
        ),
        rows=tuple(map(_cells, scores)),
        notes=(_caption(plan), *remarks(plan, collected)),
        tidy_columns=TIDY_ARMS,
        tidy_rows=tuple(map(_tidy, scores)),
        bold=frozenset((i, 3) for i, s in enumerate(scores) if best.get(s.data) == s.arm.name),
    )


def reference_of(arm: ArmConfig) -> str:
    """Return the name of the arm that an arm is compared with: the reference of the same budget."""
    _, at, budget = arm.name.partition("@")
    return REFERENCE + at + budget


def _score(collected: Collected, data: str, arm: ArmConfig, n_expected: int) -> ArmScores:
    versus = reference_of(arm)
    rows = collected.segment[
        (collected.segment["data"] == data) & (collected.segment["arm"] == arm.name)
    ]
    own = dice_of(collected, data, arm.name)
    less = {} if versus == arm.name else subtract(own, dice_of(collected, data, versus))
    blocks = to_blocks(less)
    tested = blocks and 2 / 2 ** len(less) < LEVEL
    return ArmScores(
        data=data,
        arm=arm,
        n=len(rows),
        n_expected=n_expected,
        dice=bootstrap_mean(to_blocks(own)) if own else None,
        versus="" if versus == arm.name else versus,
        difference=bootstrap_mean(blocks) if blocks else None,
        better=sum(sum(of_cases.values()) > 0 for of_cases in less.values()),
        paired=len(less),
        p=paired_p(blocks) if tested else None,
        effect=effect_size(blocks) if blocks else None,
        others={
            name: float(rows[name].mean())
            for name in ("hausdorff_95", "precision", "recall")
            if len(rows)
        },
        unit=str(rows["hausdorff_95_unit"].iloc[0]) if len(rows) else "",
    )


DiceTable = dict[tuple[int, int], dict[str, float]]
"""(split, U-Net seed) to case to Dice, or to a difference in Dice."""


def dice_of(collected: Collected, data: str, arm: str) -> DiceTable:
    """Return an arm's Dice; of several trainings of its generator the mean, since they share their U-Net seeds."""
    rows = collected.segment[
        (collected.segment["data"] == data) & (collected.segment["arm"] == arm)
    ]
    runs: dict[tuple[int, int], list[Mapping[str, float]]] = defaultdict(list)
    for split, seed, run_id in zip(rows["split_seed"], rows["seed"], rows["run_id"], strict=True):
        runs[int(split), int(seed)].append(collected.case_dice[run_id])
    return {key: _mean_of(of_key) for key, of_key in sorted(runs.items())}


def _mean_of(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    cases = sorted(runs[0])
    if len(runs) == 1:
        return {case: runs[0][case] for case in cases}
    return dict(
        zip(
            cases,
            np.mean([[run[case] for case in cases] for run in runs], axis=0).tolist(),
            strict=True,
        )
    )


def subtract(table: DiceTable, other: DiceTable) -> DiceTable:
    """Return the differences where both have a run of the same split and seed."""
    common = [key for key in table if key in other]
    return {
        key: {case: dice - other[key][case] for case, dice in table[key].items()} for key in common
    }


def to_blocks(table: DiceTable) -> list[Block]:
    """Return the scores of each split's runs on its cases."""
    by_split: dict[int, list[dict[str, float]]] = defaultdict(list)
    for (split, _), of_cases in table.items():
        by_split[split].append(of_cases)
    cases = {split: sorted(rows[0]) for split, rows in by_split.items()}
    return [
        Block(np.array([[row[case] for case in cases[s]] for row in rows]), cases[s])
        for s, rows in by_split.items()
    ]


def _cells(scores: ArmScores) -> tuple[str, ...]:
    n = str(scores.n) if scores.n == scores.n_expected else f"{scores.n}/{scores.n_expected}"
    others = scores.others
    return (
        scores.data,
        arm_label(scores.arm),
        n,
        _shown(scores.dice, ""),
        _shown(scores.difference, "+") if scores.versus else "",
        f"{scores.better} of {scores.paired}" if scores.paired else "",
        shown_p(scores.p) if scores.versus else "",
        f"{others['hausdorff_95']:.1f} {scores.unit}" if others else NOTHING,
        f"{others['precision']:.3f}" if others else NOTHING,
        f"{others['recall']:.3f}" if others else NOTHING,
    )


def _tidy(scores: ArmScores) -> tuple[Cell, ...]:
    compared = (
        (scores.better, scores.paired, scores.p, scores.effect) if scores.paired else (None,) * 4
    )
    return (
        *(scores.data, scores.arm.name, scores.n, scores.n_expected, *_numbers(scores.dice)),
        *(scores.versus or None, *_numbers(scores.difference), *compared),
        *(scores.others.get("hausdorff_95"), scores.unit or None),
        *(scores.others.get("precision"), scores.others.get("recall")),
    )


def shown_p(p: float | None) -> str:
    """Return a p-value for people."""
    return NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _shown(estimate: Estimate | None, sign: str) -> str:
    if estimate is None:
        return NOTHING
    return f"{estimate.mean:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def _numbers(estimate: Estimate | None) -> tuple[Cell, Cell, Cell]:
    return (estimate.mean, estimate.low, estimate.high) if estimate else (None, None, None)


def _caption(plan: Plan) -> str:
    configs = plan.configs(SegmentConfig)
    seeds = len({(config.split.seed, config.seed) for config in configs})
    splits, generators = ({c.split.seed for c in configs}, {c.arm.generator_seed for c in configs})
    several = ""
    if len(splits) > 1 or len(generators) > 1:
        several = (
            f" Several trainings of a generator are averaged, {len(splits)} split(s) pooled: intervals and p are about "
            "these trainings and splits, not about others."
        )
    few = ""
    if 2 / 2**seeds >= LEVEL:
        few = f" With {seeds} seeds there is no p (none could be below {2 / 2**seeds:.2g}), and intervals are too narrow."
    tested = (
        " p: of no difference, the largest of two sign-flip tests, over seeds and over cases, and a t-test with the "
        "variance of both, adjusted by Holm for all arms of the data set; bold: the highest, where it is below 0.05."
    )
    budget = (
        " Arms named by a budget (equal epochs, equal steps) are compared with the reference of that budget: at equal "
        "epochs it has far fewer steps, so that differences to it are not those to the reference above."
    ) * any("@" in config.arm.name for config in configs)
    return (
        "Hard Dice per case, mean over runs and test cases; in brackets 95 % intervals of a two-way bootstrap over "
        f"seeds and cases.{few} Against the reference: the mean difference of runs with the same seed, which have the "
        f"same initial weights and order of the real pairs.{budget} Better: for how many seeds the arm is above."
        f"{'' if few else tested} HD95: 95 % Hausdorff distance of the edges. "
        "Where both masks are empty Dice, precision and recall are 1 and the distance 0; where just one is, they are 0 "
        f"and the distance is the image's diagonal.{several}"
    )
