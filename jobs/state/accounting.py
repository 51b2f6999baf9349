"""How elements ended that left the queue without a result, as SLURM's accounting knows it: NODE_FAIL, TIMEOUT, ...

It is asked only where there is accounting, for all elements in one call, and not all the time; what
it said stands in a file beside the submissions, so that no element that ended is asked for twice.
"""

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.client import POLL_S, ask, parse_places
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.folder import write_json

ENDS_FILE = "ends.json"
BEHIND_S = 600.0
"""Accounting may be so far behind sbatch; of what was cancelled before it began, it never knows anything."""
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
)  # fmt: skip
"""SLURM's words for states in which an element stays; all others pass."""


def explain_lost(
    statuses: Mapping[str, RunStatus],
    submissions: Submissions,
    patience_s: float = 10.0,
    *,
    thorough: bool = False,
) -> dict[str, RunStatus]:
    """Return the statuses, with SLURM's word in the reason of those that are lost.

    Args:
        statuses: of a plan's runs.
        submissions: of its runs folder.
        patience_s: how long to try.
        thorough: ask now, and where there is no accounting ask for what SLURM remembers of the last
            minutes.
    """
    ends: dict[str, str] = {}
    if lost := {status.element for status in statuses.values() if status.kind == "lost"} - {""}:
        ends = _read_ends(submissions, lost, patience_s, thorough)
    explained = dict(statuses)
    for run_id, status in statuses.items():
        if status.kind == "lost" and (state := ends.get(status.element)):
            explained[run_id] = status._replace(reason=f"{status.reason}: {state}")
    return explained


def _read_ends(
    submissions: Submissions, elements: set[str], patience_s: float, thorough: bool
) -> dict[str, str]:
    """Return how elements ended; "" for those of which accounting knows nothing."""
    path, known = submissions.folder / ENDS_FILE, _read_known(submissions)
    ends: dict[str, str] = known["ends"]
    unknown = elements - set(ends)
    if unknown and (thorough or not 0 <= time.time() - float(known["asked_at"]) < POLL_S):
        job_of = {element: element.partition("_")[0] for element in unknown}
        states = ask_accounting(sorted(set(job_of.values())), patience_s)
        if states is not None:
            recent = {job.job for job in submissions.jobs if time.time() - job.time < BEHIND_S}
            ends |= {
                element: ""
                for element in unknown
                if element not in states and job_of[element] not in recent
            }
        elif thorough:  # who is not remembered any more may be asked for where there is accounting
            states = _ask_what_is_remembered(patience_s)
        ends |= {
            element: state
            for element, state in (states or {}).items()
            if element in unknown and _is_end(state)
        }
        with contextlib.suppress(
            UserError, OSError
        ):  # somebody else's runs folder: then it is asked again
            write_json(path, {"asked_at": time.time(), "ends": ends})
    return dict(ends)


def _is_end(state: str) -> bool:
    return state.partition(" ")[0].rstrip(",") in ENDED


def known_ends(submissions: Submissions) -> dict[str, str]:
    """Return how elements ended, as far as somebody has asked: "12_3" to "TIMEOUT on n1", "PREEMPTED", ""."""
    return dict(_read_known(submissions)["ends"])


def _read_known(submissions: Submissions) -> dict[str, Any]:
    with contextlib.suppress(
        UserError, LookupError, TypeError, ValueError
    ):  # damaged is as if it were not there
        kept = read_json(submissions.folder / ENDS_FILE)
        return {"asked_at": float(kept["asked_at"]), "ends": {**kept["ends"]}}
    return {"asked_at": 0.0, "ends": {}}


def ask_accounting(jobs: Sequence[str], patience_s: float) -> dict[str, str] | None:
    """Return the states of the elements of arrays ("12_3" to "TIMEOUT on n3", "CANCELLED by 1000"); one call.

    None where there is no accounting, or where it does not answer.
    """
    if not shutil.which("sacct"):
        return None
    try:
        lines = ask(
            ["sacct", "-nPX", "--jobs", ",".join(jobs), "--format=JobID,State,ExitCode,NodeList"],
            patience_s,
        ).splitlines()
    except UserError:  # mostly "Slurm accounting storage is disabled"
        return None
    states: dict[str, str] = {}
    for element, state, code, nodes in (line.split("|") for line in lines):
        job, _, places = element.partition("_")
        exit_code, _, number = code.partition(":")
        how = f"signal {number}" if number not in ("", "0") else f"exit code {exit_code}"
        word = f"FAILED, {how}" if state == "FAILED" else state
        word += f" on {nodes}" if nodes not in ("", "None assigned") else ""
        states |= {f"{job}_{place}": word for place in parse_places(places.strip("[]"))}
    return states


def _ask_what_is_remembered(patience_s: float) -> dict[str, str] | None:
    """Return the states of all the user's elements, also of those that ended in the last minutes (MinJobAge)."""
    try:
        lines = ask(
            ["squeue", "--me", "--states=all", "--noheader", "--format=%F|%K|%T"], patience_s
        ).splitlines()
    except UserError:
        return None
    rows = (line.split("|") for line in lines)
    return {
        f"{job}_{place}": state for job, places, state in rows for place in parse_places(places)
    }
