"""A training step of our U-Net against MONAI's and nnU-Net's, and what Table 1 takes.

Steps: all sides train table1's network (64 channels, four halvings; 64 px and batch 4 with
    --quick) on the same pairs, with the same loss, precision, clipping and fused AdamW. Ours is
    timed inside the product's own training loop, between two questions whether to stop. The peers
    take their steps as their users write them: eager, and on a GPU (or with --compile) compiled
    too. The sides take turns. A ratio is the median of the ratios of turns that follow each other.
    First, ours and the peers' blocks put together as ours must agree on logits, loss and gradients
    with equal weights. Compiled, ours must agree with eager. A second seed must compile nothing.

Overhead: ten seeds of the demo's x3 arm run as one element, by the command that a SLURM array
    runs. Without --quick its reference arm does too. A few runs are elements of their own. The
    overhead is wall time over the time in the training loops. For table1's size, two runs of its
    network at 240 px take a few steps. The second one gives the cost of a run beside its steps.

Table 1: the operations of all 320 U-Nets. On a GPU also the GPU-hours of the U-Nets and of the six
    generators, by measured steps.

    python benchmarks/segmentation.py [--quick] [--px 240] [--batch 32] [--precision bf16]
    [--compile] [--seeds 10]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from overhead import measure_beside, measure_overhead
from table1_cost import operations, plan_table_1, project_table_1, seconds_an_image
from turns import name_device, peak_of, ratio
from unet_peers import check_same, make_peers, versions
from unet_steps import as_users_do, in_the_loop, make_pairs, take_turns

from hvae_hpc.config.model import OptimConfig, UNetConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.run import Run
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import train

TOLERANCE = 1e-3  # of a loss, float32


def check_networks(config: UNetConfig, data: PairTensors, compiled: bool) -> None:
    """Print how closely our network agrees with the peers', and compiled with eager.

    Raises:
        SystemExit: they differ, or a second seed was compiled again.
    """
    device = data.images.device
    small = {"image": data.images[:2], "mask": data.masks[:2]}
    worst = 0.0
    for name, peer in make_peers(config).items():
        if name.endswith("_same"):
            ours = build(lambda: UNet(config), 0, device)
            worst = max(worst, check_same(ours, peer.to(device), small))
    print(
        "logits, losses and gradients agree with the peers' blocks put together as ours "
        f"to {worst:.1e}",
        flush=True,
    )

    if compiled:
        difference = check_compiled(config, make_pairs(2, 64, device))
        print(f"compiled losses agree with eager ones to {difference:.1e}", flush=True)


def check_compiled(config: UNetConfig, data: PairTensors) -> float:
    """Compile ours for two seeds; return the largest relative difference from eager's loss."""
    worst, graphs = 0.0, torch._dynamo.utils.counters["stats"]
    for seed in (0, 1):
        before = graphs["unique_graphs"]
        eager = train_briefly(config, data, seed, Resources(compile="off"))
        compiled = train_briefly(config, data, seed, Resources(compile="on"))
        worst = max(worst, abs(compiled / eager - 1))
        if not worst <= TOLERANCE:
            raise SystemExit(
                f"compiled, ours has a loss of {compiled}, eager {eager}: nothing is compared"
            )
        if seed and graphs["unique_graphs"] != before:
            raise SystemExit("a second seed was compiled again: nothing is compared")
    return worst


def train_briefly(config: UNetConfig, data: PairTensors, seed: int, resources: Resources) -> float:
    """Take two steps in float32 and return the loss."""
    optim = OptimConfig(images=2 * len(data), batch_size=len(data), lr=1e-4, precision="fp32")
    model = build(lambda: UNet(config), seed, data.images.device)
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(folder=Path(folder), data=Path(), parents={}, resources=resources)
        report = train(model, data, optim, seed, None, place)
    if report.notes:
        raise SystemExit(f"ours could not be compiled: {report.notes}")
    return report.terms["loss"]


def describe() -> str:
    """Name versions and hardware."""
    peers = ", ".join(
        f"{name} {number}" if number else f"no {name}" for name, number in versions().items()
    )
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, {peers}\n{name_device()}"
    )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="64 px on a CPU, 5 turns, fewer runs")
    parser.add_argument("--px", type=int, help="side of the images (240; 64 with --quick)")
    parser.add_argument("--batch", type=int, help="pairs per step (32 on a GPU; 4)")
    parser.add_argument("--turns", type=int, help="of every side (9; 5 with --quick)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="(bf16 on a GPU, fp32 on a CPU)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile on a CPU as well: minutes for each side"
    )
    parser.add_argument(
        "--no-generators",
        action="store_true",
        help="project the U-Nets' GPU-hours alone: no compiling",
    )
    parser.add_argument(
        "--seeds", type=int, default=10, help="in the bundle (default: %(default)s)"
    )
    parser.add_argument(
        "--alone", type=int, help="runs of elements of their own (3; 1 with --quick)"
    )
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    options.compile = options.compile or gpu
    options.px = options.px or (64 if options.quick and not gpu else 240)
    options.batch = options.batch or (32 if gpu else 4)
    options.alone = options.alone or (1 if options.quick else 3)
    options.turns = options.turns or (5 if options.quick else 9)
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    return options


def measure_steps(
    options: argparse.Namespace, config: UNetConfig, data: PairTensors
) -> dict[str, list[float]]:
    """Measure the seconds a step of all sides in turns, print them, and return them."""
    n = options.batch
    optim = OptimConfig(images=n, batch_size=n, lr=1e-3, precision=options.precision)
    peers = make_peers(config)
    left_out = ("nnunet_same", "monai_same" if options.quick else "")

    sides = {"ours": in_the_loop(lambda: UNet(config), data, optim, False)}
    for name, peer in peers.items():
        if name not in left_out:
            sides[name] = as_users_do(peer, data, optim, False)
    if options.compile:
        sides["ours_compiled"] = in_the_loop(lambda: UNet(config), data, optim, True)
        for name, peer in peers.items():
            if "_" not in name:
                sides[f"{name}_compiled"] = as_users_do(peer, data, optim, True)
    steps = 20 if data.images.device.type == "cuda" else 1
    seconds = take_turns(sides, options.turns, steps)

    networks = {"ours": UNet(config), **peers}
    print(f"\n{'':18}{'s a step':>10}{'images/s':>10}{'weights':>12}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        network = networks[name.removesuffix("_compiled")]
        weights = sum(weight.numel() for weight in network.parameters())
        print(f"{name:18}{middle:10.4f}{n / middle:10.1f}{weights:12,}")
    return seconds


def compare_steps(
    seconds: dict[str, list[float]], options: argparse.Namespace, config: UNetConfig, step: float
) -> dict[str, Any]:
    """Return the figures of steps; ``step`` is the seconds of our best one."""
    best = "ours_compiled" if options.compile else "ours"
    figures: dict[str, Any] = {
        "unet_vs_monai": ratio(seconds, "monai", best),
        "unet_vs_nnunet": ratio(seconds, "nnunet", best),
        "unet_vs_monai_same": ratio(seconds, "monai_same", best),
        "unet_eager_vs_monai": ratio(seconds, "monai", "ours"),
        "unet_vs_monai_compiled": ratio(seconds, "monai_compiled", best),
        "unet_vs_nnunet_compiled": ratio(seconds, "nnunet_compiled", best),
        "images_per_s": options.batch / step,
    }
    for name in ("monai", "nnunet"):
        if figures[f"unet_vs_{name}"] is None:
            print(f"{name}: not installed (pip install 'hvae_hpc[bench]'), so null")

    peak = peak_of(name_device())
    if peak and options.precision == "bf16":
        done = options.batch * operations(UNet(config), options.px)
        figures["share_of_peak"] = done / step / peak
    return figures


def print_overhead(overhead: dict[str, Any], seeds: int) -> None:
    """Print a line for each way to run the demo's seeds."""
    print(f"\nseeds of one of the demo's arms ({seeds} in an element)")
    for what, times, name, size in (
        ("standard x3, one element", "bundle", "bundled", ""),
        ("the reference, one element", "bundle", "bundled", "_smallest"),
        ("the reference, an element each", "alone", "alone", "_smallest"),
    ):
        factor = overhead[f"{times}_overhead{size}"]
        training = overhead[f"demo_training{size}_s"]
        beside = overhead[f"overhead_s_a_run_{name}{size}"]
        if factor:
            print(
                f"{what:31}{training:5.2f} s of training each, {factor:.2f} times that, "
                f"{beside:.2f} s a run beside it"
            )


def project_bundles(
    runs: list[Run], step: float, options: argparse.Namespace, once: float, beside: float
) -> dict[str, float]:
    """Project wall time over training time of table1's bundles; print a line for each arm.

    Args:
        runs: of table1.
        step: seconds of our best step.
        options: of the command line.
        once: seconds that an element takes once, to start and to compile.
        beside: seconds that a run takes beside its loop.
    """
    px, seeds = options.px, options.seeds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    an_image = step / options.batch * (1 if px == 240 else (240 / px) ** 2)
    lengths = [run.config.optim.images for run in runs if isinstance(run.config, SegmentConfig)]

    figures = {}
    for what, images in (("smallest", min(lengths)), ("mean", statistics.mean(lengths))):
        training = images * an_image
        cost = (once + seeds * (beside + training)) / seeds
        figures[f"bundle_overhead_table1_{what}"] = cost / training
        print(
            f"table1's {what} arm, 240 px, projected from steps of {px} px on this {device}: "
            f"{training:,.0f} s of training a seed, {beside:.2f} s beside it: "
            f"{cost / training:.4f} times"
        )
    return figures


def measure(
    options: argparse.Namespace, config: UNetConfig, device: torch.device
) -> dict[str, Any]:
    """Check that the sides agree, measure steps and overhead, project Table 1, return figures."""
    data = make_pairs(2 * options.batch, options.px, device)
    check_networks(config, data, options.compile)
    seconds = measure_steps(options, config, data)
    step = statistics.median(seconds["ours_compiled" if options.compile else "ours"])
    figures = compare_steps(seconds, options, config, step)

    gpus = int(device.type == "cuda")
    overhead = measure_overhead(options.seeds, options.alone, gpus, not options.quick)
    print_overhead(overhead, options.seeds)
    beside, compile_s = measure_beside(device, 240, options.compile)

    runs = plan_table_1()
    once = overhead["start_s"] + max(0.0, compile_s)
    bundles = project_bundles(runs, step, options, once, beside)
    steps = partial(seconds_an_image, device=device, compiled=options.compile) if gpus else None
    table_1 = project_table_1(runs, steps, beside, not options.no_generators)
    return figures | overhead | bundles | table_1


def main() -> None:
    """Measure, print tables, and end with one line of JSON."""
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    px, n = options.px, options.batch
    print(
        f"{describe()}\n{px}x{px} px, batch {n}, {options.precision}, 64 channels, 4 halvings",
        flush=True,
    )

    figures = measure(options, UNetConfig(), device)
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in figures.items()
    }
    setting = {"px": px, "batch": n, "precision": options.precision, "device": name_device()}
    print(
        json.dumps({**rounded, **setting, "versions": {"torch": torch.__version__, **versions()}})
    )


if __name__ == "__main__":
    main()
