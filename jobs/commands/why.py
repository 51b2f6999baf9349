"""``hvae-hpc why``: why a run failed, in ten lines, what a retry would change, and what to do."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.errors import printable, say
from hvae_hpc.jobs.failures.classify import Evidence, classify, gather, gather_failures
from hvae_hpc.jobs.failures.retry import RunRetries, decide_retry, read_history, with_retry_changes
from hvae_hpc.jobs.sites.site import Site, read_site
from hvae_hpc.jobs.state.find_run import add_run, find_status, name_run
from hvae_hpc.runs.plan import Plan

WIDTH = 200
"""Characters of a line that are shown."""
LOG_LINES = 2
"""Last lines of its element's log that are shown, so that there are ten lines at most."""
SAME_COMMAND = "the same sweep command"
REMEDIES = {
    "bad input": f"correct what it names, then give {SAME_COMMAND} again",
    "code error": "hvae-hpc logs {run}; correct the code that its traceback shows, "
    f"then give {SAME_COMMAND} again",
    "out of memory (device)": "a GPU with more memory (--constraint), "
    "or fewer runs on it at a time (at_once)",
    "non-finite loss": "a smaller optim.lr (or model.step_size), or precision fp32, "
    "in the sweep makes new runs",
    "blocked by parent": "hvae-hpc why {parent}",
    "disk full or quota": f"make room, then give {SAME_COMMAND} again",
}


def main(argv: Sequence[str]) -> int:
    """Say why a run failed, what a retry would change, and what to do."""
    parser = argparse.ArgumentParser(prog="hvae-hpc why", description=main.__doc__)
    add_run(parser)
    about = "the site file that the sweep command had (for its rules of retries)"
    parser.add_argument("--site", type=Path, metavar="FILE", help=about)
    options = parser.parse_args(argv)

    sweep, run_id = find_status(options)
    plan, status = sweep.plan, sweep.statuses[run_id]
    # The failures of other runs may speak against its node.
    evidence = gather_failures(sweep).get(run_id) or gather(plan, run_id, status, sweep.submissions)
    say(*explain(plan, run_id, evidence, read_site(options.site), sweep.note))
    return 0


def explain(
    plan: Plan, run_id: str, evidence: Evidence, site: Site, note: str = ""
) -> Iterator[str]:
    """Yield why a run failed, in ten lines at most that a terminal shows as they are.

    Args:
        plan: of its sweep.
        run_id: of the run.
        evidence: of its failure.
        site: for the rules.
        note: why the queue is not known; "" where it is.
    """
    status = evidence.status
    reason = status.reason.replace(f"{plan.folder(run_id)}/", "")
    lines = [f"{plan.runs[run_id]} ({run_id})"]
    if status.kind in ("failed", "lost", "blocked"):
        lines += _describe_failure(plan, run_id, evidence, reason)
        lines += _describe_retry(plan, run_id, evidence, reason, site)
    else:
        lines.append(f"status:    {status.kind}" + (f": {reason}" if reason else ""))
        if evidence.attempts and status.kind != "done":
            lines.append(_describe_attempts(plan, run_id, evidence))
        todo = SAME_COMMAND if status.kind == "open" else "nothing: this is not a failure"
        lines.append(f"next:      {todo}")
    if note:
        lines.append(f"note:      the queue is not known: {note}")
    for line in map(printable, lines):
        is_whole = len(line) <= WIDTH or line.startswith("next:")  # commands are to be copied
        yield line if is_whole else f"{line[: WIDTH - 1]}…"


def _describe_failure(plan: Plan, run_id: str, evidence: Evidence, reason: str) -> Iterator[str]:
    status = evidence.status
    failure: str = "held" if status.held else classify(evidence)
    if evidence.cancelled and not status.held:
        failure += ", taken out of the queue"
    yield f"class:     {failure}"
    yield f"status:    {status.kind}: {reason}"
    if facts := ", ".join(_find_facts(evidence)):
        yield f"evidence:  {facts}"
    if evidence.attempts:
        yield _describe_attempts(plan, run_id, evidence)
    for line in evidence.lines[-LOG_LINES:]:
        yield f"log:       {line}"


def _find_facts(evidence: Evidence) -> Iterator[str]:
    """Yield what is known beside sentences."""
    looks_bad = ", which looks bad" if evidence.node_looks_bad else ""
    facts = {
        "element": evidence.status.element,
        "on": evidence.node + looks_bad,
        "SLURM says": evidence.state,
        "limit in minutes:": evidence.minutes,
        "raised": " from ".join(evidence.ended["errors"]),
        "error number": evidence.ended["errno"],
        "ended by": evidence.ended["signal"],
        "exit code": evidence.ended["exit_code"],
        "kills for memory:": evidence.ended["oom_kills"],
    }
    yield from (f"{name} {fact}" for name, fact in facts.items() if fact)


def _describe_attempts(plan: Plan, run_id: str, evidence: Evidence) -> str:
    config = plan.runs[run_id].config
    line = f"attempts:  {evidence.attempts}"
    if isinstance(config, (TrainConfig, SegmentConfig)):
        line += f", saved at {evidence.reached:,} of {config.optim.images:,} images"
        line += f"; the last began at {evidence.began.get('at', 0):,}" if evidence.began else ""
    return line


def _describe_retry(
    plan: Plan, run_id: str, evidence: Evidence, reason: str, site: Site
) -> Iterator[str]:
    """Yield what a retry would change, and what to do next."""
    failure, history, limit = classify(evidence), read_history(plan.runs_folder), site.caps.retries
    past = history.runs.get(run_id, RunRetries())
    plan = with_retry_changes(plan, history, site)
    decision = decide_retry(plan, run_id, evidence, past, limit, site)
    is_retried = decision.changes is not None
    used = f"; {past.counts.get(failure, 0)} of {site.rules[failure].times} retries used"
    if failure == "blocked by parent":
        yield "retry:     with what it waits for"
    else:
        yield f"retry:     {decision.words}{used if is_retried and evidence.had_turn else ''}"

    remedy = REMEDIES.get(failure, SAME_COMMAND)
    if is_retried and evidence.status.element and failure != "disk full or quota":
        remedy = f"{SAME_COMMAND} with --retries 1"
    # Of a blocked run, the parent that it waits for in the end.
    named = [parent for parent in plan.runs if parent in reason]
    parent = [*named, *plan.parents(run_id).values(), run_id][0]
    remedy = remedy.format(run=name_run(plan, run_id), parent=name_run(plan, parent))
    yield f"next:      {remedy}"
