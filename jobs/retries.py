"""What is tried again after it failed: which runs, with what changed, and what was tried before.

The memory of it is one small file beside the submissions. What it says of runs is theirs wherever they are submitted,
nodes are kept apart by cluster. A failure that was answered once is not answered again: who is ended between writing
the memory and submitting is taken up by the next command.
"""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.config import dump, load, read_json
from hvae_hpc.errors import UserError, printable
from hvae_hpc.jobs.accounting import known_ends
from hvae_hpc.jobs.failures import Evidence, classify, gather
from hvae_hpc.jobs.policy import Failure, change, in_words
from hvae_hpc.jobs.site import Site
from hvae_hpc.jobs.slurm import Cluster
from hvae_hpc.jobs.standing import SUBMISSIONS, Standing, Submissions, read_standings, submitting
from hvae_hpc.plan import Plan
from hvae_hpc.resources import Resources
from hvae_hpc.rundir import write_json
from hvae_hpc.states import State, read_states

MEMORY_FILE = "retries.json"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What is remembered of a run that failed.

    Attributes:
        tries: class of failure to how often it was tried again after it.
        changes: fields of its stage's resources that it has otherwise since.
        answered: the last failure that was answered: its element and the attempts until then.
    """

    tries: dict[str, int] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    answered: str = ""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is remembered of a runs folder.

    Attributes:
        runs: by run id.
        nodes: cluster to node to the time until which no run goes there, in seconds since 1970.
    """

    runs: dict[str, Tried] = field(default_factory=dict)
    nodes: dict[str, dict[str, float]] = field(default_factory=dict)


class Verdict(NamedTuple):
    """What becomes of a run that failed: its class, and what the next try has otherwise; None where there is none.

    ``why_not`` says why, ``tries`` how often it was tried again after such a failure, ``bad_node`` the node that is
    left out for a while; "" for none.
    """

    failure: Failure
    changes: dict[str, Any] | None
    why_not: str
    tries: int
    bad_node: str = ""


class Choice(NamedTuple):
    """The runs that are tried again, the memory with that in it, and what a person is told of it, in lines."""

    run_ids: frozenset[str]
    memory: Memory
    told: tuple[str, ...]


def read_memory(runs_folder: Path) -> Memory:
    """Return what is remembered of a runs folder; nothing where nothing was ever tried again, or it is damaged."""
    path = runs_folder / SUBMISSIONS / MEMORY_FILE
    if not path.exists():
        return Memory()
    try:
        memory = load(Memory, read_json(path), str(path))
        for run_id, tried in memory.runs.items():
            if bad := [f"{name} = {value!r}" for name, value in tried.changes.items() if not _may_be(name, value)]:
                raise UserError(f"{path}: run {run_id} has {bad[0]}")
    except UserError as error:
        print(printable(f"warning: {error}; what was tried before is forgotten"), file=sys.stderr)
        return Memory()
    return memory


def _may_be(name: str, value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        return False
    return name == "memory_gb" or (name in ("minutes", "micro_batch") and isinstance(value, int))


def write_memory(runs_folder: Path, memory: Memory) -> None:
    """Keep it, for all later commands."""
    write_json(runs_folder / SUBMISSIONS / MEMORY_FILE, dump(memory))


def with_memory(plan: Plan, memory: Memory, site: Site, cluster: Cluster | None = None) -> Plan:
    """Return the plan with the changed resources of runs that failed; what a person gave more of since stays so."""
    changes: dict[str, dict[str, Any]] = {}
    for run_id in plan.runs.keys() & memory.runs.keys():
        had, mine = plan.resources[plan.runs[run_id].stage], memory.runs[run_id].changes
        if more := {name: value for name, value in mine.items() if _is_more(name, value, had)}:
            with contextlib.suppress(ValueError):  # a limit that leaves no time to work, by hand
                fitted = site.fit(replace(had, **more), cluster)
                changes[run_id] = {name: getattr(fitted, name) for name in more}
    return replace(plan, changes=changes)


def _is_more(name: str, value: float, had: Resources) -> bool:
    if name == "micro_batch":
        return not 0 < had.micro_batch <= value
    return name == "minutes" or bool(value > getattr(had, name))


def judge(
    plan: Plan, run_id: str, evidence: Evidence, tried: Tried, most: int, site: Site, cluster: Cluster | None = None
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
    changes = change(rule, plan.runs[run_id], had, evidence.minutes, lambda asked: site.fit(asked, cluster))
    why_not = ""
    if rule.times == 0:
        why_not = "never: it would end in the same way" if failure != "blocked by parent" else "with its parent"
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
    states: Mapping[str, State],
    standings: Mapping[str, Standing],
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
        states: of its runs.
        standings: of its runs.
        memory: what was tried before.
        most: times that a run may be tried again.
        site: for the rules and the caps.
        cluster: what SLURM allows; None for local processes.
        by_hand: a person gave the command: the tries are counted anew.
    """
    submissions, again, told = Submissions(plan.runs_folder), set[str](), Counter[str]()
    ends, behind = known_ends(submissions), _left_behind(plan, submissions) if cluster else set()
    runs, nodes = dict(memory.runs), _still_bad(memory)
    otherwise = "taken up as it was" if by_hand and cluster else "not tried again"
    for run_id, standing in standings.items():
        if _goes_along(plan, run_id, states, standings, again, behind):
            again.add(run_id)
        if standing.kind not in ("failed", "lost"):
            continue
        evidence = gather(plan, run_id, standing, submissions, ends)
        tried, mark = runs.get(run_id, Tried()), f"{standing.element}:{evidence.attempts}"
        if tried.answered == mark and cluster:  # here, who died before it began would be tried again for ever
            again.add(run_id)
            continue
        tried = replace(tried, tries={}) if by_hand else tried
        verdict = judge(plan, run_id, evidence, tried, most, site, cluster)
        if verdict.changes is None:
            told[f"{otherwise}: {{}} after {verdict.failure} ({verdict.why_not})"] += 1
            continue
        again.add(run_id)
        if not evidence.turn:  # nothing of what happened is its own
            told["tried again: {}, whose turn had not come"] += 1
            continue
        tries = {**tried.tries, verdict.failure: verdict.tries + 1}
        changes = {**tried.changes, **verdict.changes}
        runs[run_id] = Tried(tries=tries, changes=changes, answered=mark)
        if verdict.bad_node and cluster:
            end = time.time() + 3600 * site.rules[verdict.failure].exclude_hours
            nodes.setdefault(cluster.name, {})[verdict.bad_node] = round(end, 3)
        words = in_words(verdict.changes, plan.resources_of(run_id), evidence.minutes)
        told[f"tried again: {{}} after {verdict.failure} ({words})"] += 1
    lines = tuple(line.format(f"{n:,} run{'s' * (n > 1)}") for line, n in sorted(told.items(), reverse=True))
    return Choice(frozenset(again), Memory(runs=runs, nodes=nodes), lines)


def _still_bad(memory: Memory) -> dict[str, dict[str, float]]:
    now = time.time()
    left = {name: {node: end for node, end in bad.items() if end > now} for name, bad in memory.nodes.items()}
    return {name: bad for name, bad in left.items() if bad}


def _goes_along(
    plan: Plan,
    run_id: str,
    states: Mapping[str, State],
    standings: Mapping[str, Standing],
    again: Collection[str],
    behind: Collection[str],
) -> bool:
    """Tell whether a run that was blocked can be made once those are that are tried again."""
    if standings[run_id].kind not in ("blocked", "open") or states[run_id].reason:
        return False
    parents = plan.parents(run_id).values()
    if run_id not in behind and not any(parent in again for parent in parents):
        return False  # what was never begun, or leaves no word of it, is nobody's second try
    return all(states[p].done or p in again or standings[p].kind in ("waiting", "running") for p in parents)


def _left_behind(plan: Plan, submissions: Submissions) -> set[str]:
    """Return the runs that were submitted before a parent was tried again, and not since: SLURM took no more then."""
    at = {run_id: submissions.submitted_at(element) for run_id, element in submissions.elements().items()}
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
    with submitting(plan.runs_folder / SUBMISSIONS):  # a submission of this runs folder keeps its own choice there
        memory, states = read_memory(plan.runs_folder), read_states(plan)
        standings = read_standings(plan, states, Submissions(plan.runs_folder), None)
        plan = with_memory(plan, memory, site)
        choice = choose(plan, states, standings, memory, most, site, by_hand=by_hand)
        if choice.run_ids:
            write_memory(plan.runs_folder, choice.memory)
    for line in choice.told:
        print(line, flush=True)
    return with_memory(plan, choice.memory, site), [run_id for run_id in plan.runs if run_id in choice.run_ids]
