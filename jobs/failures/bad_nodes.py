"""Nodes that look bad: the failures of all runs tell which they are, and new jobs leave them out.

A node without a GPU, with a full disk or with a missing folder fails run after run, and nothing in
a single run's evidence says that the node is why. So all failures of a sweep are looked at
together: a node looks bad where runs fail whose like succeed elsewhere.
"""

import math
import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import replace
from typing import NamedTuple

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.failures.classify import Evidence, classify, gather
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.slurm.limits import Cluster
from hvae_hpc.jobs.state.run_status import Standing

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
    if len(failed) < RUNS or len({run.element for run in failed}) < ELEMENTS:
        return False
    # The node works again where a run succeeded there since.
    first = min(run.began for run in failed)
    return not any(run.succeeded and run.began >= first for run in here)


def gather_failures(standing: Standing) -> dict[str, Evidence]:
    """Return the evidence of each run that failed or was lost, and what is against its node."""
    plan, submissions = standing.plan, standing.submissions

    def kind(run_id: str) -> Hashable:
        run = plan.runs[run_id]
        return run.stage, run.config.data, run.source

    runs = [
        RunOnNode(True, kind(run_id), result.host, result.job, result.started_at)
        for run_id, result in standing.results.items()
        if result.done
    ]
    failures: dict[str, Evidence] = {}
    for run_id, status in standing.statuses.items():
        if status.kind not in ("failed", "lost"):
            continue
        evidence = gather(plan, run_id, status, submissions)
        failures[run_id] = evidence
        began = evidence.began["time"] or submissions.element(status.element).submitted_at
        if _may_be_the_node(evidence):
            runs.append(RunOnNode(False, kind(run_id), evidence.node, status.element, began))

    bad = find_bad_nodes(runs)
    return {
        run_id: evidence._replace(
            node_looks_bad=evidence.node in bad and _may_be_the_node(evidence)
        )
        for run_id, evidence in failures.items()
    }


def _may_be_the_node(evidence: Evidence) -> bool:
    is_failure = evidence.had_turn and not evidence.cancelled
    return is_failure and classify(evidence) in NODE_MAY_BE_WHY


def without_bad_nodes(
    resources: Resources, until: Mapping[str, float], cluster: Cluster
) -> Resources:
    """Return resources that exclude the nodes that failed lately.

    At least half of the partition's nodes stay, and as many as a run needs: a fault of our own may
    look like that of many nodes. Nothing is added where a person asks for features or excludes
    nodes, since nobody counts which nodes that leaves.

    Args:
        resources: of a stage, with its partition.
        until: node to the time until which no run goes there, in seconds since 1970.
        cluster: for the partition's nodes.
    """
    if resources.constraint or resources.exclude:
        return resources
    nodes, now = cluster.check_partition(resources.partition).nodes, time.time()
    bad = [node for node in nodes if until.get(node, 0.0) > now]
    bad.sort(key=lambda node: (-until[node], node))  # those that failed last go first
    most = len(nodes) - max(resources.nodes, math.ceil(len(nodes) / 2))
    return replace(resources, exclude=",".join(bad[: max(0, most)]))
