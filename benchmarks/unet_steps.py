"""A training step of our U-Net in the product's loop, and of a peer as users write it."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from turns import synchronise

from hvae_hpc.config.model import MovesConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import AUTOCAST, train

Turn = Callable[[int], list[float]]
"""Takes so many steps and returns their seconds."""


def make_pairs(n: int, px: int, device: torch.device) -> PairTensors:
    """Make n pairs up, on the device."""
    images = torch.rand(n, 1, px, px, generator=torch.Generator().manual_seed(1))
    return PairTensors(images=images, masks=(images > 0.8).float()).to(device)


def in_the_loop(
    make: Callable[[], nn.Module],
    data: PairTensors,
    optim: OptimConfig,
    compiled: bool,
    moves: MovesConfig | None = None,
    cuda_graphs: bool = False,
    notes: list[str] | None = None,
) -> Turn:
    """Return a turn of the product's own training loop, of a network with new weights each time.

    ``notes`` takes what the training said: that it ran eager, or chose a sparer way.
    """
    mode = "cuda_graphs" if cuda_graphs else "on" if compiled else "off"

    def turn(steps: int) -> list[float]:
        stops: list[float] = []

        def stopped() -> bool:
            synchronise()
            stops.append(time.perf_counter())
            return False

        with tempfile.TemporaryDirectory() as folder:
            gpus = int(data.images.device.type == "cuda")
            resources = Resources(gpus=gpus, compile=mode, checkpoint_every_s=1e9)
            place = Workplace(
                folder=Path(folder), data=Path(), parents={}, resources=resources, stopped=stopped
            )
            model = build(make, 0, data.images.device)
            # One step more: the first one's start is not seen.
            longer = replace(optim, images=(steps + 1) * optim.batch_size)
            report = train(model, data, longer, 0, moves, place)
        if notes is not None:
            notes[:] = report.notes
        return [after - before for before, after in pairwise(stops)]

    return turn


def as_users_do(model: nn.Module, data: PairTensors, optim: OptimConfig, compiled: bool) -> Turn:
    """Return a turn of steps as one writes them down."""
    device = data.images.device
    model.to(device).train()
    forward = torch.compile(model) if compiled else model
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        index = torch.randperm(len(data), generator=generator)[: optim.batch_size].to(device)
        batch = {"image": data.images[index], "mask": data.masks[index]}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"
        ):
            loss = forward(batch).total
        loss.backward()
        nn.utils.clip_grad_norm_(weights, optim.clip_norm)
        optimizer.step()

    def turn(steps: int) -> list[float]:
        stops: list[float] = []
        for _ in range(steps + 1):
            step()
            synchronise()
            stops.append(time.perf_counter())
        return [after - before for before, after in pairwise(stops)]

    return turn


def take_turns(sides: dict[str, Turn], turns: int, steps: int) -> dict[str, list[float]]:
    """Return each side's seconds a step, one median per turn, after a warm-up."""
    for turn in sides.values():
        turn(1)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, turn in sides.items():
            seconds[name].append(statistics.median(turn(steps)))
    return seconds
