"""Samplers and the likelihood on a CUDA device that is not there: errors, waits for the device, and memory."""

import pytest

from tests.gpu_without_gpu.fake_cuda import reason_to_skip
from tests.gpu_without_gpu.processes import TINY, networks_of, trace_once

REASON = reason_to_skip()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(1800),  # seconds of work, on a machine that is busy
]

COMMANDS = {
    "small": ("small_hvae", "small_edm_given_mask", *TINY, "--trained"),
    "table1": ("hvae", "edm", "--micro-batch", "32", "--trained"),
}
MOST_GIB = {
    "hvae": {
        **dict.fromkeys(("prior", "aggregated", "mixture", "riemannian"), 2.5),
        **dict.fromkeys(("hmc", "mask", "likelihood"), 12.5),
    },
    "edm": {"prior": 3.5},
}
"""Of 64 pairs of 240 px, in parts of 32 where gradients are taken."""


@pytest.mark.parametrize("name", COMMANDS)
def test_networks_are_used_on_the_device(name: str) -> None:
    lines = trace_once(COMMANDS[name])
    assert [line["network"] for line in lines] == networks_of(COMMANDS[name])


def test_a_chain_waits_for_no_more_than_its_draws_and_whether_it_moved() -> None:
    [line, _] = trace_once(COMMANDS["small"])
    waits = {place.split(": ", 1)[1]: n for place, n in line["waits"].items() if "hamil" in place}
    steps = waits.pop("return after, float(accepted.float().mean())")
    # Three annealings and five samplers draw from Gaussians.
    assert sorted(waits.values()) == [8, steps, steps]


def test_the_memory_of_draws_and_bounds_stays_within_bounds() -> None:
    peaks = {line["network"]: line["peaks_gib"] for line in trace_once(COMMANDS["table1"])}
    assert {name: set(of) for name, of in peaks.items()} == {k: set(v) for k, v in MOST_GIB.items()}
    for network, most in MOST_GIB.items():
        assert {use: peak for use, peak in peaks[network].items() if peak > most[use]} == {}
        assert min(peaks[network].values()) > 1  # it did count
