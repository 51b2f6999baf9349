"""How elements ended that left the queue without a result: TIMEOUT, NODE_FAIL, CANCELLED and so on.

SLURM is asked for all of them in one call, at most once in ``POLL_S``. A file beside the
submissions keeps what it said, so nobody asks twice for an element that ended.
"""

import contextlib
import time
from dataclasses import replace

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.accounting import ask_accounting, is_final
from hvae_hpc.jobs.slurm.client import POLL_S
from hvae_hpc.jobs.state.run_status import Standing
from hvae_hpc.jobs.state.submissions import ENDS_FILE, Submissions
from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import write_json

BEHIND_S = 600.0
"""Accounting may know an element only so long after it was submitted."""


def explain_lost(
    standing: Standing, patience_s: float = 10.0, *, thorough: bool = False
) -> Standing:
    """Add to the reason of each lost run how SLURM says that its element ended.

    Args:
        standing: of a plan's runs.
        patience_s: how long to try.
        thorough: ask even if somebody asked less than ``POLL_S`` ago.
    """
    lost = {i: status for i, status in standing.statuses.items() if status.kind == "lost"}
    elements = {status.element for status in lost.values()} - {""}
    _find_ends(elements, standing.submissions, patience_s, thorough)
    for run_id, status in lost.items():
        if end := standing.submissions.end_of(status.element):
            lost[run_id] = status._replace(reason=f"{status.reason}: {end}")
    return replace(standing, statuses={**standing.statuses, **lost})


def _find_ends(
    elements: set[str], submissions: Submissions, patience_s: float, thorough: bool
) -> None:
    """Find out how elements ended, and keep it."""
    asked_at, ends = submissions.asked_ends
    unknown, now = elements - ends.keys(), time.time()
    if not unknown or (not thorough and 0 <= now - asked_at < POLL_S):
        return

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
