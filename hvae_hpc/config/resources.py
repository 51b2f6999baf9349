"""What a run may use. It changes the time a run takes but no number: recorded, never hashed."""

from dataclasses import dataclass
from typing import Literal

START_S = 30
"""Seconds that a process may take until it works."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """One stage's share of a machine, and how SLURM is asked for it.

    Attributes:
        nodes: nodes per run; more than 1 for generator training only.
        gpus: GPUs per node; 0 for a CPU stage. A run has one process per GPU, and one per node
            where gpus = 0.
        cpus: CPU cores per process.
        memory_gb: host memory per node, GB.
        minutes: longest time limit of a SLURM element.
        minutes_min: shortest time limit that is taken, so that a run fits into a gap; 0 for no less
            than asked.
        element_minutes: what an element is filled up to with short runs.
        partition: where this stage goes instead of the command's --partition; "" for there.
        account, qos, constraint, exclude: as SLURM has them; "" for none.
        nice: lowers the jobs' priority.
        array_parallelism: elements of an array that run at a time; 0 for as many as fit.
        container: image in which the runs run, by apptainer; "" for none.
        python: Python in that container, or instead of the one that submits; "" for that one.
        setup: shell lines before the runs start (module load ...).
        grace_s: seconds that SLURM leaves after SIGTERM when it preempts, where the partition does
            not tell (a QOS's).
        signal_lead_s: seconds before the time limit at which SLURM tells a run to save and leave.
        device: "auto" is the GPU where gpus > 0, and an error where there is none; "cpu" is for
            trying a sweep on nodes whose GPUs torch cannot use.
        threads: CPU threads that torch is pinned to; results are equal bit for bit only for the
            same number.
        at_once: runs of an element that are made side by side on its GPU, each by a process of its
            own, for which ``cpus`` and ``memory_gb`` must suffice; 0 for as many as a short
            measurement finds to be worth it.
        compile: torch.compile the training step: "auto" on a GPU only.
        micro_batch: pairs that go through a (V/H)VAE at once where a process's share of the batch
            does not fit; their gradients are added up to the batch's, which changes the weights by
            rounding alone. 0 for the whole share.
        recompute: save memory where a (H)VAE does not fit (256 px, large batches): its decodings
            are done again in the backward pass, not kept.
        tensorboard: write the training's log as TensorBoard event files too, into ``tensorboard/``
            of the run's folder.
        checkpoint_every_s: seconds of training between checkpoints; none: as often as pays, by what
            saving is measured to cost and ``mean_uptime_s``.
        mean_uptime_s: mean seconds between preemptions and failures of a run.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int = 1
    memory_gb: float = 8.0
    minutes: int = 60
    minutes_min: int = 0
    element_minutes: float = 25.0
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    nice: int = 0
    array_parallelism: int = 0
    container: str = ""
    python: str = ""
    setup: tuple[str, ...] = ()
    grace_s: int = 0
    signal_lead_s: int = 90
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 1
    at_once: int = 1
    compile: Literal["auto", "on", "off"] = "auto"
    micro_batch: int = 0
    recompute: bool = False
    tensorboard: bool = False
    checkpoint_every_s: float | None = None
    mean_uptime_s: float = 14400.0

    def __post_init__(self) -> None:
        for name in (
            "nodes",
            "cpus",
            "memory_gb",
            "minutes",
            "element_minutes",
            "signal_lead_s",
            "threads",
            "at_once",
            "mean_uptime_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in (
            "gpus",
            "minutes_min",
            "nice",
            "grace_s",
            "array_parallelism",
            "micro_batch",
            "checkpoint_every_s",
        ):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in (
            "partition",
            "account",
            "qos",
            "constraint",
            "exclude",
            "container",
            "python",
        ):
            if not (text := getattr(self, name)).isprintable():
                raise ValueError(f"{name} is {text!r}, expected printable characters")
        for line in self.setup:
            if not line.isprintable() or line.lstrip().startswith("#SBATCH"):
                raise ValueError(f"setup has {line!r}, expected single shell lines, and no #SBATCH")
        if min(self.minutes, self.minutes_min or self.minutes) * 60 < self.signal_lead_s + START_S:
            raise ValueError(
                f"a limit of {min(self.minutes, self.minutes_min or self.minutes)} minutes leaves no time to work: "
                f"{START_S} s to start and signal_lead_s = {self.signal_lead_s} to save; give more minutes"
            )

    @property
    def tasks_per_node(self) -> int:
        """Processes of a run on each node."""
        return max(1, self.gpus)

    @property
    def tasks(self) -> int:
        """Processes of a run."""
        return self.nodes * self.tasks_per_node
