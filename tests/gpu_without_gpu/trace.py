"""Train one of table1's networks on the fake device for a few steps, by the product's own loop."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hvae_hpc.config.model import HVAEConfig, LSGANConfig, MovesConfig, OptimConfig, UNetConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training import loop
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build, choose_device
from hvae_hpc.training.train import make_network
from tests.gpu_without_gpu.fake_cuda import move_to_device
from tests.gpu_without_gpu.recorder import Recorder

PAIRS = 100
"""Of a table1 split."""
NETWORKS = ("unet", "lsgan", "vae", "hvae")
GIB = 2**30


def make_model(network: str, px: int) -> nn.Module:
    """Make one of table1's networks; an HVAE's flow is on from the first step."""
    if network == "unet":
        return UNet(UNetConfig())
    config = {
        "lsgan": LSGANConfig(),
        "vae": HVAEConfig(n_leapfrog=0),
        "hvae": HVAEConfig(kl_warm_up=0.0, flow_from=0.0),
    }[network]
    return make_network(config, (px, px))


def trace(
    model: nn.Module, px: int, optim: OptimConfig, resources: Resources, capacity: float
) -> dict[str, Any]:
    """Train a network on the fake device; return what was seen.

    Args:
        model: on the CPU.
        px: side of the images.
        optim, resources: as in a site's and a sweep's file.
        capacity: bytes of the device.
    """
    with FakeTensorMode(), tempfile.TemporaryDirectory() as folder, Recorder(capacity) as recorder:
        workplace = Workplace(folder=Path(folder), data=Path(), parents={}, resources=resources)
        device = choose_device(workplace)
        images, masks = (torch.empty(PAIRS, 1, px, px, device=device) for _ in range(2))
        data = PairTensors(images=images, masks=masks)
        move_to_device(model)
        if hasattr(model, "recompute"):
            model.recompute = resources.recompute
        report = loop.train(model, data, optim, 0, MovesConfig(), workplace)
    return {
        "peak_gib": round(recorder.peak / GIB, 2),
        "step_waits": recorder.step_waits,
        "waits": recorder.waits,
        "notes": report.notes,
    }


def main(words: list[str]) -> None:
    """Trace what the command line asks for and print a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--px", type=int, default=240)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--card-gib", type=float, default=float("inf"))
    asked = parser.parse_args(words)

    optim = OptimConfig(
        images=asked.steps * asked.batch,
        batch_size=asked.batch,
        precision=asked.precision,
        ema_decay=0.0 if asked.network == "unet" else 0.999,
    )
    resources = Resources(
        gpus=1,
        compile=asked.compile,
        recompute=asked.recompute,
        micro_batch=asked.micro_batch,
        checkpoint_every_s=1e9,  # a tensor without numbers cannot be saved
    )
    if asked.compile != "off":
        # Only here: its import takes longer than that of the rest of torch.
        from tests.gpu_without_gpu import fake_inductor

        fake_inductor.install([])
    model = build(lambda: make_model(asked.network, asked.px), 0, torch.device("cpu"))
    print(json.dumps(trace(model, asked.px, optim, resources, asked.card_gib * GIB)))
