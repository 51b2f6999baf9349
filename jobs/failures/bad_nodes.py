"""The evidence of all failures of a sweep together: where runs fail on one node whose like are made elsewhere."""

import math
from collections.abc import Collection, Hashable, Mapping
from typing import NamedTuple

from hvae_hpc.jobs.failures.classify import Evidence, classify, gather
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.state.element_ends import read_ends
from hvae_hpc.jobs.state.run_log import LEFT_EARLY
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.done import ResultSummary
from hvae_hpc.runs.plan import Plan

NODE_MAY_BE_WHY: tuple[Failure, ...] = (
    "lost", "code error", "bad input", "out of memory (device)", "disk full or quota",
)  # fmt: skip
"""As what it looks that a node has no GPU, or another one's process on it, a full disk, a folder that is missing."""
ONCE_ELSEWHERE: tuple[Failure, ...] = (
    "code error",
    "bad input",
)  # which are else never tried again
RUNS, ELEMENTS = 3, 2  # that must have failed on a node before it is blamed
SUSPECTED_H = 1.0
"""How long a node is left out on which all first elements of an array failed, which may be no fault of its own."""


class Seen(NamedTuple):
    """A run that was made, or failed: what it has in common with its like, its node, its element, its beginning."""

    made: bool
    like: Hashable
    node: str
    element: str
    at: float


def find_black_holes(seen: Collection[Seen]) -> set[str]:
    """Return the nodes on which runs fail whose like are made elsewhere, and on which no element got through since.

    What an element made before it failed there speaks for nobody.
    """
    where = {(run.like, run.node) for run in seen if run.made}
    found = set()
    for node in {run.node for run in seen if not run.made} - {""}:
        elsewhere = {like for like, other in where if other != node}
        here = [run for run in seen if run.node == node and not run.made and run.like in elsewhere]
        failed = {run.element for run in here}
        if len(here) >= RUNS and len(failed) >= ELEMENTS:
            first, made = (
                min(run.at for run in here),
                [run for run in seen if run.made and run.node == node],
            )
            if not any(run.at >= first and run.element not in failed for run in made):
                found.add(node)
    return found


def gather_all(
    plan: Plan,
    results: Mapping[str, ResultSummary],
    statuses: Mapping[str, RunStatus],
    submissions: Submissions,
    tries: Mapping[str, int] | None,
) -> dict[str, Evidence]:
    """Return the evidence of each run that failed or was lost, with what others say of its node.

    Args:
        plan: of the sweep.
        results, statuses: of its runs.
        submissions: of its runs folder.
        tries: how often each was tried again after a node's failure; None where nodes are not told
            apart.
    """
    ends = read_ends(submissions)
    found = {
        run_id: gather(plan, run_id, status, submissions, ends)
        for run_id, status in statuses.items()
        if status.kind in ("failed", "lost")
    }
    if tries is None:
        return found

    def like(run_id: str) -> Hashable:
        run = plan.runs[run_id]
        return run.stage, run.config.data, run.source

    doubtful = {
        run_id: evidence
        for run_id, evidence in found.items()
        if evidence.turn and not evidence.cancelled and classify(evidence) in NODE_MAY_BE_WHY
    }
    seen = [
        Seen(
            False,
            like(i),
            e.node,
            element,
            e.began.get("time") or submissions.element(element).submitted_at,
        )
        for i, e in doubtful.items()
        for element in [e.status.element]
    ]
    # What was tried again since left no word but SLURM's, and has another status now.
    known = {e.status.element for e in found.values()}
    for element, word in ends.items():
        ids = [run_id for run_id in submissions.element(element).run_ids if run_id in plan.runs]
        ended_by_itself = word.startswith(
            f"FAILED, exit code {LEFT_EARLY}"
        )  # it was told to, or at its limit
        if word.startswith("FAILED") and not ended_by_itself and ids and element not in known:
            lost = gather(plan, ids[0], RunStatus("lost", element), submissions, ends)
            if classify(lost) in NODE_MAY_BE_WHY:
                seen.append(
                    Seen(
                        False,
                        like(ids[0]),
                        lost.node,
                        element,
                        submissions.element(element).submitted_at,
                    )
                )
    seen += [
        Seen(True, like(i), result.host, result.job, result.started_at)
        for i, result in results.items()
        if result.done
    ]
    holes = find_black_holes(seen)
    # Where the first elements of an array failed on one node and nothing else began, nobody
    # can tell: one more look.
    alone = {
        element
        for breaker in submissions.breakers.values()
        if breaker.node
        for element in breaker.elements
    }
    for run_id, evidence in doubtful.items():
        suspected = evidence.status.element in alone and classify(evidence) in ONCE_ELSEWHERE
        if evidence.node in holes:
            found[run_id] = evidence._replace(blamed=math.inf)
        elif suspected and not tries.get(run_id):
            found[run_id] = evidence._replace(blamed=SUSPECTED_H)
    return found
