"""What a run may use and where it works: what changes the time a run takes but no number; recorded, never hashed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Resources:
    """One stage's share of a machine.

    Attributes:
        gpus: GPUs per run; 0 for a CPU stage.
        cpus: CPU cores per run.
        memory_gb: host memory per run, GB.
        minutes: time limit of a SLURM element.
        partition: where this stage goes instead of the command's --partition; "" for there.
        device: "auto" is the GPU where gpus > 0, and an error where there is none; "cpu" is for trying a sweep on
            nodes whose GPUs torch cannot use.
        threads: CPU threads that torch is pinned to; results are equal bit for bit only for the same number.
        compile: torch.compile the training step: "auto" on a GPU only.
        checkpoint_every_s: seconds of training between checkpoints.
    """

    gpus: int = 0
    cpus: int = 1
    memory_gb: float = 8.0
    minutes: int = 60
    partition: str = ""
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 1
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        if self.gpus not in (0, 1):
            raise ValueError(f"gpus is {self.gpus}, expected 0 or 1: a run uses one device")
        if self.checkpoint_every_s < 0:
            raise ValueError(f"checkpoint_every_s is {self.checkpoint_every_s}, expected 0 or more")
        for name in ("cpus", "memory_gb", "minutes", "threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where a run works and what it may use; what tasks hand to a stage.

    Attributes:
        folder: the run's own.
        data: the data set's folder with its manifest.
        parents: role to the parent run's folder.
        resources: see there.
        stopped: asked between steps; True means save and leave.
    """

    folder: Path
    data: Path
    parents: dict[str, Path]
    resources: Resources
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished stage found; it becomes metrics.json.

    Attributes:
        metrics: name to finite number.
        per_case: case id to name to number.
        details: plain data that is not a number (case ids, counts by name).
        device: "cpu" or the GPU's name.
        notes: for the provenance.
    """

    metrics: dict[str, float]
    per_case: dict[str, dict[str, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    notes: tuple[str, ...] = ()
