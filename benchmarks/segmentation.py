"""A training step of our U-Net against MONAI's and nnU-Net's; what a run costs beside its steps; what Table 1 takes.

Steps: table1's network (64 channels, four halvings; 64 px and batch 4 with --quick) on all sides, from the same pairs,
with the same loss, precision, clipping and fused AdamW. Ours is timed inside the product's own training loop, between
two questions whether to leave; the peers take their steps as their users write them, eager, and on a GPU (or with
--compile) compiled too. Sides take turns; ratios are medians of the ratios of neighbours. First, with equal weights
ours and the peers' blocks put together as ours must agree on logits, loss and gradients; compiled, ours must agree with
eager, and a second seed must compile nothing.

Overhead: ten seeds of the demo's reference arm as one element, by the very command that a SLURM array runs, and a few
runs as elements of their own; wall time over the time in the training loops. For table1's size the cost of a run beside
its steps is measured on the second of two runs of that network at 240 px with few steps.

Table 1: operations of all 320 U-Nets, and on a GPU the GPU-hours of them and of the six generators by measured steps.

    python benchmarks/segmentation.py [--quick] [--px 240] [--batch 32] [--precision bf16] [--compile] [--seeds 10]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bundles import make_plan, plan_reference, run_elements
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from unet_peers import check_same, make_peers, versions

from hvae_hpc.jobs import dag
from hvae_hpc.jobs.tasks import execute
from hvae_hpc.model_configs import MovesConfig, OptimConfig, UNetConfig
from hvae_hpc.models.unet import UNet
from hvae_hpc.plan import Plan
from hvae_hpc.preprocess.manifest import MANIFEST_SCHEMA, CaseEntry, Manifest
from hvae_hpc.resources import Resources, Workplace
from hvae_hpc.rundir import read_log, read_result
from hvae_hpc.runs import Run
from hvae_hpc.stages import SegmentConfig, TrainConfig
from hvae_hpc.sweep import read_sweep
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import AUTOCAST, train
from hvae_hpc.training.train import make_generator

PEAKS = {"H100": 989e12, "H200": 989e12}
"""Dense bfloat16 operations per second by the maker's data sheet."""
SIZES = {"brats2021": 240, "hecktor2022": 256}
TOLERANCE = 1e-3  # of a loss, float32
Turn = Callable[[int], list[float]]
"""Takes so many steps and returns their seconds."""


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
) -> Turn:
    """Return a turn of the product's own training loop, of a network with new weights each time."""

    def turn(steps: int) -> list[float]:
        stops: list[float] = []

        def stopped() -> bool:
            synchronise()
            stops.append(time.perf_counter())
            return False

        with tempfile.TemporaryDirectory() as folder:
            resources = Resources(compile="on" if compiled else "off", checkpoint_every_s=1e9)
            place = Workplace(folder=Path(folder), data=Path(), parents={}, resources=resources, stopped=stopped)
            model = build(make, 0, data.images.device)
            # One step more: the first one's start is not seen.
            train(model, data, replace(optim, images=(steps + 1) * optim.batch_size), 0, moves, place)
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
        with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
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
    """Return each side's seconds a step, one median for each of its turns, after a warm-up of all."""
    for turn in sides.values():
        turn(1)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, turn in sides.items():
            seconds[name].append(statistics.median(turn(steps)))
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float | None:
    """Return how many times as long the slow side takes: the median over turns; None where a side is missing."""
    if slow not in seconds or fast not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def check_compiled(config: UNetConfig, data: PairTensors) -> float:
    """Compile ours for two seeds; return the largest relative difference of a loss from eager's, or refuse it."""
    worst, graphs = 0.0, torch._dynamo.utils.counters["stats"]
    optim = OptimConfig(images=2 * len(data), batch_size=len(data), lr=1e-4, precision="fp32")
    for seed in (0, 1):
        losses, before = [], graphs["unique_graphs"]
        for way in ("off", "on"):
            with tempfile.TemporaryDirectory() as folder:
                place = Workplace(folder=Path(folder), data=Path(), parents={}, resources=Resources(compile=way))
                report = train(build(lambda: UNet(config), seed, data.images.device), data, optim, seed, None, place)
                losses.append(report.terms["loss"])
                if report.notes:
                    raise SystemExit(f"ours could not be compiled: {report.notes}")
        worst = max(worst, abs(losses[1] / losses[0] - 1))
        if not worst <= TOLERANCE:
            raise SystemExit(f"compiled, ours has a loss of {losses[1]}, eager {losses[0]}: nothing is compared")
        if seed and graphs["unique_graphs"] != before:
            raise SystemExit("a second seed was compiled anew: nothing is compared")
    return worst


def loop_seconds(log: list[dict[str, Any]]) -> float:
    """Return the seconds that an undisturbed run spent in its training loop, by its log."""
    (began,) = [entry["time"] for entry in log if entry.get("event") == "training"]
    return float([entry["time"] for entry in log if "event" not in entry][-1] - began)


def spent(plan: Plan, run_id: str) -> tuple[float, float]:
    """Return the seconds that a run took in its process, and those of them in its training loop."""
    place = plan.folder(run_id)
    result = read_result(place, run_id)
    assert result is not None
    return result.provenance.wall_s, loop_seconds(read_log(place))


def measure_overhead(seeds: int, alone: int, gpus: int) -> dict[str, float]:
    """Run the demo's reference arm as one element, and some of its runs as elements of their own.

    Returns:
        Wall time over the time in the training loops, seconds a run beside these, both ways; ``start_s``: seconds
        that an element takes once (its imports, first reading); and seconds in a training loop.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = make_plan(folder, seeds, gpus=gpus, threads=torch.get_num_threads(), compile="off")
        ids = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"]
        together = run_elements(plan, [tuple(ids)], folder / "together")
        apart = run_elements(plan, [(run_id,) for run_id in ids[:alone]], folder / "apart")
        in_bundle = [spent(replace(plan, runs_folder=folder / "together" / "runs"), run_id) for run_id in ids]
        in_turn = [spent(replace(plan, runs_folder=folder / "apart" / "runs"), run_id) for run_id in ids[:alone]]
    pure = sum(loop for _, loop in in_bundle)
    further = statistics.median(wall - loop for wall, loop in in_bundle[1:])
    beside_alone = (apart - sum(loop for _, loop in in_turn)) / alone
    return {
        "bundle_overhead": together / pure,
        "alone_overhead": 1 + beside_alone * alone / sum(loop for _, loop in in_turn),
        "overhead_s_a_run_bundled": (together - pure) / seeds,
        "overhead_s_a_run_alone": beside_alone,
        "start_s": beside_alone - further,
        "demo_training_s": pure / seeds,
    }


def plan_table_1() -> list[Run]:
    """Return table1's runs on made-up data sets of the real ones' sizes."""
    sweep = read_sweep("table1")
    sets = []
    for name, px in SIZES.items():
        number = sweep.split.train + sweep.split.test
        cases = tuple(
            CaseEntry(
                case_id=f"case-{i}",
                shard="",
                first_row=i,
                pairs=1,
                slices=(0,),
                tumour_px=(1,),
                spacing_mm=(),
                sources={},
            )
            for i in range(number)
        )
        manifest = Manifest(
            schema=MANIFEST_SCHEMA,
            name=name,
            modality="",
            recipe={},
            size_px=(px, px),
            shards=(),
            cases=cases,
            skipped=(),
            content_hash=name,
        )
        sets.append(dag.DataSet(name=name, folder=Path(name), manifest=manifest))
    return dag.expand(sweep, sets)


def operations(model: nn.Module, px: int) -> float:
    """Return the operations of a training step for one image of px x px, by torch's counter of what is multiplied."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        images = torch.empty(1, 1, px, px)
    with counter:
        model.to("meta")({"image": images, "mask": images}).total.backward()
    return float(counter.get_total_flops())


def operations_by_formula(config: UNetConfig, px: int) -> float:
    """Return the same by hand: two a multiplication; forward, and twice that backward but for the images' gradient."""
    base = config.base_channels
    total = base - 9 * base / 3  # the last layer, and what the first one is spared
    for level in range(config.depth + 1):
        width = base * 2**level
        down = 9 * (width * width + (width * width // 2 if level else width))
        up = 9 * (2 * width * width + width * width) + 2 * width * width if level < config.depth else 0
        total += (down + up) / 4**level
    return 3 * 2 * total * px**2


def project_table_1(
    runs: list[Run], steps: Callable[[Any, int], float] | None, beside: float, generators: bool = True
) -> dict[str, Any]:
    """Return table1's operations, and GPU-hours where steps can be measured.

    Args:
        runs: of the sweep.
        steps: returns the seconds an image takes in a run's training, for the config and the size in px.
        beside: seconds that a U-Net's run takes beside its steps.
        generators: whether to measure theirs.
    """
    segments = [run.config for run in runs if isinstance(run.config, SegmentConfig)]
    of_px = {px: operations(UNet(segments[0].unet), px) for px in SIZES.values()}
    images = {name: sum(c.optim.images for c in segments if c.data == name) for name in SIZES}
    total = sum(images[name] * of_px[px] for name, px in SIZES.items())
    by_formula = sum(images[name] * operations_by_formula(segments[0].unet, px) for name, px in SIZES.items())
    if abs(total / by_formula - 1) > 1e-3:
        raise SystemExit(f"{total:.4g} operations were counted, {by_formula:.4g} expected: nothing is projected")
    print(f"\nTable 1: {len(segments)} U-Nets, {sum(images.values()):,} images", flush=True)
    print(" + ".join(f"{images[name]:,} x {of_px[px] / 1e9:.0f} GFLOP ({px} px)" for name, px in SIZES.items()), end="")
    print(f" = {total / 1e18:.3f} EFLOP ({by_formula / 1e18:.3f} by formula): ", end="")
    print(f"{total / 788e12 / 3600:.2f} h at 788 TFLOP/s")
    found: dict[str, Any] = {"table1_runs": len(segments), "table1_eflop": total / 1e18, "table1_gpu_hours": None}
    if steps is None:
        print("GPU-hours: no GPU here, so no step to project them from")
        return found
    hours = {}
    for name, px in SIZES.items():
        config = next(c for c in segments if c.data == name)
        per_image = steps(config, px)
        number = sum(c.data == name for c in segments)
        hours[f"{number} U-Nets, {px} px"] = (images[name] * per_image + number * beside) / 3600
    unets = sum(hours.values())
    for run in runs:
        if generators and isinstance(run.config, TrainConfig):
            px = SIZES[run.config.data]
            hours[f"{run.config.generator}, {px} px"] = run.config.optim.images * steps(run.config, px) / 3600
    for name, value in hours.items():
        print(f"{name:24}{value:8.3f} h")
    print(f"{'sum':24}{sum(hours.values()):8.3f} h on one {torch.cuda.get_device_name()}")
    return {**found, "table1_unet_gpu_hours": unets, "table1_gpu_hours": sum(hours.values()) if generators else None}


def seconds_an_image(config: Any, px: int, device: torch.device, compiled: bool) -> float:
    """Measure the product's loop on a run of table1 and return its seconds an image, the flow's share weighted in."""
    data = make_pairs(4 * config.optim.batch_size, px, device)

    def measure(make: Callable[[], nn.Module], moves: MovesConfig | None) -> float:
        turn = in_the_loop(make, data, config.optim, compiled, moves)
        turn(1)
        return statistics.median(turn(20)) / config.optim.batch_size

    if isinstance(config, SegmentConfig):
        return measure(lambda: UNet(config.unet, config.loss), None)
    if not getattr(config.model, "n_leapfrog", 0):
        return measure(lambda: make_generator(config.model, (px, px)), config.moves)
    never, always = replace(config.model, flow_from=1.0), replace(config.model, flow_from=0.0, kl_warm_up=0.0)
    without = measure(lambda: make_generator(never, (px, px)), config.moves)
    with_flow = measure(lambda: make_generator(always, (px, px)), config.moves)
    return config.model.flow_from * without + (1 - config.model.flow_from) * with_flow


def measure_beside(device: torch.device, px: int, compiled: bool) -> tuple[float, float]:
    """Return the seconds that a run of table1's U-Net takes beside its training loop, and that compiling took.

    Few cases on a CPU, where their prediction is then scaled up by the time of a forward; all 100 on a GPU.
    """
    gpu, sweep = device.type == "cuda", read_sweep("table1")
    cases, batch, epochs, precision = (100, 32, 7, "bf16") if gpu else (2, 1, 1, "fp32")
    settings = replace(
        sweep.segment, epochs=epochs, optim={**sweep.segment.optim, "batch_size": batch, "precision": precision}
    )
    few = replace(sweep, split=replace(sweep.split, train=cases, test=cases), segment=settings)
    with tempfile.TemporaryDirectory() as name:
        how = {"gpus": int(gpu), "threads": torch.get_num_threads(), "compile": "on" if compiled else "off"}
        plan = plan_reference(few, Path(name), 2 * cases, 2, **how)
        ids = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"]
        for run_id in ids:
            report = execute(plan, run_id)
            if report.state != "done":
                raise SystemExit(f"a run of table1's network ended {report.state}: {report.message}")
        (_, first), (wall, second) = (spent(plan, run_id) for run_id in ids)
    model = build(lambda: UNet(sweep.segment.unet), 0, device)
    images = make_pairs(1, px, device).images
    times = []
    for _ in range(2):
        began = time.perf_counter()
        model.probability(images)  # type: ignore[operator]
        synchronise()
        times.append(time.perf_counter() - began)
    return wall - second + (sweep.split.test - cases) * min(times), first - second


def describe() -> Iterator[str]:
    """Name versions and hardware."""
    peers = ", ".join(f"{name} {number}" if number else f"no {name}" for name, number in versions().items())
    yield f"Python {platform.python_version()}, torch {torch.__version__}, {peers}"
    if torch.cuda.is_available():
        yield torch.cuda.get_device_name()
        return
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    yield f"{model}, {torch.get_num_threads()} threads"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 px, batch 4, 5 turns of 1 step, on a CPU")
    parser.add_argument("--px", type=int, help="side of the images (240; 64 with --quick)")
    parser.add_argument("--batch", type=int, help="pairs per step (32 on a GPU; 4)")
    parser.add_argument("--turns", type=int, help="of every side (9; 5 with --quick)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="(bf16 on a GPU, fp32 on a CPU)")
    parser.add_argument("--compile", action="store_true", help="compile on a CPU as well: minutes for each side")
    parser.add_argument(
        "--no-generators", action="store_true", help="project the U-Nets' GPU-hours alone: no compiling"
    )
    parser.add_argument("--seeds", type=int, default=10, help="in the bundle (default: %(default)s)")
    parser.add_argument("--alone", type=int, default=3, help="runs of elements of their own (default: %(default)s)")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    options.compile = options.compile or gpu
    options.px = options.px or (64 if options.quick and not gpu else 240)
    options.batch = options.batch or (32 if gpu else 4)
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
    hardware = list(describe())
    px, n, config = options.px, options.batch, UNetConfig()
    print("\n".join(hardware), f"\n{px}x{px} px, batch {n}, {options.precision}, 64 channels, 4 halvings", flush=True)

    data = make_pairs(2 * n, px, device)
    small = {"image": data.images[:2], "mask": data.masks[:2]}
    worst = 0.0
    for name, peer in make_peers(config).items():
        if name.endswith("_same"):
            worst = max(worst, check_same(build(lambda: UNet(config), 0, device), peer.to(device), small))
    print(f"logits, losses and gradients agree with the peers' blocks put together as ours to {worst:.1e}", flush=True)
    if options.compile:
        few = make_pairs(2, 64, device)
        print(f"compiled losses agree with eager ones to {check_compiled(config, few):.1e}", flush=True)

    optim = OptimConfig(images=n, batch_size=n, lr=1e-3, precision=options.precision)
    sides = {"ours": in_the_loop(lambda: UNet(config), data, optim, False)}
    peers = make_peers(config)
    sides |= {name: as_users_do(peer, data, optim, False) for name, peer in peers.items() if name != "nnunet_same"}
    if options.compile:
        sides["ours_compiled"] = in_the_loop(lambda: UNet(config), data, optim, True)
        sides |= {f"{name}_compiled": as_users_do(peers[name], data, optim, True) for name in peers if "_" not in name}
    seconds = take_turns(sides, options.turns, 20 if device.type == "cuda" else 1)
    weights = {"ours": UNet(config), **peers}
    print(f"\n{'':18}{'s a step':>10}{'images/s':>10}{'weights':>12}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        number = sum(weight.numel() for weight in weights[name.removesuffix("_compiled")].parameters())
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
    peak = next((peak for name, peak in PEAKS.items() if name in hardware[-1]), None)
    if peak and options.precision == "bf16":
        figures["share_of_peak"] = n * operations(UNet(config), px) / step / peak

    gpus = int(device.type == "cuda")
    overhead = measure_overhead(options.seeds, options.alone, gpus)
    print(f"\n{options.seeds} seeds of the demo's reference arm, {overhead['demo_training_s']:.2f} s of training each:")
    for what, name in (("one element", "bundle"), ("an element each", "alone")):
        beside = overhead[f"overhead_s_a_run_{'bundled' if name == 'bundle' else name}"]
        print(f"{what:16}{overhead[f'{name}_overhead']:6.2f} times their loops, {beside:.2f} s a run beside the loop")
    beside, compile_s = measure_beside(device, 240, options.compile)
    an_image = step / n * (1 if px == 240 else (240 / px) ** 2)
    runs = plan_table_1()
    lengths = [run.config.optim.images for run in runs if isinstance(run.config, SegmentConfig)]
    projected = {}
    for what, images in (("smallest", min(lengths)), ("mean", statistics.mean(lengths))):
        training = images * an_image
        cost = (overhead["start_s"] + max(0.0, compile_s) + options.seeds * (beside + training)) / options.seeds
        projected[f"bundle_overhead_table1_{what}"] = cost / training
        print(
            f"table1's {what} arm, 240 px, projected from steps of {px} px on this {device.type}: {training:,.0f} s of "
            f"training a seed, {beside:.2f} s beside it: {cost / training:.4f} times"
        )

    def steps(config: Any, size: int) -> float:
        return seconds_an_image(config, size, device, options.compile)

    figures |= overhead | projected | project_table_1(runs, steps if gpus else None, beside, not options.no_generators)
    kept = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    setting = {"px": px, "batch": n, "precision": options.precision, "device": hardware[-1]}
    print(json.dumps({**kept, **setting, "versions": {"torch": torch.__version__, **versions()}}))


if __name__ == "__main__":
    main()
