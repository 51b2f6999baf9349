"""How elements ended that left the queue without a result: TIMEOUT, NODE_FAIL, CANCELLED and so on.

SLURM is asked for all of them in one call, at most once in ``POLL_S``. A file beside the
submissions keeps what it said, so nobody asks twice for an element that ended.
"""

import contextlib
import time
from collections.abc import Mapping

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.accounting import ask_accounting, is_final
from hvae_hpc.jobs.slurm.client import POLL_S
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import NO_RECORD, write_json

ENDS_FILE = "ends.json"
BEHIND_S = 600.0
"""Accounting may know an element only so long after it was submitted."""


def explain_lost(
    statuses: Mapping[str, RunStatus],
    submissions: Submissions,
    patience_s: float = 10.0,
    *,
    thorough: bool = False,
) -> dict[str, RunStatus]:
    """Add to the reason of each lost run how SLURM says that its element ended.

    Args:
        statuses: of a plan's runs.
        submissions: of its runs folder.
        patience_s: how long to try.
        thorough: ask even if somebody asked less than ``POLL_S`` ago.
    """
    lost = {run_id: status for run_id, status in statuses.items() if status.kind == "lost"}
    elements = {status.element for status in lost.values() if status.element}
    ends = _find_ends(elements, submissions, patience_s, thorough) if elements else {}
    explained = dict(statuses)
    for run_id, status in lost.items():
        if end := ends.get(status.element):
            explained[run_id] = status._replace(reason=f"{status.reason}: {end}")
    return explained


def _find_ends(
    elements: set[str], submissions: Submissions, patience_s: float, thorough: bool
) -> dict[str, str]:
    """Return how elements ended, and keep it; "" for those of which accounting knows nothing."""
    asked_at, ends = _read_file(submissions)
    unknown, now = elements - ends.keys(), time.time()
    if not unknown or (not thorough and 0 <= now - asked_at < POLL_S):
        return ends

    jobs = {element.partition("_")[0] for element in unknown}
    states = ask_accounting(jobs, patience_s)
    if states is not None:
        ends |= {name: states[name] for name in unknown & states.keys() if is_final(states[name])}
        # Accounting never knows what was cancelled before it began.
        for name in unknown - states.keys():
            if now - submissions.element(name).submitted_at > BEHIND_S:
                ends[name] = ""

    # In somebody else's runs folder nothing is kept.
    with contextlib.suppress(UserError, OSError):
        refuse_links(submissions.folder, submissions.folder.parent)
        write_json(submissions.folder / ENDS_FILE, {"asked_at": now, "ends": ends})
    return ends


def read_ends(submissions: Submissions) -> dict[str, str]:
    """Return what is known of how elements ended: "12_3" to "TIMEOUT on n1", or to ""."""
    return _read_file(submissions)[1]


def _read_file(submissions: Submissions) -> tuple[float, dict[str, str]]:
    """Return when SLURM was asked (seconds since 1970) and the ends; a damaged file holds none."""
    with contextlib.suppress(*NO_RECORD):
        content = read_json(submissions.folder / ENDS_FILE)
        ends = {name: str(end) for name, end in content["ends"].items()}
        return float(content["asked_at"]), ends
    return 0.0, {}
