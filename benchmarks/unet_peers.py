"""The peers of segmentation.py: MONAI's BasicUNet and nnU-Net's PlainConvUNet.

Both with batch norm, ReLU, no bias before a norm, no dropout, no deep supervision, one channel in
and one class out:

* monai: its last level up keeps twice the channels (``halves=False``). So it does a little more
    than ours.
* nnunet: strided convolutions instead of pooling, as in nnU-Net, with as many multiplications.
* monai_same and nnunet_same: the same blocks put together as ours. With equal weights their logits
    are equal to ours.
"""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from hvae_hpc.config.model import UNetConfig
from hvae_hpc.models.unet import UNet

PACKAGES = ("monai", "dynamic-network-architectures")
RELU = ("relu", {"inplace": True})
TOLERANCE = 1e-3  # of the largest logit, and of a gradient's norm, float32


class Peer(UNet):
    """A peer's network with our loss: the sides differ only in network and training loop."""

    def __init__(self, config: UNetConfig, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.config, self.loss, self.network = config, "dice+ce", network

    def logits(self, image: Tensor) -> Tensor:
        """Return tumour logits (B, 1, H, W), float32."""
        return self.network(image).float()


def make_peers(config: UNetConfig) -> dict[str, Peer]:
    """Return the installed peers with random weights; MONAI's has four halvings only."""
    networks = {**dict(_monai(config) if config.depth == 4 else ()), **dict(_nnunet(config))}
    return {name: Peer(config, network) for name, network in networks.items()}


def _monai(config: UNetConfig) -> Iterator[tuple[str, nn.Module]]:
    try:
        from monai.networks.nets.basic_unet import BasicUNet, UpCat
    except ImportError:
        return
    width = config.base_channels
    features = (*(width * 2**level for level in range(5)), width)
    for name in ("monai", "monai_same"):
        network = BasicUNet(2, 1, 1, features, act=RELU, norm="batch", bias=False)
        if name == "monai_same":
            network.upcat_1 = UpCat(2, 2 * width, width, width, RELU, "batch", False)
        yield name, network


def _nnunet(config: UNetConfig) -> Iterator[tuple[str, nn.Module]]:
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
        from dynamic_network_architectures.building_blocks.plain_conv_encoder import (
            PlainConvEncoder,
        )
    except ImportError:
        return
    levels = config.depth + 1
    widths = [config.base_channels * 2**level for level in range(levels)]
    strides = [1] + [2] * config.depth
    how = {
        "norm_op": nn.BatchNorm2d,
        "norm_op_kwargs": {},
        "nonlin": nn.ReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    for name in ("nnunet", "nnunet_same"):
        network = PlainConvUNet(
            1, levels, widths, nn.Conv2d, 3, strides, 2, 1, 2, conv_bias=False, **how
        )
        if name == "nnunet_same":
            network.encoder = network.decoder.encoder = PlainConvEncoder(
                1,
                levels,
                widths,
                nn.Conv2d,
                3,
                strides,
                2,
                False,
                **how,
                return_skips=True,
                pool="max",
            )
        yield name, network


def share_weights(ours: UNet, peer: Peer) -> None:
    """Give a peer that is put together as ours the same weights, and biases of 0."""
    # nnU-Net has outputs for deep supervision that nothing reads: between the rest and the last.
    convs, peer_convs = _of(ours, nn.Conv2d), _of(peer, nn.Conv2d)
    peer_convs = [*peer_convs[: len(convs) - 1], peer_convs[-1]]
    # nnU-Net joins what comes from below before the skip; ours after it.
    swap = "decoder" in dict(peer.network.named_children())
    for conv, peer_conv in zip(convs, peer_convs, strict=True):
        joins = swap and conv.in_channels == 2 * conv.out_channels
        weight = conv.weight.data
        peer_conv.weight.data.copy_(weight.roll(conv.out_channels, 1) if joins else weight)
        if conv.bias is not None:
            peer_conv.bias.data.copy_(conv.bias.data)

    ups, peer_ups = _of(ours, nn.ConvTranspose2d), _of(peer, nn.ConvTranspose2d)
    for up, peer_up in zip(ups, peer_ups, strict=True):
        peer_up.weight.data.copy_(up.weight.data)
        if peer_up.bias is None:
            up.bias.data.zero_()
        else:
            peer_up.bias.data.copy_(up.bias.data)


def _of(model: nn.Module, kind: type) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def check_same(ours: UNet, peer: Peer, batch: dict[str, Tensor]) -> float:
    """Return the largest relative difference of logits, loss and gradient's norm."""
    share_weights(ours, peer)
    results = []
    for model in (ours, peer):
        model.train()
        model.zero_grad()
        total = model(batch).total
        total.backward()
        grads = [
            conv.weight.grad.norm()
            for conv in _of(model, nn.Conv2d)
            if conv.weight.grad is not None
        ]
        logits = model.logits(batch["image"]).detach()
        results.append((logits, total.detach(), torch.stack(grads).norm()))

    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))
    if not worst <= TOLERANCE:
        raise SystemExit(
            f"with equal weights our logits and {type(peer.network).__name__}'s "
            f"differ by {worst:.2g}"
        )
    return worst


def versions() -> dict[str, str | None]:
    """Return the peers' versions; None where one is not installed."""
    numbers: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = None
    return numbers
