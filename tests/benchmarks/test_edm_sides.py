"""benchmarks/edm_sides.py: MONAI's network stands in our objective and sampler, and nothing else differs."""

import importlib
from typing import Any

import pytest
import torch

from tests import ROOT


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip("monai")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("edm_sides")
    return module.edm_sides(16, 2, False, None, torch.device("cpu"))  # type: ignore[no-any-return]


def test_both_networks_take_the_same_steps_and_draws(sides: dict[str, Any]) -> None:
    ours, monai = sides["edm_eager"], sides["monai"]
    assert set(sides) == {"edm_eager", "monai", "edm_draw", "monai_draw"}
    assert ours.step() != monai.step()  # their weights are others
    for side in (ours, monai):
        assert all(weight.grad is not None for weight in side.model.denoiser.parameters())
    assert sides["edm_draw"].step().shape == sides["monai_draw"].step().shape == (2, 1, 16, 16)

    # With our network in MONAI's place the steps and draws are ours.
    for part in ("denoiser", "centre", "spread"):
        setattr(monai.model, part, getattr(ours.model, part))
    for one, other in (("monai", "edm_eager"), ("monai_draw", "edm_draw")):
        assert torch.equal(sides[one].step(), sides[other].step())
