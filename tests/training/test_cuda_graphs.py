"""Training with CUDA graphs, whose results the next step overwrites: nothing that is overwritten is used."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from hvae_hpc.config.resources import Resources
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.runs.folder import read_log
from hvae_hpc.training import device
from hvae_hpc.training.batches import PairTensors, to_tensors
from tests.tiny import make_pairs
from tests.training.test_rehearsal import fill_memory, run
from tests.training.test_training import MODELS, assert_same, place


@pytest.fixture
def data() -> PairTensors:
    return to_tensors(make_pairs(6, 16), 0)


class Overwriting:
    """Stands for torch.compile: what a part returned, and gradients, are spoilt when a step begins."""

    def __init__(self) -> None:
        self.modes: list[str | None] = []
        self.returned: list[torch.Tensor] = []
        self.models: list[Any] = []
        self.steps = 0

    def compile(self, part: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        self.modes.append(how["mode"])
        self.models.append(part.__self__)

        def call(*given: Any) -> Any:
            result = part(*given)
            known = {id(weight) for weight in part.__self__.parameters()}
            tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.returned += [tensor for tensor in tensors if id(tensor) not in known]
            return result

        return call

    def begin_step(self) -> None:
        weights = (weight for model in self.models for weight in model.parameters())
        self.returned += [weight.grad for weight in weights if weight.grad is not None]
        for tensor in self.returned:
            tensor.detach().fill_(math.nan)
        self.returned = []
        self.steps += 1


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Overwriting:
    graphs = Overwriting()
    monkeypatch.setattr(device.torch, "compile", graphs.compile)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", graphs.begin_step)
    monkeypatch.setattr(device.CompiledForward, "graphs_of", None)
    return graphs


@pytest.mark.parametrize(("kind", "micro_batch"), [*((kind, 0) for kind in MODELS), ("vae", 2)])
def test_nothing_is_used_once_it_is_overwritten(
    kind: str, micro_batch: int, data: PairTensors, tmp_path: Path, graphs: Overwriting
) -> None:
    plain = run(kind, data, place(tmp_path / "plain", micro_batch=micro_batch))
    assert not graphs.modes
    where = place(
        tmp_path / "graphs", compile="cuda_graphs", gpus=1, device="auto", micro_batch=micro_batch
    )
    with_graphs = run(kind, data, where)
    assert set(graphs.modes) == {"reduce-overhead"}
    assert graphs.steps > 0
    assert_same(with_graphs, plain)
    assert with_graphs.terms == pytest.approx(plain.terms, rel=1e-6)
    assert with_graphs.notes == plain.notes


def test_compiling_alone_records_no_graphs(
    data: PairTensors, tmp_path: Path, graphs: Overwriting
) -> None:
    run("vae", data, place(tmp_path / "run", compile="on", gpus=1))
    assert set(graphs.modes) == {None}
    assert graphs.steps == 0


@pytest.mark.usefixtures("graphs")
def test_too_little_memory_gives_the_graphs_up_first(
    data: PairTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = iter([2.0, 0.0])

    def needs(model: HVAE, pairs: int) -> float:
        return next(refused, 0.0)

    fill_memory(monkeypatch, needs)
    report = run("hvae", data, place(tmp_path / "run", compile="cuda_graphs", gpus=1))
    assert report.notes == ("chosen for too little memory: compile = on",)
    [spared] = [line for line in read_log(tmp_path / "run") if line.get("event") == "memory_spared"]
    assert spared["compile"] == "on"


@pytest.mark.parametrize("beside", [{"gpus": 0}, {"gpus": 2}, {"nodes": 2}, {"device": "cpu"}])
def test_they_are_refused_where_a_run_is_not_on_one_gpu(beside: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='give nodes = 1, gpus = 1 and device = "auto"'):
        Resources(compile="cuda_graphs", **{"gpus": 1, **beside})
