"""The loop: a function of its seed, resumed bit for bit, and honest about what went wrong."""

import gc
import hashlib
import io
import itertools
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.model import (
    HVAEConfig,
    LSGANConfig,
    MovesConfig,
    NetworkConfig,
    OptimConfig,
    UNetConfig,
)
from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.models.edm import EDM
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.hybrid import HybridHVAE
from hvae_hpc.models.lsgan import LSGAN
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training import checkpoint, device, loop
from hvae_hpc.training.averages import MovingAverage
from hvae_hpc.training.batches import PairTensors, images_of_step, shared_images_of_step, to_tensors
from hvae_hpc.training.checkpoint import (
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import TrainReport, train
from hvae_hpc.training.optimizers import learning_rate, make_optimizer, move_weights
from hvae_hpc.training.tensorboard_log import FOLDER
from tests import ROOT
from tests.tiny import make_pairs

CPU = torch.device("cpu")
NETWORK = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=4)
OPTIM = OptimConfig(images=48, batch_size=4, lr=1e-2, ema_decay=0.9, precision="fp32")
HYBRID = HVAEConfig(
    network=NETWORK,
    n_leapfrog=2,
    flow_from=0.75,
    image_likelihood="textured",
    adversarial_weight=0.5,
    adversarial_from=0.4,
    perceptual_weight=0.1,
)
MODELS = {
    "vae": lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=0), (16, 16)),
    "hvae": lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=2, flow_from=0.5), (16, 16)),
    "lsgan": lambda: LSGAN(LSGANConfig(network=NETWORK, discriminator_channels=(4, 8)), (16, 16)),
    "edm": lambda: EDM(EDMConfig(channels=(4, 8), attention_heads=2), (16, 16)),
    "hvae-gan": lambda: HybridHVAE(HYBRID, (16, 16)),
    "unet": lambda: UNet(UNetConfig(base_channels=4, depth=2)),
}


@pytest.fixture
def data() -> PairTensors:
    return to_tensors(make_pairs(6, 16), 0)


def place(folder: Path, stop_after: int | None = None, **resources: object) -> Workplace:
    """A workplace whose ``stopped`` says yes after so many steps."""
    folder.mkdir(exist_ok=True)
    steps = iter(range(10**9))
    return Workplace(
        folder=folder,
        data=folder,
        parents={},
        resources=Resources(**resources),
        stopped=lambda: stop_after is not None and next(steps) + 1 >= stop_after,
    )


def run(
    kind: str, data: PairTensors, where: Workplace, optim: OptimConfig = OPTIM
) -> TrainReport | None:
    model = build(MODELS[kind], 3, CPU)
    moves = None if kind == "unet" else MovesConfig()
    return train(model, data, optim, 3, moves, where)


def assert_same(one: TrainReport | None, other: TrainReport | None) -> None:
    assert one is not None
    assert other is not None
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name


@pytest.mark.parametrize("kind", ["vae", "hvae", "edm"])
def test_batches_in_parts_give_the_weights_of_whole_ones(
    kind: str, data: PairTensors, tmp_path: Path
) -> None:
    doubled = replace(data, images=data.images.double(), masks=data.masks.double())

    def train_in(rows: int) -> TrainReport | None:
        where = place(tmp_path / f"{rows}", micro_batch=rows)
        gentle = replace(
            OPTIM, lr=1e-3
        )  # Adam enlarges the rounding of gradients that are nearly nought
        return train(build(MODELS[kind], 3, CPU).double(), doubled, gentle, 3, MovesConfig(), where)

    whole = train_in(0)
    for most, rows in ((3, 2), (1, 1)):  # all parts of a batch of four have one size
        parts = train_in(most)
        assert parts.notes == (f"batches in parts of {rows} pairs",)
        assert parts.terms == pytest.approx(whole.terms, rel=1e-6)
        for name, value in (whole.weights or {}).items():
            torch.testing.assert_close((parts.weights or {})[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["lsgan", "unet"])
def test_networks_whose_pairs_know_of_each_other_are_not_trained_in_parts(
    kind: str, data: PairTensors, tmp_path: Path
) -> None:
    parts, whole = (
        run(kind, data, place(tmp_path / f"{rows}", micro_batch=rows)) for rows in (1, 0)
    )
    assert_same(parts, whole)
    assert parts.notes == ()


@pytest.mark.parametrize("kind", MODELS)
def test_a_training_that_was_stopped_goes_on_bit_for_bit(
    kind: str, data: PairTensors, tmp_path: Path
) -> None:
    whole = run(kind, data, place(tmp_path / "whole"))
    pieces = tmp_path / "pieces"
    for _ in range(3):
        report = run(kind, data, place(pieces, stop_after=3))
        assert report is None
    last = run(kind, data, place(pieces))
    assert_same(whole, last)
    assert last.terms == whole.terms
    assert [r["images_seen"] for r in read_log(pieces) if r.get("event") == "resumed"] == [
        12,
        24,
        36,
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_another_seed_gives_other_weights(kind: str, data: PairTensors, tmp_path: Path) -> None:
    one = run(kind, data, place(tmp_path / "one"))
    moves = None if kind == "unet" else MovesConfig()
    other = train(build(MODELS[kind], 3, CPU), data, OPTIM, 4, moves, place(tmp_path / "other"))
    assert one is not None
    assert other is not None
    name = next(name for name, value in one.weights.items() if value.ndim == 4)
    assert not torch.equal(one.weights[name], other.weights[name])


def test_checkpoint_intervals_change_nothing(data: PairTensors, tmp_path: Path) -> None:
    rare = run("hvae", data, place(tmp_path / "rare"))
    often = run("hvae", data, place(tmp_path / "often", checkpoint_every_s=0.0))
    assert_same(rare, often)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    data: PairTensors, tmp_path: Path
) -> None:
    whole = run("vae", data, place(tmp_path / "whole"))
    folder = tmp_path / "run"
    run("vae", data, place(folder, stop_after=6, checkpoint_every_s=0.0))
    newest, older = find_checkpoints(folder)
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_same(whole, run("vae", data, place(folder)))
    events = {record["event"]: record for record in read_log(folder) if "event" in record}
    assert events["checkpoint_damaged"]["file"] == newest.name
    assert f"{events['resumed']['images_seen']:012d}" in older.name


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"images_seen": Path("a class that is no tensor")}, "UnpicklingError"),
        (["no table"], r"ValueError|TypeError"),
        ({"images_seen": 40}, "KeyError"),
        ({"images_seen": 40, "network": {"w": torch.zeros(2)}}, "RuntimeError"),
    ],
)
def test_a_checkpoint_that_would_run_code_or_is_of_another_network_is_refused_in_a_line(
    content: object, why: str, data: PairTensors, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    (tmp_path / f"checkpoint-{40:012d}-{digest}.pt").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=rf"its checkpoint: cannot be read \(({why})\); delete its"):
        run("vae", data, place(tmp_path))


def test_a_checkpoint_that_is_no_file_is_refused_in_a_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"checkpoint-{40:012d}-{'a' * 16}.pt")
    with pytest.raises(UserError, match=r"aaa\.pt: cannot be read"):
        load_checkpoint(tmp_path)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for seen in (4, 8, 12):
        save_checkpoint(tmp_path, seen, {"network": {"w": torch.full((2,), float(seen))}})
    assert len(find_checkpoints(tmp_path)) == 2
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["images_seen"] == 12


class Exploding(nn.Module):
    """Its loss is infinite from the fifth step on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("only", self),)

    def draw(self, n: int, share: float, generator: torch.Generator) -> dict[str, Tensor]:
        return {"factor": torch.tensor(math.inf if share >= 4 / 12 else 1.0)}

    def forward(self, batch: Batch, phase: str) -> Loss:
        total = (self.weight * batch["factor"]).sum()
        return Loss(total, {"loss_of_weight": total.detach()})


def test_a_non_finite_loss_names_its_term_and_moment_and_spoils_no_weight(
    data: PairTensors, tmp_path: Path
) -> None:
    model = Exploding()
    with pytest.raises(
        UserError,
        match=r"loss_of_weight became inf at images_seen = 16, also after going back 3 times",
    ):
        train(model, data, OPTIM, 0, None, place(tmp_path / "run"))
    assert torch.isfinite(model.weight).all()
    assert not find_checkpoints(tmp_path / "run")


def test_no_checkpoint_is_written_after_a_non_finite_loss(
    data: PairTensors, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="images_seen = 16"):
        train(Exploding(), data, OPTIM, 0, None, place(tmp_path / "run", checkpoint_every_s=0.0))
    assert [path.name[11:23] for path in find_checkpoints(tmp_path / "run")] == [
        "000000000016",
        "000000000012",
    ]


class Stumbling(nn.Module):
    """A training that leaves the numbers where its weight has moved too far, as too large a step makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.told: list[float] = []

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("only", self),)

    def draw(self, n: int, share: float, generator: torch.Generator) -> dict[str, Tensor]:
        return {"pull": torch.ones(()) + torch.rand((), generator=generator)}

    def shrink_step(self, share: float) -> None:
        self.told.append(share)

    def forward(self, batch: Batch, phase: str) -> Loss:
        total = (self.weight * batch["pull"]).sum() / (self.weight > -FAR).float().squeeze()
        return Loss(total, {"weight": self.weight.detach()})


FAR = 0.3
LONG = OptimConfig(
    images=160 * 4, batch_size=4, lr=2.5e-3, schedule="constant", warm_up=0.0, precision="fp32"
)


def stumble(
    data: PairTensors, folder: Path, **changes: Any
) -> tuple[TrainReport | None, Stumbling]:
    model = Stumbling()
    return train(model, data, LONG, 0, None, place(folder, **changes)), model


def test_a_training_that_leaves_the_numbers_goes_back_and_on_with_half_the_step(
    data: PairTensors, tmp_path: Path
) -> None:
    report, model = stumble(data, tmp_path / "run")
    assert report is not None
    # Adam moves about lr a step: 160 steps of 2.5e-3 reach 0.4; from step 100 on, of half of
    # that, 0.325 and of a quarter 0.29.
    assert model.told == [0.5, 0.25]
    assert -FAR < float(model.weight) < -0.25
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    back = [line for line in log if line.get("event") == "rolled_back"]
    assert [line["images_seen"] for line in back] == [400, 400]
    assert "became -inf at images_seen = 4" in back[0]["reason"]
    assert sum("went back to 400" in note for note in report.notes) == 2


def test_going_back_depends_on_no_clock_and_no_interruption(
    data: PairTensors, tmp_path: Path
) -> None:
    undisturbed, _ = stumble(data, tmp_path / "whole")
    often, _ = stumble(data, tmp_path / "often", checkpoint_every_s=0.0)
    assert_same(often, undisturbed)
    # Before, between and after the two steps at which it goes back.
    for stop_after in (55, 119, 121, 122, 155):
        folder = tmp_path / f"stopped-{stop_after}"
        first, _ = stumble(data, folder, stop_after=stop_after)
        assert first is None
        report, _ = stumble(data, folder)
        assert_same(report, undisturbed)


def test_too_little_memory_is_one_line_with_what_to_change(
    data: PairTensors, tmp_path: Path
) -> None:
    class Hungry(Exploding):
        def forward(self, batch: Batch, phase: str) -> Loss:
            return Loss(torch.zeros(2**62, dtype=torch.uint8).sum() * self.weight.sum(), {})

    out = "out of memory with {} pairs of 16x16 px at once on cpu; lower optim.batch_size, {}share"
    with pytest.raises(UserError, match=out.format(4, "")):
        train(Hungry(), data, OPTIM, 0, None, place(tmp_path / "run"))
    # Where a batch is taken in parts it is a part that did not fit, if the network may be
    # given parts.
    with pytest.raises(UserError, match=out.format(4, "")):
        train(Hungry(), data, OPTIM, 0, None, place(tmp_path / "whole", micro_batch=2))
    Hungry.config = HVAEConfig()
    with pytest.raises(UserError, match=out.format(2, "set micro_batch = 1, ")):
        train(Hungry(), data, OPTIM, 0, None, place(tmp_path / "parts", micro_batch=2))
    Hungry.recompute = False
    with pytest.raises(
        UserError, match=out.format(4, "set recompute = true, set micro_batch = 2, ")
    ):
        train(Hungry(), data, OPTIM, 0, None, place(tmp_path / "keeping"))


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NCCL error in: x.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "NCCL WARN Failed to CUDA calloc async 4 bytes",
        "FIND was unable to find an engine to execute this computation",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_what_libraries_say_of_memory_is_told_as_too_little_of_it(
    said: str, data: PairTensors, tmp_path: Path
) -> None:
    class Refused(Exploding):
        def forward(self, batch: Batch, phase: str) -> Loss:
            raise RuntimeError(said)

    with pytest.raises(UserError, match=r"out of memory with 4 pairs"):
        train(Refused(), data, OPTIM, 0, None, place(tmp_path / "run"))


def test_too_little_memory_for_a_cuda_graph_is_told_by_what_came_before(
    data: PairTensors, tmp_path: Path
) -> None:
    class Unrecorded(Exploding):
        def forward(self, batch: Batch, phase: str) -> Loss:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(UserError, match=r"out of memory with 4 pairs"):
        train(Unrecorded(), data, OPTIM, 0, None, place(tmp_path / "run"))


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder / FOLDER))
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def test_tensorboard_has_what_the_log_has_also_after_going_on(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "READ_EVERY", 3)
    run("hvae", data, place(tmp_path / "run", stop_after=9, tensorboard=True))
    report = run("hvae", data, place(tmp_path / "run", tensorboard=True))
    assert report is not None
    logged = [entry for entry in read_log(tmp_path / "run") if "elbo" in entry]
    shown = events(tmp_path / "run")
    assert shown["elbo"] == [
        (entry["images_seen"], pytest.approx(entry["elbo"])) for entry in logged
    ]
    assert [step for step, _ in shown["elbo"]] == [12, 24, 36, 48]
    assert {"lr", "moved", "sigma_x", "gradient_norm"} <= set(shown)
    assert not (tmp_path / "other").exists()
    run("hvae", data, place(tmp_path / "other"))
    assert not (tmp_path / "other" / FOLDER).exists()


def test_tensorboard_shows_the_path_that_was_kept_after_going_back(
    data: PairTensors, tmp_path: Path
) -> None:
    stumble(data, tmp_path / "run", tensorboard=True)
    kept: dict[int, float] = {}
    for entry in read_log(tmp_path / "run"):
        if entry.get("event") == "rolled_back":
            kept = {seen: weight for seen, weight in kept.items() if seen <= entry["images_seen"]}
        elif "weight" in entry:
            kept[entry["images_seen"]] = entry["weight"]
    assert list(kept) == [200, 400, 600, 640]
    assert events(tmp_path / "run")["weight"] == [
        (seen, pytest.approx(weight)) for seen, weight in kept.items()
    ]


def test_tensorboard_that_is_not_installed_is_named(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="the package tensorboard is not installed; pip install"):
        run("vae", data, place(tmp_path / "run", tensorboard=True))


@pytest.mark.parametrize("graph", ["forward", "backward"])
def test_a_compilation_that_fails_runs_eager_and_says_so(
    graph: str,
    data: PairTensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_compiler(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler here")

    from torch._dynamo.backends.common import aot_autograd  # only here: these import the compiler
    from torch._functorch.aot_autograd import make_boxed_func

    def keep(graph_module: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        return make_boxed_func(graph_module.forward)

    backend = (
        no_compiler
        if graph == "forward"
        else aot_autograd(fw_compiler=keep, bw_compiler=no_compiler)
    )
    real_compile = torch.compile
    monkeypatch.setattr(
        device.torch, "compile", lambda model, **kw: real_compile(model, backend=backend, **kw)
    )
    monkeypatch.setattr(device.CompiledForward, "graphs_of", None)
    report = run("vae", data, place(tmp_path / "compiled", compile="on"))
    assert report.notes
    assert "no C++ compiler here" in " ".join(report.notes)
    assert "ran eager" in capsys.readouterr().out
    assert_same(report, run("vae", data, place(tmp_path / "eager")))


@pytest.mark.parametrize("graph", ["forward", "backward"])
def test_a_kernel_that_fails_in_a_later_step_runs_eager_from_there_on(
    graph: str, data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def refuse(*of: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: invalid argument")

    def compile_badly(part: Callable[..., Any], **how: object) -> Callable[..., Any]:
        def call(*of: Any) -> Any:
            is_last = next(calls) == 9  # after the rehearsal
            if is_last and graph == "forward":
                refuse()
            result = part(*of)
            if is_last:
                result[0].register_hook(refuse)
            return result

        return call

    monkeypatch.setattr(device.torch, "compile", compile_badly)
    monkeypatch.setattr(device.CompiledForward, "graphs_of", None)
    report = run("vae", data, place(tmp_path / "compiled", compile="on"))
    assert "ran eager: RuntimeError: Triton Error [CUDA]: invalid argument" in report.notes[0]
    assert_same(report, run("vae", data, place(tmp_path / "eager")))


def test_a_lost_gpu_is_no_failure_of_the_compiler(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device.torch, "compile", lambda part, **how: fail)
    monkeypatch.setattr(device.CompiledForward, "graphs_of", None)
    monkeypatch.setattr(device, "is_gpu_lost", lambda: True)
    with pytest.raises(torch.AcceleratorError):
        run("vae", data, place(tmp_path / "run", compile="on"))


def graphs_compiled(
    data: PairTensors,
    folder: Path,
    make: Callable[[], nn.Module],
    seed: int,
    optim: OptimConfig,
    micro_batch: int = 0,
) -> int:
    """Train a network compiled and return how many graphs torch had to compile for that."""
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    where = place(folder, compile="on", micro_batch=micro_batch)
    report = train(build(make, seed, CPU), data, optim, seed, None, where)
    assert not [note for note in report.notes if "compile" in note]
    return int(graphs["unique_graphs"]) - before


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile as on a GPU but for the last step, which takes a compiler long."""
    real_compile = torch.compile
    monkeypatch.setattr(
        device.torch, "compile", lambda model, **kw: real_compile(model, backend="aot_eager", **kw)
    )
    monkeypatch.setattr(device.CompiledForward, "graphs_of", None)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("kind", "graphs"), [("unet", 1), ("hvae", 3)])
def test_networks_that_differ_in_their_weights_share_what_was_compiled(
    kind: str, graphs: int, data: PairTensors, tmp_path: Path
) -> None:
    optim = replace(OPTIM, images=8)
    assert graphs_compiled(data, tmp_path / "first", MODELS[kind], 0, optim) == graphs
    for seed in (1, 2):
        assert graphs_compiled(data, tmp_path / str(seed), MODELS[kind], seed, optim) == 0
    other = train(build(MODELS[kind], 2, CPU), data, optim, 2, None, place(tmp_path / "eager"))
    again = train(
        build(MODELS[kind], 2, CPU),
        data,
        optim,
        2,
        None,
        place(tmp_path / "compiled", compile="on"),
    )
    assert again.terms["loss"] == pytest.approx(other.terms["loss"], rel=1e-5)


@pytest.mark.usefixtures("traced")
def test_parts_of_a_batch_have_one_size_and_each_size_graphs_of_its_own(
    data: PairTensors, tmp_path: Path
) -> None:
    optim, make = replace(OPTIM, images=8), MODELS["vae"]  # batches of 4
    whole = graphs_compiled(data, tmp_path / "whole", make, 0, optim)
    assert whole == 2  # encode, log_likelihood
    # 3 do not divide 4: parts of 2, and not one of 3 and one of 1.
    assert graphs_compiled(data, tmp_path / "parts", make, 0, optim, micro_batch=3) == whole
    assert graphs_compiled(data, tmp_path / "halves", make, 0, optim, micro_batch=2) == 0
    # Torch held the graphs of 2 only.
    assert graphs_compiled(data, tmp_path / "again", make, 0, optim) == whole


@pytest.mark.usefixtures("traced")
def test_both_phases_of_an_lsgan_are_compiled_whole_under_bfloat16(
    data: PairTensors, tmp_path: Path
) -> None:
    optim = replace(OPTIM, images=8, precision="bf16")
    assert graphs_compiled(data, tmp_path / "compiled", MODELS["lsgan"], 0, optim) == 2


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("ends", ["done", "stopped", "failed"])
def test_a_compiled_network_goes_when_its_training_is_over(
    ends: str, data: PairTensors, tmp_path: Path
) -> None:
    # By itself, as a worker's next network needs its memory, and Python may be long in
    # looking for what holds itself.
    gc.collect()
    gc.disable()
    try:
        network = build(MODELS["unet"], 0, CPU)
        if ends == "failed":
            network.draw = lambda *of: {"mask": torch.full((4, 1, 16, 16), math.nan)}
        where = place(tmp_path / "run", stop_after=1 if ends == "stopped" else None, compile="on")
        with pytest.raises(UserError) if ends == "failed" else nullcontext():
            train(network, data, replace(OPTIM, images=8), 0, None, where)
        there = weakref.ref(network)
        del network
        assert there() is None
    finally:
        gc.enable()


class Normalised(Exploding):
    """Its layer's class is made for it alone, as torch does for what is parametrised: its code is nobody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(16, 1))

    def forward(self, batch: Batch, phase: str) -> Loss:
        return Loss(self.layer(batch["image"][:, 0, 0]).mean() * self.weight.sum(), {})


@pytest.mark.usefixtures("traced")
def test_graphs_of_other_networks_batches_and_precisions_are_dropped_so_that_there_is_always_room(
    data: PairTensors, tmp_path: Path
) -> None:
    optim = replace(OPTIM, images=8)
    smaller = UNetConfig(base_channels=4, depth=1)
    kinds = [(Normalised, optim)] * 3 + [
        (lambda: UNet(smaller), replace(optim, batch_size=n)) for n in (2, 8)
    ]
    kinds += [(lambda: UNet(smaller), replace(optim, precision="bf16"))] * 2 + [
        (MODELS["unet"], optim)
    ]
    with torch._dynamo.config.patch(
        recompile_limit=2
    ):  # of a function in a process; 8 if nobody says otherwise
        found = [
            graphs_compiled(data, tmp_path / str(i), make, i, of)
            for i, (make, of) in enumerate(kinds)
        ]
    assert found == [1, 1, 1, 1, 1, 1, 0, 1]


def test_a_training_that_is_not_compiled_does_not_import_the_compiler() -> None:
    check = (
        "import sys, tempfile, torch\nfrom pathlib import Path\nfrom tests.training import test_training as t\n"
        "pairs = t.to_tensors(t.make_pairs(6, 16), 0)\n"
        "for kind in t.MODELS:\n"
        "    t.run(kind, pairs, t.place(Path(tempfile.mkdtemp()) / kind), t.replace(t.OPTIM, images=8))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


def test_every_image_is_seen_equally_often_at_any_time() -> None:
    n, batch = 7, 4
    seen = torch.zeros(n, dtype=torch.long)
    for step in range(35):
        seen += torch.bincount(images_of_step(n, 0, step * batch, batch), minlength=n)
        assert seen.max() - seen.min() <= 1
    assert seen.tolist() == [20] * n


def test_the_order_is_a_function_of_the_seed_and_of_the_images_seen() -> None:
    assert torch.equal(
        images_of_step(10, 1, 15, 8),
        torch.cat([images_of_step(10, 1, 15, 5), images_of_step(10, 1, 20, 3)]),
    )
    assert not torch.equal(images_of_step(10, 1, 0, 10), images_of_step(10, 2, 0, 10))
    assert not torch.equal(images_of_step(10, 1, 0, 10), images_of_step(10, 1, 10, 10))


def test_the_real_pairs_come_in_one_order_whatever_is_added_to_them() -> None:
    alone = images_of_step(10, 3, 0, 40)
    for added in (1, 7, 40):
        mixed = images_of_step(10 + added, 3, 0, 4 * (10 + added), added)
        assert torch.equal(mixed[mixed < 10], alone)
        assert torch.bincount(mixed).tolist() == [4] * (10 + added)
        assert (
            not torch.equal(mixed[mixed >= 10][:added], mixed[mixed >= 10][added : 2 * added])
            or added == 1
        )
    places = (
        torch.stack([images_of_step(20, seed, 0, 20, 10) < 10 for seed in range(400)])
        .float()
        .mean(0)
    )
    assert (
        (places - 0.5).abs() < 0.13
    ).all()  # real and added ones are mixed evenly: five standard errors


def test_added_pairs_alone_come_first_and_then_the_real_ones_alone() -> None:
    stream = torch.cat(
        [images_of_step(17, 3, seen, 4, added=7, added_first=28) for seen in range(0, 68, 4)]
    )
    assert torch.bincount(stream[:28], minlength=17).tolist() == [0] * 10 + [4] * 7
    assert torch.equal(stream[28:], images_of_step(10, 3, 0, 40))


def test_a_share_of_every_batch_is_synthetic_and_both_kinds_are_seen_equally_often() -> None:
    nothing = torch.zeros(17, 1, 2, 2)
    shared = PairTensors(
        images=nothing, masks=nothing, added=12, synthetic=8, synthetic_share=0.25
    )  # 5 real pairs, 4 copies, 8 synthetic ones
    steps = torch.stack([shared_images_of_step(shared, 3, step, 8) for step in range(12)])
    assert ((steps >= 9).sum(1) == 2).all()
    assert torch.bincount(steps.flatten(), minlength=17).tolist() == [8] * 9 + [3] * 8
    assert torch.equal(steps[5], shared_images_of_step(shared, 3, 5, 8))
    # The halves that two processes take have both kinds of pairs, now and then.
    in_first_half = (steps[:, :4] >= 9).sum(1)
    assert set(in_first_half.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_s_own_with_nesterov_s_momentum_and_a_bad_step_changes_nothing(
    momentum: float,
) -> None:
    optim = OptimConfig(
        images=8, batch_size=4, lr=0.1, optimizer="sgd", beta_1=momentum, weight_decay=0.01
    )
    ours, theirs = (torch.nn.Linear(3, 2, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = make_optimizer(Phase("one", ours), optim)
    reference = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, nesterov=momentum > 0, weight_decay=0.01
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(5):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        for bad in (True, False):
            ours.weight.grad = torch.full_like(gradient, math.nan) if bad else gradient.clone()
            move_weights(mine, ours.weight.grad.norm(), scaler, 0.1)
        theirs.weight.grad = gradient.clone()
        reference.step()
        torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adamw_is_torch_s_plain_one_however_the_weights_lie(layout: torch.memory_format) -> None:
    optim = OptimConfig(images=8, batch_size=4, lr=0.1, weight_decay=0.01)
    ours, theirs = (torch.nn.Conv2d(5, 7, 3).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    ours = ours.to(memory_format=layout)
    mine = make_optimizer(Phase("one", ours), optim)
    betas = (optim.beta_1, optim.beta_2)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=betas, weight_decay=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(5):
        if step == 3:  # as after a stop
            mine.load_state_dict(mine.state_dict())
        torch.manual_seed(step)
        for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            their.grad = torch.randn(their.shape, dtype=torch.float64)
            our.grad = their.grad.clone().to(
                memory_format=layout if our.dim() == 4 else torch.contiguous_format
            )
        move_weights(mine, torch.ones(()), scaler, 0.1)
        reference.step()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)
    state = mine.state[ours.weight]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == ours.weight.shape
    assert ours.weight.is_contiguous(memory_format=layout)


def test_a_training_by_sgd_that_was_stopped_goes_on_bit_for_bit(
    data: PairTensors, tmp_path: Path
) -> None:
    optim = replace(OPTIM, optimizer="sgd", schedule="poly")
    whole = run("unet", data, place(tmp_path / "whole"), optim)
    assert run("unet", data, place(tmp_path / "parts", stop_after=5), optim) is None
    assert_same(whole, run("unet", data, place(tmp_path / "parts"), optim))


def test_the_learning_rate_rises_to_its_value_and_falls_to_zero() -> None:
    optim = OptimConfig(images=1000, batch_size=10, lr=0.1, warm_up=0.1)
    rates = [learning_rate(optim, seen) for seen in range(0, 1000, 10)]
    assert 0 < rates[0] < 0.02
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 10
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.001
    left = [learning_rate(replace(optim, schedule="poly"), seen) / 0.1 for seen in (100, 550, 990)]
    assert left == pytest.approx([1, 0.5**0.9, (1 / 90) ** 0.9])


def test_the_moving_average_is_the_recursion_it_claims() -> None:
    model = nn.Linear(1, 1)
    average = MovingAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.state["weight"], expected)


def test_statistics_are_averaged_with_the_weights_and_settings_are_copied() -> None:
    network = NetworkConfig(
        channels=(4, 8), attention_levels=(1,), latent_size=3, attention_heads=2
    )
    hvae, layer = HVAE(HVAEConfig(network=network), (16, 16)), nn.BatchNorm1d(1)
    averages = MovingAverage(hvae, 0.99), MovingAverage(layer, 0.99)
    hvae.shrink_step(0.25)
    for _ in range(5):
        layer(torch.rand(8, 1) + 3)
        for average in averages:
            average.update()
    of_hvae, of_layer = (average.state for average in averages)
    assert float(of_hvae["step_share"]) == 0.25
    assert int(of_layer["num_batches_tracked"]) == 5
    assert 0 < float(of_layer["running_mean"]) < float(layer.state_dict()["running_mean"])


def test_images_are_shrunk_by_area_and_masks_stay_binary() -> None:
    pairs = make_pairs(3, 16)
    small = to_tensors(pairs, 8)
    block = torch.from_numpy(pairs.images).reshape(3, 8, 2, 8, 2).mean((2, 4))
    torch.testing.assert_close(small.images[:, 0], block)
    assert set(small.masks.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(UserError, match="image_px is 32, the packed images are 16x16"):
        to_tensors(pairs, 32)


def test_a_case_that_loses_all_its_masks_by_shrinking_is_refused_and_a_slice_is_not() -> None:
    pairs = make_pairs(4, 16)
    pairs.masks[1:] = 0
    pairs.masks[1:, 5, 5] = 1  # a quarter of a pixel of 8 x 8
    one = replace(pairs, case_ids=("a", "a", "a", "a"))
    assert to_tensors(one, 8).masks.flatten(1).any(dim=1).tolist() == [True, False, False, False]
    two = replace(pairs, case_ids=("a", "a", "b", "b"))
    with pytest.raises(
        UserError, match=r"image_px is 8, which empties the masks of 1 of 2 .* \(b\)"
    ):
        to_tensors(two, 8)
    assert len(to_tensors(two, 0)) == 4
    pairs.masks[2] = pairs.masks[3] = 0
    to_tensors(two, 8)  # a case without tumour has none to lose


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("unet", "bf16"),
        ("vae", "bf16"),
        ("hvae", "bf16"),
        ("lsgan", "bf16"),
        ("edm", "bf16"),
        ("hvae-gan", "bf16"),
        ("unet", "fp16"),
        ("vae", "fp16"),
    ],
)
def test_mixed_precision_trains_near_float32(
    kind: str, precision: str, data: PairTensors, tmp_path: Path
) -> None:
    terms = {}
    for each in ("fp32", precision):
        optim = OptimConfig(images=24, batch_size=4, lr=1e-3, precision=each)
        terms[each] = run(kind, data, place(tmp_path / each), optim).terms
    loss = {"lsgan": "loss_discriminator", "hvae-gan": "loss_objective"}.get(kind, "loss")
    assert terms[precision][loss] == pytest.approx(terms["fp32"][loss], rel=0.1)
    assert terms[precision][loss] != terms["fp32"][loss]


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="torch sees no GPU"):
        device.choose_device(place(tmp_path / "run", gpus=1))
    assert device.choose_device(place(tmp_path / "run", gpus=1, device="cpu")) == CPU


def test_deterministic_trainings_use_what_adds_up_in_one_order(tmp_path: Path) -> None:
    backends = torch.backends
    kernels = ("flash", "mem_efficient", "cudnn")
    try:
        for wished in (True, False):
            device.choose_device(place(tmp_path / "run", device="cpu", deterministic=wished))
            assert torch.are_deterministic_algorithms_enabled() == wished
            assert backends.cudnn.deterministic == wished != backends.cudnn.benchmark
            on = [getattr(backends.cuda, f"{kernel}_sdp_enabled")() for kernel in kernels]
            assert on == [not wished] * 3
            assert backends.cuda.math_sdp_enabled()
    finally:
        device.choose_device(place(tmp_path / "run", device="cpu"))


def test_a_lost_gpu_is_not_taken_for_a_damaged_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "is_gpu_lost", lambda: True)
    with pytest.raises(torch.AcceleratorError), checkpoint.loading("its checkpoint"):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
