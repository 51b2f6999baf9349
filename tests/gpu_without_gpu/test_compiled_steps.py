"""Compiled training steps on a CUDA device that is not there: graphs, and waits for the device."""

import pytest

from tests.gpu_without_gpu.fake_cuda import reason_to_skip
from tests.gpu_without_gpu.processes import TINY, networks_of, trace_once

REASON = reason_to_skip()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(1800),  # a minute of work, on a machine that is busy
]

GRAPHS = {
    "small_unet": 1,
    "small_lsgan": 2,  # one for each phase
    "small_hvae": 3,  # encode, log_likelihood and, where the flow is on, linearised_likelihood
    "small_hvae_gan": 6,  # and decode_raw; this and encode once for each phase
    "small_edm": 1,
}
"""Graphs that a whole training compiles; the flow comes on half-way."""

COMMANDS = {
    "graphs": (*GRAPHS, *TINY, "--compile", "graphs"),
    "inductor": ("small_unet", *TINY, "--compile", "on"),
}
"""``make gpu-kernels`` and ``benchmarks/traces.py`` compile all networks, which takes minutes."""


@pytest.mark.parametrize("name", COMMANDS)
def test_steps_are_compiled_as_a_whole_and_do_not_wait_for_the_device(name: str) -> None:
    lines = trace_once(COMMANDS[name])
    assert [line["network"] for line in lines] == networks_of(COMMANDS[name])
    for line in lines:
        assert line["graph_breaks"] == 0, line["notes"]
        assert line["notes"] == []
        assert not line["step_waits"]
        assert line["graphs"] > line["late_graphs"] == 0  # all are compiled in the rehearsal


def test_each_part_of_a_network_is_compiled_once() -> None:
    lines = trace_once(COMMANDS["graphs"])
    assert {line["network"]: line["graphs"] for line in lines} == GRAPHS
