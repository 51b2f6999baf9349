"""Which weights of a training are kept: those with the lowest loss on pairs that it never saw.

The held-out pairs are of training cases, never of test cases. A generator that begins to learn its
training pairs by heart gets better on these and worse on others; the weights from before that are
the ones to use. Weights whose draws the test of :mod:`hvae_hpc.metrics.memorisation` calls copies
are used only where all others are called so too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from hvae_hpc.config.model import OptimConfig
from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Batch, Tensors
from hvae_hpc.training.batches import PairTensors, generator_for

DRAWS = 8
"""The noise of a loss is averaged over so many draws, the same ones at every check."""
JUDGED = 32
"""Pairs that are drawn to see whether they are copies, from the same noise at every check."""

KEPT_FIELDS = ("loss", "images_seen", "copies", "copying", "weights")
"""What a checkpoint keeps of the best weights."""


@dataclass
class BestWeights:
    """The weights with the lowest held-out loss so far.

    Attributes:
        model: the network, with one phase.
        data: the held-out pairs, on its device.
        optim: the training's length.
        checks: how many there are, at equal distances.
        learned: the pairs that are trained on, on its device; None for no test for copies.
        cases: the case of each of them.
        loss: of the best weights, at ``images_seen``; infinite before the first check.
        copies: share of their draws that are called copies.
        copying: whether these are more than chance explains.
        weights: a copy of the best ones; None before the first check.
    """

    model: Any
    data: PairTensors
    optim: OptimConfig
    checks: int
    learned: PairTensors | None = None
    cases: Sequence[str] = ()
    loss: float = math.inf
    images_seen: int = 0
    copies: float = 0.0
    copying: bool = True
    weights: Tensors | None = None

    def is_due(self, images_seen: int) -> bool:
        """Tell whether a check belongs after the step that ended at these images."""
        before = images_seen - self.optim.batch_size
        images = self.optim.images
        return images_seen * self.checks // images > before * self.checks // images

    @torch.no_grad()
    def check(self, weights: Batch, images_seen: int) -> dict[str, float]:
        """Measure some weights, and copy them where they are the best; return what was measured."""
        was_training = self.model.training
        self.model.eval()
        loss = self._measure_loss(weights)
        measured = {"loss": loss}
        if loss < self.loss or self.copying:
            copies, copying = self._find_copies(weights)
            measured |= {"copies": copies, "copying": float(copying)}
            if (copying, loss) < (self.copying, self.loss):
                self.loss, self.images_seen = loss, images_seen
                self.copies, self.copying = copies, copying
                self.weights = {name: value.detach().clone() for name, value in weights.items()}
        self.model.train(was_training)
        return measured

    def terms(self) -> dict[str, float]:
        """Return what is recorded of the best weights."""
        seen = float(self.images_seen)
        return {"held_out_loss": self.loss, "best_images_seen": seen, "best_copies": self.copies}

    def _measure_loss(self, weights: Batch) -> float:
        """Return the loss of the held-out pairs."""
        pairs = {"image": self.data.images, "mask": self.data.masks}
        device, (phase,) = self.data.images.device, self.model.phases()

        total = 0.0
        for number in range(DRAWS):
            generator = generator_for(0, "held out", number)
            noise = self.model.draw(len(self.data), 1.0, generator)
            batch = pairs | {name: value.to(device) for name, value in noise.items()}
            total += float(functional_call(self.model, dict(weights), (batch, phase.name)).total)
        return total / DRAWS

    def _find_copies(self, weights: Batch) -> tuple[float, bool]:
        """Return the share of draws that are copies, and whether the test says that it copies."""
        if self.learned is None or not hasattr(self.model, "draw_latent"):
            return 0.0, False  # another package's generator may draw by its sampler alone
        # Only here: a training without this test need not wait for scipy.
        from hvae_hpc.metrics.memorisation import find_copies

        model = self.model
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(weights)
        masks = self.learned.masks if model.config.needs_pairs else None
        z = model.draw_latent(JUDGED, masks, generator_for(0, "copies", 0))
        drawn, learned = (
            images[:, 0].cpu().numpy()
            for images in (model.decode(z.to(self.learned.images))[0], self.learned.images)
        )
        model.load_state_dict(own)
        try:
            copies = find_copies(drawn, learned, None, self.cases)
        except UserError:  # too few cases to tell
            return 0.0, False
        return float(copies.flagged.mean()), copies.copying

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: getattr(self, name) for name in KEPT_FIELDS}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        for name in KEPT_FIELDS:
            setattr(self, name, state[name])
