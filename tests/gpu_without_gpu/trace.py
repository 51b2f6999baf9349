"""Train networks on the fake device for a few steps, by the product's own loop, and say what was seen."""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from hvae_hpc.config.model import MovesConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training import loop
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build, choose_device
from hvae_hpc.training.held_out import BestWeights
from tests.gpu_without_gpu.fake_cuda import move_to_device
from tests.gpu_without_gpu.networks import NETWORKS
from tests.gpu_without_gpu.recorder import Recorder

PAIRS = 100
"""Of a table1 split."""
GIB = 2**30
MODE = FakeTensorMode()
"""One for the process: the product keeps orders of images from one training to the next."""


def trace(
    model: nn.Module, px: int, optim: OptimConfig, resources: Resources, capacity: float
) -> dict[str, Any]:
    """Train a network on the fake device; return what was seen, as plain data.

    Args:
        model: on the CPU.
        px: side of the images.
        optim, resources: as in a sweep's and a site's file.
        capacity: bytes of the device.
    """
    counters.clear()
    with MODE, tempfile.TemporaryDirectory() as folder, Recorder(capacity) as recorder:
        workplace = Workplace(folder=Path(folder), data=Path(), parents={}, resources=resources)
        device = choose_device(workplace)
        images, masks = (torch.empty(PAIRS, 1, px, px, device=device) for _ in range(2))
        data = PairTensors(images=images, masks=masks)
        move_to_device(model)
        if hasattr(model, "recompute"):
            model.recompute = resources.recompute
        if hasattr(model, "measure"):
            model.measure(images, masks)  # type: ignore[operator]
        rehearsed: dict[str, Any] = {}
        run = loop._Training.run

        def run_rehearsed(*of: Any) -> loop.TrainReport | None:
            rehearsed["peak"], recorder.peak = recorder.peak, recorder.live
            rehearsed["graphs"] = counters["stats"]["unique_graphs"]
            return run(*of)

        config: Any = getattr(model, "config", None)
        held_out = PairTensors(images=images[:10], masks=masks[:10])
        best = BestWeights(model, held_out, optim, 2) if getattr(config, "held_out", 0) else None
        with mock.patch.object(loop._Training, "run", run_rehearsed):
            report = loop.train(model, data, optim, 0, MovesConfig(), workplace, best)

    assert report is not None
    gave_up = sum("torch.compile failed" in note for note in report.notes)
    return {
        "peak_gib": round(recorder.peak / GIB, 2),
        "rehearsed_gib": round(rehearsed["peak"] / GIB, 2),
        "fits_as_rehearsed": recorder.peak <= rehearsed["peak"],
        "graphs": counters["stats"]["unique_graphs"],
        "late_graphs": counters["stats"]["unique_graphs"] - rehearsed["graphs"],
        "cuda_graphs": counters["inductor"]["cuda_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()) + gave_up,
        "step_waits": recorder.step_waits,
        "waits": recorder.waits,
        "notes": report.notes,
    }


def read_words(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_without_gpu")
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--precision", nargs="+", default=["bf16"])
    parser.add_argument("--px", type=int, default=240)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compile", choices=("off", "graphs", "on", "cuda_graphs"), default="off")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--trained", action="store_true", help="draw pairs, bound likelihoods")
    parser.add_argument("--optimizers", action="store_true", help="steps of the optimizers alone")
    parser.add_argument("--card-gib", type=float, default=float("inf"))
    parser.add_argument(
        "--kernels", nargs="*", default=[], help="such as sm_80 sm_90; needs triton"
    )
    parser.add_argument("--most-forms", type=int, default=0, help="of each kernel; 0 for all")
    return parser.parse_args(words)


def trace_others(asked: argparse.Namespace) -> None:
    """Trace what is not a training: optimizers, or the use of trained networks."""
    # Only here: these need this module.
    from tests.gpu_without_gpu.optimizer_steps import trace_optimizer
    from tests.gpu_without_gpu.trained import trace_use

    for name in asked.networks:
        for kind in ("adamw", "sgd") if asked.optimizers else ("",):
            model = build(lambda name=name: NETWORKS[name](asked.px), 0, torch.device("cpu"))
            if kind:
                optim = OptimConfig(images=32, optimizer=kind)  # type: ignore[arg-type]
                seen = {"optimizer": kind, **trace_optimizer(model, optim)}
            else:
                seen = trace_use(model, asked.px, asked.card_gib * GIB, asked.micro_batch)
            print(json.dumps({"network": name, **seen}), flush=True)


def main(words: list[str]) -> None:
    """Trace what the command line asks for, and print a line of JSON for each network."""
    asked = read_words(words)
    if asked.trained or asked.optimizers:
        trace_others(asked)
        return

    kernels: list[Any] = []
    if asked.compile != "off":
        # Only here: its import takes longer than that of the rest of torch.
        from tests.gpu_without_gpu import fake_inductor

        fake_inductor.install(kernels, graphs_only=asked.compile == "graphs")

    resources = Resources(
        gpus=1,
        compile="on" if asked.compile == "graphs" else asked.compile,
        recompute=asked.recompute,
        micro_batch=asked.micro_batch,
        checkpoint_every_s=1e9,  # a tensor without numbers cannot be saved
    )
    for name, precision in itertools.product(asked.networks, asked.precision):
        optim = OptimConfig(
            images=asked.steps * asked.batch,
            batch_size=asked.batch,
            precision=precision,
            ema_decay=0.0 if name.endswith("unet") else 0.999,
        )
        model = build(lambda name=name: NETWORKS[name](asked.px), 0, torch.device("cpu"))
        seen = trace(model, asked.px, optim, resources, asked.card_gib * GIB)
        print(json.dumps({"network": name, "precision": precision, **seen}), flush=True)

    if asked.kernels:
        from tests.gpu_without_gpu import compile_kernels

        result = compile_kernels.compile_all(kernels, asked.kernels, asked.most_forms)
        print(json.dumps(result), flush=True)
        if result["failed"]:
            raise SystemExit(f"{len(result['failed'])} kernels failed")
