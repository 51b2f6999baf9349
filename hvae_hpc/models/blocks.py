"""What the networks are made of: residual blocks, self-attention, the encoder and the decoder, and the Loss.

GroupNorm and SiLU, no dropout, no BatchNorm: pairs of a batch must not know of each other (or the bound is
not a bound), and the decoder is differentiated twice. For the same reason attention is plain matrix
products: the fused kernels have no second derivative.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.model_configs import NetworkConfig, require_halvings

Batch = Mapping[str, Tensor]
"""Images ``image`` (B, 1, H, W) in [0, 1], ``mask`` (B, 1, H, W) in {0, 1}, and what the model's ``draw`` made."""


class Loss(NamedTuple):
    """What a forward returns; a NamedTuple because torch.compile carries those through whole graphs.

    Attributes:
        total: scalar, minimised.
        terms: name to a detached tensor, scalar or one value per pair (B,), for logs and tests; a term called "elbo"
            is the ELBO in nats and is maximised.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Phase(NamedTuple):
    """One optimisation of a step: the forward's phase, and the network whose weights it moves."""

    name: str
    network: nn.Module


def normalisation(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest number of groups up to 8 that divides the channels."""
    return nn.GroupNorm(next(groups for groups in range(8, 0, -1) if channels % groups == 0), channels)


def widen(x: Tensor) -> Tensor:
    """Return what a network put out in float32 at least, whatever its matrix work was done in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a skip: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm_1 = normalisation(channels_in)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_2 = normalisation(channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = self.conv_2(F.silu(self.norm_2(h)))
        return self.skip(x) + h


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = normalisation(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what its pixels gathered from each other."""
        b, c, height, width = x.shape
        qkv = self.query_key_value(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, height * width)
        query, key, value = qkv.unbind(1)  # each (B, heads, C / heads, pixels)
        weights = (query.transpose(-1, -2) @ key * (c // self.heads) ** -0.5).softmax(-1)  # (B, heads, pixels, pixels)
        gathered = value @ weights.transpose(-1, -2)
        return x + self.out(gathered.reshape(b, c, height, width))


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a 3x3 convolution: no checkerboard, unlike a strided transpose."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C_out, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _stage(channels: int, config: NetworkConfig, level: int) -> list[nn.Module]:
    attention = [SelfAttention(channels, config.attention_heads)] if level in config.attention_levels else []
    return [ResidualBlock(channels, channels), *attention]


def _bottleneck(channels: int, config: NetworkConfig) -> list[nn.Module]:
    return [
        ResidualBlock(channels, channels),
        SelfAttention(channels, config.attention_heads),
        ResidualBlock(channels, channels),
    ]


def bottleneck_size(config: NetworkConfig, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the lowest level.

    Raises:
        ValueError: the image cannot be halved that often.
    """
    factor = 2 ** (len(config.channels) - 1)
    require_halvings(f"network.channels of {len(config.channels)} levels", image_size, len(config.channels) - 1)
    height, width = image_size
    return height // factor, width // factor


NARROW = 32  # channels between the bottleneck and the dense layer, which would else hold most of the weights


class Encoder(nn.Module):
    """q(z|x, m): image and mask as two channels to the mean and log-variance of z.

    Args:
        config: the network.
        image_size: height and width, px.
    """

    def __init__(self, config: NetworkConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        channels = config.channels
        height, width = bottleneck_size(config, image_size)
        layers: list[nn.Module] = [nn.Conv2d(2, channels[0], 3, padding=1)]
        for level, here in enumerate(channels):
            layers += _stage(here, config, level)
            if level + 1 < len(channels):
                layers.append(nn.Conv2d(here, channels[level + 1], 3, stride=2, padding=1))
        layers += _bottleneck(channels[-1], config)
        layers += [normalisation(channels[-1]), nn.SiLU(), nn.Conv2d(channels[-1], NARROW, 1), nn.Flatten()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(NARROW * height * width, 2 * config.latent_size)

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, 2, H, W) to mean (B, d) and log-variance (B, d), float32, the latter clamped to [-10, 4]."""
        mean, log_var = widen(self.out(self.layers(pair))).chunk(2, dim=1)
        return mean, log_var.clamp(-10.0, 4.0)


class Decoder(nn.Module):
    """p(x, m|z): latent variables to the image's mean (or logits) and the mask's logits.

    Args:
        config: the network.
        image_size: height and width, px.
        image_link: "mean" passes the image channel through a sigmoid, "logits" leaves it.
    """

    def __init__(self, config: NetworkConfig, image_size: tuple[int, int], image_link: str = "mean") -> None:
        super().__init__()
        channels = config.channels
        self.size = bottleneck_size(config, image_size)
        self.image_link = image_link
        self.dense = nn.Linear(config.latent_size, NARROW * self.size[0] * self.size[1])
        layers: list[nn.Module] = [nn.Conv2d(NARROW, channels[-1], 1), *_bottleneck(channels[-1], config)]
        for level in reversed(range(len(channels))):
            layers += _stage(channels[level], config, level)
            if level > 0:
                layers.append(Upsample(channels[level], channels[level - 1]))
        layers += [normalisation(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], 2, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Decode (B, d) to the image's mean or logits and the mask's logits, each (B, 1, H, W) float32."""
        h = self.dense(z).reshape(len(z), NARROW, *self.size)
        image, mask_logits = widen(self.layers(h)).chunk(2, dim=1)
        return (torch.sigmoid(image) if self.image_link == "mean" else image), mask_logits
