"""The table of arms: how much better or worse than the reference each is, with an interval, and not by Dice alone."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hvae_hpc.arms import ArmConfig
from hvae_hpc.plan import Plan
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import REFERENCE, arm_label, ordered_arms
from hvae_hpc.results.statistics import Estimate, bootstrap_mean, effect_size, holm, paired_p
from hvae_hpc.results.tables import NOTHING, Cell, Table, remarks
from hvae_hpc.stages import SegmentConfig

TIDY_ARMS = (
    *("data", "arm", "n", "n_expected", "dice", "dice_low", "dice_high"),
    *("versus", "difference", "difference_low", "difference_high", "better", "paired", "p_holm", "effect_size"),
    *("hausdorff_95", "unit", "precision", "recall"),
)
LEVEL = 0.05
FEW_SEEDS = 6
"""Below it an exact signed test cannot reach 5 %."""


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """What the done runs of one arm on one data set say.

    Attributes:
        arm: which.
        n, n_expected: runs done and planned.
        dice: None without runs; so the following.
        versus: name of the arm that it is compared with; "" for a reference.
        difference: mean Dice less that arm's, over runs of the same split and seed.
        better, paired: in how many of such pairs it is above, and how many there are.
        p: of no difference (:func:`paired_p`), adjusted by Holm for all arms of the data set that are compared; None
            without a pair.
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
        of_data = [_score(plan, collected, data, arm, expected[data, arm.name]) for arm in arms]
        adjusted = iter(holm([of_arm.p for of_arm in of_data if of_arm.p is not None]))
        scores += [of_arm if of_arm.p is None else replace(of_arm, p=next(adjusted)) for of_arm in of_data]
    return scores


def supported_best(scores: Sequence[ArmScores]) -> dict[str, str]:
    """Return each data set's arm of the highest mean Dice, where its gain over the reference is beyond chance."""
    best: dict[str, ArmScores] = {}
    for of_arm in scores:
        if of_arm.dice and (of_arm.data not in best or of_arm.dice.mean > _mean(best[of_arm.data])):
            best[of_arm.data] = of_arm
    return {data: s.arm.name for data, s in best.items() if s.versus and s.p is not None and s.p < LEVEL}


def _mean(scores: ArmScores) -> float:
    return scores.dice.mean if scores.dice else -1.0


def build_arms(plan: Plan, collected: Collected, scores: Sequence[ArmScores]) -> Table | None:
    """Return each arm's scores and its paired difference to the reference; None for a plan without segment runs."""
    if not scores:
        return None
    best = supported_best(scores)
    return Table(
        title=f"Arms ({plan.sweep}): segmentation of the test cases",
        columns=("data", "arm", "runs", "Dice", "against the reference", "better", "p", "HD95", "precision", "recall"),
        rows=tuple(map(_cells, scores)),
        notes=(_caption(plan), *remarks(plan, collected)),
        tidy_columns=TIDY_ARMS,
        tidy_rows=tuple(map(_tidy, scores)),
        bold=frozenset((i, 3) for i, s in enumerate(scores) if best.get(s.data) == s.arm.name),
    )


def reference_of(plan: Plan, data: str, arm: ArmConfig) -> str:
    """Return the arm that an arm is compared with: the reference of the same budget where there is one."""
    names = {config.arm.name for config in plan.configs(SegmentConfig) if config.data == data}
    _, at, budget = arm.name.partition("@")
    return REFERENCE + at + budget if REFERENCE + at + budget in names else REFERENCE


def _score(plan: Plan, collected: Collected, data: str, arm: ArmConfig, n_expected: int) -> ArmScores:
    versus = reference_of(plan, data, arm)
    rows, other = (rows_of(collected, data, name) for name in (arm.name, versus))
    pairs = [] if versus == arm.name else pair(rows, other)
    dice = dict(zip(collected.segment["run_id"], collected.segment["dice"], strict=True))
    return ArmScores(
        data=data,
        arm=arm,
        n=len(rows),
        n_expected=n_expected,
        dice=_estimate(collected, [(split, run_id, "") for split, run_id, _ in pair(rows, rows)]),
        versus="" if versus == arm.name else versus,
        difference=_estimate(collected, pairs),
        p=paired_p(blocks) if (blocks := differences(collected, pairs)) else None,
        effect=effect_size(blocks) if blocks else None,
        better=sum(dice[own] > dice[against] for _, own, against in pairs),
        paired=len(pairs),
        others={name: float(rows[name].mean()) for name in ("hausdorff_95", "precision", "recall") if len(rows)},
        unit=str(rows["hausdorff_95_unit"].iloc[0]) if len(rows) else "",
    )


def rows_of(collected: Collected, data: str, arm: str) -> pd.DataFrame:
    """Return the rows of an arm's done runs."""
    segment = collected.segment
    return segment[(segment["data"] == data) & (segment["arm"] == arm)]


def pair(rows: pd.DataFrame, others: pd.DataFrame) -> list[tuple[int, str, str]]:
    """Return split, run id, and the id of the other arm's run of the same split and seed, where it is done.

    An arm has a run per generator seed, the reference one for all of them.
    """
    keys = ["split_seed", "seed", "generator_seed"]
    own = sorted(zip(*(rows[key] for key in keys), rows["run_id"], strict=True))
    exact = dict(zip(zip(*(others[key] for key in keys), strict=True), others["run_id"], strict=True))
    found = [(split, run_id, exact.get((split, s, g), exact.get((split, s, 0), ""))) for split, s, g, run_id in own]
    return [row for row in found if row[2]]


def differences(collected: Collected, pairs: list[tuple[int, str, str]]) -> list[NDArray[np.float64]]:
    """Return each split's Dice (runs, cases) less that of the other run of each pair, none where it is ""."""
    blocks: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    for split, own, other in pairs:
        dice = collected.case_dice[own]
        minus = collected.case_dice[other] if other else dict.fromkeys(dice, 0.0)
        blocks[split].append(np.array([dice[case] - minus[case] for case in sorted(dice)]))
    return [np.stack(block) for block in blocks.values()]


def _estimate(collected: Collected, pairs: list[tuple[int, str, str]]) -> Estimate | None:
    return bootstrap_mean(differences(collected, pairs)) if pairs else None


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
    compared = (scores.better, scores.paired, scores.p, scores.effect) if scores.paired else (None,) * 4
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
    seeds = len({config.seed for config in plan.configs(SegmentConfig)})
    few = (
        f" With {seeds} seeds they are rather narrow, and no p is below {2 / 2**seeds:.2g}."
        if seeds < FEW_SEEDS
        else ""
    )
    return (
        "Hard Dice per case, mean over runs and test cases; in brackets 95 % intervals of a two-way bootstrap over "
        f"runs and cases.{few} Against the reference: the mean difference of runs with the same seed, which have the "
        "same initial weights and order of the real pairs; better: in how many of these the arm is above; p: of no "
        "difference, the larger of two sign-flip tests, over runs and over cases, adjusted by Holm for all arms of the "
        "data set; bold: the highest, where that p is below 0.05. HD95: 95 % Hausdorff distance of the edges. Where "
        "both masks are empty Dice, precision and recall are 1 and the distance 0; where just one is, they are 0 and "
        "the distance is the image's diagonal."
    )
