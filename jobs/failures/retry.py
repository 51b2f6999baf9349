"""What is tried again after it failed: which runs, and with what changed.

A failure that was answered once is not answered again: who is ended between writing the memory and
    submitting is taken
up by the next command.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from hvae_hpc.jobs.failures.bad_nodes import gather_failures
from hvae_hpc.jobs.failures.classify import Evidence, classify
from hvae_hpc.jobs.failures.retry_memory import (
    Memory,
    Tried,
    read_memory,
    with_memory,
    write_memory,
)
from hvae_hpc.jobs.sites.retry_policy import Failure, change, in_words
from hvae_hpc.jobs.sites.site import Site
from hvae_hpc.jobs.slurm.client import Cluster
from hvae_hpc.jobs.state.run_status import RunStatus, read_run_status
from hvae_hpc.jobs.state.submissions import SUBMISSIONS, Submissions, submitting
from hvae_hpc.runs.done import ResultSummary, read_results
from hvae_hpc.runs.plan import Plan


class Verdict(NamedTuple):
    """What becomes of a run that failed: its class, and what the next try has otherwise; None where there is none.

    ``why_not`` says why, ``tries`` how often it was tried again after such a failure, ``bad_node``
    the node that is left out for a while; "" for none.
    """

    failure: Failure
    changes: dict[str, Any] | None
    why_not: str
    tries: int
    bad_node: str = ""


Judged = tuple[Evidence, Verdict]


class Choice(NamedTuple):
    """The runs that are tried again, the memory with that in it, and what a person is told of it, in lines."""

    run_ids: frozenset[str]
    memory: Memory
    told: tuple[str, ...]


def judge(
    plan: Plan,
    run_id: str,
    evidence: Evidence,
    tried: Tried,
    most: int,
    site: Site,
    cluster: Cluster | None = None,
) -> Verdict:
    """Return what becomes of a run that failed.

    Args:
        plan: with the resources that the run had.
        run_id: of the run.
        evidence: of its failure.
        tried: what was tried before.
        most: times that a run may be tried again at all.
        site: for the rules and the caps.
        cluster: what SLURM allows; None where nobody asked it.
    """
    failure = classify(evidence)
    if not evidence.turn and not evidence.cancelled:
        return Verdict(failure, {}, "", 0)
    rule = site.rules[failure]
    had, tries = plan.resources_of(run_id), tried.tries.get(failure, 0)
    changes = change(
        rule, plan.runs[run_id], had, evidence.minutes, lambda asked: site.fit(asked, cluster)
    )
    why_not = ""
    if rule.times == 0:
        why_not = (
            "never: it would end in the same way"
            if failure != "blocked by parent"
            else "with what it waits for"
        )
    elif evidence.cancelled:
        why_not = "not by itself: somebody took it out of the queue"
    elif most == 0:
        why_not = "not by itself: the administrator's caps say retries = 0"
    elif changes is None:
        why_not = "no: nothing can be changed that would help"
    elif tries >= rule.times:
        why_not = f"no more: was tried {tries} times after that"
    elif sum(tried.tries.values()) >= most:
        why_not = f"no more: was tried {sum(tried.tries.values())} times"
    alone = had.nodes == 1 and not had.constraint  # else any of them may be at fault, or be missed
    bad_node = evidence.node if rule.exclude_hours and evidence.node_failed and alone else ""
    return Verdict(failure, None if why_not else changes, why_not, tries, bad_node)


def choose(
    plan: Plan,
    results: Mapping[str, ResultSummary],
    statuses: Mapping[str, RunStatus],
    memory: Memory,
    most: int,
    site: Site,
    cluster: Cluster | None = None,
    *,
    by_hand: bool,
) -> Choice:
    """Choose what of a sweep is tried again, and with what changed.

    Args:
        plan: of the sweep, with what is remembered in it.
        results: of its runs.
        statuses: of its runs.
        memory: what was tried before.
        most: times that a run may be tried again.
        site: for the rules and the caps.
        cluster: what SLURM allows; None for local processes.
        by_hand: a person gave the command: the tries are counted anew.
    """
    submissions, runs = Submissions(plan.runs_folder), dict(memory.runs)
    judged: dict[str, Judged] = {}
    again = set[str]()
    for run_id, evidence in gather_failures(plan, results, statuses, submissions).items():
        tried, mark = runs.get(run_id, Tried()), f"{evidence.status.element}:{evidence.attempts}"
        if (
            tried.answered == mark and cluster
        ):  # here, who died before it began would be tried again for ever
            again.add(run_id)
            continue
        tried = replace(tried, tries={}) if by_hand else tried
        verdict = judge(plan, run_id, evidence, tried, most, site, cluster)
        judged[run_id] = (evidence, verdict)
        if verdict.changes is not None:
            again.add(run_id)
            if evidence.turn:  # else nothing of what happened is its own
                now = {**tried.tries, verdict.failure: verdict.tries + 1}
                runs[run_id] = Tried(
                    tries=now, changes={**tried.changes, **verdict.changes}, answered=mark
                )
    for run_id, changes in _held_with(plan, statuses, submissions, again, runs).items():
        again.add(run_id)
        before = runs.get(run_id, Tried())
        runs[run_id] = replace(before, changes={**before.changes, **changes})
    behind = _left_behind(plan, submissions) if cluster else set[str]()
    for run_id in statuses:  # parents before children
        again |= {run_id} if _goes_along(plan, run_id, results, statuses, again, behind) else set()
    nodes = _leave_out(memory, judged.values(), site, cluster.name if cluster else "")
    told = _tell(plan, judged, "taken up as it was" if by_hand and cluster else "not tried again")
    return Choice(frozenset(again), Memory(runs=runs, nodes=nodes), told)


def _leave_out(
    memory: Memory, judged: Iterable[Judged], site: Site, cluster: str
) -> dict[str, dict[str, float]]:
    """Return the nodes that are left out from now on, by cluster, and until when; none for local processes."""
    now = time.time()
    left = {
        name: {node: end for node, end in bad.items() if end > now}
        for name, bad in memory.nodes.items()
    }
    for _, verdict in judged:
        if verdict.changes is not None and verdict.bad_node and cluster:
            hours = site.rules[verdict.failure].exclude_hours
            bad = left.setdefault(cluster, {})
            bad[verdict.bad_node] = max(
                bad.get(verdict.bad_node, 0.0), round(now + 3600 * hours, 3)
            )
    return {name: bad for name, bad in left.items() if bad}


def _tell(plan: Plan, judged: Mapping[str, Judged], otherwise: str) -> tuple[str, ...]:
    """Return what becomes of the runs that failed, a line for all that are alike."""
    told = Counter[str]()
    for run_id, (evidence, verdict) in judged.items():
        if verdict.changes is None:
            told[f"{otherwise}: {{}} after {verdict.failure} ({verdict.why_not})"] += 1
        elif not evidence.turn:
            told["tried again: {}, whose turn had not come"] += 1
        else:
            words = in_words(verdict.changes, plan.resources_of(run_id), evidence.minutes)
            blamed = (
                f", as {verdict.bad_node} looks bad"
                if evidence.node_looks_bad and verdict.bad_node
                else ""
            )
            told[f"tried again: {{}} after {verdict.failure} ({words}{blamed})"] += 1
    return tuple(
        line.format(f"{n:,} run{'s' * (n > 1)}") for line, n in sorted(told.items(), reverse=True)
    )


def _held_with(
    plan: Plan,
    statuses: Mapping[str, RunStatus],
    submissions: Submissions,
    again: Collection[str],
    tried: Mapping[str, Tried],
) -> dict[str, dict[str, Any]]:
    """Return the held runs whose canaries are tried again, and what those have otherwise."""
    found = {}
    for run_id, status in statuses.items():
        ahead = submissions.element(status.element).canary_runs if status.held else ()
        if first := next((i for i in ahead if i in again and i in plan.runs), None):
            found[run_id] = dict(tried.get(first, Tried()).changes)
    return found


def _goes_along(
    plan: Plan,
    run_id: str,
    results: Mapping[str, ResultSummary],
    statuses: Mapping[str, RunStatus],
    again: Collection[str],
    behind: Collection[str],
) -> bool:
    """Tell whether a run that was blocked can be made once those are that are tried again."""
    if statuses[run_id].kind not in ("blocked", "open") or results[run_id].reason:
        return False
    parents = plan.parents(run_id).values()
    if run_id not in behind and not any(parent in again for parent in parents):
        return False  # what was never begun, or leaves no word of it, is nobody's second try
    return all(
        results[p].done or p in again or statuses[p].kind in ("waiting", "running") for p in parents
    )


def _left_behind(plan: Plan, submissions: Submissions) -> set[str]:
    """Return the runs that were submitted before a parent was tried again, and not since: SLURM took no more then."""
    at = {
        run_id: submissions.element(element).submitted_at
        for run_id, element in submissions.last_elements().items()
    }
    return {
        run_id
        for run_id in at.keys() & plan.runs
        if any(at.get(p, 0.0) > at[run_id] for p in plan.parents(run_id).values())
    }


def choose_here(plan: Plan, site: Site, most: int, *, by_hand: bool) -> tuple[Plan, list[str]]:
    """Choose what is tried again of what local processes have just done; returns the plan with changes, and the runs.

    Args:
        plan: of the sweep.
        site: for the rules and the caps.
        most: times that a run may be tried again.
        by_hand: this is the first time since a person gave the command.
    """
    with submitting(
        plan.runs_folder / SUBMISSIONS
    ):  # a submission of this runs folder keeps its own choice there
        memory, results = read_memory(plan.runs_folder), read_results(plan)
        statuses = read_run_status(plan, results, Submissions(plan.runs_folder), None)
        plan = with_memory(plan, memory, site)
        choice = choose(plan, results, statuses, memory, most, site, by_hand=by_hand)
        if choice.run_ids:
            write_memory(plan.runs_folder, choice.memory)
    for line in choice.told:
        print(line, flush=True)
    return with_memory(plan, choice.memory, site), [
        run_id for run_id in plan.runs if run_id in choice.run_ids
    ]
