"""Texture: noise whose strength follows the spatial frequency, with an exact density.

A residual is white in the basis of the discrete cosine transform, once each coefficient is divided
by the standard deviation of its frequency. The basis is orthonormal, so only these deviations enter
the density's determinant.
"""

import math

import torch
from torch import Tensor, nn

BANDS = 12
"""Of frequencies, equally wide, that share a deviation."""


class Texture(nn.Module):
    """Learns the deviation of every frequency, from white noise on.

    Args:
        image_size: height and width, px.
    """

    rows: Tensor
    columns: Tensor
    band: Tensor

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        self.register_buffer("rows", _cosines(height), persistent=False)
        self.register_buffer("columns", _cosines(width), persistent=False)
        frequency = torch.hypot(torch.arange(height)[:, None] / height, torch.arange(width) / width)
        band = (frequency * (BANDS / math.sqrt(2))).long()
        self.register_buffer("band", band, persistent=False)
        self.log_deviations = nn.Parameter(torch.zeros(BANDS))

    def deviation(self) -> Tensor:
        """Return each coefficient's standard deviation, (H, W)."""
        return torch.exp(self.log_deviations)[self.band]

    def transform(self, x: Tensor) -> Tensor:
        """Turn images (B, 1, H, W) into coefficients."""
        with torch.autocast(x.device.type, enabled=False):
            return self.rows @ x @ self.columns.T

    def restore(self, coefficients: Tensor) -> Tensor:
        """Turn coefficients into images; also the pullback of :meth:`transform`."""
        with torch.autocast(coefficients.device.type, enabled=False):
            return self.rows.T @ coefficients @ self.columns


def _cosines(n: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II), (n, n)."""
    frequency = torch.arange(n)[:, None]
    cosines = torch.cos(math.pi / n * (torch.arange(n) + 0.5) * frequency)
    return cosines * torch.where(frequency == 0, 1 / n, 2 / n).sqrt()
