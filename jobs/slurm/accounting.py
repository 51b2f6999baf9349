"""What SLURM's accounting knows of elements that left the queue."""

from collections.abc import Iterable

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.client import ask, parse_places

FINAL_STATES = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}


def ask_accounting(jobs: Iterable[str], patience_s: float) -> dict[str, str] | None:
    """Return the states of the elements of some arrays, by one call of sacct.

    Args:
        jobs: the arrays' ids.
        patience_s: how long to try.

    Returns:
        For example "12_3" to "TIMEOUT on n3", "CANCELLED by 1000"; None where there is no
        accounting, or no answer.
    """
    command = ["sacct", "-nPX", "--jobs", ",".join(sorted(jobs))]
    try:
        answer = ask([*command, "--format=JobID,State,ExitCode,NodeList"], patience_s)
    except UserError:  # no sacct, or "Slurm accounting storage is disabled"
        return None

    states: dict[str, str] = {}
    for line in answer.splitlines():
        element, state, code, nodes = line.split("|")
        job, _, places = element.partition("_")
        if state == "FAILED":
            exit_code, _, number = code.partition(":")
            killed = number not in ("", "0")
            state += f", signal {number}" if killed else f", exit code {exit_code}"
        if nodes not in ("", "None assigned"):
            state += f" on {nodes}"
        states |= {f"{job}_{place}": state for place in parse_places(places.strip("[]"))}
    return states


def is_final(state: str) -> bool:
    """Tell whether an element stays in a state, as :func:`ask_accounting` returns it."""
    return state.partition(" ")[0].rstrip(",") in FINAL_STATES
