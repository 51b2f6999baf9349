"""Where and how a network runs: device, threads, initial weights, and the compiled forward."""

import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from hvae_hpc.errors import DEVICE_MEMORY, UserError, is_gpu_lost, say
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import generator_for
from hvae_hpc.training.compile_cache import use_private_cache

NO_MEMORY = re.compile(f"can't allocate memory|{DEVICE_MEMORY}")


def choose_device(workplace: Workplace) -> torch.device:
    """Pin the threads and return the device that the run's resources name.

    SLURM may show a process all GPUs of its node or its own alone, as the site is set up. So what
    torch sees decides.

    Raises:
        UserError: a GPU was asked for and torch sees none, or fewer than the run has processes on
            this node.
    """
    torch.set_num_threads(workplace.resources.threads)
    torch.backends.cudnn.allow_tf32 = False  # precision "fp32" means float32
    # What is fastest on a GPU, or only what adds up in one order, in every run alike.
    deterministic = workplace.resources.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # torch warns where an operation has no such algorithm.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    # With warnings alone these add up their gradients in any order; the plain kernel does not.
    for kernel in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(not deterministic)

    gpus = workplace.resources.gpus
    if gpus == 0 or workplace.resources.device == "cpu":
        return torch.device("cpu")

    if not torch.cuda.is_available():
        raise UserError(
            f"torch sees no GPU on this node, the site file says gpus = {gpus}; "
            'give gpus = 0 or device = "cpu"'
        )
    visible = torch.cuda.device_count()
    if 1 < visible <= workplace.local_rank:
        raise UserError(
            f"torch sees {visible} GPUs on this node, the site file says gpus = {gpus}; "
            f"give gpus = {visible}"
        )
    # Steps of several sizes would else leave gaps that nothing fits into.
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the old name would go before it
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device("cuda", workplace.local_rank if visible > 1 else 0)
    torch.cuda.set_device(device)
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory was not enough, the host's or the device's.

    What ends a CUDA graph's recording says so only in its context.
    """
    said = isinstance(error, torch.OutOfMemoryError) or bool(NO_MEMORY.search(str(error)))
    return said or bool(error.__context__ and is_out_of_memory(error.__context__))


def device_name(device: torch.device) -> str:
    """Return "cpu" or the GPU's name."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def build(make: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Make a network whose initial weights are a function of the seed, and put it on the device."""
    torch.manual_seed(generator_for(seed, "weights", 0).initial_seed())
    model = make().to(device)
    # Convolutions are fastest with channels last.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def move_only(phase: Phase, phases: tuple[Phase, ...]) -> None:
    """Ask for gradients of this phase's network alone."""
    if len(phases) > 1:
        for other in phases:
            other.network.requires_grad_(other.network is phase.network)


class CompiledForward(nn.Module):
    """A model's forward, compiled where asked; where that fails it runs eager, and says so.

    A model may name ``compiled_parts``, methods of its own. Each of these is then compiled as a
    whole, and the forward is not: what a flow does K + 1 times is compiled once, and not K + 1
    times in a row. Networks that differ in their weights alone, as those of ten seeds, share what
    was compiled for the first.

    Args:
        model: its ``config``, modules and weights' shapes say what is alike.
        compiled: whether to compile at all.
        workplace: whose log is told of a failure.
        shapes: what else the graphs depend on: sizes of the batch, and precision.
        budget: share of the activations that are kept for the backward pass.
        cuda_graphs: whether the kernels of a graph are launched all at once. What it returns is
            then overwritten by the next step.

    Attributes:
        graphs_of: the networks whose graphs torch holds in this process.
    """

    graphs_of: ClassVar[Hashable] = None

    def __init__(
        self,
        model: nn.Module,
        compiled: bool,
        workplace: Workplace,
        shapes: Hashable = None,
        budget: float = 1.0,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.workplace = workplace
        self.notes: list[str] = []
        self.parts: tuple[str, ...] = ()
        if not compiled:
            return
        if next(model.parameters()).device.type == "cuda" and (missing := find_missing_tools()):
            self._note(f"{missing} is missing on this node (see docs/CLUSTER.md)")
            return

        self._drop_graphs_of_others((shapes, budget, cuda_graphs))
        torch._functorch.config.activation_memory_budget = budget
        # By itself torch compiles the backward pass in it, where a failure would end the training.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        self.parts = getattr(model, "compiled_parts", ("forward",))
        mode = "reduce-overhead" if cuda_graphs else None
        for name in self.parts:  # an attribute of the instance goes before the class's method
            part = getattr(model, name)
            setattr(model, name, torch.compile(part, fullgraph=True, dynamic=False, mode=mode))

    def close(self) -> None:
        """Give the model its own methods back.

        A model that refers to itself keeps its memory until Python's collector finds it.
        """
        for name in self.parts:
            vars(self.model).pop(name, None)

    def forward(self, batch: Batch, phase: str) -> Loss:
        """Return the phase's loss."""
        try:
            return self.model(batch, phase)
        except Exception as error:
            if not self.fall_back(error):
                raise
        return self.model(batch, phase)

    def fall_back(self, error: Exception) -> bool:
        """Run eager from now on where an exception may be of the compiler; tell whether it may.

        Compilers, autotuners and launches raise exceptions of many kinds. So any may be, but for
        too little memory and a lost GPU. The network's own faults come again where it runs eager.
        """
        if not self.parts or is_out_of_memory(error) or is_gpu_lost():
            return False
        self.close()
        self.parts, CompiledForward.graphs_of = (), None
        self._note(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return True

    def _note(self, reason: str) -> None:
        self.notes.append(f"torch.compile failed, ran eager: {reason}")
        self.workplace.log({"event": "compile_failed", "reason": reason})
        if self.workplace.rank == 0:
            say(f"{self.workplace.folder.name}: {self.notes[-1]}")

    def _drop_graphs_of_others(self, shapes: Hashable) -> None:
        """Make room: torch's limit of graphs is per process, and a worker trains many networks."""
        types = tuple(type(module) for module in self.model.modules())
        weights = tuple(weight.shape for weight in self.model.parameters())
        network = (getattr(self.model, "config", None), types, weights, shapes)
        if network != CompiledForward.graphs_of:
            use_private_cache()
            torch._dynamo.reset()
        CompiledForward.graphs_of = network


def find_missing_tools() -> str:
    """Return what torch's compiler needs for a GPU and this node has not; "" for nothing."""
    compilers = (os.environ.get("CC", "gcc"), "gcc", "clang")
    if not any(map(shutil.which, compilers)):
        return "a C compiler (gcc)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return "" if header.is_file() else f"{header} (package python3-dev)"
