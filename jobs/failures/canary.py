"""The canaries of an array: its first elements go ahead. Where they fail alike, the rest is held.

The canaries are submitted as a job of their own. The rest of the array waits for them by
``--dependency=after:<canaries>+5``, so it begins five minutes after them, whatever becomes of them.
Each element of the rest looks at the canaries before it begins (:func:`why_held`). It reads the
runs' own logs and the canaries' logs, and asks nobody. Where all canaries failed in the same way,
it ends at once and writes the reason into the logs of its runs. The same sweep command, given
again, submits held runs again.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.jobs.failures.classify import classify, gather
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.state.run_log import last_event_in
from hvae_hpc.jobs.state.run_status import HELD, RunStatus
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.folder import METRICS
from hvae_hpc.runs.lease import restart_count
from hvae_hpc.runs.plan import Plan

GATE_MINUTES = 5
"""Minutes between the beginning of the canaries and that of the rest."""
ALIKE: tuple[Failure, ...] = (
    "out of memory (host)",
    "out of memory (device)",
    "time limit without progress",
    "disk full or quota",
    "non-finite loss",
    "bad input",
    "code error",
)
"""Failures that the rest of the array will most likely meet too."""
KILLED = re.compile(r"Detected \d+ oom[-_]kill event|: Out Of Memory|DUE TO TIME LIMIT")
"""What SLURM writes into the log of an element that it ended for good."""
LONGEST_REASON = 300
"""Characters of a reason that are kept."""


def canaries_ahead(plan: Plan) -> list[int]:
    """Return how many elements of each array are submitted as a job of their own.

    Where a throttle lets only few elements run at a time, there is none: the array is one job.
    """
    ahead = []
    for array in plan.arrays:
        throttle = plan.resources[array.stage].array_parallelism
        ahead.append(0 if 0 < throttle < len(array.elements) else array.canaries)
    return ahead


def why_held(plan_file: Path, plan: Plan, array: int, place: int) -> str:
    """Return why an element is not to begin: all canaries of its array failed alike.

    Args:
        plan_file: of the submission.
        plan: as the element reads it.
        array: number of the element's array in the plan.
        place: of the element in its array.

    Returns:
        The reason in one line; "" where the element is to begin, as are the canaries themselves,
        and all elements that SLURM requeued.
    """
    canaries, elements = plan.arrays[array].canaries, plan.arrays[array].elements
    if canaries == 0 or place < canaries or restart_count():
        return ""

    submissions = Submissions(plan.runs_folder, plan_file.parent.name)
    failures = [_find_failure(submissions, plan, run_ids) for run_ids in elements[:canaries]]
    kind, reason = failures[0]
    if not kind or any(other != kind for other, _ in failures):
        return ""
    said = f"the first {canaries} of {len(elements)} elements failed alike ({kind})"
    return f"{HELD}{said}: {reason}"[:LONGEST_REASON]


def _find_failure(submissions: Submissions, plan: Plan, run_ids: Sequence[str]) -> tuple[str, str]:
    """Return the class and the words of a canary's failure.

    Both are "" where it is not over, got further, or failed in a way that the rest need not meet.
    """
    element = submissions.last_elements().get(run_ids[0], "")
    failures = list[tuple[str, str]]()
    for run_id in run_ids:
        evidence = gather(plan, run_id, RunStatus("lost", element), submissions)
        is_done = (plan.folder(run_id) / METRICS).exists()
        was_killed = any(map(KILLED.search, evidence.lines))
        # The run's folder may have taken no word.
        event = evidence.ended["event"]
        if evidence.attempts:
            event = last_event_in(plan.folder(run_id), element)
        is_over = was_killed or event in ("failed", "blocked", "died")
        if is_done or evidence.got_further or not is_over:
            return "", ""

        words = evidence.ended["reason"] or "".join(evidence.lines[-1:])
        words = words.replace(f"{plan.folder(run_id)}/", "")
        failures.append((classify(evidence), f"{plan.runs[run_id]} ({run_id}): {words}"))
    return next((failure for failure in failures if failure[0] in ALIKE), ("", ""))
