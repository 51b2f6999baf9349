"""Training on a real GPU: the CPU's numbers, compiled and eager alike, no wait in a step, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hvae_hpc.config.model import MovesConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training import loop
from hvae_hpc.training.batches import PairTensors, to_tensors
from hvae_hpc.training.device import build, choose_device
from tests.gpu_without_gpu.networks import NETWORKS, SMALL_NETWORKS
from tests.gpu_without_gpu.trained import bound, draw
from tests.tiny import make_pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

PX, BATCH = 32, 8
HVAES = ("small_hvae", "small_hvae_gan", "small_fixed", "small_metropolis")


@pytest.fixture(autouse=True)
def _as_the_product() -> None:
    """Choose the device's memory and algorithms as the product does."""
    resources = Resources(gpus=1)
    choose_device(Workplace(folder=Path(), data=Path(), parents={}, resources=resources))


def pairs(device: str) -> PairTensors:
    return to_tensors(make_pairs(16, PX), 0).to(torch.device(device))


def train(
    name: str,
    folder: Path,
    device: str = "cuda",
    precision: str = "fp32",
    compile: str = "off",
    stop_after: int = 0,
    optimizer: str = "adamw",
) -> loop.TrainReport | None:
    """Train a small network for eight steps; stop_after is the step after which it is to leave."""
    folder.mkdir(exist_ok=True)
    asked = iter(range(1, 100))
    place = Workplace(
        folder=folder,
        data=Path(),
        parents={},
        resources=Resources(compile=compile, gpus=int(device == "cuda")),  # type: ignore[arg-type]
        stopped=lambda: next(asked) == stop_after,
    )
    optim = OptimConfig(
        images=8 * BATCH,
        batch_size=BATCH,
        lr=1e-4,
        precision=precision,
        optimizer=optimizer,
        ema_decay=0.9,  # type: ignore[arg-type]
    )
    model = build(lambda: NETWORKS[name](PX), 0, torch.device(device))
    return loop.train(model, pairs(device), optim, 0, MovesConfig(), place)


def loss_of(report: loop.TrainReport | None) -> float:
    return next(value for name, value in report.terms.items() if name.startswith("loss"))


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_a_training_has_the_cpu_s_losses(name: str, tmp_path: Path) -> None:
    on_cpu = train(name, tmp_path / "cpu", device="cpu")
    on_gpu = train(name, tmp_path / "cuda")
    assert loss_of(on_gpu) == pytest.approx(loss_of(on_cpu), rel=1e-2)


def test_sgd_takes_the_cpu_s_steps(tmp_path: Path) -> None:
    on_cpu = train("small_unet", tmp_path / "cpu", device="cpu", optimizer="sgd")
    on_gpu = train("small_unet", tmp_path / "cuda", optimizer="sgd")
    assert loss_of(on_gpu) == pytest.approx(loss_of(on_cpu), rel=1e-2)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_half_precision_trains_near_float32(name: str, tmp_path: Path) -> None:
    full = loss_of(train(name, tmp_path / "fp32"))
    for precision in ("bf16",) if name in HVAES else ("bf16", "fp16"):
        half = loss_of(train(name, tmp_path / precision, precision=precision))
        assert half == pytest.approx(full, rel=0.2)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_no_step_waits_for_the_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = loop._Training.take_step

    def take_step_without_waiting(self: loop._Training) -> dict[str, torch.Tensor]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return take_step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop._Training, "take_step", take_step_without_waiting)
    assert train(name, tmp_path / "run", precision="bf16") is not None


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = train(name, tmp_path / "whole")
    assert train(name, tmp_path / "parts", stop_after=5) is None
    resumed = train(name, tmp_path / "parts")
    assert whole is not None
    assert resumed is not None
    for key, value in whole.weights.items():
        torch.testing.assert_close(resumed.weights[key], value, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["small_hvae", "small_edm", "small_edm_given_mask"])
def test_pairs_are_drawn_and_likelihoods_bounded(name: str) -> None:
    model = build(lambda: NETWORKS[name](PX), 0, torch.device("cuda")).eval()
    config: Any = model.config
    for sampler in config.samplers:
        draw(sampler, 32, model, pairs("cuda"))
    if getattr(config, "has_density", False):
        bound(32, model, pairs("cuda"))


@pytest.mark.parametrize("mode", ["on", "cuda_graphs"])
@pytest.mark.parametrize("name", ["small_unet", "small_lsgan", "small_hvae", "small_edm"])
def test_a_compiled_training_is_near_the_eager_one(name: str, mode: str, tmp_path: Path) -> None:
    compiled = train(name, tmp_path / "compiled", compile=mode)
    assert not compiled.notes, "it was not compiled"
    assert loss_of(compiled) == pytest.approx(loss_of(train(name, tmp_path / "eager")), rel=1e-2)
