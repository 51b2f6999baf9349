"""Pullbacks: from a gradient by a layer's output to that by its input, differentiable.

The flow's force is the decoder's pullback, and training differentiates it once more: an ordinary
backward pass then. Torch's own derivative of a convolution's backward is a convolution whose
kernels are as large as the image, and an autograd.Function inside torch.func.grad loses its
gradient, silently, when compiled (torch 2.13).
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

PIXELS = (2, 3)
_checkpoint = inspect.unwrap(checkpoint)
"""Without the wrapper that imports torch's compiler, which takes a process seconds."""
Pullback = Callable[[Tensor], Tensor]
"""A vector-Jacobian product: a scalar's gradient by an output to its gradient by the input."""
Linearised = tuple[Tensor, Pullback]
"""A layer's output and its pullback."""


def widen(x: Tensor) -> Tensor:
    """Return what a network put out in float32 at least, whatever its matrix work was done in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pull_conv(conv: nn.Conv2d, gradient: Tensor) -> Tensor:
    """Pull a gradient back through a convolution of stride 1."""
    return F.conv_transpose2d(gradient, conv.weight, padding=conv.padding)  # type: ignore[arg-type]


def keeps_inputs_alone(x: Tensor) -> bool:
    """Tell whether layers of this input keep no more than their inputs for the backward pass.

    Only on a GPU, where float32 maps between layers would fill the memory; the compiler decides for
    itself.
    """
    return x.device.type == "cuda" and not torch.compiler.is_compiling()


def keep_inputs(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Call a function; for the backward pass keep its inputs alone, and call it there again."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return _checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def linearise_activation(norm: nn.GroupNorm, x: Tensor, silu: bool = True) -> Linearised:
    """Linearise a GroupNorm and, unless told otherwise, the SiLU behind it."""
    if not keeps_inputs_alone(x):
        x = widen(x)
        return _linearise_activation(norm, silu, x, *_measure(norm, x))

    def activate(*inputs: Tensor) -> Tensor:
        return _linearise_activation(norm, silu, *inputs)[0].to(x.dtype)

    def pull_inputs(gradient: Tensor, *inputs: Tensor) -> Tensor:
        return _linearise_activation(norm, silu, *inputs)[1](gradient).to(x.dtype)

    inputs = (x, *keep_inputs(partial(_measure, norm), x))
    return (
        keep_inputs(activate, *inputs),
        lambda gradient: keep_inputs(pull_inputs, gradient, *inputs),
    )


def _over_group(norm: nn.GroupNorm, per_channel: Tensor) -> Tensor:
    """Replace (B, C, 1, 1) by its mean over each group's channels."""
    means = per_channel.unflatten(1, (norm.num_groups, -1)).mean(2, keepdim=True)
    return means.expand(-1, -1, norm.num_channels // norm.num_groups, 1, 1).flatten(1, 2)


def _measure(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each group's mean and inverse standard deviation, (B, C, 1, 1) each.

    Sums run over each channel's pixels first and over a group's channels then: groups of few
    channels, innermost in memory, would leave vector units idle.
    """
    x = widen(x)
    of_channel = x.mean(PIXELS, keepdim=True)
    mean = _over_group(norm, of_channel)
    variance = _over_group(
        norm, (x - of_channel).square().mean(PIXELS, keepdim=True) + (of_channel - mean).square()
    )
    return mean, torch.rsqrt(variance + norm.eps)


def _linearise_activation(
    norm: nn.GroupNorm, silu: bool, x: Tensor, mean: Tensor, inverse: Tensor
) -> Linearised:
    """Linearise a GroupNorm, by what it measured, and the SiLU behind it."""
    x = widen(x)
    weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    y = (x - mean) * (inverse * weight) + bias
    gate = torch.sigmoid(y) if silu else None

    def pull(gradient: Tensor) -> Tensor:
        g = widen(gradient)
        if gate is not None:
            g = g * (gate * (1 + y * (1 - gate)))
        hat = (x - mean) * inverse
        along = _over_group(norm, (g * hat).mean(PIXELS, keepdim=True) * weight)
        return inverse * (
            g * weight - _over_group(norm, g.mean(PIXELS, keepdim=True) * weight) - hat * along
        )

    return (y if gate is None else y * gate), pull
