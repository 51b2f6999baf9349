"""The U-Net's convolutions as matrix products where torch's own are slow.

Parameters are torch's own, and results are the same to rounding.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

WIDE = 32
"""Channels from which on matrix products are faster: 1.1 to 6 times, most for large images."""
PIECE = 2**20
"""Bytes of an image's windows at a time: they are to stay in a core's cache."""


class Convolution(nn.Conv2d):
    """A 3x3 convolution, padded, without a bias: (B, C_in, H, W) -> (B, C_out, H, W).

    On a CPU oneDNN computes a weight's gradient at a third of the speed at which it convolves, and
    at a tenth where an image is large and its channels come last.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        plain = (
            x.device.type != "cpu"
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
        )
        if plain or min(self.in_channels, self.out_channels) < WIDE:
            return super().forward(x)
        return _ProductsBackward.apply(x, self.weight)


class DoubleSize(nn.ConvTranspose2d):
    """A 2x2 transposed convolution of stride 2: (B, C_in, H, W) -> (B, C_out, 2H, 2W).

    No two of its windows meet, so it is one matrix product, and the pixels of a window are then put
    in their places.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Double the size."""
        n, _, height, width = x.shape
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 2 C_out, C_in)
        assert self.bias is not None
        windows = F.linear(x.permute(0, 2, 3, 1), weight, self.bias.repeat(4)).view(
            n, height, width, 2, 2, -1
        )
        return windows.transpose(2, 3).reshape(n, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


class _ProductsBackward(torch.autograd.Function):
    """A 3x3 convolution whose weight's gradient is a sum of matrix products over image pieces."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve, as torch does."""
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients by the input and by the weight."""
        x, weight = ctx.saved_tensors
        by_x = (
            conv2d_input(x.shape, weight, gradient, padding=1) if ctx.needs_input_grad[0] else None
        )
        return by_x, _weight_gradient(x, gradient) if ctx.needs_input_grad[1] else None


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Return the sum over pixels of gradient times window of x, (C_out, C_in, 3, 3).

    Args:
        x: (B, C_in, H, W).
        gradient: (B, C_out, H, W).
    """
    (n, c_in, height, width), c_out = x.shape, gradient.shape[1]
    if not c_out < c_in <= n * height * width:
        total = x.new_empty(c_out, 9 * c_in)
        for number, (windows, pixels) in enumerate(_pieces(x, gradient, total.nbytes)):
            # With beta = 0 the first product replaces what the memory held.
            total.addmm_(pixels.T, windows, beta=min(1, number))
        return total.view(c_out, 3, 3, c_in).permute(0, 3, 1, 2)

    # The windows of the narrower side are less to copy. One end of such a window is the other end
    # of a window of x.
    total = x.new_empty(9 * c_out, c_in)
    for number, (windows, pixels) in enumerate(_pieces(gradient, x, total.nbytes)):
        total.addmm_(windows.T, pixels, beta=min(1, number))
    return total.view(9, c_out, c_in).flip(0).view(3, 3, c_out, c_in).permute(2, 3, 0, 1)


def _pieces(windowed: Tensor, other: Tensor, least: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield windows (P, 9 C) of images, piece by piece, and the other's pixels (P, C) there.

    Args:
        windowed, other: (B, C, H, W), of as many pixels.
        least: bytes of what the products are added to: each reads and writes all of it, so a piece
            is no smaller.
    """
    n, channels, height, width = windowed.shape
    padded = F.pad(windowed.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    # (B, H, W, 3, 3, C), a view.
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
    by_pixel = other.permute(0, 2, 3, 1)
    rows = max(1, max(PIECE, least) // (9 * width * channels * windowed.element_size()))
    images = max(1, rows // height)
    for image in range(0, n, images):
        for row in range(0, height, rows):
            piece = slice(image, image + images), slice(row, row + rows)
            yield (
                windows[piece].reshape(-1, 9 * channels),
                by_pixel[piece].reshape(-1, other.shape[1]),
            )
