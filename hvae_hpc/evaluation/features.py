"""What the judge sees: features of a U-Net that was trained on the real training cases alone.

The judge is the reference arm's first U-Net. It knows what matters for finding these tumours in
these images, which a network trained on photographs does not.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hvae_hpc.config.loader import load, read_json
from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.segment import predict
from hvae_hpc.metrics.segmentation import dice
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.folder import CONFIG, SNAPSHOT
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.checkpoint import load_snapshot, loading

LEVELS = 3
"""The encoder's last levels, whose features count."""
SMALLEST_SPREAD = 0.1
"""Least standard deviation that a feature is divided by, in those of all features on average."""


class Judge(NamedTuple):
    """A trained U-Net and how it was asked to predict.

    Attributes:
        model: on ``device``, in evaluation mode.
        threshold: tumour probability above which a pixel is predicted tumour.
        batch_size: images at once.
    """

    model: UNet
    threshold: float
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> NDArray[np.float64]:
        """Return features (N, D): mean and standard deviation of the last levels' channels.

        Args:
            images: (N, 1, H, W) in [0, 1].
        """
        parts = []
        for batch in images.split(self.batch_size):
            moments = []
            for level in self.model.encode(batch.to(self.device))[-LEVELS:]:
                pixels = level.float().flatten(2)
                moments += [pixels.mean(2), pixels.std(2, correction=0)]
            parts.append(torch.cat(moments, 1).cpu())
        return torch.cat(parts).double().numpy()

    def agree(self, data: PairTensors) -> NDArray[np.float64]:
        """Return the Dice (N,) of the predicted masks with those of the pairs."""
        predictions = predict(self.model, data, self.threshold, self.batch_size, self.device)
        masks = data.masks[:, 0].numpy() > 0.5
        return np.array([dice(*pair) for pair in zip(predictions, masks, strict=True)])


def load_judge(folder: Path, device: torch.device) -> Judge:
    """Read the judge from the folder of a segment run that kept its weights."""
    config = load(SegmentConfig, read_json(folder / CONFIG), str(folder / CONFIG))
    model = UNet(config.unet, config.loss)
    snapshot = load_snapshot(folder / SNAPSHOT)
    with loading(folder / SNAPSHOT):
        model.load_state_dict(snapshot["weights"])
    return Judge(
        model=model.eval().to(device),
        threshold=config.threshold,
        batch_size=config.optim.batch_size,
        device=device,
    )


def standardise(features: NDArray[np.float64], real: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale features (N, D) by their mean and standard deviation on real training images (M, D).

    A feature that hardly moves on real images is divided by a share of the average deviation
    instead, so that what it does elsewhere is not all that counts.

    Raises:
        UserError: the features are equal for all real images.
    """
    spread = real.std(0)
    if not spread.any():
        raise UserError(
            "the judge sees no difference between real images; train it longer (segment.epochs)"
        )
    scale = np.maximum(spread, SMALLEST_SPREAD * spread.mean())
    return (features - real.mean(0)) / scale
