"""benchmarks/measured/gpu/traces.json: the memory of every step, traced once, is within bounds and in the guide."""

import json
from typing import Any

import pytest

from benchmarks import traces
from tests import ROOT

MOST_GIB = {
    "unet": (6.0, 5.0),
    "resenc_unet": (10.5, 8.5),
    "lsgan": (4.7, 2.3),
    "edm": (6.3, 2.6),
    "edm_fold_1": (23.0, 9.0),
    "vae": (7.2, 2.2),
    "hvae": (16.2, 13.6),
    "hvae-gan": (19.6, 14.6),
}
"""Eager and compiled, of a step of 32 pairs of 240 px in bfloat16; at 256 px a sixth more."""


LABELS = {
    "U-Net": "unet",
    "ResEnc U-Net": "resenc_unet",
    "LSGAN": "lsgan",
    "VAE": "vae",
    "EDM, `fold = 2` as in beyond": "edm",
    "EDM, `fold = 1`": "edm_fold_1",
    "HVAE, flow on": "hvae",
    "HVAE-GAN, flow on": "hvae-gan",
}
"""Of the rows of docs/CLUSTER.md's table."""


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return json.loads(traces.KEPT.read_text())


def test_the_kept_traces_have_every_step_and_lie_within_bounds(kept: dict[str, Any]) -> None:
    assert kept["graph_breaks"] == kept["step_waits"] == 0
    bounds = {
        traces.name_of((network, px, mode)): most * (1 if px == 240 else 7 / 6)
        for network, (eager, compiled) in MOST_GIB.items()
        for px in (240, 256)
        for mode, most in (("off", eager), ("on", compiled))
    }
    assert kept["rehearsed"].keys() == bounds.keys()
    assert {name: kept[name] for name in bounds if not 1 < kept[name] < bounds[name]} == {}
    # What a rehearsal finds is what a training needs.
    assert {name: kept[name] for name in bounds if kept[name] > kept["rehearsed"][name]} == {}


def test_the_guide_has_the_kept_traces(kept: dict[str, Any]) -> None:
    lines = [line.split("|") for line in (ROOT / "docs" / "CLUSTER.md").read_text().splitlines()]
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines if cells[1:]
    }
    steps = [(px, mode) for px in (240, 256) for mode in ("off", "on")]
    for label, network in LABELS.items():
        names = [traces.name_of((network, px, mode)) for px, mode in steps]
        *memory, on_24_gb = rows[label]
        assert memory == [f"{kept[name]:.1f} GiB" for name in names]
        fits = not any("24" in kept["cards"].get(name, {}) for name in names)
        assert (on_24_gb == "as it is") == fits
    assert {card for cards in kept["cards"].values() for card in cards} == {"24"}
