"""A training step of our HVAE and VAE against a naive HVAE step and pythae's models.

All sides take the same batch through table1's default network (64 px with --quick, else 240).
First, our steps (eager and compiled) and the naive step must agree on the loss and on every
gradient. Then the sides take turns, step by step. The script prints medians. A ratio is the median
of the ratios of steps that follow each other.

* naive: the bound as one writes it down. Each leap takes two gradients by
  autograd.grad(create_graph=True). The likelihood at the end is decoded once more. Upsampling
  repeats pixels and convolves. Nothing is compiled. naive_blocks: the same with our upsampling.
* monai: a diffusion model's step and draws with MONAI's network of equal width (edm_sides.py).
* pythae's VAE and HVAE (0.1.2) on the same encoder and decoder. Its HVAE step is cheaper than a
  correct one, because it detaches the force: it does not follow the gradient of its bound.

On a CPU everything is float32. On a GPU the precision is --precision, bf16 by default. There, naive
is also measured in float32 with TF32 off, and the share of the device's peak is printed.

    python benchmarks/generators.py [--quick] [--repeats 7] [--batch 32] [--micro-batch 32]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable

import torch
from edm_sides import edm_sides
from generator_sides import Networks, Side, make_networks, make_sides, pythae_sides
from peak_memory import peak_memory
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from turns import name_device, peak_of, ratio, synchronise

from hvae_hpc.models.hvae import HVAE
from hvae_hpc.training.device import CompiledForward

TOLERANCE = 1e-3  # of a gradient's norm, float32


def check_all_equal(exact: dict[str, Side], compiled: Iterable[CompiledForward]) -> float:
    """Return the largest relative difference of a gradient between sides in float32.

    Raises:
        SystemExit: a loss or a gradient differs by more than ``TOLERANCE``, or compiling failed.
    """
    hvaes = [side for name, side in exact.items() if not name.startswith("vae")]
    worst = check_equal(hvaes, exact["naive"])
    if "vae_compiled" in exact:
        worst = max(worst, check_equal([exact["vae_compiled"]], exact["vae_eager"]))
    require_compiled(compiled)
    return worst


def check_equal(sides: list[Side], reference: Side) -> float:
    """Return the largest relative difference of a gradient; refuse over ``TOLERANCE``."""
    loss = float(reference.step())
    wanted = {name: grad.clone() for name, grad in gradients(reference.model).items()}
    whole = torch.stack([grad.norm() for grad in wanted.values()]).norm()

    worst = 0.0
    for side in sides:
        got = float(side.step())
        if abs(got - loss) > TOLERANCE * abs(loss):
            raise SystemExit(
                f"{side.name} has a loss of {got}, {reference.name} one of {loss}: "
                "nothing is compared"
            )

        grads = gradients(side.model)
        for name, grad in wanted.items():
            # The gradient of a bias before a normalisation is all rounding error. So a small
            # gradient is compared with the norm of all gradients.
            difference = float(
                (grads[name] - grad).norm() / torch.maximum(grad.norm(), 1e-3 * whole)
            )
            worst = max(worst, difference)
            if not difference <= TOLERANCE:
                raise SystemExit(
                    f"{side.name}: the gradient of {name} differs by {difference:.2g}: "
                    "nothing is compared"
                )
    return worst


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of the weights that have one."""
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def require_compiled(forwards: Iterable[CompiledForward]) -> None:
    """Stop if a compilation failed: an eager step must not pass for a compiled one."""
    for forward in forwards:
        if not forward.parts:
            raise SystemExit(f"nothing is compared: {'; '.join(forward.notes)}")


def take_turns(sides: list[Side], repeats: int) -> dict[str, list[float]]:
    """Return each side's seconds per step, ``repeats`` of them, taken in turns."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            synchronise()
            started = time.perf_counter()
            side.step()
            synchronise()
            seconds[side.name].append(time.perf_counter() - started)
    return seconds


def forward_seconds(
    model: HVAE,
    batch: dict[str, Tensor],
    micro_batch: int,
    repeats: int,
    autocast: torch.dtype | None,
) -> tuple[float, float]:
    """Return the median seconds of a forward of the encoder and of the decoder, whole batch."""
    pair = torch.cat([batch["image"], batch["mask"]], 1)
    pairs, z = pair.split(micro_batch), batch["noise"].split(micro_batch)
    sides = [
        Side(
            name="e",
            model=model,
            step=lambda: torch.stack([model.encoder(x)[0].sum() for x in pairs]),
        ),
        Side(
            name="d", model=model, step=lambda: torch.stack([model.decoder(x)[0].sum() for x in z])
        ),
    ]
    device = batch["image"].device.type
    with (
        torch.no_grad(),
        torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        for side in sides:
            side.step()
        seconds = take_turns(sides, max(5, repeats))
    return statistics.median(seconds["e"]), statistics.median(seconds["d"])


def describe() -> str:
    """Name versions and hardware."""
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    try:
        versions.append(f"pythae {importlib.metadata.version('pythae')}")
    except importlib.metadata.PackageNotFoundError:
        versions.append("no pythae")
    return f"{', '.join(versions)}\n{name_device()}"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="64 px, batch 8, 5 repeats")
    parser.add_argument("--px", type=int, help="side of the images (240; 64 with --quick)")
    parser.add_argument("--batch", type=int, help="pairs per step (32; 8 with --quick)")
    parser.add_argument("--micro-batch", type=int, help="pairs at a time, all sides (all)")
    parser.add_argument("--repeats", type=int, help="of every measurement (9; 5 with --quick)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="(bf16 on a GPU, fp32 on a CPU)"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    options.px = options.px or (64 if options.quick else 240)
    options.batch = options.batch or (8 if options.quick else 32)
    options.micro_batch = options.micro_batch or options.batch
    options.repeats = options.repeats or (5 if options.quick else 9)
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    if options.batch % options.micro_batch:
        parser.error(
            f"--batch {options.batch} is no multiple of --micro-batch {options.micro_batch}"
        )
    return options


def measure_memory(sides: list[Side], device: torch.device, warm_up: bool) -> dict[str, float]:
    """Return the peak memory of each side's step above its start, MiB."""
    memory = {}
    for side in sides:
        if warm_up:
            side.step()
        with peak_memory(device) as peak_mib:
            side.step()
            synchronise()
        memory[side.name] = peak_mib[0]
    return memory


def count_operations(side: Side) -> float:
    """Return the operations of one step, by torch's counter."""
    counter = FlopCounterMode(display=False)
    with counter:
        side.step()
    return counter.get_total_flops()


def print_steps(seconds: dict[str, list[float]], memory: dict[str, float], n: int) -> None:
    """Print a table with a line for each side."""
    print(f"\n{'':14}{'s a step':>10}{'images/s':>10}{'peak MiB':>10}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:14}{middle:10.3f}{n / middle:10.1f}{memory[name]:10.0f}")


def compare(
    seconds: dict[str, list[float]], encoder_s: float, decoder_s: float, operations: float
) -> dict[str, float | None]:
    """Return the figures; a ratio is None where one of its sides was not measured.

    The pass count is what a right HVAE step (K = 3) costs over a VAE step, by passes through the
    networks: a backward pass counts as two forward passes.
    """
    best = "compiled" if "hvae_compiled" in seconds else "eager"
    step_ratio = ratio(seconds, f"hvae_{best}", f"vae_{best}")
    passes = (3 * encoder_s + 6 * 4 * decoder_s) / (3 * encoder_s + 3 * decoder_s)
    return {
        "hvae_compiled_vs_naive": ratio(seconds, "naive", "hvae_compiled"),
        "hvae_compiled_vs_naive_blocks": ratio(seconds, "naive_blocks", "hvae_compiled"),
        "hvae_eager_vs_naive": ratio(seconds, "naive", "hvae_eager"),
        "hvae_compiled_vs_naive_fp32": ratio(seconds, "naive_fp32", "hvae_compiled"),
        "hvae_vs_vae": step_ratio,
        "pass_count": passes,
        "hvae_vs_vae_over_pass_count": step_ratio / passes if step_ratio else None,
        "vae_vs_pythae": ratio(seconds, "pythae_vae", f"vae_{best}"),
        "vae_eager_vs_pythae": ratio(seconds, "pythae_vae", "vae_eager"),
        "pythae_hvae_vs_hvae": ratio(seconds, f"hvae_{best}", "pythae_hvae"),
        "forward_encoder_s": encoder_s,
        "forward_decoder_s": decoder_s,
        "tflop_a_step": operations / 1e12,
    }


def measure(
    options: argparse.Namespace, networks: Networks, device: torch.device
) -> dict[str, float | None]:
    """Check that the sides agree, measure them, print what they take, and return the figures."""
    # In float32 all sides must do the same work; only then is their speed compared.
    started = time.perf_counter()
    exact = make_sides(networks, options.micro_batch, None)
    worst = check_all_equal(exact, networks.compiled.values())
    took = time.perf_counter() - started
    print(
        f"losses and gradients agree to {worst:.1e} in float32 ({took:.0f} s, compiling included)",
        flush=True,
    )

    # What takes turns: our sides in the precision asked for, pythae's, and naive in float32.
    autocast = torch.bfloat16 if options.precision == "bf16" else None
    sides = [
        *make_sides(networks, options.micro_batch, autocast).values(),
        *pythae_sides(options.px, networks.batch, options.micro_batch, autocast),
    ]
    if autocast:
        naive = exact["naive"]
        sides.append(Side(name="naive_fp32", model=naive.model, step=naive.step))

    # With autocast no side has taken a step yet: its first one compiles.
    encoder_s, decoder_s = forward_seconds(
        networks.hvae, networks.batch, options.micro_batch, options.repeats, autocast
    )
    memory = measure_memory(sides, device, warm_up=autocast is not None)
    require_compiled(networks.compiled.values())
    seconds = take_turns(sides, options.repeats)
    operations = count_operations(next(side for side in sides if side.name == "hvae_eager"))

    print_steps(seconds, memory, options.batch)
    figures = compare(seconds, encoder_s, decoder_s, operations)
    print(
        f"\npass count (3 e + 24 d) / (3 e + 3 d) with e = {encoder_s:.3f} s, "
        f"d = {decoder_s:.3f} s: {figures['pass_count']:.2f}"
    )
    peak = peak_of(name_device())
    if peak and autocast and "hvae_compiled" in seconds:
        step_s = statistics.median(seconds["hvae_compiled"])
        figures["share_of_peak"] = operations / step_s / peak
    return figures


def measure_edm(options: argparse.Namespace, device: torch.device) -> dict[str, float | None]:
    """Measure the diffusion model beside MONAI's network, print what they take, and compare."""
    autocast = torch.bfloat16 if options.precision == "bf16" else None
    try:
        sides = edm_sides(options.px, options.batch, not options.no_compile, autocast, device)
    except ImportError as error:
        print(f"MONAI is not installed ({error}); its figures are null: pip install '.[dev]'")
        return {"edm_vs_monai": None}

    memory = measure_memory([*sides.values()], device, warm_up=True)
    require_compiled([] if options.no_compile else [sides["edm_compiled"].model])
    seconds = take_turns([*sides.values()], options.repeats)
    print_steps(seconds, memory, options.batch)
    more = count_operations(sides["monai"]) / count_operations(sides["edm_eager"])
    best = "edm_compiled" if "edm_compiled" in seconds else "edm_eager"
    of_steps = ratio(seconds, "monai", best)
    figures = {
        "edm_vs_monai": of_steps,
        "edm_vs_monai_per_operation": of_steps / more if of_steps else None,
        "edm_eager_vs_monai": ratio(seconds, "monai", "edm_eager"),
        "edm_draw_vs_monai": ratio(seconds, "monai_draw", "edm_draw"),
        "monai_operations_vs_edm": more,
    }
    print(f"MONAI's network takes {more:.2f} times our operations")
    return figures


def main() -> None:
    """Measure, print a table, and end with one line of JSON."""
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    px, n, micro = options.px, options.batch, options.micro_batch
    print(
        f"{describe()}\n{px}x{px} px, batch {n}, {micro} at a time, {options.precision}, K = 3",
        flush=True,
    )

    networks = make_networks(px, n, not options.no_compile, device)
    figures = measure(options, networks, device)
    del networks  # what torch compiled for them goes too
    figures |= measure_edm(options, device)
    rounded = {
        name: None if value is None else float(f"{value:.4g}") for name, value in figures.items()
    }
    setting = {
        "px": px,
        "batch": n,
        "micro_batch": micro,
        "precision": options.precision,
        "device": name_device(),
    }
    print(json.dumps({**rounded, **setting}))


if __name__ == "__main__":
    main()
