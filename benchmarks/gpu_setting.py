"""What gpu.py's parts are told, and how they tell what they found."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hvae_hpc.config.model import OptimConfig


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
