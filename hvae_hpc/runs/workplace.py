"""Where a run works, and what a finished stage hands back."""

from collections.abc import Callable
from dataclasses import field
from pathlib import Path

from hvae_hpc.config.resources import Resources
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.folder import Record, append_log


@frozen
class Workplace:
    """Where a run works and what it may use; every stage is given one.

    Attributes:
        folder: the run's own.
        data: the data set's folder with its manifest.
        parents: role to the parent run's folder.
        resources: see there.
        stopped: asked between steps; True means save and leave.
        rank: number of this process among those of the run; only the first, 0, writes.
        world: processes of the run.
        local_rank: number of this process among those of the run on its node.
        rendezvous: file that tells further processes where the first one listens; of no use where
            the run has one process.
    """

    folder: Path
    data: Path
    parents: dict[str, Path]
    resources: Resources
    stopped: Callable[[], bool] = lambda: False
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    rendezvous: Path = Path()

    def log(self, record: Record) -> None:
        """Add a line to the run's log.jsonl, once for all its processes."""
        if self.rank == 0:
            append_log(self.folder, record)


@frozen
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
    details: Record = field(default_factory=dict)
    device: str = "cpu"
    notes: tuple[str, ...] = ()
