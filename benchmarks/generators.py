"""A training step of our HVAE and VAE against a naive HVAE step and pythae's models.

All sides take the same batch through table1's default network (64 px with --quick, else 240).
First, ours (eager and compiled) and the naive step must agree on the loss and on every gradient.
Then all take turns, step by step; printed are medians, and ratios are medians of the ratios of
neighbours.

* naive: the bound as one writes it down: two gradients per leap by
  autograd.grad(create_graph=True), one more decoding for the likelihood at the end, upsampling by
  repeating pixels and convolving, eager. naive_blocks: the same with our upsampling.
* pythae's VAE and HVAE (0.1.2) on the same encoder and decoder. Its HVAE step is cheaper than a
  right one, because it detaches the force: what it follows is not its bound's gradient.

On a CPU everything is float32. On a GPU, --precision bf16 (the default there) or fp32; naive is
measured in float32 with TF32 off as well, and the share of the device's peak is printed.

    python benchmarks/generators.py [--quick] [--repeats 7] [--batch 32] [--micro-batch 32]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from generator_peers import (
    Side,
    make_model,
    make_step,
    naive_loss,
    pythae_sides,
    repeat_and_convolve,
)
from peak_memory import peak_memory
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from turns import name_device, peak_of, ratio, synchronise

from hvae_hpc.config.resources import Resources
from hvae_hpc.models.blocks import Upsample
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.device import CompiledForward

TOLERANCE = 1e-3  # of a gradient's norm, float32


def make_batch(model: HVAE, n: int, px: int, device: torch.device) -> dict[str, Tensor]:
    """Draw a batch of made-up pairs and what the model draws."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, 1, px, px, generator=generator)
    drawn = model.draw(n, 1.0, generator)
    return {
        name: x.to(device)
        for name, x in {"image": image, "mask": (image > 0.8).float(), **drawn}.items()
    }


def check_equal(sides: list[Side], reference: Side) -> float:
    """Return the largest relative difference of a gradient; refuse over ``TOLERANCE``."""
    loss = float(reference.step())
    wanted = {
        name: weight.grad.clone()
        for name, weight in reference.model.named_parameters()
        if weight.grad is not None
    }
    whole = torch.stack([grad.norm() for grad in wanted.values()]).norm()
    worst = 0.0
    for side in sides:
        got = float(side.step())
        if abs(got - loss) > TOLERANCE * abs(loss):
            raise SystemExit(
                f"{side.name} has a loss of {got}, {reference.name} one of {loss}: "
                "nothing is compared"
            )
        grads = {
            name: weight.grad
            for name, weight in side.model.named_parameters()
            if weight.grad is not None
        }
        for name, grad in wanted.items():
            # A bias before a normalisation has a gradient of rounding errors; so
            # small ones count against the whole.
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


def require_compiled(forwards: Iterable[CompiledForward]) -> None:
    """Stop where a compilation failed: an eager step is not to be taken for a compiled one."""
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
    """Return the median seconds of a forward of encoder and decoder, whole batch."""
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


def main() -> None:
    """Measure, print a table, and end with one line of JSON."""
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    px, n, micro = options.px, options.batch, options.micro_batch
    place = Workplace(
        folder=Path(tempfile.gettempdir()), data=Path(), parents={}, resources=Resources()
    )
    print(
        f"{describe()}\n{px}x{px} px, batch {n}, {micro} at a time, {options.precision}, K = 3",
        flush=True,
    )
    hvae, vae = make_model(3, px, device), make_model(0, px, device)
    plain_hvae = make_model(3, px, device)
    for block in plain_hvae.modules():
        if isinstance(block, Upsample):
            block.forward = partial(repeat_and_convolve, block)
    batch, plain = make_batch(hvae, n, px, device), make_batch(vae, n, px, device)

    def side(
        name: str,
        model: HVAE,
        loss: Callable[[dict[str, Tensor]], Tensor],
        of: dict[str, Tensor],
        cast: str,
    ) -> Side:
        step = make_step(loss, model, of, micro, torch.bfloat16 if cast == "bf16" else None)
        return Side(name=name, model=model, step=step)

    compiled = {}
    if not options.no_compile:
        for n_leapfrog in (3, 0):
            model = make_model(n_leapfrog, px, device)
            compiled[n_leapfrog] = CompiledForward(model, True, place)

    def all_sides(cast: str) -> list[Side]:
        sides = [
            side("naive", plain_hvae, lambda part: naive_loss(plain_hvae, part), batch, cast),
            side("naive_blocks", hvae, lambda part: naive_loss(hvae, part), batch, cast),
            side("hvae_eager", hvae, lambda part: hvae(part).total, batch, cast),
            side("vae_eager", vae, lambda part: vae(part).total, plain, cast),
        ]
        if compiled:
            for name, k, of in (("hvae_compiled", 3, batch), ("vae_compiled", 0, plain)):
                forward = compiled[k]
                sides.append(
                    side(
                        name, forward.model, lambda part, f=forward: f(part, "elbo").total, of, cast
                    )
                )
        return sides

    exact = {side.name: side for side in all_sides("fp32")}
    started = time.perf_counter()
    worst = check_equal(
        [s for name, s in exact.items() if "vae" not in name or "hvae" in name], exact["naive"]
    )
    if "vae_compiled" in exact:
        worst = max(worst, check_equal([exact["vae_compiled"]], exact["vae_eager"]))
    require_compiled(compiled.values())
    took = time.perf_counter() - started
    print(
        f"losses and gradients agree to {worst:.1e} in float32 ({took:.0f} s, compiling included)",
        flush=True,
    )

    cast = torch.bfloat16 if options.precision == "bf16" else None
    sides = [*all_sides(options.precision), *pythae_sides(px, batch, micro, cast)]
    if options.precision == "bf16":
        naive = exact["naive"]
        sides.append(Side(name="naive_fp32", model=naive.model, step=naive.step))
    e, d = forward_seconds(hvae, batch, micro, options.repeats, cast)
    memory = {}
    for one in sides:
        if cast:  # nothing has run in this precision yet
            one.step()
        with peak_memory(device) as found:
            one.step()
            synchronise()
        memory[one.name] = found[0]
    require_compiled(compiled.values())
    seconds = take_turns(sides, options.repeats)
    counter = FlopCounterMode(display=False)
    with counter:
        next(s for s in sides if s.name == "hvae_eager").step()
    operations = counter.get_total_flops()

    print(f"\n{'':14}{'s a step':>10}{'images/s':>10}{'peak MiB':>10}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:14}{middle:10.3f}{n / middle:10.1f}{memory[name]:10.0f}")
    passes = (3 * e + 6 * 4 * d) / (3 * e + 3 * d)
    best = "compiled" if not options.no_compile else "eager"
    step_ratio = ratio(seconds, f"hvae_{best}", f"vae_{best}")
    figures = {
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
        "forward_encoder_s": e,
        "forward_decoder_s": d,
        "tflop_a_step": operations / 1e12,
    }
    print(
        f"\npass count (3 e + 24 d) / (3 e + 3 d) with e = {e:.3f} s, d = {d:.3f} s: {passes:.2f}"
    )
    if device.type == "cuda" and "hvae_compiled" in seconds and options.precision == "bf16":
        peak = peak_of(name_device())
        if peak:
            figures["share_of_peak"] = (
                operations / statistics.median(seconds["hvae_compiled"]) / peak
            )
    kept = {
        name: None if value is None else float(f"{value:.4g}") for name, value in figures.items()
    }
    setting = {
        "px": px,
        "batch": n,
        "micro_batch": micro,
        "precision": options.precision,
        "device": name_device(),
    }
    print(json.dumps({**kept, **setting}))


if __name__ == "__main__":
    main()
