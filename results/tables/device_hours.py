"""Device hours of all attempts by stage and by what came of them, those that made nothing included."""

from collections.abc import Mapping, Sequence
from typing import Any

from hvae_hpc.results.tables.dice import NOTHING, Table


def build_spent(spent: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the table; None where nothing was spent.

    Args:
        spent: of each stage, what :func:`hvae_hpc.jobs.state.device_hours.read_device_hours` found,
            as plain data.
    """
    if not spent:
        return None
    outcomes = [name for name in spent[0]["hours"] if any(stage["hours"][name] for stage in spent)]
    rows = []
    for stage in spent:
        hours = [
            f"{stage['hours'][name]:,.2f}" if stage["hours"][name] else NOTHING for name in outcomes
        ]
        used = [NOTHING, NOTHING]
        if stage["elements"]:
            used = [f"{stage['minutes_used']:.1f} of {stage['minutes_asked']}"]
            used += [f"{stage['memory_gb_used']:.1f} of {stage['memory_gb_asked']:g}"]
        rows.append((stage["stage"], stage["unit"].upper(), *hours, *used))
    other = [name for name in spent[0] if name not in ("hours", "advice")]
    return Table(
        title="Where the time went (hours of GPUs, or of CPU cores)",
        columns=("stage", "of", *outcomes, "minutes used", "GB used"),
        rows=tuple(rows),
        notes=(
            "Of all attempts, also at runs that are not done. Useful is what made a result, or was saved and gone on "
            "from; preempted is also lost with a node, interrupted what ended for no reason that is known. Used is "
            "what 95 % of the elements stayed within that made all their runs at once, of what was asked for.",
            *(line for stage in spent for line in stage["advice"]),
        ),
        tidy_columns=(*other, *(f"{name.replace(' ', '_')}_h" for name in spent[0]["hours"])),
        tidy_rows=tuple(
            (*(stage[name] for name in other), *stage["hours"].values()) for stage in spent
        ),
    )
