"""Where and how a network runs: the device, its threads, the initial weights, and the compiled forward."""

from collections.abc import Callable

import torch
import torch._dynamo  # its exceptions
from torch import nn

from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.resources import Workplace
from hvae_hpc.training.batches import generator_for


def choose_device(workplace: Workplace) -> torch.device:
    """Pin the threads and return the device that the run's resources name.

    SLURM may show a process all GPUs of its node or its own alone, as the site is set up; so it is asked what is seen.

    Raises:
        UserError: a GPU was asked for and torch sees none, or fewer than the run has processes on this node.
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


COMPILE_ERRORS = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)


class CompiledForward(nn.Module):
    """A model's forward, compiled where asked; a compilation that fails runs eager, says so, and is noted.

    A model that names ``compiled_parts``, methods of its own, has these compiled, each as a whole, and not its forward:
    what a flow does K + 1 times is then compiled once, and not K + 1 times in a row.
    """

    def __init__(self, model: nn.Module, compiled: bool, workplace: Workplace) -> None:
        super().__init__()
        self.model = model
        self.parts: tuple[str, ...] = getattr(model, "compiled_parts", ("forward",)) if compiled else ()
        if compiled:
            torch._dynamo.reset()  # its limit of graphs is per process, and a worker trains many networks
        for name in self.parts:  # an attribute of the instance goes before the class's method
            setattr(model, name, torch.compile(getattr(model, name), fullgraph=True, dynamic=False))
        self.workplace = workplace
        self.notes: list[str] = []

    def forward(self, batch: Batch, phase: str) -> Loss:
        """Return the phase's loss."""
        try:
            return self.model(batch, phase)
        except COMPILE_ERRORS as error:
            if not self.parts:
                raise
            reason = " ".join(str(error).split())[:200]
            self.notes.append(f"torch.compile failed, ran eager: {type(error).__name__}: {reason}")
            self.workplace.log({"event": "compile_failed", "reason": reason})
            if self.workplace.rank == 0:
                print(f"{self.workplace.folder.name}: {self.notes[-1]}", flush=True)
            for name in self.parts:
                delattr(self.model, name)
            self.parts = ()
        return self.model(batch, phase)
