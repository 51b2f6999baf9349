"""Which weights of a training are kept: those with the lowest loss on pairs that it never saw.

The held-out pairs are of training cases, never of test cases. A generator that begins to learn its
training pairs by heart gets better on these and worse on others; the weights from before that are
the ones to use.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hvae_hpc.config.model import OptimConfig
from hvae_hpc.training.batches import PairTensors, generator_for

DRAWS = 8
"""The noise of a loss is averaged over so many draws, the same ones at every check."""


class BestWeights:
    """The weights with the lowest held-out loss so far.

    Args:
        model: the network, with one phase.
        data: the held-out pairs, on its device; None for no checks.
        optim: the training's length.
        checks: how many there are, at equal distances.

    Attributes:
        loss: the lowest, at ``images_seen``; infinite before the first check.
        weights: a copy of the best ones; None before the first check.
    """

    def __init__(
        self, model: nn.Module, data: PairTensors | None, optim: OptimConfig, checks: int
    ) -> None:
        self.model, self.data, self.optim, self.checks = model, data, optim, checks
        self.loss, self.images_seen = math.inf, 0
        self.weights: dict[str, Tensor] | None = None

    def is_due(self, images_seen: int) -> bool:
        """Tell whether a check belongs after the step that ended at these images."""
        if self.data is None:
            return False
        before = images_seen - self.optim.batch_size
        images = self.optim.images
        return images_seen * self.checks // images > before * self.checks // images

    @torch.no_grad()
    def check(self, weights: Mapping[str, Tensor], images_seen: int) -> float:
        """Measure the loss of some weights, and copy them where it is the lowest."""
        assert self.data is not None
        pairs = {"image": self.data.images, "mask": self.data.masks}
        device, (phase,) = self.data.images.device, self.model.phases()  # type: ignore[operator]

        was_training = self.model.training
        self.model.eval()
        total = 0.0
        for number in range(DRAWS):
            generator = generator_for(0, "held out", number)
            noise = self.model.draw(len(self.data), 1.0, generator)  # type: ignore[operator]
            batch = pairs | {name: value.to(device) for name, value in noise.items()}
            total += float(functional_call(self.model, dict(weights), (batch, phase.name)).total)
        self.model.train(was_training)

        loss = total / DRAWS
        if loss < self.loss:
            self.loss, self.images_seen = loss, images_seen
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        return loss

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"loss": self.loss, "images_seen": self.images_seen, "weights": self.weights}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.loss, self.images_seen = float(state["loss"]), int(state["images_seen"])
        self.weights = state["weights"]
