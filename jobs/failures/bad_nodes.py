"""Nodes that look bad: the failures of all runs tell which they are, and new jobs leave them out.

A node without a GPU, with a full disk or with a missing folder fails run after run, and nothing in
a single run's evidence says that the node is why. So all failures of a sweep are looked at
together: a node looks bad where runs fail whose like succeed elsewhere.
"""

import math
import re
import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import replace
from typing import NamedTuple

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.failures.classify import Evidence, classify, gather
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.slurm.limits import Cluster
from hvae_hpc.jobs.state.element_ends import read_ends
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.done import ResultSummary
from hvae_hpc.runs.plan import Plan

NODE_MAY_BE_WHY: tuple[Failure, ...] = (
    "lost",
    "code error",
    "bad input",
    "out of memory (device)",
    "disk full or quota",
)
"""Classes that a bad node causes too: it has no GPU, another's process on it, or a full disk."""
RUNS, ELEMENTS = 3, 2
"""How many runs, of how many elements, must have failed on a node before it looks bad."""


class RunOnNode(NamedTuple):
    """A run that succeeded or failed on a node; runs of one kind ought to end alike everywhere."""

    succeeded: bool
    kind: Hashable
    node: str
    element: str
    began: float


def find_bad_nodes(runs: Collection[RunOnNode]) -> set[str]:
    """Return the nodes on which runs fail whose like succeed elsewhere."""
    nodes = {run.node for run in runs if not run.succeeded} - {""}
    return {node for node in nodes if _looks_bad(node, runs)}


def _looks_bad(node: str, runs: Collection[RunOnNode]) -> bool:
    kinds_made_elsewhere = {run.kind for run in runs if run.succeeded and run.node != node}
    here = [run for run in runs if run.node == node]
    failed = [run for run in here if not run.succeeded and run.kind in kinds_made_elsewhere]
    elements = {run.element for run in failed}
    if len(failed) < RUNS or len(elements) < ELEMENTS:
        return False

    # The node works again where another element succeeded there since. What an element made before
    # it failed does not count.
    first = min(run.began for run in failed)
    since = [run for run in here if run.succeeded and run.began >= first]
    return all(run.element in elements for run in since)


def gather_failures(
    plan: Plan,
    results: Mapping[str, ResultSummary],
    statuses: Mapping[str, RunStatus],
    submissions: Submissions,
) -> dict[str, Evidence]:
    """Return the evidence of each run that failed or was lost, also what speaks against its node.

    Args:
        plan: of the sweep.
        results, statuses: of its runs.
        submissions: of its runs folder.
    """
    ends = read_ends(submissions)
    failures = {
        run_id: gather(plan, run_id, status, submissions, ends)
        for run_id, status in statuses.items()
        if status.kind in ("failed", "lost")
    }
    suspects = {
        run_id: evidence
        for run_id, evidence in failures.items()
        if evidence.had_turn and not evidence.cancelled and classify(evidence) in NODE_MAY_BE_WHY
    }

    runs = list[RunOnNode]()
    for run_id, evidence in suspects.items():
        element = evidence.status.element
        began = evidence.began.get("time") or submissions.element(element).submitted_at
        runs.append(RunOnNode(False, _kind(plan, run_id), evidence.node, element, began))
    for run_id, result in results.items():
        if result.done:
            kind = _kind(plan, run_id)
            runs.append(RunOnNode(True, kind, result.host, result.job, result.started_at))

    bad = find_bad_nodes(runs)
    for run_id, evidence in suspects.items():
        if evidence.node in bad:
            failures[run_id] = evidence._replace(node_looks_bad=True)
    return failures


def _kind(plan: Plan, run_id: str) -> Hashable:
    run = plan.runs[run_id]
    return run.stage, run.config.data, run.source


def without_bad_nodes(
    resources: Resources, until: Mapping[str, float], cluster: Cluster
) -> Resources:
    """Return resources that exclude the nodes that failed lately.

    At least half of the partition's nodes stay, and as many as a run needs: a fault of our own may
    look like that of many nodes. Nothing is excluded where features are asked for, since nobody
    knows which nodes have them.

    Args:
        resources: of a stage, with its partition.
        until: node to the time until which no run goes there, in seconds since 1970.
        cluster: for the partition's nodes.
    """
    if resources.constraint:
        return resources
    nodes = cluster.check_partition(resources.partition).nodes - expand_hosts(resources.exclude)
    bad = [node for node in nodes & until.keys() if until[node] > time.time()]
    bad.sort(key=lambda node: (-until[node], node))  # those that failed last go first

    needed = max(resources.nodes, math.ceil(len(nodes) / 2))
    excluded = bad[: max(0, len(nodes) - needed)]
    return replace(resources, exclude=",".join([resources.exclude, *excluded]).strip(","))


def expand_hosts(text: str) -> frozenset[str]:
    """Return the nodes that a list as SLURM writes it names: "n[1-3,07],gpu5"."""
    names = set[str]()
    todo = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text)
    while todo:
        name = todo.pop()
        brackets = re.search(r"\[([\d,-]*)\]", name)
        if not brackets:
            names.add(name.strip())
            continue
        before, after = name[: brackets.start()], name[brackets.end() :]
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", brackets[1]):
            numbers = range(int(first), int(last or first) + 1)
            todo += [f"{before}{number:0{len(first)}}{after}" for number in numbers]
    return frozenset(names - {""})
