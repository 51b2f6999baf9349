"""Who holds a folder: a process on a machine, in a job; and whether it can still be alive."""

import contextlib
import os
import platform
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HEARTBEAT_S = 20.0
"""Seconds between two signs of life."""


def host() -> str:
    """Return the node's name, SLURM's where there is one."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def job_id() -> str:
    """Return SLURM's ``<array>_<element>`` or job id; "" outside SLURM."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a folder, as its lease file says; all empty while that is being written.

    Attributes:
        token: random, of this very lease.
        machine: this boot of a kernel and the process ids' namespace, in which pid and began name a
            process.
        began: when the process started, in clock ticks since the boot.
        job, life: SLURM's id of the element or job, and how often it was started again.
        every_s: seconds between its heartbeats.
    """

    token: str = ""
    host: str = "another host"
    machine: str = ""
    pid: int = 0
    began: str = ""
    job: str = ""
    life: int = 0
    every_s: float = HEARTBEAT_S

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}{f' (job {self.job})' * bool(self.job)}"

    @property
    def lives(self) -> bool | None:
        """Whether its process lives, so far as that can be known at once; None where only waiting tells."""
        if self.machine and self.machine == _machine():
            return _started(self.pid) in (self.began, None)
        life = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        # SLURM starts a job again when its earlier life is over, or, should that node be
        # cut off, is to be over.
        return False if self.job and self.job == job_id() and self.life < life else None


@cache
def _machine() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since the boot: "" for one that is gone, None where that is hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # other users' processes may be hidden
        return None
    return "" if fields[0] in "ZX" else fields[19]


def myself() -> Holder:
    """Return a new lease's holder: this process."""
    return Holder(
        token=secrets.token_hex(8),
        host=host(),
        machine=_machine(),
        pid=os.getpid(),
        began=_started(os.getpid()) or "",
        job=job_id(),
        life=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        every_s=HEARTBEAT_S,
    )
