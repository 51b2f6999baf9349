"""Pullbacks: from a gradient by a layer's output to that by its input, differentiable.

The flow's force is the decoder's pullback, and training differentiates it once more: an ordinary
backward pass then. Torch's own derivative of a convolution's backward is a convolution whose
kernels are as large as the image, and an autograd.Function inside torch.func.grad loses its
gradient, silently, when compiled (torch 2.13).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pullback = Callable[[Tensor], Tensor]
"""A vector-Jacobian product: a scalar's gradient by an output to its gradient by the input."""


def widen(x: Tensor) -> Tensor:
    """Return what a network put out in float32 at least, whatever its matrix work was done in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pull_conv(conv: nn.Conv2d, gradient: Tensor) -> Tensor:
    """Pull a gradient back through a convolution of stride 1."""
    return F.conv_transpose2d(gradient, conv.weight, padding=conv.padding)  # type: ignore[arg-type]


def linearise_activation(
    norm: nn.GroupNorm, x: Tensor, silu: bool = True
) -> tuple[Tensor, Pullback]:
    """Linearise a GroupNorm and, unless told otherwise, the SiLU behind it.

    Sums run over each channel's pixels first and over a group's channels then: groups of few
    channels, innermost in memory, would leave vector units idle.
    """
    x = widen(x)
    groups, pixels = norm.num_groups, (2, 3)

    def over_group(per_channel: Tensor) -> Tensor:
        """Replace (B, C, 1, 1) by its mean over each group's channels."""
        means = per_channel.unflatten(1, (groups, -1)).mean(2, keepdim=True)
        return means.expand(-1, -1, x.shape[1] // groups, 1, 1).flatten(1, 2)

    of_channel = x.mean(pixels, keepdim=True)
    mean = over_group(of_channel)
    variance = over_group(
        (x - of_channel).square().mean(pixels, keepdim=True) + (of_channel - mean).square()
    )
    inverse = torch.rsqrt(variance + norm.eps)
    weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    y = (x - mean) * (inverse * weight) + bias
    gate = torch.sigmoid(y) if silu else None

    def pull(gradient: Tensor) -> Tensor:
        g = widen(gradient)
        if gate is not None:
            g = g * (gate * (1 + y * (1 - gate)))
        hat = (x - mean) * inverse
        along = over_group((g * hat).mean(pixels, keepdim=True) * weight)
        return inverse * (
            g * weight - over_group(g.mean(pixels, keepdim=True) * weight) - hat * along
        )

    return (y if gate is None else y * gate), pull
