"""Training steps on a CUDA device that is not there: errors, waits for the device, memory and graphs."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.gpu_without_gpu.fake_cuda import reason_to_skip
from tests.gpu_without_gpu.processes import Trace, run_trace

REASON = reason_to_skip()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(1800),  # the first test waits for all traces, on a machine that is busy
]

GRAPHS = {
    "small_unet": 1,
    "small_lsgan": 2,  # one for each phase
    "small_vae": 2,  # encode, log_likelihood
    "small_hvae": 3,  # and, where the flow is on, linearised_likelihood
    "small_fixed": 3,
    "small_metropolis": 3,
    "small_edm": 1,
    "small_edm_given_mask": 1,
}
"""Graphs that a whole training compiles; the flow comes on half-way."""
OPTIONS = ("--px", "32", "--batch", "8", "--steps", "4")
SMALL = (*GRAPHS, *OPTIONS)

COMMANDS = {
    "hvae compiled": ("hvae", "--px", "256", "--compile", "on"),
    "unet compiled": ("unet", "--compile", "on"),
    "small": (*SMALL, "--precision", "bf16", "fp32"),
    "graphs": (*SMALL, "--compile", "graphs"),
    "table1": ("unet", "lsgan", "vae", "hvae"),
    "hvae": ("hvae", "--px", "256"),
    "parts": ("small_vae", "small_hvae", "small_edm", *OPTIONS, "--micro-batch", "4"),
    "fp16": ("small_unet", "small_lsgan", "small_vae", *OPTIONS, "--precision", "fp16"),
}
"""What takes longest comes first."""

MOST_GIB = {
    ("hvae compiled", "hvae"): 20.0,
    ("hvae", "hvae"): 40.0,
    ("unet compiled", "unet"): 5.0,
    ("table1", "unet"): 6.0,
    ("table1", "lsgan"): 5.5,
    ("table1", "vae"): 8.5,
    ("table1", "hvae"): 40.0,
}
"""Of a step of 32 pairs in bfloat16, 240 px where the command does not say otherwise."""


@pytest.fixture(scope="module")
def traces() -> dict[str, Future[list[Trace]]]:
    """Start all traces, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(run_trace, words) for name, words in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_trainings_go_to_their_end_and_no_step_waits_for_the_device(
    traces: dict[str, Future[list[Trace]]], name: str
) -> None:
    lines = traces[name].result()
    networks = [
        word for word in COMMANDS[name] if word in (*GRAPHS, "unet", "lsgan", "vae", "hvae")
    ]
    assert {line["network"] for line in lines} == set(networks)
    assert [line for line in lines if line["step_waits"]] == []


def test_the_memory_of_steps_stays_within_bounds(traces: dict[str, Future[list[Trace]]]) -> None:
    peaks = {
        (name, line["network"]): line["peak_gib"]
        for name in ("hvae compiled", "hvae", "unet compiled", "table1")
        for line in traces[name].result()
    }
    assert {key: peak for key, peak in peaks.items() if peak > MOST_GIB[key]} == {}
    assert min(peaks.values()) > 1  # it did count


def test_each_part_of_a_network_is_compiled_once_and_as_a_whole(
    traces: dict[str, Future[list[Trace]]],
) -> None:
    lines = traces["graphs"].result()
    assert {line["network"]: line["graphs"] for line in lines} == GRAPHS
    for name in ("graphs", "hvae compiled", "unet compiled"):
        for line in traces[name].result():
            assert line["graph_breaks"] == 0, line["notes"]
            assert line["notes"] == []


def test_a_wait_in_a_step_and_a_full_device_are_seen() -> None:
    with pytest.raises(RuntimeError, match="out of memory with 8 pairs of 32x32 px"):
        run_trace([*OPTIONS, "small_unet", "--card-gib", "0.001"])
    [line] = run_trace([*OPTIONS, "waiting"])
    [(place, times)] = line["step_waits"].items()
    assert "networks.py" in place
    assert times == 5  # four steps, and the one that is rehearsed
