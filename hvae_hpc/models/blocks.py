"""What the networks are made of: residual blocks, self-attention, encoder, decoder, and the Loss.

GroupNorm and SiLU, no dropout, no BatchNorm: pairs of a batch must not know of each other, or the
bound is not a bound. The decoder's parts have ``linearise`` (see :mod:`hvae_hpc.models.vjp`). A
plain forward is differentiated once, so its attention is a fused kernel.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.model import ImageSize, NetworkConfig, require_halvings
from hvae_hpc.models.vjp import (
    Linearised,
    keep_inputs,
    keeps_inputs_alone,
    linearise_activation,
    pull_conv,
    widen,
)

Tensors = dict[str, Tensor]
"""By name."""
Batch = Mapping[str, Tensor]
"""``image`` and ``mask`` (B, 1, H, W), in [0, 1] and {0, 1}, and what the model's ``draw`` made."""


class Loss(NamedTuple):
    """What a forward returns; torch.compile carries a NamedTuple through whole graphs.

    Attributes:
        total: scalar, minimised.
        terms: name to a detached tensor, scalar or one value per pair (B,), for logs and tests; a
            term called "elbo" is the ELBO in nats and is maximised.
    """

    total: Tensor
    terms: Tensors


class Phase(NamedTuple):
    """One optimisation of a step.

    Attributes:
        name: the forward's phase.
        network: whose weights it moves.
        starts: share of the training after which it is taken.
    """

    name: str
    network: nn.Module
    starts: float = 0.0


def normalisation(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest number of groups up to 8 that divides the channels."""
    groups = next(groups for groups in range(8, 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a skip: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm_1 = normalisation(channels_in)
        self.conv_1 = convolution(channels_in, channels_out)
        self.norm_2 = normalisation(channels_out)
        self.conv_2 = convolution(channels_out, channels_out)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = self.conv_2(F.silu(self.norm_2(h)))
        return self.skip(x) + h

    def linearise(self, x: Tensor) -> Linearised:
        """Return the block's output and its pullback."""
        h, pull_1 = linearise_activation(self.norm_1, x)
        h, pull_2 = linearise_activation(self.norm_2, self.conv_1(h))

        def pull(gradient: Tensor) -> Tensor:
            inner = pull_1(pull_conv(self.conv_1, pull_2(pull_conv(self.conv_2, gradient))))
            if isinstance(self.skip, nn.Conv2d):
                gradient = pull_conv(self.skip, gradient)
            return inner + gradient

        return self.skip(x) + self.conv_2(h), pull


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
        return x + self.out(
            self._gather(self._split(self.query_key_value(self.norm(x)))).reshape(x.shape)
        )

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Split (B, 3 C, H, W) into query, key and value, (B, heads, C / heads, pixels) each."""
        return qkv.flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)

    def _gather(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return what pixels gather, as value; the fused kernel has no second derivative."""
        query, key, value = (part.transpose(-1, -2).contiguous() for part in parts)
        return F.scaled_dot_product_attention(query, key, value).transpose(-1, -2)

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Return how much each pixel takes from each: (B, heads, pixels, pixels)."""
        return (query.transpose(-1, -2) @ key * query.shape[2] ** -0.5).softmax(-1)

    def linearise(self, x: Tensor) -> Linearised:
        """Return the block's output and its pullback."""
        normed, pull_norm = linearise_activation(self.norm, x, silu=False)
        query, key, value = parts = self._split(self.query_key_value(normed))
        spares = keeps_inputs_alone(x)
        weights = None if spares else self._weights(query, key)

        def pull(gradient: Tensor) -> Tensor:
            by_gathered = pull_conv(self.out, gradient).reshape(value.shape)
            if spares:
                by_qkv = keep_inputs(self._pull_attention, by_gathered, query, key, value)
            else:
                by_qkv = self._pull_attention(by_gathered, query, key, value, weights)
            by_normed = pull_conv(self.query_key_value, by_qkv.unflatten(2, x.shape[2:]))
            return gradient + pull_norm(by_normed)

        gathered = self._gather(parts) if weights is None else value @ weights.transpose(-1, -2)
        return x + self.out(gathered.reshape(x.shape)), pull

    def _pull_attention(
        self,
        by_gathered: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient by query, key and value, (B, 3 C, pixels), of that by the gathered.

        ``weights`` is None where they are to be made again.
        """
        weights = self._weights(query, key) if weights is None else weights
        by_weights = widen(by_gathered.transpose(-1, -2) @ value)
        centred = by_weights - (weights * by_weights).sum(-1, keepdim=True)
        by_score = weights * centred * query.shape[2] ** -0.5
        parts = (key @ by_score.transpose(-1, -2), query @ by_score, by_gathered @ weights)
        return torch.cat([part.flatten(1, 2) for part in parts], dim=1)


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a 3x3 convolution.

    Unlike a free strided transpose it leaves no checkerboard. It is computed as what it is equal
    to, a transposed convolution of stride 2 whose 4x4 kernel holds sums of the 3x3 one's weights:
    4 multiplications per output, input and output channel in place of 9.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = convolution(channels_in, channels_out)

    def _kernel(self) -> Tensor:
        """Return the 4x4 kernel, (C_in, C_out, 4, 4)."""
        # An output pixel's taps that meet the same input pixel add up.
        padded = F.pad(self.conv.weight, (1, 1, 1, 1))
        summed = (
            padded[..., :4, :4] + padded[..., :4, 1:] + padded[..., 1:, :4] + padded[..., 1:, 1:]
        )
        return summed.flip(2, 3).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C_out, 2H, 2W)."""
        return self.linearise(x)[0]

    def linearise(self, x: Tensor) -> Linearised:
        """Return the output and its pullback, the convolution of stride 2 with the same kernel."""
        kernel = self._kernel()
        y = F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
        return y, lambda gradient: F.conv2d(gradient, kernel, stride=2, padding=1)


def _stage(channels: int, config: NetworkConfig, level: int) -> list[nn.Module]:
    # The attention draws its initial weights first: another order would give other networks.
    attends = level in config.attention_levels
    attention = [SelfAttention(channels, config.attention_heads)] if attends else []
    return [ResidualBlock(channels, channels), *attention]


def _bottleneck(channels: int, config: NetworkConfig) -> list[nn.Module]:
    return [
        ResidualBlock(channels, channels),
        SelfAttention(channels, config.attention_heads),
        ResidualBlock(channels, channels),
    ]


def bottleneck_size(config: NetworkConfig, image_size: ImageSize) -> tuple[ImageSize, int]:
    """Return the height and width of the lowest level, and how many places latent variables have.

    They have one for each pixel of a map, or one for all.

    Raises:
        ValueError: the image cannot be halved that often.
    """
    levels = len(config.channels)
    require_halvings(f"network.channels of {levels} levels", image_size, levels - 1)
    height, width = (side // 2 ** (levels - 1) for side in image_size)
    return (height, width), height * width if config.latent_map else 1


NARROW = 32
"""Channels before the dense layer, which would else hold most of the weights."""


def _by_position(features: Tensor, positions: int) -> Tensor:
    """Return the features (B, C, H, W) as (B, positions, numbers)."""
    return features.flatten(1).unflatten(1, (-1, positions)).transpose(1, 2)


class Encoder(nn.Module):
    """q(z|x, m): image and mask as two channels to the mean and log-variance of z.

    Args:
        config: the network.
        image_size: height and width, px.
    """

    def __init__(self, config: NetworkConfig, image_size: ImageSize) -> None:
        super().__init__()
        channels = config.channels
        (height, width), self.positions = bottleneck_size(config, image_size)
        layers: list[nn.Module] = [convolution(2, channels[0])]
        for level, here in enumerate(channels):
            layers += _stage(here, config, level)
            if level + 1 < len(channels):
                layers.append(convolution(here, channels[level + 1], stride=2))
        layers += _bottleneck(channels[-1], config)
        layers += [
            normalisation(channels[-1]),
            nn.SiLU(),
            nn.Conv2d(channels[-1], NARROW, 1),
        ]
        self.layers = nn.Sequential(*layers)
        features = NARROW * height * width // self.positions
        self.out = nn.Linear(features, 2 * config.latent_size // self.positions)

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, 2, H, W) to mean and log-variance, (B, d) float32; the latter in [-10, 4]."""
        features = _by_position(self.layers(pair), self.positions)
        mean, log_var = widen(self.out(features)).chunk(2, dim=2)
        return mean.flatten(1), log_var.flatten(1).clamp(-10.0, 4.0)


class Decoder(nn.Module):
    """p(x, m|z): latent variables to the image's mean (or logits) and the mask's logits.

    Args:
        config: the network.
        image_size: height and width, px.
        image_link: "mean" passes the image's channels through a sigmoid, "logits" leaves them.
        image_channels: numbers per pixel of the image.
    """

    def __init__(
        self,
        config: NetworkConfig,
        image_size: ImageSize,
        image_link: str = "mean",
        image_channels: int = 1,
    ) -> None:
        super().__init__()
        channels = config.channels
        self.size, self.positions = bottleneck_size(config, image_size)
        self.image_link = image_link
        features = NARROW * self.size[0] * self.size[1] // self.positions
        self.dense = nn.Linear(config.latent_size // self.positions, features)
        layers: list[nn.Module] = [
            nn.Conv2d(NARROW, channels[-1], 1),
            *_bottleneck(channels[-1], config),
        ]
        for level in reversed(range(len(channels))):
            layers += _stage(channels[level], config, level)
            if level > 0:
                layers.append(Upsample(channels[level], channels[level - 1]))
        last = convolution(channels[0], image_channels + 1)
        layers += [normalisation(channels[0]), nn.SiLU(), last]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Decode (B, d) to the image's numbers (B, C, H, W) and the mask's logits (B, 1, H, W)."""
        return self._link(self.layers(self._place(z)))

    def _place(self, z: Tensor) -> Tensor:
        """Return the lowest level's features, (B, NARROW, height, width)."""
        h = self.dense(z.unflatten(1, (self.positions, -1)))
        return h.transpose(1, 2).reshape(len(z), NARROW, *self.size)

    def _link(self, h: Tensor) -> tuple[Tensor, Tensor]:
        image, mask_logits = widen(h).split([h.shape[1] - 1, 1], dim=1)
        return (torch.sigmoid(image) if self.image_link == "mean" else image), mask_logits

    def linearise(
        self, z: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
        """Return what :meth:`forward` does, and the pullback from both outputs to z, (B, d)."""
        first, *blocks, norm, _, last = self.layers
        h = first(self._place(z))
        pulls = []
        for block in blocks:
            h, pull_block = block.linearise(h)  # type: ignore[operator]
            pulls.append(pull_block)
        h, pull_norm = linearise_activation(norm, h)  # type: ignore[arg-type]
        image, mask_logits = self._link(last(h))

        def pull(by_image: Tensor, by_mask_logits: Tensor) -> Tensor:
            if self.image_link == "mean":
                by_image = by_image * image * (1 - image)
            g = pull_norm(pull_conv(last, torch.cat([by_image, by_mask_logits], dim=1)))  # type: ignore[arg-type]
            for pull_block in reversed(pulls):
                g = pull_block(g)
            g = _by_position(pull_conv(first, g), self.positions)  # type: ignore[arg-type]
            return widen((g @ self.dense.weight).flatten(1))

        return (image, mask_logits), pull
