"""Why a run failed: all evidence is put together, and one class of failure follows from it.

What the run's own log recorded counts most, then SLURM's word, then what stands in the element's
log. Sentences are read only where nobody left anything better.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hvae_hpc.errors import DEVICE_MEMORY
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.state.element_logs import process_logs, read_tail
from hvae_hpc.jobs.state.run_log import (
    BEGINS,
    MACHINE_ERRORS,
    NO_TEMPORARY,
    StallError,
    checkpoint_at,
)
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.state.submissions import Element, Submissions
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.plan import Plan

ENDINGS = ("failed", "died", "stopped", "left", "blocked")
"""Events of a run's log that end an attempt."""
LINES = 200
"""Last lines of an element's log that are looked at."""
BAD_NODE = (
    r"\bXid\b(?! \([^)]*\): (13|31|43|45)\b)"
    r"|DUE TO NODE FAILURE|uncorrectable ECC|fallen off the bus"
)
"""What SLURM and the driver say of a bad node. The Xids that are left out are a program's fault."""
SENTENCES: tuple[tuple[Failure, str], ...] = (
    (
        "out of memory (device)",
        r"CUDA out of memory|OutOfMemoryError|out of memory with .* on cuda|" + DEVICE_MEMORY,
    ),
    (
        "node failure",
        BAD_NODE + r"|uncorrectable|CUDA-capable devices? (is|are) (busy|detected)"
        r"|CUDA error: (unspecified launch failure|unknown error|hardware)",
    ),
    (
        "out of memory (host)",
        r"oom[-_ ]kill|[Oo]ut-of-memory handler|[Ee]xceeded (job |step )?memory limit|Out Of Memory"
        r"|(can't|[Cc]annot) allocate memory|MemoryError|bad_alloc|out of memory with",
    ),
    (
        "disk full or quota",
        r"No space left on device|File too large|[Qq]uota exceeded|\d requested and \d+ written|"
        + NO_TEMPORARY,
    ),
    ("preempted", r"DUE TO PREEMPTION"),
    ("non-finite loss", r"became (nan|-?inf)|metric \S+ is (nan|-?inf)"),
)
"""What logs say of a failure. The first that is found counts: a GPU's words include a host's."""
NODE_IN_LOG = re.compile(
    r"(?:slurmstepd-|srun: error: )([^\s\[\],:]+): (?:error|task|\*\*\*)"
    r"|(?:slurmstepd:|\[[-T:.\d]+\]) error: \*\*\* (?:JOB|STEP) \S+ ON ([^\s\[\],:]+) "
)
"""How SLURM, old and new, names the node in an element's log, also where no process began."""
NODE_IN_ACCOUNTING = re.compile(r" on ([^\s\[\],]+)$")
"""How accounting names it; a list of several nodes does not match."""
CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+( DUE to SIGNAL \w+)? \*\*\*")
"""What SLURM says of a cancelled job, not of a step; newer versions name the signal too."""
REPORT = re.compile(r"(done|failed|blocked|stopped): .*?\(([0-9a-f]{12})\), [0-9.]+ s: (.*)")
"""How an element's log reports that a run ended: how, which run, and the message."""
STATES: Mapping[str, Failure] = {
    "OUT_OF_MEMORY": "out of memory (host)",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
}


class Evidence(NamedTuple):
    """What is known of how a run's last attempt ended.

    Attributes:
        status: of the run.
        state: SLURM's word for the element's end; "" where accounting gave none.
        began: the log's record of the attempt's beginning; empty where it never began in this
            element.
        ended: the log's record of its end; empty where it was ended from outside.
        attempts: that were ever made at the run.
        reached: images seen of the newest checkpoint.
        minutes: the element's time limit; 0 where it is not known.
        lines: the last that its processes and SLURM printed since the run before it ended.
        had_turn: False where it is in a bundle that ended at a run before it.
        node_looks_bad: other runs' failures speak against its node.
    """

    status: RunStatus
    state: str = ""
    began: Mapping[str, Any] = {}
    ended: Mapping[str, Any] = {}
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
        in_log = [words[1] or words[2] for words in map(NODE_IN_LOG.match, self.lines) if words]
        in_accounting = [words[1] for words in [NODE_IN_ACCOUNTING.search(self.state)] if words]
        named = [self.began.get("host"), self.ended.get("host"), *in_log[-1:], *in_accounting]
        return str(next(filter(None, named), ""))

    @property
    def node_failed(self) -> bool:
        """Whether it ended by a fault of its node, which others would meet there as well."""
        said = "\n".join([str(self.ended.get("reason", "")), *self.lines])
        is_named = STATES.get(self.slurm_word) == "node failure" or re.search(BAD_NODE, said)
        return self.node_looks_bad or bool(is_named)

    @property
    def got_further(self) -> bool:
        """Whether the last attempt got further than where it began."""
        saved = bool(self.began) and self.reached > int(self.began.get("at", 0))
        return saved or bool(self.ended.get("further"))

    @property
    def sent_back(self) -> bool:
        """Whether its element went back to the queue, and never began again."""
        went_back = any("DUE TO JOB REQUEUE" in line for line in self.lines)
        return went_back and bool(self.ended.get("goes_back"))

    @property
    def cancelled(self) -> bool:
        """Whether somebody took it out of the queue, also before it began."""
        if self.state.startswith("CANCELLED") or any(map(CANCELLED.search, self.lines)):
            return True
        if not self.had_turn:  # its element began: only SLURM's word tells
            return False

        # An element that never began leaves no word.
        element = self.status.element
        ended_here = bool(self.ended) and self.ended.get("job_id", "") in ("", element)
        if element and not (self.began or ended_here or self.lines or self.state):
            return True

        # SLURM says of what it preempts that it does so. A person's scancel may leave no such word.
        told_to_go = self.ended.get("event") == "left" and not self.ended.get("at_limit")
        return (told_to_go or self.sent_back) and classify(self) == "lost"


def gather(
    plan: Plan, run_id: str, status: RunStatus, submissions: Submissions, ends: Mapping[str, str]
) -> Evidence:
    """Put together what is known of how a run's last attempt ended.

    Args:
        plan: of its sweep.
        run_id: of the run.
        status: of the run.
        submissions: of its runs folder.
        ends: elements to SLURM's words for their ends.
    """
    log, element = read_log(plan.folder(run_id)), status.element
    submitted = submissions.element(element)

    # The last attempt. It may have been made by a local process since the element was submitted.
    starts = [number for number, record in enumerate(log) if record.get("event") == "started"]
    attempt = log[starts[-1] :] if starts else log
    began = attempt[0] if starts else {}
    if began and not began.get("job_id") and began.get("time", 0.0) > submitted.submitted_at:
        element = ""

    # Its end. What an earlier element said counts only where it is the run's status.
    endings = [record for record in attempt if record.get("event") in ENDINGS]
    if status.kind != "failed":
        endings = [record for record in endings if record.get("job_id", "") == element]
    lines = _read_lines(plan, run_id, element) if element else []
    reports = [words for words in map(REPORT.match, lines) if words and words[2] == run_id]
    if status.kind == "lost" and not endings:  # the run's folder may have taken no word
        failed = [words[3] for words in reports if words[1] == "failed"]
        endings = [{"event": "failed", "reason": reason} for reason in failed]

    had_turn = not element or bool(reports)
    return Evidence(
        status=status,
        state=ends.get(element, ""),
        began=began if began.get("job_id", "") == element else {},
        ended=endings[-1] if endings else {},
        attempts=len(starts),
        reached=checkpoint_at(plan.folder(run_id)),
        minutes=submissions.element(element).minutes,
        lines=lines,
        had_turn=had_turn or not _ended_before(plan, run_id, log, submitted, element),
    )


def _ended_before(
    plan: Plan,
    run_id: str,
    log: Sequence[Mapping[str, Any]],
    submitted: Element,
    element: str,
) -> bool:
    """Tell whether an element ended before a run's turn: only its other runs' logs name it."""

    def names_element(records: Sequence[Mapping[str, Any]]) -> bool:
        return any(record.get("job_id") == element for record in records)

    if names_element(log):
        return False
    others = [other for other in submitted.run_ids if other != run_id and other in plan.runs]
    return any(names_element(read_log(plan.folder(other))) for other in others)


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
    if ended.get("event") in ("failed", "died"):
        return _classify_record(evidence)

    is_told = evidence.slurm_word in ("TIMEOUT", "DEADLINE") or any(
        "DUE TO TIME LIMIT" in line for line in evidence.lines
    )
    if is_told or (ended.get("at_limit") and not ended.get("goes_back")):
        return "time limit with progress" if evidence.got_further else "time limit without progress"
    if evidence.slurm_word in STATES:
        return STATES[evidence.slurm_word]
    # What was printed before an element went back to the queue did no harm.
    lines = () if evidence.sent_back else evidence.lines
    return _find_sentence(lines) or "lost"


def _classify_record(evidence: Evidence) -> Failure:
    """Return the class of what the run's log recorded: exceptions and numbers before sentences."""
    record, reason = evidence.ended, str(evidence.ended.get("reason", ""))
    errors = [str(name) for name in record.get("errors", ())]
    if "OutOfMemoryError" in errors:
        return "out of memory (device)"
    if record.get("oom_kills") or any(name.endswith("MemoryError") for name in errors):
        return "out of memory (host)"
    if failure := MACHINE_ERRORS.get(record.get("errno", 0)):
        return failure
    if "NonFiniteError" in errors:
        return "non-finite loss"
    if StallError.__name__ in errors:
        return "time limit without progress"

    # Of several processes one died, and the others' exceptions say nothing: the logs may.
    lost_another = "lost touch with another" in reason
    failure = _find_sentence([reason])
    if failure is None and (lost_another or not errors):
        failure = _find_sentence(evidence.lines)
    if failure:
        return failure
    if lost_another or record.get("signal") in ("SIGKILL", "SIGTERM"):
        return "lost"

    is_bug = "exit_code" in record or (
        errors[0] != "UserError" if errors else "signal" in record or "a bug: traceback" in reason
    )
    return "code error" if is_bug else "bad input"


def _find_sentence(lines: Sequence[str]) -> Failure | None:
    text = "\n".join(lines)
    return next((failure for failure, pattern in SENTENCES if re.search(pattern, text)), None)
