"""What a run may use: recorded, but never hashed, because it changes no number, only times."""

import re
from collections.abc import Iterable
from dataclasses import field
from typing import Literal

from hvae_hpc.frozen import frozen

START_S = 30
"""Seconds that a process may take until it works."""
POSITIVE = {
    "nodes", "cpus", "memory_gb", "minutes", "element_minutes", "signal_lead_s", "threads",
    "at_once",
}  # fmt: skip
"""Fields that are more than 0; all other numbers are 0 or more."""
SET_BY = {
    **{n: n for n in ("account", "constraint", "exclude", "nice", "nodes", "partition", "qos")},
    "minutes": "time",
    "minutes_min": "time-min",
    "memory_gb": "mem mem-per-cpu mem-per-gpu",
    "cpus": "cpus-per-task cpus-per-gpu",
    "gpus": "gpus gpus-per-node gpus-per-socket gpus-per-task ntasks ntasks-per-core ntasks-per-gpu"
    " ntasks-per-node ntasks-per-socket ntasks-per-tres tasks-per-node tres-per-task",
    "signal_lead_s": "signal",
    "array_parallelism": "array",
    "--after": "dependency",
    "the sweep command": "begin chdir clusters comment error hold input job-name kill-on-bad-exit"
    " no-requeue open-mode output parsable requeue test-only unbuffered wait wckey wrap",
}
"""What sets an option of sbatch and srun, and which ones: nobody else can."""


@frozen
class Resources:
    """One stage's share of a machine, and how SLURM is asked for it.

    Attributes:
        nodes: nodes per run; more than 1 for generator training only.
        gpus: GPUs per node; 0 for a CPU stage. A run has one process per GPU, and with gpus = 0 one
            per node.
        cpus: CPU cores per process.
        memory_gb: host memory per node, GB.
        minutes: longest time limit of a SLURM element.
        minutes_min: shortest time limit that is taken, so that SLURM can fit an element into a gap;
            0 for ``minutes``.
        element_minutes: short runs are bundled into elements of about this length.
        partition: of this stage, in place of the command's --partition; "" for that one.
        account, qos, constraint, exclude: as SLURM has them; "" for none.
        nice: lowers the jobs' priority.
        array_parallelism: elements of an array that run at a time; 0 for as many as fit.
        container: image in which apptainer starts the runs; "" for none.
        python: the interpreter that starts the runs, in the container where there is one; "" for
            the one that submits.
        sbatch_args, srun_args: further options of these commands by their long names; true for one
            without a value. A gres that names GPUs must name as many as ``gpus``.
        on_end: of the tables' stage: argv of a command that the last job runs when all is over.
        setup: shell lines before the runs start (module load ...).
        grace_s: seconds from SIGTERM to the end at a preemption, where the partition does not tell.
        signal_lead_s: seconds before the time limit at which SLURM tells a run to save and leave.
        device: "auto" is the GPU where gpus > 0, and an error where there is none; "cpu" is for
            trying a sweep on nodes whose GPUs torch cannot use.
        threads: CPU threads of torch. Results are equal bit for bit only for the same number.
        at_once: runs of an element that share its GPU, each in a process of its own. ``cpus`` and
            ``memory_gb`` must suffice for all of them.
        compile: whether to torch.compile the training step; "auto" does so on a GPU only.
            "cuda_graphs" also launches each graph's kernels all at once, which may help small
            networks on one GPU; no GPU has tried it yet.
        micro_batch: pairs that go through a (V/H)VAE at once; 0 for a process's whole share of the
            batch. For a share that does not fit: its gradients are added up, which changes the
            weights by rounding alone. The likelihood and generate stages cut their chains likewise.
        recompute: saves memory where an (H)VAE does not fit (256 px, large batches): its decodings
            are made again in the backward pass, not kept.
        activation_memory_budget: share of its activations that a compiled step keeps for the
            backward pass; the others are made again there, where that costs little.
        deterministic: whether a GPU uses algorithms that add up in one order, wherever torch has
            them. Then runs on GPUs of one kind are equal bit for bit; slower.
        tensorboard: whether the training's log is also written as TensorBoard event files, into
            ``tensorboard/`` of the run's folder.
        checkpoint_every_s: seconds of training between checkpoints.
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
    sbatch_args: dict[str, str | int | bool] = field(default_factory=dict)
    srun_args: dict[str, str | int | bool] = field(default_factory=dict)
    on_end: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    grace_s: int = 0
    signal_lead_s: int = 90
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 1
    at_once: int = 1
    compile: Literal["auto", "on", "off", "cuda_graphs"] = "auto"
    micro_batch: int = 0
    recompute: bool = False
    activation_memory_budget: float = 1.0
    deterministic: bool = False
    tensorboard: bool = False
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str) and not value.isprintable():
                raise ValueError(f"{name} is {value!r}, expected printable characters")
            if isinstance(value, int | float):
                if name in POSITIVE and value <= 0:
                    raise ValueError(f"{name} is {value}, expected more than 0")
                if value < 0:
                    raise ValueError(f"{name} is {value}, expected 0 or more")
        for line in self.setup:
            # sbatch takes options of PBS and LSF as well.
            if not line.isprintable() or line.lstrip().startswith(("#SBATCH", "#PBS", "#BSUB")):
                raise ValueError(f"setup has {line!r}, expected single shell lines, and no #SBATCH")
        # Options that another field sets, and those that no shell or SLURM would take.
        for name in ("sbatch_args", "srun_args"):
            for option, value in getattr(self, name).items():
                is_long = re.fullmatch("[a-z][a-z-]+", option)
                if not is_long or value is False or not str(value).isprintable():
                    raise ValueError(
                        f"{name} has {option!r} = {value!r}, expected a long option and its value"
                    )
                for setter, theirs in SET_BY.items():
                    if is_option(option, theirs.split()):
                        raise ValueError(f"{name} has {option!r}, which {setter} sets; take it out")
        if self.compile == "cuda_graphs" and (self.nodes, self.gpus, self.device) != (1, 1, "auto"):
            raise ValueError(
                'compile is "cuda_graphs", which is for a run on one GPU; '
                'give nodes = 1, gpus = 1 and device = "auto", or compile = "on"'
            )
        minutes = min(self.minutes, self.minutes_min or self.minutes)
        if 60 * minutes < self.signal_lead_s + START_S:
            raise ValueError(
                f"a limit of {minutes} minutes leaves no time to work: {START_S} s to start and "
                f"signal_lead_s = {self.signal_lead_s} to save; give more minutes"
            )

    @property
    def gpus_in_gres(self) -> int:
        """GPUs per node that sbatch_args name in their own way."""
        return count_gpus(str(self.sbatch_args.get("gres", "")))

    @property
    def tasks_per_node(self) -> int:
        """Processes of a run on each node."""
        return max(1, self.gpus)

    @property
    def tasks(self) -> int:
        """Processes of a run."""
        return self.nodes * self.tasks_per_node


def is_option(option: str, names: Iterable[str]) -> bool:
    """Tell whether an option is one of some, also where it is cut short, as SLURM takes it."""
    return any(name.startswith(option) for name in names)


def count_gpus(gres: str) -> int:
    """Return how many GPUs generic resources have: "gpu:a100:4(S:0-1),gpu,shard:8" has 5."""
    counts = re.findall(r"\bgpu\b(?::[^:,(]*[^:,(\d][^:,(]*)?(?::(\d+))?", gres)
    return sum(int(count or 1) for count in counts)
