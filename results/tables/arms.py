"""The tables of arms: what each gains over the reference, and the other measures of its masks."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.results.gain import conclude
from hvae_hpc.results.labels import arm_label
from hvae_hpc.results.scores import ArmScores, supported_best
from hvae_hpc.results.statistics import Comparison
from hvae_hpc.results.tables.table import NOTHING, Table, format_estimate
from hvae_hpc.runs.plan import Plan

MEASURES = {
    "dice_with_tumour": "with tumour",
    "dice_small": "small",
    "dice_medium": "medium",
    "dice_large": "large",
    "surface_dice_2": "NSD",
    "hausdorff_95": "HD95",
    "area_error": "area error",
    "precision": "precision",
    "recall": "recall",
}
"""Measure to the name of its column."""
MEASURES_CAPTION = """
Means over runs and test cases. With tumour: Dice of the cases that have one, where some have
none. Small, medium, large: Dice of these cases, by thirds of the tumour's true area. NSD
(normalised surface distance): share of both masks' edge pixels within 2 mm of the other's edge.
HD95: the 95th percentile of the distances from one mask's edge to the other's, of the two
directions the larger one. Both are within slices, and in px where the spacing is unknown. Area
error: difference of both areas, as a share of the true one, over cases with a tumour. Where
both masks are empty, shares are 1 and HD95 is 0. Where just one is, they are 0 and the image's
diagonal.
"""
COVERS = {
    "seed": "other U-Net seeds",
    "case": "other test cases",
    "split": "other splits",
    "training": "other trainings of the generator",
}
"""What an interval may cover, as captions call it."""


def build_arms(plan: Plan, scores: Sequence[ArmScores]) -> Table | None:
    """Return each arm's scores and its paired difference to the reference.

    Returns:
        None for a plan without segment runs.
    """
    if not scores:
        return None
    best = supported_best(scores)
    rows = [_format_scores(s, plan.smallest_effect) for s in scores]
    return Table(
        title=f"Arms ({plan.sweep}): segmentation of the test cases",
        columns=list(rows[0]),
        rows=[list(row.values()) for row in rows],
        notes=[_caption(plan, scores)],
        numbers=[_numbers_of(s) for s in scores],
        bold=[(i, 3) for i, s in enumerate(scores) if best.get(s.data) == s.arm.name],
    )


def build_measures(plan: Plan, scores: Sequence[ArmScores]) -> Table | None:
    """Return the means of every measure but Dice; None without a done segment run."""
    done = [s for s in scores if s.others]
    if not done:
        return None
    return Table(
        title=f"Measures ({plan.sweep}): the masks of the test cases",
        columns=("data", "arm", *MEASURES.values()),
        rows=[
            (s.data, arm_label(s.arm), *(_format_measure(s, name) for name in MEASURES))
            for s in done
        ],
        notes=[MEASURES_CAPTION],
        numbers=[{"data": s.data, "arm": s.arm.name, "unit": s.unit, **s.others} for s in done],
    )


def _format_scores(scores: ArmScores, smallest: float) -> dict[str, str]:
    """Return an arm's row for people."""
    conclusion, difference = "", scores.difference
    if difference and scores.p is not None:
        conclusion = conclude(difference.low, difference.high, smallest)
    n = str(scores.n) if scores.n == scores.n_expected else f"{scores.n}/{scores.n_expected}"
    return {
        "data": scores.data,
        "arm": arm_label(scores.arm),
        "runs": n,
        "Dice": format_estimate(scores.dice),
        "against the reference": format_estimate(difference, "+") if scores.versus else "",
        "p": _format_p(scores.p) if scores.versus else "",
        "conclusion": conclusion,
    }


def _numbers_of(scores: ArmScores) -> dict[str, Any]:
    """Return an arm's row of the CSV."""
    return {
        "data": scores.data,
        "arm": scores.arm.name,
        "n": scores.n,
        "n_expected": scores.n_expected,
        **_estimate_numbers("dice", scores.dice),
        "versus": scores.versus or None,
        **_estimate_numbers("difference", scores.difference),
        "better": scores.better if scores.paired else None,
        "paired": scores.paired or None,
        "p": scores.p,
        "p_seeds": scores.p_seeds,
    }


def _format_measure(scores: ArmScores, name: str) -> str:
    value = scores.others[name]
    if np.isnan(value):
        return NOTHING
    return f"{value:.1f} {scores.unit}" if name == "hausdorff_95" else f"{value:.3f}"


def _format_p(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _estimate_numbers(name: str, estimate: Comparison | None) -> dict[str, float | None]:
    fields = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
    return {column: getattr(estimate, field, None) for column, field in fields.items()}


def _caption(plan: Plan, scores: Sequence[ArmScores]) -> str:
    """Say what the columns are, and what intervals and p cover."""
    missing = {name for s in scores if s.difference for name in s.difference.not_covered}
    budget = tested = ""
    if any(s.p is not None for s in scores):
        tested = f"""
        p: of no difference; bold: the highest, where it is below 0.05. Conclusion: better or
        worse where the interval excludes 0; equivalent where it lies within
        {plan.smallest_effect:g} of 0 (smallest_effect of the sweep file); else undecided.
        """
    if any("@" in config.arm.name for config in plan.configs(SegmentConfig)):
        budget = """
        Arms named by a budget (equal epochs, equal steps) are compared with the reference of
        that budget. At equal epochs it has far fewer steps. So differences to it are not those
        to the reference above.
        """
    return f"""
    Hard Dice per case, mean over runs and test cases, in brackets with its 95 % interval.
    Against the reference: the mean difference of runs with the same seed, which have the same
    initial weights and order of the real pairs. Its interval and p allow for all arms with that
    reference (Dunnett's largest t). They cover {describe_cover(missing)} {budget} {tested}
    """


def describe_cover(missing: Collection[str]) -> str:
    """Say which chance intervals cover, and of which there was just one."""
    covered = [label for name, label in COVERS.items() if name not in missing]
    single = [label for name, label in COVERS.items() if name in missing]
    said = " and ".join(covered) or "nothing else"
    return said + (f", but not {' or '.join(single)}: there was one of each." if single else ".")
