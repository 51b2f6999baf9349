"""The table of variance: where the differences between arms and their reference come from."""

from hvae_hpc.results.collect import Collected
from hvae_hpc.results.power import ASSUMED_SD, median_variances
from hvae_hpc.results.tables.table import NOTHING, Cell, Table, paragraph
from hvae_hpc.runs.plan import Plan

CAPTION = paragraph(
    """
    Standard deviation of a single difference of Dice to the reference, by its source: the median
    over arms. A dash: the source was not repeated. The variance of an arm's mean is the sum over
    sources, each divided by how often it was repeated. The plan of a sweep (--plan) says which
    gains a design can show.
    """
)


def build_variance(plan: Plan, collected: Collected) -> Table | None:
    """Return the sd of differences by source, a row per data set; None where none is known."""
    numbers: list[dict[str, Cell]] = []
    rows: list[tuple[str, ...]] = []
    for data in plan.data:
        variances = median_variances(plan, collected, data)
        sds = {name: variances[name] ** 0.5 for name in variances}
        if sds:
            numbers.append({"data": data, **{name: sds.get(name) for name in ASSUMED_SD}})
            cells = (f"{sds[name]:.3f}" if name in sds else NOTHING for name in ASSUMED_SD)
            rows.append((data, *cells))
    title = f"Variance ({plan.sweep}): where differences come from"
    columns = ("data", *ASSUMED_SD)
    table = Table(title=title, columns=columns, rows=tuple(rows), notes=(CAPTION,), numbers=numbers)
    return table if rows else None
