"""Where and how a network runs: the device, its threads, the initial weights, and the compiled forward."""

from collections.abc import Callable, Hashable
from typing import ClassVar

import torch
from torch import nn

from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import generator_for
from hvae_hpc.training.compile_cache import use_private_cache


def choose_device(workplace: Workplace) -> torch.device:
    """Pin the threads and return the device that the run's resources name.

    SLURM may show a process all GPUs of its node or its own alone, as the site is set up; so it is
    asked what is seen.

    Raises:
        UserError: a GPU was asked for and torch sees none, or fewer than the run has processes on
            this node.
    """
    torch.set_num_threads(workplace.resources.threads)
    torch.backends.cudnn.allow_tf32 = False  # precision "fp32" means float32
    torch.backends.cudnn.benchmark = True
    if workplace.resources.gpus == 0 or workplace.resources.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"torch sees no GPU on this node, the site file says gpus = {workplace.resources.gpus}; "
            'give gpus = 0 or device = "cpu"'
        )
    visible = torch.cuda.device_count()
    if 1 < visible <= workplace.local_rank:
        raise UserError(
            f"torch sees {visible} GPUs on this node, the site file says gpus = {workplace.resources.gpus}; "
            f"give gpus = {visible}"
        )
    device = torch.device("cuda", workplace.local_rank if visible > 1 else 0)
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """Return "cpu" or the GPU's name."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def build(make: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Make a network whose initial weights are a function of the seed, and put it on the device."""
    torch.manual_seed(generator_for(seed, "weights", 0).initial_seed())
    model = make().to(device)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are fastest so


def move_only(phase: Phase, phases: tuple[Phase, ...]) -> None:
    """Ask for gradients of this phase's network alone."""
    if len(phases) > 1:
        for other in phases:
            other.network.requires_grad_(other.network is phase.network)


class CompiledForward(nn.Module):
    """A model's forward, compiled where asked; a compilation that fails runs eager, says so, and is noted.

    A model that names ``compiled_parts``, methods of its own, has these compiled, each as a whole,
    and not its forward: what a flow does K + 1 times is then compiled once, and not K + 1 times in
        a row. Networks that are alike but for
    their weights, as those of ten seeds, share what was compiled for the first.

    Args:
        model: its ``config``, modules and weights' shapes say what is alike.
        compiled: whether to compile at all.
        workplace: whose log is told of a failure.
        shapes: what else the graphs depend on: sizes of the batch, and precision.

    Attributes:
        graphs_of: the networks whose graphs torch holds in this process.
    """

    graphs_of: ClassVar[Hashable] = None

    def __init__(
        self, model: nn.Module, compiled: bool, workplace: Workplace, shapes: Hashable = None
    ) -> None:
        super().__init__()
        self.model = model
        self.workplace = workplace
        self.notes: list[str] = []
        self.parts: tuple[str, ...] = (
            getattr(model, "compiled_parts", ("forward",)) if compiled else ()
        )
        if compiled:
            self._drop_graphs_of_others(shapes)
            # By itself torch compiles the backward pass in it, where a failure would
            # end the training.
            torch._functorch.config.force_non_lazy_backward_lowering = True
        for name in self.parts:  # an attribute of the instance goes before the class's method
            setattr(model, name, torch.compile(getattr(model, name), fullgraph=True, dynamic=False))

    def close(self) -> None:
        """Give the model its own methods back: one that holds itself stays until Python looks for such, GPU and all."""
        for name in self.parts:
            vars(self.model).pop(name, None)

    def forward(self, batch: Batch, phase: str) -> Loss:
        """Return the phase's loss."""
        try:
            return self.model(batch, phase)
        except Exception as error:
            if not self.parts or not _is_of_compiler(error):
                raise
            reason = " ".join(str(error).split())[:200]
            self.notes.append(f"torch.compile failed, ran eager: {type(error).__name__}: {reason}")
            self.workplace.log({"event": "compile_failed", "reason": reason})
            if self.workplace.rank == 0:
                print(f"{self.workplace.folder.name}: {self.notes[-1]}", flush=True)
            for name in self.parts:
                delattr(self.model, name)
            self.parts, CompiledForward.graphs_of = (), None
        return self.model(batch, phase)

    def _drop_graphs_of_others(self, shapes: Hashable) -> None:
        """Make room: torch's limit of graphs is per process, and a worker trains many networks."""
        types = tuple(
            type(module) for module in self.model.modules()
        )  # a parametrised layer's is its own each time
        weights = tuple(weight.shape for weight in self.model.parameters())
        mine = (getattr(self.model, "config", None), types, weights, shapes)
        if mine != CompiledForward.graphs_of:
            use_private_cache()
            torch._dynamo.reset()
        CompiledForward.graphs_of = mine


def _is_of_compiler(error: Exception) -> bool:
    from torch._dynamo import (
        exc,
    )  # only here: it takes longer to import than the rest of torch, on a CPU for nothing

    return isinstance(error, (exc.TorchDynamoException, exc.FailOnRecompileLimitHit))
