"""Why a run failed: all evidence is put together, and one class of failure follows from it.

What the run's own log recorded counts most, then SLURM's word, then what stands in the element's
log. Sentences are read only where nobody left anything better.

A node without a GPU, with a full disk or with a missing folder fails run after run, and nothing in
a single run's evidence says that the node is why. So all failures of a sweep are looked at
together: a node looks bad where runs fail whose like succeed elsewhere.
"""

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from hvae_hpc.errors import DEVICE_MEMORY
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.state.run_log import (
    BEGINS,
    MACHINE_ERRORS,
    NO_TEMPORARY,
    checkpoint_at,
    process_logs,
    read_tail,
    split_attempts,
)
from hvae_hpc.jobs.state.run_status import ENDS, RunStatus, RunStatuses
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.folder import LogRecord, read_log
from hvae_hpc.runs.plan import Plan

LINES = 200
"""Last lines of an element's log that are looked at."""
STATES: Mapping[str, Failure] = {
    "OUT_OF_MEMORY": "out of memory (host)",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
}
"""SLURM's words for ends that are classes of their own."""
ERRORS: Mapping[str, Failure] = {
    "OutOfMemoryError": "out of memory (device)",
    "MemoryError": "out of memory (host)",
    "_ArrayMemoryError": "out of memory (host)",
    "NonFiniteError": "non-finite loss",
    "StallError": "time limit without progress",
}
"""Types of exceptions that are classes of their own; the last is numpy's."""
BAD_NODE = (
    r"\bXid\b(?! \([^)]*\): (13|31|43|45)\b)"
    r"|DUE TO NODE FAILURE|uncorrectable ECC|fallen off the bus"
)
"""What SLURM and the driver say of a bad node. The Xids that are left out are a program's fault."""
SENTENCES: Mapping[Failure, str] = {
    "out of memory (device)": r"OutOfMemoryError|out of memory with .* on cuda|" + DEVICE_MEMORY,
    "node failure": (
        BAD_NODE + r"|uncorrectable|CUDA-capable devices? (is|are) (busy|detected)"
        r"|CUDA error: (unknown error|hardware)"
    ),
    "device error": r"AcceleratorError|CUDA error: ",
    "out of memory (host)": (
        r"oom[-_ ]kill|[Oo]ut-of-memory handler|[Ee]xceeded (job |step )?memory limit|Out Of Memory"
        r"|(can't|[Cc]annot) allocate memory|MemoryError|bad_alloc|out of memory with"
    ),
    "disk full or quota": (
        r"No space left on device|File too large|[Qq]uota exceeded|\d requested and \d+ written|"
        + NO_TEMPORARY
    ),
    "preempted": r"DUE TO PREEMPTION",
    "non-finite loss": r"became (nan|-?inf)|metric \S+ is (nan|-?inf)",
}
"""What logs say of a failure. The first that is found counts: a GPU's words include a host's."""
NODE_IN_ACCOUNTING = re.compile(r" on ([^\s\[\],]+)$")
"""How accounting names the node; a list of several nodes does not match."""
CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+( DUE to SIGNAL \w+)? \*\*\*")
"""What SLURM says of a cancelled job, not of a step; newer versions name the signal too."""
NEVER_BEGAN = "CANCELLED before it began"
"""Stands for SLURM's word where an element left the queue, and its log was never opened."""
REPORT = re.compile(r"(done|failed|blocked|stopped): .*?\(([0-9a-f]{12})\), [0-9.]+ s: (.*)")
"""How an element's log reports that a run ended: how, which run, and the message."""

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


class Evidence(NamedTuple):
    """What is known of how a run's last attempt ended.

    Attributes:
        status: of the run.
        state: accounting's text on the element's end; "" where it gave none.
        began: the log's record of the attempt's beginning; empty where it never began in this
            element.
        ended: the log's record of its end; empty where it was ended from outside.
        attempts: that began, at any time.
        reached: images seen of the newest checkpoint.
        minutes: the element's time limit; 0 where it is not known.
        lines: the last of the element's log that are of this run.
        had_turn: False where it is in a bundle that ended at a run before it.
        node_looks_bad: by the failures of other runs.
    """

    status: RunStatus
    state: str = ""
    began: LogRecord = LogRecord()
    ended: LogRecord = LogRecord()
    attempts: int = 0
    reached: int = 0
    minutes: int = 0
    lines: Sequence[str] = ()
    had_turn: bool = True
    node_looks_bad: bool = False

    @property
    def slurm_word(self) -> str:
        """SLURM's word for the end alone: "FAILED" of "FAILED, exit code 1 on n3"."""
        return self.state.partition(" ")[0].rstrip(",")

    @property
    def node(self) -> str:
        """The node on which it ran, or was to begin; "" where nobody says."""
        in_accounting = NODE_IN_ACCOUNTING.search(self.state)
        by_slurm = in_accounting[1] if in_accounting else ""
        return self.began["host"] or self.ended["host"] or by_slurm

    @property
    def node_failed(self) -> bool:
        """Whether it ended by a fault of its node, which others would meet there as well."""
        said = "\n".join([self.ended["reason"], *self.lines])
        is_named = STATES.get(self.slurm_word) == "node failure" or re.search(BAD_NODE, said)
        is_told = bool(is_named or self.ended["gpu_lost"])
        return self.node_looks_bad or is_told or classify(self) == "device error"

    @property
    def got_further(self) -> bool:
        """Whether the last attempt got further than where it began."""
        saved = bool(self.began) and self.reached > self.began["at"]
        return saved or bool(self.ended["further"])

    @property
    def cancelled(self) -> bool:
        """Whether somebody took it out of the queue, also before it began."""
        if self.state.startswith("CANCELLED") or any(map(CANCELLED.search, self.lines)):
            return True
        # SLURM names a preemption, but not always a scancel. So an element that was told to go, or
        # requeued itself and is gone, was cancelled.
        told_to_go = self.ended["event"] == "left" and (
            self.ended["goes_back"] or not self.ended["at_limit"]
        )
        return bool(self.had_turn and told_to_go) and classify(self) == "lost"


def gather(plan: Plan, run_id: str, status: RunStatus, submissions: Submissions) -> Evidence:
    """Put together what is known of how a run's last attempt ended.

    Args:
        plan: of its sweep.
        run_id: of the run.
        status: of the run.
        submissions: of its runs folder.
    """
    log, element = read_log(plan.folder(run_id)), status.element
    submitted = submissions.element(element)

    # The last attempt. It may have been made by a local process since the element was submitted.
    attempts = split_attempts(log)
    attempt = attempts[-1] if attempts else log
    began = attempt[0] if attempts else LogRecord()
    if began and not began["job_id"] and began["time"] > submitted.submitted_at:
        element = ""

    # Its end. What an earlier element said counts only where it is the run's status.
    endings = [record for record in attempt if record["event"] in (*ENDS, "left")]
    if status.kind != "failed":
        endings = [record for record in endings if record["job_id"] == element]
    opened = bool(element) and bool(process_logs(plan.runs_folder, element))
    lines = _read_lines(plan, run_id, element) if opened else []
    reports = [words for words in map(REPORT.match, lines) if words and words[2] == run_id]
    if status.kind == "lost" and not endings:  # the run's folder may have taken no word
        failed = [words[3] for words in reports if words[1] == "failed"]
        endings = [LogRecord(event="failed", reason=reason) for reason in failed]

    # An element makes its runs in their order, so its first run has its turn at once.
    is_named = any(record["job_id"] == element for record in log)
    is_first = run_id in submitted.run_ids[:1] or not submitted.run_ids
    never_began = bool(element) and not (opened or is_named)
    return Evidence(
        status=status,
        state=submissions.end_of(element) or (NEVER_BEGAN if never_began else ""),
        began=began if began["job_id"] == element else LogRecord(),
        ended=endings[-1] if endings else LogRecord(),
        attempts=len(attempts),
        reached=checkpoint_at(plan.folder(run_id)),
        minutes=submitted.minutes,
        lines=lines,
        had_turn=not element or is_first or is_named or bool(reports),
    )


def _read_lines(plan: Plan, run_id: str, element: str) -> list[str]:
    """Return the last lines of an element's processes that are of a run, or of all its runs.

    SLURM adds what a requeued element prints to what it printed before: the last life counts.
    """
    lines = list[str]()
    for path in process_logs(plan.runs_folder, element):
        of_run, is_over = list[str](), False
        for line in read_tail(path):
            report = REPORT.match(line)
            if BEGINS.match(line):
                of_run, is_over = [line], False
            elif is_over:
                continue
            elif report and report[2] != run_id:
                of_run = []
            else:
                of_run.append(line)
                # What stopped is ended by what follows.
                is_over = report is not None and report[1] != "stopped"
        lines += of_run[-LINES:]
    return [line for line in lines if line.strip()]


def classify(evidence: Evidence) -> Failure:
    """Return the one class of a run's failure."""
    if evidence.status.kind == "blocked":
        return "blocked by parent"
    if evidence.node_looks_bad:
        return "node failure"
    if not evidence.had_turn:
        return "lost"
    ended = evidence.ended
    if ended["event"] in ("failed", "died"):
        return _classify_record(evidence)

    goes_back = ended["goes_back"]
    is_told = evidence.slurm_word in ("TIMEOUT", "DEADLINE") or any(
        "DUE TO TIME LIMIT" in line for line in evidence.lines
    )
    if is_told or (ended["at_limit"] and not goes_back):
        return "time limit with progress" if evidence.got_further else "time limit without progress"
    if evidence.slurm_word in STATES:
        return STATES[evidence.slurm_word]
    # What was printed before an element went back to the queue did no harm.
    return (None if goes_back else _find_sentence(evidence.lines)) or "lost"


def _classify_record(evidence: Evidence) -> Failure:
    """Return the class of what the run's log recorded: exceptions and numbers before sentences."""
    record, reason = evidence.ended, evidence.ended["reason"]
    errors = list(record["errors"])
    named = [ERRORS[name] for name in errors if name in ERRORS]
    if record["oom_kills"]:
        named.append("out of memory (host)")
    if record["errno"] in MACHINE_ERRORS:
        named.append(MACHINE_ERRORS[record["errno"]])
    if named:
        return named[0]

    # Of several processes one died, and the others' exceptions say nothing: the logs may.
    lost_another = "lost touch with another" in reason
    lines = evidence.lines if lost_another or not errors else ()
    if record["gpu_lost"]:
        return _find_sentence([reason]) or "device error"
    if failure := _find_sentence([reason]) or _find_sentence(lines):
        return failure
    if lost_another or record["signal"] in ("SIGKILL", "SIGTERM"):
        return "lost"
    is_input = errors[:1] == ["UserError"] or not (
        errors or "exit_code" in record or "signal" in record or "a bug: traceback" in reason
    )
    return "bad input" if is_input else "code error"


def _find_sentence(lines: Sequence[str]) -> Failure | None:
    text = "\n".join(lines)
    return next((name for name, words in SENTENCES.items() if re.search(words, text)), None)


class RunOnNode(NamedTuple):
    """A run that succeeded or failed on a node; runs of one kind ought to end alike everywhere."""

    succeeded: bool
    kind: Hashable
    node: str
    element: str
    began: float


def find_bad_nodes(runs: Collection[RunOnNode]) -> set[str]:
    """Return the nodes on which runs fail whose like succeed elsewhere."""
    bad = set[str]()
    for node in {run.node for run in runs if not run.succeeded} - {""}:
        kinds_made_elsewhere = {run.kind for run in runs if run.succeeded and run.node != node}
        here = [run for run in runs if run.node == node]
        failed = [run for run in here if not run.succeeded and run.kind in kinds_made_elsewhere]
        if len(failed) < RUNS or len({run.element for run in failed}) < ELEMENTS:
            continue
        # The node works again where a run succeeded there since.
        first = min(run.began for run in failed)
        if not any(run.succeeded and run.began >= first for run in here):
            bad.add(node)
    return bad


def gather_failures(sweep: RunStatuses) -> dict[str, Evidence]:
    """Return the evidence of each run that failed or was lost, and what is against its node."""
    plan, submissions = sweep.plan, sweep.submissions

    def kind(run_id: str) -> Hashable:
        run = plan.runs[run_id]
        return run.stage, run.config.data, run.source

    runs = [
        RunOnNode(True, kind(run_id), result.host, result.job, result.started_at)
        for run_id, result in sweep.results.items()
        if result.done
    ]
    failures: dict[str, Evidence] = {}
    for run_id, status in sweep.statuses.items():
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
