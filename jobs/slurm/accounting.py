"""What SLURM still knows of elements that left the queue: by sacct, and by squeue for a few minutes."""

import shutil
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
    if not shutil.which("sacct"):
        return None
    command = ["sacct", "-nPX", "--jobs", ",".join(sorted(jobs))]
    try:
        answer = ask([*command, "--format=JobID,State,ExitCode,NodeList"], patience_s)
    except UserError:  # mostly "Slurm accounting storage is disabled"
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


def ask_recent(patience_s: float) -> dict[str, str]:
    """Return the states of the user's elements, with those that ended in the last minutes.

    SLURM remembers them for MinJobAge, also without accounting.
    """
    command = ["squeue", "--me", "--states=all", "--noheader", "--format=%F|%K|%T"]
    try:
        answer = ask(command, patience_s)
    except UserError:
        return {}
    rows = (line.split("|") for line in answer.splitlines())
    return {
        f"{job}_{place}": state for job, places, state in rows for place in parse_places(places)
    }


def is_final(state: str) -> bool:
    """Tell whether an element stays in a state, as the functions above return it."""
    return state.partition(" ")[0].rstrip(",") in FINAL_STATES
