"""Retries: which failed runs are submitted again by themselves, and with which resources.

The rules are the site's (:mod:`hvae_hpc.jobs.sites.retry_policy`). What earlier retries changed is
kept in one small file beside the submissions, :class:`RetryHistory`. It is written before anything
is submitted. It names the failure that each retry answers, so a command that ended in between can
be given again: it submits the same retry and does not count it twice.

New jobs leave out the nodes that failed lately (:func:`without_bad_nodes`).
"""

import contextlib
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.config.loader import dump, load, read_json
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.errors import UserError, say
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.failures.classify import Evidence, classify, gather_failures
from hvae_hpc.jobs.sites.retry_policy import Failure, Rule
from hvae_hpc.jobs.sites.site import Site
from hvae_hpc.jobs.slurm.limits import Cluster
from hvae_hpc.jobs.state.run_status import RunStatuses
from hvae_hpc.jobs.state.submissions import SUBMISSIONS
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run

HISTORY_FILE = "retries.json"


@frozen
class RunRetries:
    """The retries of one run.

    Attributes:
        counts: class of failure to the number of retries after it.
        changes: fields of its stage's resources that retries changed.
        answered: the failure that the last retry answers: its element and the attempts until then.
    """

    counts: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int | float] = field(default_factory=dict)
    answered: str = ""


@frozen
class RetryHistory:
    """The retries of a runs folder.

    Attributes:
        runs: by run id.
        nodes: cluster to node to the time until which no run goes there, in seconds since 1970.
    """

    runs: dict[str, RunRetries] = field(default_factory=dict)
    nodes: dict[str, dict[str, float]] = field(default_factory=dict)


def read_history(runs_folder: Path) -> RetryHistory:
    """Return the retries of a runs folder; none where the file is missing, or damaged."""
    path = runs_folder / SUBMISSIONS / HISTORY_FILE
    try:
        if path.exists():
            return load(RetryHistory, read_json(path), str(path))
    except UserError as error:
        say(f"warning: {error}; earlier retries are forgotten", to=sys.stderr)
    return RetryHistory()


def write_history(runs_folder: Path, history: RetryHistory) -> None:
    """Keep the retries for all later commands."""
    write_json(runs_folder / SUBMISSIONS / HISTORY_FILE, dump(history))


def with_retry_changes(plan: Plan, history: RetryHistory, site: Site) -> Plan:
    """Return the plan with the resources that retries changed, as far as site and cluster allow.

    Where a person has given a stage more memory since, that stays.
    """
    changes: dict[str, dict[str, Any]] = {}
    for run_id in plan.runs.keys() & history.runs.keys():
        had = plan.resources[plan.runs[run_id].stage]
        wanted: dict[str, Any] = {**history.runs[run_id].changes}
        if wanted.get("memory_gb", had.memory_gb + 1) <= had.memory_gb:
            del wanted["memory_gb"]
        if wanted:
            # A limit that leaves no time to work by what the site file says now is refused, and so
            # is what no command of ours has written.
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                fitted, _ = site.fit(replace(had, **wanted))
                names = [*wanted, *["cpus"] * (fitted.cpus < had.cpus)]  # large nodes have fewer
                changes[run_id] = {name: getattr(fitted, name) for name in names}
    return replace(plan, changes=changes)


class RetryDecision(NamedTuple):
    """Whether a failed run is retried, and how.

    Attributes:
        failure: its class.
        changes: fields of its resources that the retry changes; None for no retry.
        words: what changes, or why there is no retry.
        bad_node: that is left out for a while; "" for none.
    """

    failure: Failure
    changes: dict[str, Any] | None
    words: str
    bad_node: str = ""


def decide_retry(
    plan: Plan, run_id: str, evidence: Evidence, past: RunRetries, limit: int, site: Site
) -> RetryDecision:
    """Decide whether a failed run is retried.

    Args:
        plan: with the resources that the run had.
        run_id: of the run.
        evidence: of its failure.
        past: its retries so far.
        limit: retries that a run may have, after all failures together.
        site: for the rules, the caps and the cluster.
    """
    failure = classify(evidence)
    if not evidence.had_turn and not evidence.cancelled:
        return RetryDecision(failure, {}, "as it was: its turn had not come")

    rule, had = site.rules[failure], plan.resources_of(run_id)
    count, total = past.counts.get(failure, 0), sum(past.counts.values())
    before = {**vars(had), "minutes": evidence.minutes or had.minutes}
    changes = change(rule, plan.runs[run_id], had, before, site)
    why_not = ""
    if rule.times == 0:
        why_not = "no rule retries it"
    elif evidence.cancelled:
        why_not = "not by itself: somebody took it out of the queue"
    elif count >= rule.times or total >= limit:
        why_not = f"no more: {count} of {rule.times} retries used, {total} of {limit} in all"
    elif changes is None:
        why_not = "no: nothing can be changed that would help"
    if changes is None or why_not:
        return RetryDecision(failure, None, why_not)

    # Of several nodes any may be at fault. Nodes with certain features may be too few to lose one.
    may_exclude = rule.exclude_hours > 0 and had.nodes == 1 and not had.constraint
    bad_node = evidence.node if may_exclude and evidence.node_failed else ""
    words = in_words(changes, before)
    if bad_node:
        words += f", not on {bad_node} for {rule.exclude_hours:g} h"
    return RetryDecision(failure, changes, words, bad_node)


def change(
    rule: Rule,
    run: Run,
    had: Resources,
    before: Mapping[str, Any],
    site: Site,
) -> dict[str, Any] | None:
    """Return the fields of a run's resources that a retry changes; None for no retry.

    Args:
        rule: of the class of its failure.
        run: that failed.
        had: its resources by the plan.
        before: the same by name, but with the element's own time limit.
        site: cuts resources to what may be asked for.
    """
    asked: dict[str, Any] = {}
    if rule.memory > 1:
        asked["memory_gb"] = round(had.memory_gb * rule.memory, 1)
    if rule.minutes > 1:
        asked["minutes"] = math.ceil(before["minutes"] * rule.minutes)
    pairs = _pairs_at_once(run, had)
    if rule.micro_batch < 1 and pairs > 1:
        asked["micro_batch"] = max(1, math.floor(pairs * rule.micro_batch))

    fitted = vars(site.fit(replace(had, **asked))[0])
    changes = {name: fitted[name] for name in asked if fitted[name] != before[name]}
    # A rule that changes resources is of no use where nothing can be changed.
    is_change_due = rule.memory > 1 or rule.minutes > 1 or rule.micro_batch < 1
    return changes if changes or not is_change_due else None


def _pairs_at_once(run: Run, had: Resources) -> int:
    """Return how many pairs go through the network at once; 1 where fewer change its numbers."""
    config = run.config
    if not (isinstance(config, TrainConfig) and config.model.pairs_apart):
        return 1
    share = config.optim.batch_size // had.tasks
    return min(share, had.micro_batch or share)


def in_words(changes: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Return what a retry changes: "memory_gb 16 -> 24", or "as it was"."""
    words = [
        f"{name} {before[name]:g} -> {value:g}" if before[name] else f"{name} {value:g}"
        for name, value in changes.items()
    ]
    return ", ".join(words) or "as it was"


class Choice(NamedTuple):
    """The runs that are retried, the history with these retries, and lines for people."""

    run_ids: frozenset[str]
    history: RetryHistory
    summary: tuple[str, ...]


def choose_retries(
    sweep: RunStatuses, history: RetryHistory, limit: int, site: Site, *, by_hand: bool
) -> Choice:
    """Choose which runs of a sweep are retried, and with which resources.

    Args:
        sweep: the statuses of its runs; its plan has the changes of earlier retries.
        history: the retries so far.
        limit: retries that a run may have.
        site: for the rules, the caps and the cluster.
        by_hand: a person gave the command: retries are counted from 0.
    """
    runs = dict(history.runs)
    nodes = {name: dict(excluded) for name, excluded in history.nodes.items()}
    no_retry = "submitted as before" if by_hand else "no retry"
    chosen, summary = set[str](), Counter[tuple[str, str]]()

    # What failed or was lost.
    for run_id, evidence in gather_failures(sweep).items():
        past = runs.get(run_id, RunRetries())
        attempt = f"{evidence.status.element}:{evidence.attempts}"
        # Its retry was written, and then not submitted.
        if past.answered == attempt:
            chosen.add(run_id)
            continue
        if by_hand:
            past = replace(past, counts={})
        decision = decide_retry(sweep.plan, run_id, evidence, past, limit, site)
        what = no_retry if decision.changes is None else "retry"
        summary[what, f"after {decision.failure} ({decision.words})"] += 1
        if decision.changes is None:
            continue

        chosen.add(run_id)
        if evidence.had_turn:  # else what happened was no failure of this run
            count = past.counts.get(decision.failure, 0) + 1
            counts = {**past.counts, decision.failure: count}
            changes = {**past.changes, **decision.changes}
            runs[run_id] = RunRetries(counts=counts, changes=changes, answered=attempt)
        if decision.bad_node:
            until = time.time() + 3600 * site.rules[decision.failure].exclude_hours
            nodes.setdefault(site.cluster.name, {})[decision.bad_node] = round(until, 3)

    _add_followers(sweep, chosen, runs)
    lines = [
        f"{what}: {n:,} run{'s' * (n > 1)} {words}"
        for (what, words), n in sorted(summary.items(), reverse=True)
    ]
    return Choice(frozenset(chosen), RetryHistory(runs=runs, nodes=nodes), tuple(lines))


def _add_followers(sweep: RunStatuses, chosen: set[str], runs: dict[str, RunRetries]) -> None:
    """Add the blocked runs whose parents are made, under way or chosen, and what was held.

    What was held follows the canary that its reason names, and has the changes that it has.

    Args:
        sweep: the statuses of its runs.
        chosen: the runs that are retried; followers are added.
        runs: the retries of each run; those of held runs are changed.
    """
    plan, results, statuses = sweep.plan, sweep.results, sweep.statuses
    submitted = sweep.submissions.last_elements()

    def is_coming(run_id: str) -> bool:
        under_way = run_id in statuses and statuses[run_id].kind in ("done", "waiting", "running")
        return under_way or run_id in chosen

    for run_id, status in statuses.items():  # parents stand before their children
        if status.kind not in ("blocked", "open") or results[run_id].reason:
            continue
        leaders = [parent for parent in plan.parents(run_id).values() if not results[parent].done]
        canaries = re.findall(r"\(([0-9a-f]{12})\)", status.reason)[:1] if status.held else []
        leaders += canaries

        # A run that was never submitted waits for a command, unless what it needs is retried.
        is_known = run_id in submitted or not chosen.isdisjoint(leaders)
        if not is_known or not all(map(is_coming, leaders)):
            continue
        chosen.add(run_id)
        for canary in canaries:
            past, changes = runs.get(run_id, RunRetries()), runs.get(canary, RunRetries()).changes
            runs[run_id] = replace(past, changes={**past.changes, **changes})


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
