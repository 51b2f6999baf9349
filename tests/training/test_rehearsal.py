"""The rehearsal changes nothing where memory suffices, and chooses a sparer way where it does not."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Loss
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.runs.folder import read_log
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training import device, loop, rehearsal
from hvae_hpc.training.batches import PairTensors, to_tensors
from hvae_hpc.training.checkpoint import find_checkpoints
from hvae_hpc.training.held_out import BestWeights
from hvae_hpc.training.loop import TrainReport, train
from tests.tiny import make_pairs
from tests.training import test_training
from tests.training.test_training import MODELS, OPTIM, assert_same, place

FORWARD = HVAE.forward
SHORT = replace(OPTIM, images=16)
ALL_AT_ONCE = 4
"""Pairs of a batch."""


@pytest.fixture
def data() -> PairTensors:
    return to_tensors(make_pairs(6, 16), 0)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rehearse on the CPU too."""
    monkeypatch.setattr(rehearsal, "needs_rehearsal", lambda device, compiled: True)


def fill_memory(monkeypatch: pytest.MonkeyPatch, needs: Callable[[HVAE, int], float]) -> None:
    """Let a step with the flow fail where it needs more than 1, in the middle of its backward pass.

    Args:
        monkeypatch: pytest's.
        needs: of a network and the pairs that go through it at once.
    """

    def refuse(gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def forward_in_little_memory(self: HVAE, batch: Any, phase: str = "elbo") -> Loss:
        loss = FORWARD(self, batch, phase)
        if "momentum" in batch and needs(self, len(batch["image"])) > 1:
            loss.total.register_hook(refuse)
        return loss

    monkeypatch.setattr(HVAE, "forward", forward_in_little_memory)


def run(kind: str, data: PairTensors, where: Workplace) -> TrainReport | None:
    return test_training.run(kind, data, where, SHORT)


def run_until_killed(
    monkeypatch: pytest.MonkeyPatch,
    needs: Callable[[HVAE, int], float],
    data: PairTensors,
    where: Workplace,
) -> None:
    """Train in a process of its own, which kills itself where ``needs`` does so."""
    child = os.fork()
    if not child:
        try:
            fill_memory(monkeypatch, needs)
            run("hvae", data, where)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def needs_by(size: float) -> Callable[[HVAE, int], float]:
    """Memory of a step whose whole batch needs this much, and a quarter of it with ``recompute``."""
    return lambda model, pairs: size * pairs / ALL_AT_ONCE * (0.25 if model.recompute else 1)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("kind", MODELS)
def test_a_rehearsal_changes_no_weight_and_no_number(
    kind: str, data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed = run(kind, data, place(tmp_path / "rehearsed"))
    monkeypatch.setattr(rehearsal, "needs_rehearsal", lambda device, compiled: False)
    plain = run(kind, data, place(tmp_path / "plain"))
    assert_same(rehearsed, plain)
    assert rehearsed.terms == plain.terms
    assert rehearsed.notes == plain.notes == ()


CHOICES = [
    (1.5, {"recompute": True}),
    (4.5, {"recompute": True, "micro_batch": 2}),
    (9.0, {"recompute": True, "micro_batch": 1}),
]
"""What a whole batch needs of the memory, and what is chosen then."""


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(("size", "choice"), CHOICES)
def test_too_little_memory_for_the_flow_is_met_before_the_first_step(
    size: float,
    choice: dict[str, Any],
    data: PairTensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_asked = run("hvae", data, place(tmp_path / "asked", **choice))
    fill_memory(monkeypatch, needs_by(size))
    chosen = run("hvae", data, place(tmp_path / "chosen"))

    # The weights are those of the choice from the start, and the choice is told.
    assert_same(chosen, as_asked)
    spared = [
        line for line in read_log(tmp_path / "chosen") if line.get("event") == "memory_spared"
    ]
    assert {name: spared[-1][name] for name in choice} == choice
    assert "CUDA out of memory" in spared[0]["reason"]
    assert chosen.notes[0].startswith("chosen for too little memory: recompute = True")

    # Killed and gone on with, on a machine of any memory, it keeps to its choice.
    pieces = tmp_path / "pieces"

    def needs(model: HVAE, pairs: int) -> float:
        if any(line.get("event") == "training" for line in read_log(pieces)):
            os.kill(os.getpid(), signal.SIGKILL)  # in the first step with the flow
        return needs_by(size)(model, pairs)

    run_until_killed(monkeypatch, needs, data, place(pieces, checkpoint_every_s=0.0))
    assert find_checkpoints(pieces)
    fill_memory(monkeypatch, lambda model, pairs: 0.0)
    assert_same(run("hvae", data, place(pieces)), as_asked)


def test_a_compiled_step_keeps_fewer_activations_where_memory_is_short(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_part = torch.compile
    monkeypatch.setattr(
        device.torch,
        "compile",
        lambda part, **how: compile_part(part, backend="aot_eager_decomp_partition", **how),
    )
    monkeypatch.setattr(device.CompiledForward, "graphs_of", None)
    spared = {"compile": "on", "activation_memory_budget": 0.5}
    as_asked = run("edm", data, place(tmp_path / "asked", **spared))
    pull_back = loop._Training.pull_back

    def pull_back_in_little_memory(self: loop._Training, *of: Any) -> Loss:
        if torch._functorch.config.activation_memory_budget > 0.5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return pull_back(self, *of)

    monkeypatch.setattr(loop._Training, "pull_back", pull_back_in_little_memory)
    pieces = tmp_path / "pieces"
    assert run("edm", data, place(pieces, stop_after=2, compile="on")) is None
    monkeypatch.setattr(loop._Training, "pull_back", pull_back)
    chosen = run("edm", data, place(pieces, compile="on"))
    assert_same(chosen, as_asked)
    assert chosen.notes == ("chosen for too little memory: activation_memory_budget = 0.5",)


@pytest.mark.parametrize(
    ("kind", "compiled", "ways"),
    [
        ("edm", True, [("activation_memory_budget", 0.5), ("micro_batch", 2)]),
        ("edm", False, [("micro_batch", 2)]),
        ("hvae", True, [("recompute", True), ("micro_batch", 2)]),  # it keeps half as it is
        ("unet", True, [("activation_memory_budget", 0.5)]),
        ("unet", False, []),
    ],
)
def test_what_costs_least_is_spared_first(
    kind: str, compiled: bool, ways: list[tuple[str, Any]], tmp_path: Path
) -> None:
    asked = place(tmp_path / "run", compile="on" if compiled else "off")
    memory = rehearsal.MemoryChoice(MODELS[kind](), ALL_AT_ONCE, asked, torch.device("cpu"))
    assert list(memory.ways_to_spare()) == ways


def test_a_step_that_cannot_be_compiled_is_not_compiled_for_every_choice(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager, it has too little memory twice."""

    def compile_badly(*of: object, **how: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: invalid argument")

    monkeypatch.setattr(device.torch, "compile", lambda part, **how: compile_badly)
    monkeypatch.setattr(device.CompiledForward, "graphs_of", None)
    fill_memory(monkeypatch, needs_by(4.5))
    report = run("hvae", data, place(tmp_path / "run", compile="on"))
    lines = read_log(tmp_path / "run")
    assert [line["event"] for line in lines[:4]] == [
        "compile_failed", "memory_spared", "memory_spared", "training",
    ]  # fmt: skip
    assert lines[2]["recompute"] is True
    assert lines[2]["micro_batch"] == 2
    assert ["Triton Error" in note for note in report.notes] == [True, False, False]


def test_nothing_is_compiled_after_the_rehearsal(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out pairs, of another number and without gradients, would have graphs of their own."""
    compiled_at: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        events = [line.get("event") for line in read_log(tmp_path / "run")]
        compiled_at.append("training" if "training" in events else "rehearsal")
        return graph.forward

    compile_part = torch.compile
    monkeypatch.setattr(
        device.torch, "compile", lambda part, **how: compile_part(part, backend=backend)
    )
    where, optim = place(tmp_path / "run", compile="on"), replace(OPTIM, images=16)
    model = MODELS["edm"]()
    held_out = PairTensors(images=data.images[:1], masks=data.masks[:1])
    best = BestWeights(model, held_out, optim, 2)
    train(model, data, optim, 3, None, where, best)
    assert [line.get("event") for line in read_log(tmp_path / "run")].count("held_out") == 2
    assert set(compiled_at) == {"rehearsal"}


@pytest.mark.usefixtures("on_a_gpu")
def test_a_rehearsal_that_is_killed_leaves_nothing_that_a_later_start_meets(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run("hvae", data, place(tmp_path / "undisturbed"))
    killed = place(tmp_path / "killed")

    def needs(model: HVAE, pairs: int) -> float:
        if model.recompute:  # chosen by the rehearsal, whose second try is under way
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.5

    run_until_killed(monkeypatch, needs, data, killed)
    assert [line["event"] for line in read_log(killed.folder)] == ["memory_spared"]

    # On a machine of more memory it is the training that was asked for.
    chosen = run("hvae", data, killed)
    assert_same(chosen, undisturbed)
    assert chosen.notes == ()


@pytest.mark.usefixtures("on_a_gpu")
def test_memory_that_suffices_for_no_choice_is_one_line_before_the_first_step(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_memory(monkeypatch, needs_by(100.0))
    with pytest.raises(
        UserError, match=r"with 1 pairs of 16x16 px .*; lower optim.batch_size, share"
    ):
        run("hvae", data, place(tmp_path / "run"))
    assert not [line for line in read_log(tmp_path / "run") if line.get("event") == "training"]
