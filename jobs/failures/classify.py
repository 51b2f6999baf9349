"""Why a run came to nothing: all evidence there is, put together, and the one class of failure that follows from it.

What the run's own log recorded goes before SLURM's word, and that before what stands in the
element's log: sentences are read only where nobody left anything better.
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
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.plan import Plan

ENDINGS = ("failed", "died", "stopped", "left", "blocked")
LINES = 200
"""Of the element's log that are looked at."""
BAD_NODE = r"\bXid\b(?! \([^)]*\): (13|31|43|45)\b)|DUE TO NODE FAILURE|uncorrectable ECC|fallen off the bus"
"""What SLURM and the driver say of a node, and no fault of our own can make them say, as it does those Xids."""
# The first that is found counts: what a GPU says of its memory has the words of what a host says
# of its own.
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
NODE_SAID = re.compile(
    r"(?:slurmstepd-|srun: error: )([^\s\[\],:]+): (?:error|task|\*\*\*)"
    r"|(?:slurmstepd:|\[[-T:.\d]+\]) error: \*\*\* (?:JOB|STEP) \S+ ON ([^\s\[\],:]+) "  # newer ones
)
"""How SLURM names the node in an element's log, also where none of our processes ever began."""
NODE_KEPT = re.compile(r" on ([^\s\[\],]+)$")
"""As accounting names it."""
CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+( DUE to SIGNAL \w+)? \*\*\*")
"""Of the job, not of a step; newer SLURMs name the signal too."""
REPORT = re.compile(r"(done|failed|blocked|stopped): .*?\(([0-9a-f]{12})\), [0-9.]+ s: (.*)")
"""How an element's log tells of a run that ended."""
STATES: Mapping[str, Failure] = {
    "OUT_OF_MEMORY": "out of memory (host)",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
}


class Evidence(NamedTuple):
    """What is known of how a run's last attempt ended.

    ``state`` is SLURM's word for the element's end, where accounting gave it. ``began`` and
    ``ended`` are the log's records of the attempt's beginning and end, empty where there is none:
    it never began in this element, or was ended from outside. ``attempts`` counts all there were,
    ``reached`` is the images seen of the newest checkpoint, ``minutes`` the element's time limit, 0
    where it is not known. ``lines`` are the last that its processes and SLURM printed since the run
    before it ended. ``turn`` is False where it is in a bundle that ended at a run before it.
    ``node_looks_bad`` is True where other runs' failures speak against its node.
    """

    status: RunStatus
    state: str = ""
    began: Mapping[str, Any] = {}
    ended: Mapping[str, Any] = {}
    attempts: int = 0
    reached: int = 0
    minutes: int = 0
    lines: Sequence[str] = ()
    turn: bool = True
    node_looks_bad: bool = False

    @property
    def word(self) -> str:
        """SLURM's word for the end alone: "FAILED"."""
        return self.state.partition(" ")[0].rstrip(",")

    @property
    def node(self) -> str:
        """The node on which it ran, or was to begin; "" where nobody says."""
        said = [
            words[1] or words[2] for words in map(NODE_SAID.match, reversed(self.lines)) if words
        ]
        return str(
            self.began.get("host")
            or self.ended.get("host")
            or next(iter(said), "")
            or node_of(self.state)
        )

    @property
    def node_failed(self) -> bool:
        """Whether it ended by a fault of its node, which others would meet there as well."""
        said = "\n".join([str(self.ended.get("reason", "")), *self.lines])
        return (
            self.node_looks_bad
            or STATES.get(self.word) == "node failure"
            or bool(re.search(BAD_NODE, said))
        )

    @property
    def further(self) -> bool:
        """Whether the last attempt got further than where it began."""
        return bool(self.ended.get("further")) or (
            bool(self.began) and self.reached > int(self.began.get("at", 0))
        )

    @property
    def cancelled(self) -> bool:
        """Whether somebody took it out of the queue, also before it began."""
        named = self.state.startswith("CANCELLED") or any(map(CANCELLED.search, self.lines))
        if not self.turn:  # its element began: only a word of SLURM's tells
            return named
        if self.status.kind == "failed":  # in an earlier element
            return self.ended.get("job_id", "") not in ("", self.status.element)
        never = bool(self.status.element) and not (self.began or self.lines or self.state)
        # Who preempts says so: SLURM, in its accounting or in the element's log.
        told = self.ended.get("event") == "left" and not self.ended.get("at_limit")
        return named or never or ((told or self.sent_back) and classify(self) == "lost")

    @property
    def sent_back(self) -> bool:
        """Whether its element went back to the queue, and never began again."""
        return bool(self.ended.get("goes_back")) and any(
            "DUE TO JOB REQUEUE" in line for line in self.lines
        )


def node_of(state: str) -> str:
    """Return the node that accounting names with an element's end; "" for none or several."""
    words = NODE_KEPT.search(state)
    return words[1] if words else ""


def gather(
    plan: Plan, run_id: str, status: RunStatus, submissions: Submissions, ends: Mapping[str, str]
) -> Evidence:
    """Put together what is known of how a run's last attempt ended.

    Args:
        plan: of its sweep.
        run_id: of the run.
        status: how it stands.
        submissions: of its runs folder.
        ends: elements to SLURM's words for their ends.
    """
    folder, element = plan.folder(run_id), status.element
    log = read_log(folder)
    starts = [number for number, record in enumerate(log) if record.get("event") == "started"]
    since = log[starts[-1] :] if starts else log
    if (
        starts
        and not since[0].get("job_id")
        and since[0].get("time", 0.0) > submissions.element(element).submitted_at
    ):
        element = ""  # it was made here since it was submitted
    endings = [record for record in since if record.get("event") in ENDINGS]
    if status.kind != "failed":  # which is what its log says, whoever had it since
        endings = [record for record in endings if record.get("job_id", "") == element]
    lines = _read_lines(plan, run_id, element) if element else []
    reports = [words for words in map(REPORT.match, lines) if words and words[2] == run_id]
    if (
        status.kind == "lost" and not endings
    ):  # its folder may have taken no word of it, and the element's log did
        endings = [
            {"event": "failed", "reason": words[3]} for words in reports if words[1] == "failed"
        ]
    began = since[0] if starts and since[0].get("job_id", "") == element else {}
    return Evidence(
        status=status,
        state=ends.get(element, ""),
        began=began,
        ended=endings[-1] if endings else {},
        attempts=len(starts),
        reached=checkpoint_at(folder),
        minutes=submissions.element(element).minutes,
        lines=lines,
        turn=bool(reports)
        or not element
        or not _ended_before(plan, run_id, log, submissions, element),
    )


def _ended_before(
    plan: Plan,
    run_id: str,
    log: Sequence[Mapping[str, Any]],
    submissions: Submissions,
    element: str,
) -> bool:
    """Tell whether an element ended before a run's turn: it left a word in other runs' logs, and none in its own."""

    def knows(records: Sequence[Mapping[str, Any]]) -> bool:
        return any(record.get("job_id") == element for record in records)

    if knows(log):
        return False
    others = [
        other
        for other in submissions.element(element).run_ids
        if other != run_id and other in plan.runs
    ]
    return any(knows(read_log(plan.folder(other))) for other in others)


def _read_lines(plan: Plan, run_id: str, element: str) -> list[str]:
    """Return the last lines of an element's processes in their last life that are of a run, or of all its runs."""
    lines = list[str]()
    for path in process_logs(plan.runs_folder, element):
        mine = list[str]()
        for line in read_tail(path):
            told = REPORT.match(line)
            if BEGINS.match(line):
                mine = [line]
            elif told and told[2] != run_id and not _is_over(mine, run_id):
                mine = []
            elif not _is_over(mine, run_id):
                mine.append(line)
        lines += mine[-LINES:]
    return [line for line in lines if line.strip()]


def _is_over(lines: Sequence[str], run_id: str) -> bool:
    """Tell whether a run's report is the last line; who stopped is ended by what follows."""
    told = REPORT.match(lines[-1]) if lines else None
    return told is not None and told[2] == run_id and told[1] != "stopped"


def classify(evidence: Evidence) -> Failure:
    """Return the one class of a run's failure."""
    if evidence.status.kind == "blocked":
        return "blocked by parent"
    if evidence.node_looks_bad:
        return "node failure"
    if not evidence.turn:
        return "lost"
    if evidence.ended.get("event") in ("failed", "died"):
        return _of_record(evidence)
    said = "\n".join(evidence.lines)
    at_limit = evidence.word in ("TIMEOUT", "DEADLINE") or "DUE TO TIME LIMIT" in said
    if at_limit or (evidence.ended.get("at_limit") and not evidence.ended.get("goes_back")):
        return "time limit with progress" if evidence.further else "time limit without progress"
    words = () if evidence.sent_back else evidence.lines  # it had come to no harm then
    return STATES.get(evidence.word) or _of_sentence(words) or "lost"


def _of_record(evidence: Evidence) -> Failure:
    """Return the class of what was recorded when it arose: first by what is no sentence."""
    record, reason = evidence.ended, str(evidence.ended.get("reason", ""))
    errors = [str(name) for name in record.get("errors", ())]
    if "OutOfMemoryError" in errors:
        return "out of memory (device)"
    if record.get("oom_kills") or any(name.endswith("MemoryError") for name in errors):
        return "out of memory (host)"
    if found := MACHINE_ERRORS.get(record.get("errno", 0)):
        return found
    if "NonFiniteError" in errors:
        return "non-finite loss"
    if StallError.__name__ in errors:
        return "time limit without progress"
    alone = (
        "lost touch with another" not in reason
    )  # where a process of several died, the others' words say nothing
    if found := _of_sentence([reason]) or (
        None if alone and errors else _of_sentence(evidence.lines)
    ):
        return found
    if not alone or record.get("signal") in ("SIGKILL", "SIGTERM"):
        return "lost"
    ours = (
        errors[:1] != ["UserError"]
        if errors
        else "a bug: traceback" in reason or "signal" in record
    )
    return "code error" if ours or "exit_code" in record else "bad input"


def _of_sentence(lines: Sequence[str]) -> Failure | None:
    text = "\n".join(lines)
    return next((failure for failure, pattern in SENTENCES if re.search(pattern, text)), None)
