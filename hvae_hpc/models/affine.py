"""Small random moves of a pair (flip, rotation, scale, shift): drawn here, applied there.

The draw is apart from its application so that a training is a function of its seed, and so that the
LSGAN can move real and generated pairs differentiably.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hvae_hpc.config.model import MovesConfig


def draw_moves(
    n: int, config: MovesConfig, generator: torch.Generator, aspect: float = 1.0
) -> Tensor:
    """Draw n affine maps from output to input coordinates, both in [-1, 1].

    Args:
        n: pairs.
        config: how large the moves may be.
        generator: on the CPU.
        aspect: height over width of the images, so that rotations stay rotations.

    Returns:
        (n, 2, 3) float32 on the CPU.
    """
    uniform = torch.rand(n, 5, generator=generator) * 2 - 1  # flip, angle, scale, shift x, shift y
    angle = uniform[:, 1] * math.radians(config.rotate_deg)
    scale = 1 + uniform[:, 2] * config.scale
    flip = torch.where(uniform[:, 0] < 2 * config.flip - 1, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * flip, -sin * aspect, uniform[:, 3] * 2 * config.shift], dim=1),
        torch.stack([sin * flip / aspect, cos, uniform[:, 4] * 2 * config.shift], dim=1),
    ]
    return torch.stack(rows, dim=1)


def apply_moves(x: Tensor, moves: Tensor, mode: str = "bilinear") -> Tensor:
    """Resample (B, C, H, W) under (B, 2, 3) maps; what comes from outside is 0 (background).

    Args:
        x: images or masks.
        moves: from :func:`draw_moves`.
        mode: "bilinear", or "nearest" to keep a mask binary.
    """
    with torch.autocast(
        x.device.type, enabled=False
    ):  # in bfloat16 the grid is off by up to 0.7 px of 240
        grid = F.affine_grid(moves, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)
