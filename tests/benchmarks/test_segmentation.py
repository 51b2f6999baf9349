"""benchmarks/segmentation.py: the peers do the same work as ours, and its sums are what they claim."""

import importlib
from typing import Any

import pytest
import torch

from hvae_hpc.config.model import HVAEConfig, LSGANConfig, NetworkConfig, OptimConfig, UNetConfig
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.models.unet import UNet
from tests import ROOT

SMALL = UNetConfig(base_channels=4, depth=4)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("segmentation")


@pytest.fixture
def cost(bench: Any) -> Any:
    return importlib.import_module("table1_cost")


def batch(n: int, px: int) -> dict[str, torch.Tensor]:
    images = torch.rand(n, 1, px, px, generator=torch.Generator().manual_seed(0))
    return {"image": images.double(), "mask": (images > 0.8).double()}


@pytest.mark.parametrize("name", ["monai", "nnunet"])
def test_a_peer_s_blocks_put_together_as_ours_are_our_network_and_others_are_refused(
    bench: Any, name: str
) -> None:
    peers = bench.make_peers(SMALL)
    if name not in peers:
        pytest.skip(f"{name} is not installed")
    same, sizes = (
        peers[f"{name}_same"].double(),
        {key: sum(w.numel() for w in peer.parameters()) for key, peer in peers.items()},
    )
    ours = UNet(SMALL).double()
    assert bench.check_same(ours, same, batch(2, 32)) < 1e-6
    # nnU-Net's transposed convolutions have no biases, and it has three outputs more for deep
    # supervision.
    widths = [4 * 2**level for level in range(4)]
    others = sum(width + 1 for width in widths[1:]) - sum(widths) if name == "nnunet" else 0
    assert sizes[f"{name}_same"] == sum(w.numel() for w in ours.parameters()) + others
    with torch.no_grad():
        next(m for m in same.modules() if isinstance(m, torch.nn.BatchNorm2d)).eps = 0.1
    with pytest.raises(SystemExit, match="with equal weights our logits and"):
        bench.check_same(ours, same, batch(2, 32))


def test_table_1_is_320_runs_and_its_operations_are_the_formula_s(
    cost: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for config, px in (
        (UNetConfig(base_channels=8, depth=3), 40),
        (UNetConfig(base_channels=4, depth=1), 16),
    ):
        assert cost.operations(UNet(config), px) == pytest.approx(
            cost.operations_by_formula(config, px), rel=1e-12
        )
    runs = cost.plan_table_1()
    found = cost.project_table_1(runs, lambda config, px: 3600 / config.optim.images, 36.0)
    assert found["table1_runs"] == 320
    assert found["table1_eflop"] == pytest.approx(2.428, rel=1e-3)
    # An hour for each generator and for as many images as the first U-Net sees, by whose step
    # all of a size are timed.
    first = next(run.config.optim.images for run in runs if run.stage == "segment")
    assert found["table1_gpu_hours"] == pytest.approx(2 * 4_480_000 / first + 320 * 36 / 3600 + 6)


def test_the_time_in_a_loop_is_from_its_beginning_to_its_last_window(bench: Any) -> None:
    log = [
        {"event": "started", "time": 100.0},
        {"event": "training", "time": 103.0},
        {"images_seen": 400, "time": 110.0},
        {"images_seen": 560, "time": 113.5},
    ]
    assert importlib.import_module("overhead").loop_seconds(log) == 10.5


def test_steps_are_timed_inside_the_product_s_loop_and_as_users_write_them(bench: Any) -> None:
    data = bench.make_pairs(8, 16, torch.device("cpu"))
    optim = OptimConfig(images=4, batch_size=4, precision="fp32")
    config = UNetConfig(base_channels=4, depth=2)
    ours = bench.in_the_loop(lambda: UNet(config), data, optim, False)
    peers = bench.make_peers(config)
    assert "monai" not in peers  # it has four halvings and no others
    sides = {"ours": ours, "theirs": bench.as_users_do(UNet(config), data, optim, False)}
    assert all(len(turn(3)) == 3 and min(turn(1)) > 0 for turn in sides.values())
    seconds = bench.take_turns(sides, 2, 1)
    assert {name: len(times) for name, times in seconds.items()} == {"ours": 2, "theirs": 2}
    assert bench.ratio(seconds, "monai", "ours") is None
    assert bench.ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 1.0, 3.0]}, "a", "b") == 3.0


def test_a_generator_s_seconds_are_those_with_and_without_the_flow_by_their_shares(
    cost: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def in_the_loop(make: Any, data: Any, optim: Any, compiled: bool, moves: Any) -> Any:
        model = make()
        flow = getattr(model, "config", None) and getattr(model.config, "flow_from", 1.0)
        asked.append(flow)
        return lambda steps: [optim.batch_size * (10.0 if flow == 0.0 else 1.0)] * steps

    monkeypatch.setattr(cost, "in_the_loop", in_the_loop)
    network = NetworkConfig(
        channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=4
    )
    common = {
        "data": "x",
        "generator": "g",
        "split": SplitConfig(),
        "image_px": 0,
        "optim": OptimConfig(images=320),
    }
    for model, seconds in (
        (HVAEConfig(network=network, n_leapfrog=2, flow_from=0.75), 0.75 * 1 + 0.25 * 10),
        (HVAEConfig(network=network, n_leapfrog=0), 1.0),
        (LSGANConfig(network=network, discriminator_channels=(4, 8)), 1.0),
    ):
        config = TrainConfig(**common, model=model)
        assert cost.seconds_an_image(config, 16, torch.device("cpu"), False) == pytest.approx(
            seconds
        )
    assert asked[:2] == [1.0, 0.0]
