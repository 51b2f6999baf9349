"""What gpu.py's parts are told, and how they tell what they found."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from unet_steps import make_pairs

from hvae_hpc.config.model import OptimConfig
from hvae_hpc.training.batches import make_batch
from hvae_hpc.training.device import move_only
from tests.gpu_without_gpu.networks import NETWORKS


class Setting(NamedTuple):
    """How large everything is; the small one tries every line on a CPU.

    Attributes:
        device: where to train.
        small: small networks and images.
        results: what gpu.py has so far.
    """

    device: torch.device
    small: bool
    results: Path

    @property
    def px(self) -> int:
        """Side of the images."""
        return 32 if self.small else 240

    @property
    def batch(self) -> int:
        """Pairs a step."""
        return 4 if self.small else 32

    @property
    def steps(self) -> int:
        """Steps that are timed."""
        return 1 if self.small else 20

    def network(self, name: str) -> str:
        """Return the name of a network of this size."""
        return f"small_{name.replace('-', '_')}" if self.small else name

    def optim(self, precision: str, images: int = 0) -> OptimConfig:
        """Return a training of so many images, or of one step."""
        images = images or self.batch
        return OptimConfig(images=images, batch_size=self.batch, lr=1e-4, precision=precision)  # type: ignore[arg-type]


def tell(name: str, value: Any) -> None:
    """Print a figure for gpu.py."""
    print(json.dumps({"name": name, "value": value}), flush=True)


@cache
def count_operations(setting: Setting, name: str) -> float:
    """Return the operations of a training step, by torch's counter on tensors without numbers.

    They are on a CPU: to save a GPU's memory, an eager step computes some products twice.
    """
    make, part = NETWORKS[setting.network(name)], slice(0, setting.batch)
    data = make_pairs(setting.batch, setting.px, torch.device("cpu"))
    batch = make_batch(make(setting.px), data, setting.optim("fp32"), 0, None, 0, part)
    counter, mode = FlopCounterMode(display=False), FakeTensorMode()
    fakes = {key: mode.from_tensor(value) for key, value in batch.items()}
    with mode, counter:
        model = make(setting.px)
        phases = model.phases()  # type: ignore[operator]
        for phase in phases:
            move_only(phase, phases)
            model(fakes, phase.name).total.backward()
    return float(counter.get_total_flops())
