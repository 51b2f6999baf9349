"""benchmarks/measured/gpu/traces.json: the memory of every step, traced once, is within bounds."""

import importlib
import json

import pytest

from tests import ROOT

MOST_GIB = {
    "unet": (6.0, 5.0),
    "resenc_unet": (10.5, 8.5),
    "lsgan": (5.5, 2.5),
    "edm": (6.0, 2.5),
    "vae": (8.5, 2.7),
    "hvae": (17.0, 14.0),
    "hvae-gan": (21.0, 15.0),
}
"""Eager and compiled, of a step of 32 pairs of 240 px in bfloat16; at 256 px a sixth more."""


def test_the_kept_traces_have_every_step_and_lie_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    traces = importlib.import_module("traces")
    kept = json.loads(traces.KEPT.read_text())
    assert kept.pop("graph_breaks") == kept.pop("step_waits") == 0
    bounds = {
        traces.name_of((network, px, mode)): most * (1 if px == 240 else 7 / 6)
        for network, (eager, compiled) in MOST_GIB.items()
        for px in (240, 256)
        for mode, most in (("off", eager), ("on", compiled))
    }
    assert kept.keys() == bounds.keys()
    assert {name: gib for name, gib in kept.items() if not 1 < gib < bounds[name]} == {}
