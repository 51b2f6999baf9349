"""The classic U-Net (Ronneberger et al. 2015) for one image channel and one tumour class.

Convolutions are padded, so that the output has the input's size, and batch-normalised, as is usual
since. With another encoder it is nnU-Net's residual encoder U-Net in 2D (Isensee et al. 2024).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.model import UNetConfig
from hvae_hpc.models.blocks import Batch, Loss, Phase, Tensors
from hvae_hpc.models.convolutions import Convolution, DoubleSize

BLOCKS = (2, 3, 5)
"""nnU-Net's residual blocks per level, after the one that halves; the last number goes on."""
MOST_CHANNELS = 512
"""nnU-Net's limit of features, in 2D."""


def _normed(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution and instance normalisation, which undoes the weights' scale."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=kernel > 1)
    return nn.Sequential(convolution, nn.InstanceNorm2d(after, affine=True))


def _active(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return _normed(before, after, stride=stride).append(nn.LeakyReLU())


class _ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; a stride of 2 halves the image."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_active(before, after, stride), _normed(after, after))
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride))
        if before != after:
            self.shortcut.append(_normed(before, after, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, H / stride, W / stride)."""
        return F.leaky_relu(self.inner(x) + self.shortcut(x))


def _residual_level(level: int, before: int, after: int) -> nn.Sequential:
    """Return a level of the residual encoder; the first one has a stem before it."""
    if not level:
        return nn.Sequential(_active(before, after), _ResidualBlock(after, after, 1))
    further = BLOCKS[min(level, len(BLOCKS)) - 1]
    blocks = [_ResidualBlock(after, after, 1) for _ in range(further)]
    return nn.Sequential(_ResidualBlock(before, after, 2), *blocks)


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
        self.residual = config.encoder == "residual"
        widths = [config.base_channels * 2**level for level in range(config.depth + 1)]
        if self.residual:
            widths = [min(width, MOST_CHANNELS) for width in widths]
        self.down = nn.ModuleList(
            _residual_level(level, *pair) if self.residual else _double_convolution(*pair)
            for level, pair in enumerate(pairwise([1, *widths]))
        )
        self.up = nn.ModuleList(DoubleSize(*pair) for pair in pairwise(reversed(widths)))
        self.merge = nn.ModuleList(
            _active(2 * width, width) if self.residual else _double_convolution(2 * width, width)
            for width in reversed(widths[:-1])
        )
        self.out = nn.Conv2d(widths[0], 1, 1)

    def phases(self) -> tuple[Phase, ...]:
        """One phase: segmentation."""
        return (Phase("segmentation", self),)

    def draw(self, n: int, share: float, generator: torch.Generator) -> Tensors:
        """Draw nothing: the network has no noise."""
        return {}

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return the features (B, C, H / 2^level, W / 2^level) of every level, the lowest last."""
        levels: list[Tensor] = []
        x = image
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level and not self.residual else x)
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
        logits, mask = self.logits(batch["image"]), batch["mask"]
        terms: Tensors = {}
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
