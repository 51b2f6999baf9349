"""What Table 1 takes: operations of its U-Nets, and GPU-hours by measured steps."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from made_up_data import make_data_set
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from turns import name_device
from unet_steps import in_the_loop, make_pairs

from hvae_hpc.config.model import MovesConfig, UNetConfig
from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.run import Run
from hvae_hpc.sweep import read_sweep
from hvae_hpc.training.train import make_network

SIZES = {"brats2021": 240, "hecktor2022": 256}


def plan_table_1() -> list[Run]:
    """Return table1's runs on made-up data sets of the real ones' sizes."""
    sweep = read_sweep("table1")
    number = sweep.split.train + sweep.split.test
    sets = [make_data_set(name, number, px) for name, px in SIZES.items()]
    return expand.expand(sweep, sets)


def operations(model: nn.Module, px: int) -> float:
    """Return the operations of a training step for one image of px x px, by torch's counter."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        images = torch.empty(1, 1, px, px)
    with counter:
        model.to("meta")({"image": images, "mask": images}).total.backward()
    return float(counter.get_total_flops())


def operations_by_formula(config: UNetConfig, px: int) -> float:
    """Return the same by hand: two a multiplication; backward is twice the forward."""
    base = config.base_channels
    total = base - 9 * base / 3  # the last layer, and what the first one is spared
    for level in range(config.depth + 1):
        width = base * 2**level
        down = 9 * (width * width + (width * width // 2 if level else width))
        up = (
            9 * (2 * width * width + width * width) + 2 * width * width
            if level < config.depth
            else 0
        )
        total += (down + up) / 4**level
    return 3 * 2 * total * px**2


def project_table_1(
    runs: list[Run],
    steps: Callable[[Any, int], float] | None,
    beside: float,
    generators: bool = True,
) -> dict[str, Any]:
    """Return table1's operations, and GPU-hours where steps can be measured.

    Args:
        runs: of the sweep.
        steps: returns the seconds an image takes in a run's training, for the config and the size
            in px; None without a GPU.
        beside: seconds that a U-Net's run takes beside its steps.
        generators: whether to measure the generators' steps too.
    """
    segments = [run.config for run in runs if isinstance(run.config, SegmentConfig)]
    images = {name: sum(c.optim.images for c in segments if c.data == name) for name in SIZES}
    figures: dict[str, Any] = {
        "table1_runs": len(segments),
        "table1_eflop": count_table_1(segments, images) / 1e18,
        "table1_gpu_hours": None,
    }
    if steps is None:
        print("GPU-hours: no GPU here, so no step to project them from")
        return figures

    unets = unet_hours(segments, images, steps, beside)
    hours = unets | (generator_hours(runs, steps) if generators else {})
    for name, value in hours.items():
        print(f"{name:24}{value:8.3f} h")
    print(f"{'sum':24}{sum(hours.values()):8.3f} h on one {name_device()}")
    return {
        **figures,
        "table1_unet_gpu_hours": sum(unets.values()),
        "table1_gpu_hours": sum(hours.values()) if generators else None,
    }


def count_table_1(segments: list[SegmentConfig], images: dict[str, int]) -> float:
    """Print and return the operations of all U-Nets.

    Raises:
        SystemExit: torch's count and the formula differ.
    """
    unet = segments[0].unet
    of_px = {px: operations(UNet(unet), px) for px in SIZES.values()}
    total = sum(images[name] * of_px[px] for name, px in SIZES.items())
    by_formula = sum(images[name] * operations_by_formula(unet, px) for name, px in SIZES.items())
    if abs(total / by_formula - 1) > 1e-3:
        raise SystemExit(
            f"{total:.4g} operations were counted, {by_formula:.4g} expected: nothing is projected"
        )

    print(f"\nTable 1: {len(segments)} U-Nets, {sum(images.values()):,} images", flush=True)
    terms = [
        f"{images[name]:,} x {of_px[px] / 1e9:.0f} GFLOP ({px} px)" for name, px in SIZES.items()
    ]
    print(
        f"{' + '.join(terms)} = {total / 1e18:.3f} EFLOP ({by_formula / 1e18:.3f} by formula): "
        f"{total / 788e12 / 3600:.2f} h at 788 TFLOP/s"
    )
    return total


def unet_hours(
    segments: list[SegmentConfig],
    images: dict[str, int],
    steps: Callable[[Any, int], float],
    beside: float,
) -> dict[str, float]:
    """Return the hours of each data set's U-Nets, from the step of the first of them."""
    hours = {}
    for name, px in SIZES.items():
        configs = [config for config in segments if config.data == name]
        seconds = images[name] * steps(configs[0], px) + len(configs) * beside
        hours[f"{len(configs)} U-Nets, {px} px"] = seconds / 3600
    return hours


def generator_hours(runs: list[Run], steps: Callable[[Any, int], float]) -> dict[str, float]:
    """Return the hours of each generator's training."""
    hours = {}
    for run in runs:
        config = run.config
        if isinstance(config, TrainConfig):
            px = SIZES[config.data]
            seconds = config.optim.images * steps(config, px)
            hours[f"{config.generator}, {px} px"] = seconds / 3600
    return hours


def seconds_an_image(config: Any, px: int, device: torch.device, compiled: bool) -> float:
    """Measure the product's loop on a run of table1; return its seconds an image."""
    data = make_pairs(4 * config.optim.batch_size, px, device)

    def measure(make: Callable[[], nn.Module], moves: MovesConfig | None) -> float:
        turn = in_the_loop(make, data, config.optim, compiled, moves)
        turn(1)
        return statistics.median(turn(20)) / config.optim.batch_size

    if isinstance(config, SegmentConfig):
        return measure(lambda: UNet(config.unet, config.loss), None)
    if not getattr(config.model, "n_leapfrog", 0):
        return measure(lambda: make_network(config.model, (px, px)), config.moves)
    never, always = (
        replace(config.model, flow_from=1.0),
        replace(config.model, flow_from=0.0, kl_warm_up=0.0),
    )
    without = measure(lambda: make_network(never, (px, px)), config.moves)
    with_flow = measure(lambda: make_network(always, (px, px)), config.moves)
    return config.model.flow_from * without + (1 - config.model.flow_from) * with_flow
