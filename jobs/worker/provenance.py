"""Where, when and with what a run was made: the provenance that its metrics.json records."""

import contextlib
import os
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

from hvae_hpc.config.resources import Resources
from hvae_hpc.runs.folder import Provenance
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.lease import host, job_id
from hvae_hpc.runs.workplace import Outcome

SLURM_FACTS = {
    "SLURM_CLUSTER_NAME": "cluster",
    "SLURM_JOB_PARTITION": "partition",
    "SLURM_JOB_ACCOUNT": "account",
    "SLURM_JOB_NODELIST": "nodes",
    "SLURM_RESTART_COUNT": "restarts",
    "CUDA_VISIBLE_DEVICES": "visible_gpus",
}


def peak_memory_mib() -> float:
    """Return the most memory that this process ever had, plus what its children have now, MiB.

    torch's compiler starts children, and SLURM counts their memory. Memory that processes share is
    divided among them.
    """
    total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    open_ids = ["self"]
    while open_ids:
        process = Path("/proc") / open_ids.pop()
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if process.name != "self":
                sizes = dict(
                    line.split(":")
                    for line in (process / "smaps_rollup").read_text().splitlines()[1:]
                )
                total += int(sizes["Pss"].split()[0])
            for children in process.glob("task/*/children"):
                open_ids += children.read_text().split()
    return total / 1024


def read_energy_j() -> float | None:
    """Return the energy in J that this process's first GPU took since its driver was loaded.

    None where there is no GPU, or where NVML does not tell.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
        if first.isdigit():
            gpu = pynvml.nvmlDeviceGetHandleByIndex(int(first))
        else:
            gpu = pynvml.nvmlDeviceGetHandleByUUID(first)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1000
    except Exception:  # no pynvml, no driver, a MIG slice of an old one: nothing depends on it
        return None


def make_provenance(
    outcome: Outcome,
    planned_sha: str,
    resources: Resources,
    attempt: int,
    started: float,
    before_s: float,
    energy_before: float | None,
    at_once: int,
) -> Provenance:
    """Return the provenance of a run that has just ended.

    Args:
        outcome: what the stage says.
        planned_sha: of the code that planned the sweep; where it changed since, that is noted.
        resources: what the run was given.
        attempt: its number, from 1.
        started: seconds since 1970.
        before_s: seconds that earlier attempts took.
        energy_before: what :func:`read_energy_j` said at the beginning.
        at_once: how many runs shared the device.
    """
    notes = list(outcome.notes)
    if code_sha() != planned_sha:
        change = f"{planned_sha} to {code_sha()}"
        notes.append(f"the package changed after the sweep was planned ({change})")

    facts = {
        name: os.environ[variable]
        for variable, name in SLURM_FACTS.items()
        if job_id() and os.environ.get(variable)
    }
    gpu = {}
    if energy_before is not None and (energy_after := read_energy_j()) is not None:
        gpu["energy_j"] = round(energy_after - energy_before, 4)
    libraries = {name: version(name) for name in ("torch", "numpy", "h5py")}
    wall_s = time.time() - started
    return Provenance(
        code_sha=code_sha(),
        versions={"python": platform.python_version(), **libraries},
        device=outcome.device,
        host=host(),
        job_id=job_id(),
        attempt=attempt,
        started_at=round(started, 3),
        wall_s=round(wall_s, 3),
        peak_memory_mib=peak_memory_mib(),
        threads=resources.threads,
        notes=tuple(notes),
        spent_s=round(before_s + wall_s, 3),
        processes=resources.tasks,
        at_once=at_once,
        slurm=facts,
        gpu=gpu,
    )
