"""The table of measures: what else than Dice says how good an arm's masks are."""

from collections.abc import Sequence

import numpy as np

from hvae_hpc.results.labels import arm_label
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.tables.table import NOTHING, Cell, Table, paragraph
from hvae_hpc.runs.plan import Plan

MEASURES = {
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
CAPTION = paragraph(
    """
    Means over runs and test cases. Small, medium, large: Dice of the cases with a tumour, by thirds
    of its true area. NSD (normalised surface distance): share of both masks' edge pixels within 2
    mm of the other's edge. HD95: the 95th percentile of the distances from one mask's edge to the
    other's, of the two directions the larger one. Both are within slices, and in px where the
    spacing is unknown. Area error: difference of both areas, as a share of the true one, over cases
    with a tumour. Where both masks are empty, shares are 1 and HD95 is 0. Where just one is, they
    are 0 and the image's diagonal.
    """
)


def build_measures(plan: Plan, scores: Sequence[ArmScores]) -> Table | None:
    """Return the means of every measure but Dice; None without a done segment run."""
    done = [s for s in scores if s.others]
    if not done:
        return None
    keys: list[dict[str, Cell]] = [
        {"data": s.data, "arm": s.arm.name, "unit": s.unit} for s in done
    ]
    return Table(
        title=f"Measures ({plan.sweep}): the masks of the test cases",
        columns=("data", "arm", *MEASURES.values()),
        rows=tuple(
            (s.data, arm_label(s.arm), *(_format_measure(s, name) for name in MEASURES))
            for s in done
        ),
        notes=(CAPTION,),
        numbers=[
            key | {name: s.others[name] for name in MEASURES}
            for key, s in zip(keys, done, strict=True)
        ],
    )


def _format_measure(scores: ArmScores, name: str) -> str:
    value = scores.others[name]
    if np.isnan(value):
        return NOTHING
    return f"{value:.1f} {scores.unit}" if name == "hausdorff_95" else f"{value:.3f}"
