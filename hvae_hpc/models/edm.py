"""The diffusion model of Karras et al. (2022), "EDM", of image and mask.

A pair is y = (2 x - 1, 2 m - 1), less the mean of each channel over the training pairs. The
denoiser D sees y + sigma n, with n ~ N(0, I):

    D(v; sigma) = c_skip v + c_out F(c_in v; ln(sigma) / 4)

    c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),
    c_in = 1 / sqrt(sigma^2 + s^2)

where s is the standard deviation of a channel over the training pairs. So F has inputs and targets
of variance 1, and its squared error is D's, weighted by (sigma^2 + s^2) / (sigma s)^2.

The moves of a training pair are told to F, and are zero where pairs are drawn, as in Karras et al.
2022. In short trainings on few cases F learns to ignore them, and drawn pairs are moved as training
pairs are. Telling it more clearly made it learn its cases by heart (docs/measurements.md).

Pairs are drawn by Heun's method along the deterministic path from sigma = 80 to 0.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.model import ImageSize, MovesConfig
from hvae_hpc.models.augmentations import Pair, apply_moves, draw_moves, per_pair
from hvae_hpc.models.blocks import (
    Batch,
    Loss,
    Phase,
    SelfAttention,
    Tensors,
    convolution,
    normalisation,
)
from hvae_hpc.models.vjp import widen

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # Karras et al. 2022, Table 1
FREQUENCIES = 32  # random Fourier features of the noise level
MOVE_NUMBERS = 6  # of an affine map
MASK_MOVES = MovesConfig(flip=0.5, rotate_deg=20.0, scale=0.15, shift=0.08)
"""How real masks are moved before an image is drawn to them."""
WARP, WARP_GRID = 0.06, 5  # largest bend of a mask, as a share of its side; control points a side


def noise_levels(steps: int, device: torch.device | None = None) -> Tensor:
    """Return the noise levels of a sampler, from SIGMA_MAX to SIGMA_MIN and then 0, (steps + 1,).

    Args:
        steps: 2 or more.
        device: of the result.
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, last = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    levels = torch.cat([(first + share * (last - first)) ** RHO, torch.zeros(1)])
    return levels.to(device, torch.float32)


def draw_by_heun(
    denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, levels: Tensor
) -> Tensor:
    """Follow dy/dsigma = (y - D(y; sigma)) / sigma from noise to a sample, by Heun's method.

    Args:
        denoise: D, of y (B, ...) and sigma, a scalar tensor.
        noise: standard normal, (B, ...).
        levels: falling noise levels, the last one 0.

    Returns:
        The last step's denoised y, (B, ...).

    Source:
        Karras et al. 2022, Algorithm 1.
    """
    y = noise * levels[0]
    for here, after in pairwise(levels[:-1]):
        slope = (y - denoise(y, here)) / here
        guess = y + (after - here) * slope
        slope_after = (guess - denoise(guess, after)) / after
        y = y + (after - here) * (slope + slope_after) / 2
    return denoise(y, levels[-2])  # a step of Euler's to sigma = 0 ends there


class Block(nn.Module):
    """Two convolutions beside a skip; the noise level scales and shifts what is between them."""

    def __init__(self, channels_in: int, channels_out: int, embedded: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = normalisation(channels_in)
        self.conv_1 = convolution(channels_in, channels_out)
        self.modulation = nn.Linear(embedded, 2 * channels_out)
        self.norm_2 = normalisation(channels_out)
        self.conv_2 = _zeroed(convolution(channels_out, channels_out))
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.attention: nn.Module = nn.Identity()
        if heads:
            self.attention = attention = SelfAttention(channels_out, heads)
            _zeroed(attention.out)

    def forward(self, x: Tensor, embedding: Tensor, kept: Tensor | None) -> Tensor:
        """Return the block's output.

        Args:
            x: (B, C_in, H, W).
            embedding: of the noise level, (B, E).
            kept: factors (B, C_out) of the feature maps, 0 for those left out; None for all.
        """
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm_2(self.conv_1(F.silu(self.norm_1(x))))
        h = F.silu(h * (1 + scale) + shift)
        if kept is not None:
            h = h * kept[:, :, None, None].to(h.dtype)
        return self.attention(self.skip(x) + self.conv_2(h))


class Denoiser(nn.Module):
    """F: a U-Net of residual blocks, told the noise level and the moves of the pair.

    Args:
        config: channels, attention, fold.
        channels_in, channels_out: of the images.
    """

    frequencies: Tensor

    def __init__(self, config: EDMConfig, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.fold = config.fold
        widths, levels = config.channels, len(config.channels)
        embedded = 4 * widths[0]
        self.register_buffer("frequencies", torch.randn(FREQUENCIES))
        self.embed = nn.Sequential(
            nn.Linear(2 * FREQUENCIES + MOVE_NUMBERS, embedded),
            nn.SiLU(),
            nn.Linear(embedded, embedded),
            nn.SiLU(),
        )

        def block(before: int, level: int) -> Block:
            attends = level >= levels - config.attention_levels
            heads = config.attention_heads if attends else 0
            return Block(before, widths[level], embedded, heads)

        squares = config.fold**2
        self.first = convolution(channels_in * squares, widths[0])
        self.down = nn.ModuleList(
            block(widths[max(0, level - 1)], level) for level in range(levels)
        )
        self.middle = block(widths[-1], levels - 1)
        self.up = nn.ModuleList(
            block(widths[min(level + 1, levels - 1)] + widths[level], level)
            for level in reversed(range(levels))
        )
        self.norm = normalisation(widths[0])
        self.last = _zeroed(convolution(widths[0], channels_out * squares))

        # Feature maps that dropout may leave out, block by block, in the order of their use.
        self.maps = [*widths, widths[-1], *reversed(widths)]

    def forward(
        self, x: Tensor, noise_label: Tensor, moves: Tensor, kept: Tensor | None = None
    ) -> Tensor:
        """Return F's output, (B, channels_out, H, W).

        Args:
            x: (B, channels_in, H, W).
            noise_label: ln(sigma) / 4, (B,).
            moves: (B, 6), how the pair was moved; zeros for not at all.
            kept: factors (B, sum of ``maps``) of feature maps; None for 1.
        """
        phase = 2 * math.pi * noise_label[:, None] * self.frequencies
        embedding = self.embed(torch.cat([phase.cos(), phase.sin(), moves], dim=1))
        parts = iter([None] * len(self.maps) if kept is None else kept.split(self.maps, dim=1))

        h = self.first(F.pixel_unshuffle(x, self.fold))
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if level else h, embedding, next(parts))
            skips.append(h)
        h = self.middle(h, embedding, next(parts))
        for block in self.up:
            skip = skips.pop()
            if h.shape[2:] != skip.shape[2:]:
                h = F.interpolate(h, size=skip.shape[2:], mode="nearest")
            h = block(torch.cat([h, skip], dim=1), embedding, next(parts))
        return F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.fold)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero a layer's weights: a block begins as its skip, F as 0."""
    for values in layer.parameters():
        nn.init.zeros_(values)
    return layer


class EDM(nn.Module):
    """The denoiser with its objective and its sampler.

    Args:
        config: see there.
        image_size: height and width, px.

    Attributes:
        steps: of the sampler; each but the last asks the network twice.
    """

    sees_moves = True
    centre: Tensor
    spread: Tensor

    def __init__(self, config: EDMConfig, image_size: ImageSize) -> None:
        super().__init__()
        config.check_image_size("model", image_size)
        self.config, self.image_size = config, image_size
        self.steps = 18
        drawn = 1 if config.given_mask else 2
        self.denoiser = Denoiser(config, channels_in=2, channels_out=drawn)
        self.register_buffer("centre", torch.zeros(drawn, 1, 1))
        self.register_buffer("spread", torch.full((drawn, 1, 1), 0.5))
        self.latent_size = 2 * image_size[0] * image_size[1]

    def measure(self, images: Tensor, masks: Tensor) -> None:
        """Keep each channel's mean and standard deviation over the training pairs, (N, 1, H, W)."""
        pairs = self._signed(images, masks).double()
        self.centre.copy_(pairs.mean((0, 2, 3)).reshape(self.centre.shape))
        self.spread.copy_(pairs.std((0, 2, 3)).clamp(min=1e-3).reshape(self.spread.shape))

    def _signed(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return what is drawn, in [-1, 1]: (B, 2, H, W), or the images where masks are given."""
        return 2 * (images if self.config.given_mask else torch.cat([images, masks], dim=1)) - 1

    def phases(self) -> tuple[Phase, ...]:
        """One phase: denoising."""
        return (Phase("denoising", self.denoiser),)

    def draw(self, n: int, share: float, generator: Generator) -> Tensors:
        """Draw noise levels, noise, and which feature maps and masks are left out, for n pairs."""
        config = self.config
        level = config.noise_mean + config.noise_sd * torch.randn(n, generator=generator)
        shape = (n, len(self.centre), *self.image_size)
        kept = torch.rand(n, sum(self.denoiser.maps), generator=generator) >= config.dropout
        drawn = {
            "sigma": level.exp(),
            "noise": torch.randn(shape, generator=generator),
            "kept": kept / (1 - config.dropout),
        }
        if config.given_mask:
            shown = torch.rand(n, 1, 1, 1, generator=generator) >= config.mask_dropout
            drawn["mask_shown"] = shown.float()
        return drawn

    def _scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c_skip, c_out and c_in of noise levels (B,), each (B, C, 1, 1)."""
        level = per_pair(sigma)
        total = (level.square() + self.spread.square()).sqrt()
        return (self.spread / total).square(), level * self.spread / total, 1 / total

    def denoise(
        self,
        y: Tensor,
        sigma: Tensor,
        mask: Tensor | None = None,
        moves: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return D(y; sigma), (B, C, H, W) float32.

        Args:
            y: noisy and centred, (B, C, H, W).
            sigma: (B,).
            mask: in [-1, 1], 0 where it is not shown, (B, 1, H, W); None where none is given.
            moves: see :class:`Denoiser`; None for none.
            kept: see there.
        """
        c_skip, c_out, c_in = self._scales(sigma)
        x = c_in * y if mask is None else torch.cat([c_in * y, mask], dim=1)
        moves = y.new_zeros(len(y), MOVE_NUMBERS) if moves is None else moves
        return c_skip * y + c_out * widen(self.denoiser(x, sigma.log() / 4, moves, kept))

    def forward(self, batch: Batch, phase: str = "denoising") -> Loss:
        """Return the mean of F's squared error, which is D's with the weight of its noise level.

        Args:
            batch: ``image`` and ``mask`` (B, 1, H, W), what :meth:`draw` made, and ``maps``
                (B, 2, 3) where the pairs were moved.
            phase: "denoising".
        """
        sigma, mask, moves = batch["sigma"], None, None
        clean = self._signed(batch["image"], batch["mask"]) - self.centre
        noisy = clean + per_pair(sigma) * batch["noise"]
        if self.config.given_mask:
            mask = (2 * batch["mask"] - 1) * batch["mask_shown"]
        if "maps" in batch:
            unmoved = torch.eye(2, 3, dtype=sigma.dtype, device=sigma.device)
            moves = (batch["maps"] - unmoved).flatten(1)

        kept = batch["kept"] if self.training else None
        denoised = self.denoise(noisy, sigma, mask, moves, kept)
        error = ((denoised - clean) / self._scales(sigma)[1]).square().mean((1, 2, 3))
        return Loss(error.mean(), {"denoising": error.detach()})

    def decode(self, z: Tensor) -> Pair:
        """Turn standard normal numbers (B, d) into images and mask probabilities, (B, 1, H, W).

        Where the mask is given, the second half of z is the mask itself, in {0, 1}.
        """
        halves = z.reshape(len(z), 2, *self.image_size)
        noise, mask, given = halves, None, None
        if self.config.given_mask:
            noise, mask = halves.split(1, dim=1)
            given = 2 * mask - 1

        def denoise(y: Tensor, sigma: Tensor) -> Tensor:
            return self.denoise(y, sigma.expand(len(y)), given)

        y = draw_by_heun(denoise, noise, noise_levels(self.steps, z.device))
        unsigned = (y + self.centre + 1) / 2
        image, drawn_mask = unsigned[:, :1], unsigned[:, 1:]
        return image.clamp(0, 1), (drawn_mask.clamp(0, 1) if mask is None else mask)

    def draw_latent(self, n: int, masks: Tensor | None, generator: Generator) -> Tensor:
        """Return z (n, d) for :meth:`decode`, with real masks, moved and warped, where given.

        Args:
            n: pairs.
            masks: real ones, (N, 1, H, W) on any device; None where they are not given.
            generator: on the CPU.
        """
        height, width = self.image_size
        noise = torch.randn(n, self.latent_size, generator=generator)
        if masks is None:
            return noise
        chosen = torch.randint(len(masks), (n,), generator=generator)
        moves = draw_moves(n, MASK_MOVES, generator, height / width)
        bends = (torch.rand(n, 2, WARP_GRID, WARP_GRID, generator=generator) * 2 - 1) * 2 * WARP
        moved = warp(apply_moves(masks[chosen.to(masks.device)].cpu(), moves, "nearest"), bends)
        return torch.cat([noise[:, : height * width], moved.flatten(1)], dim=1)


def warp(x: Tensor, bends: Tensor) -> Tensor:
    """Bend (B, C, H, W) smoothly; every pixel is the nearest one of where it comes from.

    Args:
        x: masks.
        bends: displacements at a grid of control points, (B, 2, h, w), x first, in units where the
            image's side is 2.
    """
    height, width = x.shape[2:]
    field = F.interpolate(bends, (height, width), mode="bicubic", align_corners=True)
    identity = torch.eye(2, 3).expand(len(x), 2, 3)
    grid = F.affine_grid(identity, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid + field.permute(0, 2, 3, 1), mode="nearest", align_corners=False)
