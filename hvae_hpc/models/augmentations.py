"""Augmentations of the pairs of a batch in every step, and the small random moves of a pair.

Random numbers are drawn for the whole batch and cut to each process's part, as the noise of a model
is. So an augmentation draws first and applies later, and the number of processes changes nothing.
The LSGAN moves real and generated pairs by the same functions, differentiably.
"""

import math
import pkgutil
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from hvae_hpc.config.augmentations import JoinedConfig
from hvae_hpc.config.model import ImageSize, MovesConfig

Drawn = dict[str, Tensor]
"""What an augmentation draws for n pairs: tensors (n, ...) by name."""
Pair = tuple[Tensor, Tensor]
"""Images and masks, (B, 1, H, W) each."""


def per_pair(values: Tensor) -> Tensor:
    """Return one value per pair, (B,), as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def extremes(x: Tensor) -> Pair:
    """Return the least and the largest value of each image, (B, C, 1, 1) each."""
    return x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)


class Augmentation:
    """What the augmentations of this package share."""

    def __init__(self, config: Any) -> None:
        self.config = config


class Moves(Augmentation):
    """Flips, rotations, changes of size and shifts of image and mask together."""

    def draw(self, n: int, image_size: ImageSize, generator: Generator) -> Drawn:
        """Draw n affine maps, (n, 2, 3)."""
        height, width = image_size
        return {"maps": draw_moves(n, self.config, generator, height / width)}

    def apply(self, images: Tensor, masks: Tensor, drawn: Drawn) -> Pair:
        """Move the pairs; masks stay binary."""
        maps = drawn["maps"]
        # Bicubic values overshoot; what comes from outside is 0.
        low, high = extremes(images)
        moved = apply_moves(images, maps, self.config.interpolation)
        moved = moved.clamp(low.clamp(max=0), high.clamp(min=1))
        return moved, apply_moves(masks, maps, mode="nearest")


class Joined:
    """Several augmentations, one after the other; what donors give is there for each."""

    def __init__(self, config: JoinedConfig) -> None:
        self.parts = [pkgutil.resolve_name(part.augmentation_class)(part) for part in config.parts]

    def draw(self, n: int, image_size: ImageSize, generator: Generator) -> Drawn:
        """Draw what each of them needs, in their order."""
        return {
            f"{number}.{name}": value
            for number, part in enumerate(self.parts)
            for name, value in part.draw(n, image_size, generator).items()
        }

    def apply(self, images: Tensor, masks: Tensor, drawn: Drawn) -> Pair:
        """Apply them in their order."""
        for number, part in enumerate(self.parts):
            own = {name.removeprefix(f"{number}."): value for name, value in drawn.items()}
            images, masks = part.apply(images, masks, own)
        return images, masks


def draw_moves(n: int, config: MovesConfig, generator: Generator, aspect: float = 1.0) -> Tensor:
    """Draw n affine maps from output to input coordinates, both in [-1, 1].

    Args:
        n: pairs.
        config: how large the moves may be.
        generator: on the CPU.
        aspect: height over width of the images, so that rotations stay rotations.

    Returns:
        (n, 2, 3) float32 on the CPU.
    """
    # Columns: flip, angle, scale, shift x, shift y.
    uniform = torch.rand(n, 5, generator=generator) * 2 - 1
    angle = uniform[:, 1] * math.radians(config.rotate_deg)
    scale = 1 + uniform[:, 2] * config.scale
    flip = torch.where(uniform[:, 0] < 2 * config.flip - 1, -1.0, 1.0)

    maps = make_maps(angle, scale, torch.stack([flip, torch.ones(n)], dim=1), aspect)
    maps[:, :, 2] = uniform[:, 3:] * 2 * config.shift
    return maps


def make_maps(angle: Tensor, scale: Tensor, flips: Tensor, aspect: float) -> Tensor:
    """Return affine maps from output to input coordinates, both in [-1, 1], (B, 2, 3).

    Args:
        angle: radians, (B,).
        scale: above 1 shrinks, (B,).
        flips: 1 or -1 along columns and rows, (B, 2).
        aspect: height over width of the images, so that rotations stay rotations.
    """
    cos, sin, nothing = angle.cos() * scale, angle.sin() * scale, torch.zeros_like(angle)
    over_columns, over_rows = flips.unbind(1)
    rows = [
        torch.stack([cos * over_columns, -sin * aspect * over_rows, nothing], dim=1),
        torch.stack([sin / aspect * over_columns, cos * over_rows, nothing], dim=1),
    ]
    return torch.stack(rows, dim=1)


def apply_moves(x: Tensor, moves: Tensor, mode: str = "bilinear") -> Tensor:
    """Resample (B, C, H, W) under (B, 2, 3) maps; what comes from outside is 0 (background).

    Args:
        x: images or masks.
        moves: from :func:`draw_moves`.
        mode: "bilinear" or "bicubic"; "nearest" keeps a mask binary.
    """
    # In bfloat16 the grid would be off by up to 0.7 px of 240.
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(moves, list(x.shape), align_corners=False)
    if torch.are_deterministic_algorithms_enabled():
        # On a GPU the gradient of grid_sample adds up in any order, that of indexing in one.
        from torch._decomp.decompositions import grid_sampler_2d

        return grid_sampler_2d(x, grid, ("bilinear", "nearest", "bicubic").index(mode))
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)
