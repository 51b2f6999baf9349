"""``hvae-hpc why``: why a run came to nothing, in ten lines: its class, the evidence, what a retry would change."""

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.errors import printable
from hvae_hpc.jobs.failures.bad_nodes import gather_failures
from hvae_hpc.jobs.failures.classify import CANCELLED, SENTENCES, Evidence, classify, gather
from hvae_hpc.jobs.failures.retry import RunRetries, decide_retry, read_history, with_retry_changes
from hvae_hpc.jobs.sites.retry_policy import in_words
from hvae_hpc.jobs.sites.site import Site, read_site
from hvae_hpc.jobs.state.element_ends import read_ends
from hvae_hpc.jobs.state.find_run import add_run, find_run
from hvae_hpc.jobs.state.run_log import describe
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import make_sweep_status, read_our_queue
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.plan import Plan

WIDTH = 200
"""Characters of a line that are shown."""
SHOWN = 3
"""Lines of logs, one fewer where there is a note: ten lines in all."""
TELLING = re.compile(
    "|".join([*(pattern for _, pattern in SENTENCES), CANCELLED.pattern, r"[Ee]rror|Killed|DUE TO"])
)
MEND = {
    "bad input": "mend what it names, then give the same sweep command again",
    "code error": "hvae-hpc logs {run} shows the traceback; mend the code, then give the same sweep command again",
    "out of memory (device)": "a GPU with more memory (--constraint), or fewer runs on it at a time (at_once)",
    "non-finite loss": "a smaller optim.lr (or model.step_size), or precision fp32, in the sweep makes new runs",
    "blocked by parent": "hvae-hpc why {parent}",
    "disk full or quota": "make room, then give the same sweep command again",
}


def main(argv: Sequence[str]) -> int:
    """Say why a run came to nothing: its class, the evidence, what a retry would change, what to do."""
    parser = argparse.ArgumentParser(prog="hvae-hpc why", description=main.__doc__)
    add_run(parser)
    parser.add_argument(
        "--site", type=Path, metavar="FILE", help="the site file of the sweep command, for [retry]"
    )
    options = parser.parse_args(argv)
    plan, run_id = find_run(options.runs, options.run)
    submissions = Submissions(plan.runs_folder)
    queue, note = read_our_queue(submissions)
    statuses = make_sweep_status(plan, submissions, queue).statuses
    note = f"the queue is not known: {note}" if note else ""
    node_looks_bad = _looks_bad(plan, run_id, statuses, submissions)
    print(
        *explain(
            plan,
            run_id,
            statuses[run_id],
            submissions,
            read_site(options.site),
            note,
            node_looks_bad,
        ),
        sep="\n",
    )
    return 0


def _looks_bad(
    plan: Plan, run_id: str, statuses: Mapping[str, RunStatus], submissions: Submissions
) -> bool:
    """Tell whether other runs' failures speak against the node of a run."""
    if statuses[run_id].kind not in ("failed", "lost") or not statuses[run_id].element:
        return False
    failures = gather_failures(plan, read_results(plan), statuses, submissions)
    return failures[run_id].node_looks_bad


def explain(
    plan: Plan,
    run_id: str,
    status: RunStatus,
    submissions: Submissions,
    site: Site,
    note: str = "",
    node_looks_bad: bool = False,
) -> Iterator[str]:
    """Yield why a run came to nothing, in ten lines at most that a terminal shows as they are.

    Args:
        plan: of its sweep.
        run_id: of the run.
        status: how it stands.
        submissions: of its runs folder.
        site: for the rules.
        note: a last line.
        node_looks_bad: other runs' failures speak against its node.
    """
    for line in _explain(
        plan, run_id, status, submissions, site, SHOWN - bool(note), node_looks_bad
    ):
        yield _tidy(line)
    if note:
        yield _tidy(f"note:      {note}")


def _tidy(line: str) -> str:
    line = printable(line)
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _explain(
    plan: Plan,
    run_id: str,
    status: RunStatus,
    submissions: Submissions,
    site: Site,
    shown: int,
    node_looks_bad: bool,
) -> Iterator[str]:
    run = plan.runs[run_id]
    evidence = gather(plan, run_id, status, submissions, read_ends(submissions))._replace(
        node_looks_bad=node_looks_bad
    )
    yield f"{run.stage} {run.label} ({run_id})"
    reason = status.reason.replace(f"{plan.folder(run_id)}/", "")
    if status.kind not in ("failed", "lost", "blocked"):
        yield f"state:     {': '.join(filter(None, [status.kind, reason]))}"
        if evidence.attempts and status.kind != "done":
            yield from _attempts(plan, run_id, evidence)
        yield (
            "next:      nothing: it is no failure"
            if status.kind != "open"
            else "next:      the same sweep command"
        )
        return
    failure = classify(evidence)
    yield "class:     " + (
        "held" if status.held else failure + ", taken out of the queue" * evidence.cancelled
    )
    yield f"state:     {status.kind}: {reason}"
    if facts := list(_facts(evidence)):
        yield f"evidence:  {', '.join(facts)}"
    if evidence.attempts:
        yield from _attempts(plan, run_id, evidence)
    yield from _telling_lines(plan, run_id, evidence, shown)
    history = read_history(plan.runs_folder)
    plan, past = with_retry_changes(plan, history, site), history.runs.get(run_id, RunRetries())
    decision = decide_retry(plan, run_id, evidence, past, site.caps.retries, site)
    if decision.changes is None:
        yield f"retry:     {decision.why_not}"
    elif not evidence.turn:
        yield "retry:     as it was, and not counted: its turn in the element had not come"
    else:
        rule, words = (
            site.rules[failure],
            in_words(decision.changes, plan.resources_of(run_id), evidence.minutes),
        )
        hours = rule.exclude_hours
        apart = f", not on {decision.bad_node} for {hours:g} h" if decision.bad_node else ""
        # SLURM is not asked for what its partitions have, which is several calls.
        limited = status.element and decision.changes.keys() & {"memory_gb", "minutes"}
        words += ", as far as the partition allows" if limited else ""
        yield f"retry:     {words}{apart}; {decision.retries} of {rule.times} retries after this made"
    names = {"run": f"{run.stage}/{run.label}", "parent": _culprit(plan, run_id, reason)}
    again, mend = "the same sweep command", MEND.get(failure, "")
    if decision.changes is not None and failure != "disk full or quota":
        again, mend = f"{again} with --retries 1", ""
    yield f"next:      {(mend or again).format(**names)}"


def _facts(evidence: Evidence) -> Iterator[str]:
    """Yield what is known beside sentences."""
    where = (
        f"on {evidence.node}{', which looks bad' * evidence.node_looks_bad}"
        if evidence.node
        else ""
    )
    ended, place = evidence.ended, [evidence.status.element, where]
    if where := " ".join(filter(None, place)):
        yield f"element {where}" if place[0] else where
    if evidence.state:
        yield f"SLURM says {evidence.state}"
    if evidence.minutes:
        yield f"limit {evidence.minutes} min"
    if errors := ended.get("errors"):
        yield " from ".join(dict.fromkeys(errors))
    for name, words in (
        ("errno", "error number {}"),
        ("signal", "ended by {}"),
        ("exit_code", "exit code {}"),
        ("oom_kills", "kills for memory in its cgroup: {}"),
    ):
        if name in ended:
            yield words.format(ended[name])


def _attempts(plan: Plan, run_id: str, evidence: Evidence) -> Iterator[str]:
    config = plan.runs[run_id].config
    line = f"attempts:  {evidence.attempts}"
    if isinstance(config, (TrainConfig, SegmentConfig)):
        line += f", saved at {evidence.reached:,} of {config.optim.images:,} images"
        line += f"; the last began at {evidence.began.get('at', 0):,}" if evidence.began else ""
    yield line


def _telling_lines(plan: Plan, run_id: str, evidence: Evidence, most: int) -> Iterator[str]:
    """Yield the last event of the run's log, and the last lines of the element's that tell of trouble."""
    reason = str(evidence.ended.get("reason", evidence.status.reason))
    records = [record for record in read_log(plan.folder(run_id)) if record.get("reason") != reason]
    shown = [line for line in evidence.lines if TELLING.search(line) and reason not in line][
        1 - most :
    ]
    if records:
        last = records[-1]
        shown.insert(
            0,
            f"{time.strftime('%b %d %H:%M:%S', time.localtime(last.get('time', 0)))}  {describe(last)}",
        )
    for number, line in enumerate(shown):
        yield f"{'' if number else 'log:':10} {line}"


def _culprit(plan: Plan, run_id: str, reason: str) -> str:
    """Return the run that a blocked one waits for in the end, as a command takes it."""
    named = next((parent for parent in plan.runs if parent in reason), None)
    parent = named or next(iter(plan.parents(run_id).values()), run_id)
    return f"{plan.runs[parent].stage}/{plan.runs[parent].label}"
