"""The U-Net's convolutions are torch's own, to rounding, whatever the shape, the layout and the size of a piece."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from hvae_hpc.models import convolutions
from hvae_hpc.models.convolutions import WIDE, Convolution, DoubleSize

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return a layer's output and the gradients of a made-up loss by its weights and by its input."""
    x = x.clone().requires_grad_()
    y = layer(x)
    factors = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    layer.zero_grad()
    (y * factors.contiguous(memory_format=torch.channels_last)).sum().backward()
    return [y, x.grad, *(weight.grad for weight in layer.parameters())]


def assert_same(ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...]) -> None:
    theirs.load_state_dict(ours.state_dict())
    for layout in LAYOUTS:
        x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
        ours, theirs = ours.to(memory_format=layout), theirs.to(memory_format=layout)
        for mine, wanted in zip(results(ours, x), results(theirs, x), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("piece", [1, 2**16, 2**20, 2**30])
def test_a_wide_convolution_is_torch_s_own_in_pieces_of_any_size(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "PIECE", piece)
    for (channels_in, channels_out), shape in product(
        [(WIDE, WIDE + 8), (WIDE + 8, WIDE)], [(3, 5, 4), (1, 16, 3), (1, 5, 3)]
    ):
        ours, theirs = (
            layer.double()
            for layer in (
                Convolution(channels_in, channels_out),
                nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            )
        )
        n, height, width = shape
        assert_same(ours, theirs, (n, channels_in, height, width))


def test_products_are_for_wide_layers_on_a_cpu_in_float32_that_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[tuple[int, ...]]()
    gradient = convolutions._weight_gradient
    monkeypatch.setattr(
        convolutions,
        "_weight_gradient",
        lambda x, by_y: (asked.append(tuple(x.shape)), gradient(x, by_y))[1],
    )
    for channels in (WIDE - 1, WIDE):
        x = torch.randn(2, channels, 4, 4)
        layer = Convolution(channels, WIDE)
        layer(x).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).float().sum().backward()
    assert asked == [(2, WIDE, 4, 4)]


def test_a_size_is_doubled_as_torch_s_transposed_convolution_does() -> None:
    assert_same(
        DoubleSize(6, 3).double(), nn.ConvTranspose2d(6, 3, 2, stride=2).double(), (2, 6, 3, 5)
    )
