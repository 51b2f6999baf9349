"""The table of variance: where the differences between arms and their reference come from."""

from collections.abc import Sequence

import pandas as pd

from hvae_hpc.results.power import ASSUMED_SD, median_variances
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.tables.table import NOTHING, Table
from hvae_hpc.runs.plan import Plan

CAPTION = """
Standard deviation of a single difference of Dice to the reference, by its source: the median
over arms. A dash: the source was not repeated. The variance of an arm's mean is the sum over
sources, each divided by how often it was repeated. The plan of a sweep (--plan) says which
gains a design can show.
"""


def build_variance(plan: Plan, scores: Sequence[ArmScores]) -> Table | None:
    """Return the sd of differences by source, a row per data set; None where none is known."""
    variances = {
        data: median_variances(s.differences for s in scores if s.data == data)
        for data in plan.data
    }
    sds = pd.DataFrame(variances, index=list(ASSUMED_SD)).T.dropna(how="all") ** 0.5
    if sds.empty:
        return None
    numbers = sds.astype(object).where(sds.notna(), None).reset_index(names="data")
    return Table(
        title=f"Variance ({plan.sweep}): where differences come from",
        columns=list(numbers.columns),
        rows=list(sds.map("{:.3f}".format).replace("nan", NOTHING).itertuples(name=None)),
        notes=[CAPTION],
        numbers=[row.to_dict() for _, row in numbers.iterrows()],
    )
