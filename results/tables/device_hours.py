"""Device hours of all attempts by stage and by what came of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hvae_hpc.results.tables.table import NOTHING, Table

NOTE = """
Of all attempts, also at runs that are not done. Useful is what made a result, or was saved and
gone on from; preempted is also lost with a node, interrupted what ended for no reason that is
known.
"""


def build_device_hours(stages: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the table; None where nothing was spent.

    Args:
        stages: of each stage, what :func:`hvae_hpc.jobs.state.sweep_status.read_device_hours`
            found, as plain data.
    """
    if not stages:
        return None
    outcomes = [
        name for name in stages[0]["hours"] if any(stage["hours"][name] for stage in stages)
    ]
    return Table(
        title="Where the time went (hours of GPUs, or of CPU cores)",
        columns=("stage", "of", *outcomes),
        rows=[
            (
                stage["stage"],
                stage["unit"].upper(),
                *(f"{stage['hours'][n]:,.2f}" if stage["hours"][n] else NOTHING for n in outcomes),
            )
            for stage in stages
        ],
        notes=[NOTE],
        numbers=[
            {
                "stage": stage["stage"],
                "unit": stage["unit"],
                **{f"{name.replace(' ', '_')}_h": h for name, h in stage["hours"].items()},
            }
            for stage in stages
        ],
    )
