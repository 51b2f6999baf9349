"""The drill on a private SLURM: a node dies, an urgent job preempts, elements are signalled and sent back, at random.

Only a SLURM that minislurm itself started, with a cluster name and a state folder of its own, and
with nobody's jobs in its queue. What is struck are elements that the drill submitted, the nodes
under them, and nothing else.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.state.submissions import Submissions, parse_comment
from hvae_hpc.runs.folder import METRICS
from hvae_hpc.runs.plan import Plan
from tests.drill.compare import compare
from tests.minislurm.minislurm import MiniSlurm, MiniSlurmConfig

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL)
COMMANDS = 6
"""Times that the same command is given: what is killed in the queue's name, nobody tries again by itself."""
PATIENCE_S = 1800.0


class Element(NamedTuple):
    """One of the drill's own elements that runs."""

    name: str
    node: str


def find_own_slurm() -> MiniSlurm:
    """Return the minislurm that SLURM_CONF names.

    Raises:
        UserError: it names none, or another SLURM, or one with other jobs than ours.
    """
    conf = os.environ.get("SLURM_CONF", "")
    slurm = MiniSlurm(MiniSlurmConfig(folder=Path(conf).resolve().parent.parent))
    try:
        there = conf and slurm.environment()["SLURM_CONF"] == conf and "slurmctld" in slurm.pids()
    except UserError:
        there = False
    if not there:
        raise UserError(
            f"--slurm: SLURM_CONF is {conf!r}, expected that of a minislurm that runs: this drill kills nodes, and "
            "does it on no other SLURM; `make slurm` starts one and prints the line to give first"
        )
    said = dict(
        re.findall(r"^(\w+)\s*= (\S+)", slurm.client("scontrol", "show", "config"), re.MULTILINE)
    )
    state = Path(said.get("StateSaveLocation", "/")).resolve()
    if (
        not said.get("ClusterName", "").startswith("minislurm-")
        or slurm.folder.resolve() not in state.parents
    ):
        raise UserError(
            f"--slurm: cluster {said.get('ClusterName')} with its state in {state} is no minislurm's"
        )
    if others := slurm.client("squeue", "-h", "-o", "%i").split():
        raise UserError(
            f"--slurm: jobs {', '.join(others)} are in the queue; wait for them, or scancel them"
        )
    return slurm


def drill_slurm(
    plan: Plan, command: list[str], folder: Path, faults: int, chance: random.Random
) -> dict[str, Any]:
    """Make a sweep on a private SLURM through faults, and compare it with the undisturbed one.

    Args:
        plan: of the undisturbed one.
        command: submits the sweep, but for its runs folder and its partition.
        folder: where everything lies; a new runs folder is made in it.
        faults: how many at most; fewer where the sweep ends before.
        chance: what they are and when.

    Returns:
        What was done, and the problems.
    """
    slurm = find_own_slurm()
    mine = replace(plan, runs_folder=folder / f"slurm-{time.time():.0f}")
    command = [*command, "--partition", "gpu", "--retries", "3", "--runs", str(mine.runs_folder)]
    trouble, problems = Trouble(slurm, mine.runs_folder, chance), list[str]()
    given, deadline = 0, time.monotonic() + PATIENCE_S
    while given < COMMANDS and not _all_done(mine):
        done = subprocess.run(
            command,
            env=slurm.environment(),
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        given += 1
        if done.returncode:
            raise UserError(f"the sweep was not submitted: {done.stderr.strip()[-600:]}")
        while slurm.client("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(chance.uniform(1.0, 5.0))
            if sum(trouble.sent.values()) < faults:
                trouble.strike()
        print(f"  command {given}: {sum(trouble.sent.values())} faults so far", flush=True)
    if time.monotonic() > deadline:
        problems.append(f"the queue was not empty after {PATIENCE_S / 60:.0f} minutes")
    for run_id, run in plan.runs.items():
        where = f"{run.stage} {run.label} ({mine.folder(run_id)})"
        problems += [
            f"{where}: {it}" for it in compare(plan.folder(run_id), mine.folder(run_id), run_id)
        ]
    print(*(f"  {kind:16} {n:4}" for kind, n in sorted(trouble.sent.items())), sep="\n")
    found = {
        "faults": sum(trouble.sent.values()),
        **trouble.sent,
        "runs": len(plan.runs),
        "commands": given,
    }
    return {**found, "problems": problems}


def _all_done(plan: Plan) -> bool:
    return all((plan.folder(run_id) / METRICS).exists() for run_id in plan.runs)


class Trouble:
    """Does one thing after the other to the drill's own elements."""

    def __init__(self, slurm: MiniSlurm, runs: Path, chance: random.Random) -> None:
        self.slurm, self.runs, self.chance = slurm, runs, chance
        self.sent: Counter[str] = Counter()
        self._acts: Mapping[str, Callable[[Element], object]] = {
            "slurmd killed": self._lose_node,
            "preempted": self._preempt,
            "requeued": lambda element: slurm.client("scontrol", "requeue", element.name),
            **{
                number.name.removeprefix("SIG"): partial(self._signal, number) for number in SIGNALS
            },
        }

    def strike(self) -> None:
        """Strike an element that runs, if there is one."""
        kind, elements = self.chance.choice(list(self._acts)), self.running()
        if elements:
            self.sent[kind] += self.attempt(kind, self.chance.choice(elements))

    def attempt(self, kind: str, element: Element) -> bool:
        """Do one thing to an element; returns whether that met it: it may just have ended."""
        try:
            self._acts[kind](element)
        except UserError as error:
            if not re.search("[Ii]nvalid job|already|pending|complet|disabled", str(error)):
                raise
            return False
        return True

    def running(self) -> list[Element]:
        """Return the elements that run and that were submitted from the drill's runs folder."""
        names = Submissions(self.runs).plans
        found = []
        for line in self.slurm.client(
            "squeue", "-h", "-r", "-t", "RUNNING", "-o", "%F_%K|%N|%k"
        ).splitlines():
            name, node, comment = line.split("|")
            ours = parse_comment(comment.strip())
            if (
                ours and ours[0] in names and not name.endswith("N/A")
            ):  # not the last job, which has no elements
                found.append(Element(name, node))
        return found

    def _signal(self, number: signal.Signals, element: Element) -> None:
        """Signal the element's own process: by scancel, KILL would count as a person's word."""
        job, _, place = element.name.partition("_")
        marks = (
            f"SLURM_CLUSTER_NAME={Path(self.slurm.environment()['SLURM_CONF']).parent.parent.name}",
            f"SLURM_ARRAY_JOB_ID={job}",
            f"SLURM_ARRAY_TASK_ID={place}",
            "SLURM_PROCID=0",
        )
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended, or is another user's
                held = os.pidfd_open(
                    int(entry.name)
                )  # from here on the number means this process or none
                try:
                    words = (entry / "cmdline").read_text().split("\0")
                    if "hvae_hpc.jobs.worker.element" in words and {*marks} <= {
                        *(entry / "environ").read_text().split("\0")
                    }:
                        signal.pidfd_send_signal(held, number)
                        return
                finally:
                    os.close(held)
        raise UserError(f"{element.name}: already over, or not begun")

    def _lose_node(self, element: Element) -> None:
        self.slurm.kill_node(element.node)
        time.sleep(self.chance.uniform(0.5, 3.0))
        self.slurm.start_node(element.node, timeout_s=60)

    def _preempt(self, element: Element) -> None:
        where = [
            "--partition=urgent",
            "--exclusive",
            f"--nodelist={element.node}",
            "--output=/dev/null",
        ]
        self.slurm.client("sbatch", *where, "--comment=hvae_hpc drill", "--wrap=sleep 2")
