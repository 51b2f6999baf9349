"""The classic U-Net (Ronneberger et al. 2015) for one image channel and one tumour class.

Convolutions are padded, so that the output has the input's size, and batch-normalised, as is usual
since.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.model import UNetConfig
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.models.convolutions import Convolution, DoubleSize


def _double_convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels_in, channels_out):
        # BatchNorm subtracts the mean, so a bias before it would do nothing.
        layers += [
            Convolution(before, channels_out),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Segments (B, 1, H, W) images; H and W must be multiples of 2^depth.

    Args:
        config: base channels and depth.
        loss: "dice+ce", "dice" or "ce".
    """

    def __init__(self, config: UNetConfig, loss: str = "dice+ce") -> None:
        super().__init__()
        self.loss = loss
        widths = [config.base_channels * 2**level for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            _double_convolution(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(DoubleSize(2 * width, width) for width in reversed(widths[:-1]))
        self.merge = nn.ModuleList(
            _double_convolution(2 * width, width) for width in reversed(widths[:-1])
        )
        self.out = nn.Conv2d(widths[0], 1, 1)

    def phases(self) -> tuple[Phase, ...]:
        """One phase: segmentation."""
        return (Phase("segmentation", self),)

    def draw(self, n: int, share: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw nothing: the network has no noise."""
        del n, share, generator
        return {}

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return the features (B, C, H / 2^level, W / 2^level) of every level, the lowest last."""
        levels: list[Tensor] = []
        x = image
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            levels.append(x)
        return levels

    def logits(self, image: Tensor) -> Tensor:
        """Return tumour logits (B, 1, H, W), float32."""
        *skips, x = self.encode(image)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.out(x).float()

    def forward(self, batch: Batch, phase: str = "segmentation") -> Loss:
        """Return cross-entropy, one minus each pair's soft Dice, or their sum, as asked."""
        del phase
        logits, mask = self.logits(batch["image"]), batch["mask"]
        terms: dict[str, Tensor] = {}
        if self.loss in ("ce", "dice+ce"):
            terms["cross_entropy"] = F.binary_cross_entropy_with_logits(logits, mask)
        if self.loss in ("dice", "dice+ce"):
            probability = torch.sigmoid(logits)
            overlap = (probability * mask).sum((1, 2, 3))
            size = probability.sum((1, 2, 3)) + mask.sum((1, 2, 3))
            # + 1 px: an empty mask asks for an empty prediction
            terms["soft_dice_loss"] = 1 - ((2 * overlap + 1) / (size + 1)).mean()
        return Loss(
            sum(terms.values(), torch.zeros((), device=logits.device)),
            {name: term.detach() for name, term in terms.items()},
        )

    @torch.no_grad()
    def probability(self, image: Tensor) -> Tensor:
        """Return tumour probabilities (B, 1, H, W)."""
        return torch.sigmoid(self.logits(image))
