"""Where, when and with what a run was made."""

import os
import platform
import resource
import time
from importlib.metadata import version

from hvae_hpc.identity import code_sha
from hvae_hpc.resources import Outcome, Resources
from hvae_hpc.rundir import Provenance


def host() -> str:
    """Return the node's name, SLURM's where there is one."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def job_id() -> str:
    """Return SLURM's ``<array>_<element>`` or job id; "" outside SLURM."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")


def make_provenance(
    outcome: Outcome, planned_sha: str, resources: Resources, attempt: int, started: float
) -> Provenance:
    """Return the provenance of a run that has just ended.

    Args:
        outcome: what the stage says.
        planned_sha: the code that planned the sweep; another one now is noted.
        resources: what the run was given.
        attempt: its number, from 1.
        started: seconds since 1970.
    """
    notes = list(outcome.notes)
    if code_sha() != planned_sha:
        notes.append(f"the package changed after the sweep was planned ({planned_sha} to {code_sha()})")
    return Provenance(
        code_sha=code_sha(),
        versions={name: version(name) for name in ("torch", "numpy", "h5py")},
        device=outcome.device,
        host=host(),
        job_id=job_id(),
        attempt=attempt,
        started_at=round(started, 3),
        wall_s=round(time.time() - started, 3),
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        threads=resources.threads,
        notes=tuple(notes),
    )
