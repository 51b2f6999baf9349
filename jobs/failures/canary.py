"""The first elements of an array go ahead; where they fail alike, the rest is held, and the reason shown.

No process watches. The launcher submits an array of many elements as two jobs: the canaries, which
are its first elements, and the rest, which SLURM begins five minutes after them
(``--dependency=after:<canaries>+5``), whatever becomes of them and of us. Who ends looks. The first
canary with a finished run opens the gate at once (one ``scontrol update``); the one by which all
have failed alike within minutes takes what waits out of the queue (one ``scancel``) and leaves a
file that says why, which goes where a run of the array is made after all. Canaries that were killed
cannot look; then the first elements of the rest do, before they begin. Which of the two it is, is
decided once, by whoever creates a file. Where nodes may not speak to SLURM, the gate opens by
itself, and each element of a held rest reads that it is held and ends. Where a throttle lets few
elements run at a time anyway, there is no gate, and the rest is one job with its canaries.

Held runs are submitted again by a person's next command, and by the sweep's last job where it tries
their canaries
again: then with what those have otherwise, and behind canaries again.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.failures.classify import Evidence, classify, gather
from hvae_hpc.jobs.sites.retry_policy import Failure
from hvae_hpc.jobs.slurm.client import CALL_EVERY_S, ask
from hvae_hpc.jobs.state.breaker import breaker_file, decided_file
from hvae_hpc.jobs.state.element_logs import process_logs
from hvae_hpc.jobs.state.run_log import last_event_in
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.state.submissions import Job, Submissions
from hvae_hpc.runs.folder import METRICS, read_log, write_json
from hvae_hpc.runs.plan import Array, Plan, read_element

GATE_MINUTES = 5  # between the beginning of the canaries and that of the rest
ALIKE: tuple[Failure, ...] = (
    "out of memory (host)", "out of memory (device)", "time limit without progress", "disk full or quota",
    "non-finite loss", "bad input", "code error",
)  # fmt: skip
"""Failures that others of the array will most likely meet; what becomes of a node or a job says nothing of others."""
SOON_S = 600.0
"""A canary whose first failure comes later than this after its beginning says nothing of others: much went well."""
KILLED = re.compile(r"Detected \d+ oom[-_]kill event|: Out Of Memory|DUE TO TIME LIMIT")
"""What SLURM says in the log of an element that is over without a word of its own, and does not come back by itself."""


def canaries_of(elements: int, wanted: int) -> int:
    """Return how many elements of an array go ahead: none of a small one, of which they would be the most."""
    return wanted if elements >= 2 * wanted else 0


def canaries_alone(array: Array, throttle: int) -> int:
    """Return how many elements of an array are submitted as a job of their own, for which the rest waits.

    Args:
        array: of a submission.
        throttle: elements of it that run at a time; 0 for as many as fit.
    """
    return 0 if 0 < throttle < len(array.elements) else array.canaries


class Watch:
    """What one element does about the canaries of its array.

    Args:
        plan_file: of the submission.
        plan: as the element reads it.
        number: of the array in it.
        place: of the element in the array.
    """

    def __init__(self, plan_file: Path, plan: Plan, number: int, place: int) -> None:
        self._plan_file, self._plan, self._number = plan_file, plan, number
        self._canaries, self._elements = (
            plan.arrays[number].canaries,
            len(plan.arrays[number].elements),
        )
        self._is_canary = place < self._canaries

    def held(self) -> str:
        """Return why the element is not to begin; "" where it is. Who began in an earlier life goes on."""
        if (
            not self._canaries
            or self._is_canary
            or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        ):
            return ""
        if not breaker_file(self._plan_file.parent, self._number).exists():
            self._stop_rest_if_all_failed()
        breaker = self._submissions().breakers.get((self._plan_file.parent.name, self._number))
        return breaker.reason if breaker else ""

    def look(self, run_ids: Sequence[str]) -> None:
        """Decide about the rest where that follows from the runs that the element has done."""
        if self._canaries and any(
            (self._plan.folder(run_id) / METRICS).exists() for run_id in run_ids
        ):
            if not self._decide("passed"):
                breaker_file(self._plan_file.parent, self._number).unlink(missing_ok=True)
            elif self._is_canary and (
                rest := [job.job for job in self._jobs() if self._waits(job)]
            ):
                self._tell_slurm(
                    "begins now",
                    rest,
                    ["scontrol", "update", "Dependency=", f"JobId={','.join(rest)}"],
                )
        elif self._is_canary:
            self._stop_rest_if_all_failed()

    def _submissions(self) -> Submissions:
        return Submissions(self._plan.runs_folder, self._plan_file.parent.name)

    def _jobs(self) -> list[Job]:
        """Return the jobs of the array; not those by which just the same was submitted before."""
        jobs = [job for job in self._submissions().jobs if job.array == self._number]
        return jobs[max((n for n, job in enumerate(jobs) if 0 in job.places), default=0) :]

    def _waits(self, job: Job) -> bool:
        """Tell whether a job of the array is of its rest, and none of its elements has begun."""
        return min(job.places) >= self._canaries and not any(
            self._plan_file.parent.glob(f"{job.job}_*_log.out")
        )

    def _decide(self, what: str) -> bool:
        """Tell whether we are the first to decide."""
        with (
            contextlib.suppress(OSError),
            open(decided_file(self._plan_file.parent, self._number), "x") as file,
        ):
            return bool(file.write(what))
        return False

    def _stop_rest_if_all_failed(self) -> None:
        if decided_file(self._plan_file.parent, self._number).exists():
            return
        places = {place: job.job for job in self._jobs() for place in job.places}
        found = [
            self._failure(place, f"{places.get(place)}_{place}") for place in range(self._canaries)
        ]
        failures, nodes = {failure for failure, *_ in found}, {node for _, node, _ in found}
        if len(failures) > 1 or "" in failures or not self._decide("stopped"):
            return
        (failure, node, reason), alone = found[0], len(nodes) == 1
        where, n = f", all on {node}" if alone and node else "", self._canaries
        said = f"held: the first {n} of {self._elements} elements failed alike ({failure}{where}): {reason}"
        elements = [f"{places[place]}_{place}" for place in range(n)]
        content = {"reason": said[:300], "elements": elements, "node": node if alone else ""}
        write_json(breaker_file(self._plan_file.parent, self._number), content)
        print(said, flush=True)
        jobs = sorted({job.job for job in self._jobs()})
        self._tell_slurm("is out of the queue", jobs, ["scancel", "--state=PENDING", *jobs])

    def _failure(self, place: int, element: str) -> tuple[str, str, str]:
        """Return class, node and reason of the first failure of an element that is over; "" where all may be well."""
        plan, ids = read_element(self._plan_file, self._number, place)
        if any((plan.folder(run_id) / METRICS).exists() for run_id in ids):
            return "", "", ""
        submissions, lost = self._submissions(), RunStatus("lost", element)
        found = {run_id: gather(plan, run_id, lost, submissions, {}) for run_id in ids}
        if not all(
            _is_over(evidence, last_event_in(plan.folder(i), element))
            for i, evidence in found.items()
        ):
            return "", "", ""
        mine = [
            entry
            for i in ids
            for entry in read_log(plan.folder(i))
            if entry.get("job_id") == element
        ]
        began = min(
            (entry["time"] for entry in mine if entry.get("event") == "started"),
            default=float("inf"),
        )
        log_ended = max(
            (path.stat().st_mtime for path in process_logs(plan.runs_folder, element)), default=0.0
        )
        for run_id, evidence in found.items():
            soon = evidence.ended.get("time", log_ended) - began < SOON_S
            if soon and (failure := classify(evidence)) in ALIKE:
                run, said = (
                    plan.runs[run_id],
                    evidence.ended.get("reason", "") or "".join(evidence.lines[-1:]),
                )
                reason = f"{run.stage} {run.label} ({run_id}): {said.replace(f'{plan.folder(run_id)}/', '')}"
                return failure, evidence.node, reason
        return "", "", ""

    def _tell_slurm(self, what: str, jobs: Sequence[str], command: Sequence[str]) -> None:
        """Do it, when it is our turn among the submission's elements, or say why not: the rest then does by itself."""
        try:
            with open(
                self._plan_file.parent / "requeue.sent", "a"
            ) as sent:  # in which requeued elements stand too
                fcntl.flock(sent, fcntl.LOCK_EX)
                since = max(
                    0.0, time.time() - os.fstat(sent.fileno()).st_mtime
                )  # by clocks that may differ
                time.sleep(max(0.0, CALL_EVERY_S - since) if sent.tell() else 0.0)
                sent.write("-\n")
                ask(command, patience_s=30.0)
            print(f"the rest of the array {what} (job {' '.join(jobs)})", flush=True)
        except (UserError, OSError) as error:
            print(f"SLURM was not told about the rest of the array ({error})", flush=True)


def _is_over(evidence: Evidence, last_event: str) -> bool:
    """Tell whether an element does nothing more about a run: it has said how that ended, or was killed.

    Args:
        evidence: of the run.
        last_event: of the run's log; "" where that is not of the element: then the element's log
            may tell.
    """
    ended = (last_event or evidence.ended.get("event")) in ("failed", "blocked", "died")
    return ended or any(map(KILLED.search, evidence.lines))
