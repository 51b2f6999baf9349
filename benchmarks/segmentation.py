"""A training step of our U-Net against MONAI's and nnU-Net's, and what Table 1 takes.

Steps: table1's network (64 channels, four halvings; 64 px and batch 4 with --quick) on all sides,
    from the same pairs,
with the same loss, precision, clipping and fused AdamW. Ours is timed inside the product's own
training loop, between two questions whether to leave; the peers take their steps as their users
write them, eager, and on a GPU (or with --compile) compiled too. Sides take turns; ratios are
medians of the ratios of neighbours. First, with equal weights ours and the peers' blocks put
together as ours must agree on logits, loss and gradients; compiled, ours must agree with eager, and
a second seed must compile nothing.

Overhead: ten seeds of the demo's x3 arm as one element, by the very command that a SLURM array
    runs, without --quick of
its reference too, and a few runs as elements of their own; wall time over the time in the training
loops. For table1's size the cost of a run beside its steps is measured on the second of two runs of
that network at 240 px with few steps.

Table 1: operations of all 320 U-Nets, and on a GPU the GPU-hours of them and of the six generators
    by measured steps.

    python benchmarks/segmentation.py [--quick] [--px 240] [--batch 32] [--precision bf16]
    [--compile] [--seeds 10]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
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
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import train

TOLERANCE = 1e-3  # of a loss, float32


def check_compiled(config: UNetConfig, data: PairTensors) -> float:
    """Compile ours for two seeds; return the largest relative difference from eager's loss."""
    worst, graphs = 0.0, torch._dynamo.utils.counters["stats"]
    optim = OptimConfig(images=2 * len(data), batch_size=len(data), lr=1e-4, precision="fp32")
    for seed in (0, 1):
        losses, before = [], graphs["unique_graphs"]
        for way in ("off", "on"):
            with tempfile.TemporaryDirectory() as folder:
                place = Workplace(
                    folder=Path(folder), data=Path(), parents={}, resources=Resources(compile=way)
                )
                report = train(
                    build(lambda: UNet(config), seed, data.images.device),
                    data,
                    optim,
                    seed,
                    None,
                    place,
                )
                losses.append(report.terms["loss"])
                if report.notes:
                    raise SystemExit(f"ours could not be compiled: {report.notes}")
        worst = max(worst, abs(losses[1] / losses[0] - 1))
        if not worst <= TOLERANCE:
            raise SystemExit(
                f"compiled, ours has a loss of {losses[1]}, eager {losses[0]}: nothing is compared"
            )
        if seed and graphs["unique_graphs"] != before:
            raise SystemExit("a second seed was compiled anew: nothing is compared")
    return worst


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
    parser.add_argument(
        "--quick", action="store_true", help="64 px, batch 4, 5 turns of 1 step, on a CPU"
    )
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


def main() -> None:
    """Measure, print tables, and end with one line of JSON."""
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    px, n, config = options.px, options.batch, UNetConfig()
    print(
        f"{describe()}\n{px}x{px} px, batch {n}, {options.precision}, 64 channels, 4 halvings",
        flush=True,
    )

    data = make_pairs(2 * n, px, device)
    small = {"image": data.images[:2], "mask": data.masks[:2]}
    worst = 0.0
    for name, peer in make_peers(config).items():
        if name.endswith("_same"):
            worst = max(
                worst, check_same(build(lambda: UNet(config), 0, device), peer.to(device), small)
            )
    print(
        "logits, losses and gradients agree with the peers' blocks put together as ours "
        f"to {worst:.1e}",
        flush=True,
    )
    if options.compile:
        few = make_pairs(2, 64, device)
        print(
            f"compiled losses agree with eager ones to {check_compiled(config, few):.1e}",
            flush=True,
        )

    optim = OptimConfig(images=n, batch_size=n, lr=1e-3, precision=options.precision)
    sides = {"ours": in_the_loop(lambda: UNet(config), data, optim, False)}
    peers, left_out = make_peers(config), ("nnunet_same", "monai_same" if options.quick else "")
    sides |= {
        name: as_users_do(peer, data, optim, False)
        for name, peer in peers.items()
        if name not in left_out
    }
    if options.compile:
        sides["ours_compiled"] = in_the_loop(lambda: UNet(config), data, optim, True)
        sides |= {
            f"{name}_compiled": as_users_do(peers[name], data, optim, True)
            for name in peers
            if "_" not in name
        }
    seconds = take_turns(sides, options.turns, 20 if device.type == "cuda" else 1)
    weights = {"ours": UNet(config), **peers}
    print(f"\n{'':18}{'s a step':>10}{'images/s':>10}{'weights':>12}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        number = sum(
            weight.numel() for weight in weights[name.removesuffix("_compiled")].parameters()
        )
        print(f"{name:18}{middle:10.4f}{n / middle:10.1f}{number:12,}")
    best = "ours_compiled" if options.compile else "ours"
    step = statistics.median(seconds[best])
    figures: dict[str, Any] = {
        "unet_vs_monai": ratio(seconds, "monai", best),
        "unet_vs_nnunet": ratio(seconds, "nnunet", best),
        "unet_vs_monai_same": ratio(seconds, "monai_same", best),
        "unet_eager_vs_monai": ratio(seconds, "monai", "ours"),
        "unet_vs_monai_compiled": ratio(seconds, "monai_compiled", best),
        "unet_vs_nnunet_compiled": ratio(seconds, "nnunet_compiled", best),
        "images_per_s": n / step,
    }
    for name in ("monai", "nnunet"):
        if figures[f"unet_vs_{name}"] is None:
            print(f"{name}: not installed (pip install 'hvae_hpc[bench]'), so null")
    peak = peak_of(name_device())
    if peak and options.precision == "bf16":
        figures["share_of_peak"] = n * operations(UNet(config), px) / step / peak

    gpus = int(device.type == "cuda")
    overhead = measure_overhead(options.seeds, options.alone, gpus, not options.quick)
    print(f"\nseeds of one of the demo's arms ({options.seeds} in an element)")
    for what, name, size in (
        ("standard x3, one element", "bundled", ""),
        ("the reference, one element", "bundled", "_smallest"),
        ("the reference, an element each", "alone", "_smallest"),
    ):
        times = overhead[f"{'bundle' if name == 'bundled' else name}_overhead{size}"]
        training, apart = (
            overhead[f"demo_training{size}_s"],
            overhead[f"overhead_s_a_run_{name}{size}"],
        )
        if times:
            print(
                f"{what:31}{training:5.2f} s of training each, {times:.2f} times that, "
                f"{apart:.2f} s a run beside it"
            )
    beside, compile_s = measure_beside(device, 240, options.compile)
    an_image = step / n * (1 if px == 240 else (240 / px) ** 2)
    runs = plan_table_1()
    lengths = [run.config.optim.images for run in runs if isinstance(run.config, SegmentConfig)]
    projected = {}
    for what, images in (("smallest", min(lengths)), ("mean", statistics.mean(lengths))):
        training = images * an_image
        cost = (
            overhead["start_s"] + max(0.0, compile_s) + options.seeds * (beside + training)
        ) / options.seeds
        projected[f"bundle_overhead_table1_{what}"] = cost / training
        print(
            f"table1's {what} arm, 240 px, projected from steps of {px} px on this {device.type}: "
            f"{training:,.0f} s of training a seed, {beside:.2f} s beside it: "
            f"{cost / training:.4f} times"
        )

    def steps(config: Any, size: int) -> float:
        return seconds_an_image(config, size, device, options.compile)

    figures |= (
        overhead
        | projected
        | project_table_1(runs, steps if gpus else None, beside, not options.no_generators)
    )
    kept = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in figures.items()
    }
    setting = {"px": px, "batch": n, "precision": options.precision, "device": name_device()}
    print(json.dumps({**kept, **setting, "versions": {"torch": torch.__version__, **versions()}}))


if __name__ == "__main__":
    main()
