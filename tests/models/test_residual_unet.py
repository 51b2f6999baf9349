"""The residual encoder U-Net is nnU-Net's own, weight by weight."""

import pytest
import torch
from torch import nn

from hvae_hpc.config.loader import dump
from hvae_hpc.config.model import UNetConfig
from hvae_hpc.models.unet import UNet

SMALL = UNetConfig(base_channels=4, depth=4, encoder="residual")


def test_it_is_nnunet_s_network_for_the_same_weights() -> None:
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="nnU-Net's networks are not installed (pip install -c constraints.txt -e '.[bench]')",
    )
    peer = unet.ResidualEncoderUNet(
        input_channels=1,
        n_stages=5,
        features_per_stage=[4, 8, 16, 32, 64],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1, 2, 2, 2, 2],
        n_blocks_per_stage=[1, 3, 4, 6, 6],
        num_classes=1,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    torch.manual_seed(0)
    model, decoder = UNet(SMALL), peer.decoder
    # Of nnU-Net's outputs at every level we have the last one alone.
    parts = [peer.encoder, decoder.transpconvs, decoder.stages, decoder.seg_layers[-1]]
    theirs = [weights for part in parts for weights in part.parameters()]
    ours = list(model.parameters())
    assert [w.shape for w in ours] == [w.shape for w in theirs]
    others = sum(w.numel() for layer in decoder.seg_layers[:-1] for w in layer.parameters())
    count = sum(w.numel() for w in peer.parameters())
    assert sum(w.numel() for w in ours) == count - others
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            other.copy_(mine.normal_(0, 0.3))
        # What comes from below stands before the skip there, and behind it here.
        for stage in decoder.stages:
            weight = stage.convs[0].conv.weight
            weight.copy_(weight.roll(weight.shape[1] // 2, 1))
        image = torch.rand(2, 1, 32, 48)
        torch.testing.assert_close(model.logits(image), peer(image), rtol=1e-4, atol=1e-4)


def test_it_learns_halves_as_often_and_has_512_features_at_most() -> None:
    torch.manual_seed(0)
    model = UNet(SMALL)
    image = torch.rand(2, 1, 32, 32)
    shapes = [tuple(level.shape[1:]) for level in model.encode(image)]
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    batch = {"image": image, "mask": (image > 0.5).float()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(batch).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    with torch.device("meta"):
        wide = UNet(UNetConfig(base_channels=64, depth=5, encoder="residual"))
    assert wide.up[0].weight.shape[:2] == wide.up[1].weight.shape[:2] == (512, 512)


def test_a_plain_unet_says_nothing_of_its_encoder() -> None:
    assert dump(UNetConfig()) == {"base_channels": 64, "depth": 4}
    assert dump(SMALL)["encoder"] == "residual"
