"""Uncompiled training steps on a CUDA device that is not there: errors, waits for the device, and memory."""

import pytest

from tests.gpu_without_gpu.fake_cuda import reason_to_skip
from tests.gpu_without_gpu.processes import TINY, networks_of, trace_once

REASON = reason_to_skip()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(1800),  # seconds of work, on a machine that is busy
]

OVERFLOW_SAFE = ("small_unet", "small_lsgan", "small_vae", "small_edm", "small_edm_given_mask")
"""The product refuses the others in float16."""
IN_FP32 = ("small_unet", "small_lsgan", "small_hvae_gan")
COMMANDS = {
    "bf16": ("small_fixed", "small_metropolis", "small_edm_given_mask", *TINY),
    "fp32": (*IN_FP32, *TINY, "--precision", "fp32"),
    "fp16": (*OVERFLOW_SAFE, *TINY, "--precision", "fp16"),
    "parts": ("small_hvae", "small_edm", *TINY, "--micro-batch", "4"),
    "240 px": ("unet", "resenc_unet", "lsgan", "vae", "edm", "hvae-gan", "--steps", "1"),
    "256 px": ("hvae", "--px", "256", "--steps", "1"),
}
"""The last three lines are in bf16 too: so all networks are.

``benchmarks/traces.py`` traces every network in both sizes."""

MOST_GIB = {
    ("240 px", "unet"): 6.0,
    ("240 px", "lsgan"): 4.8,
    ("240 px", "vae"): 7.3,
    ("240 px", "edm"): 6.5,
    ("240 px", "resenc_unet"): 11.5,
    ("240 px", "hvae-gan"): 20.0,
    ("256 px", "hvae"): 18.7,
}
"""Of a step of 32 pairs in bfloat16."""


@pytest.mark.parametrize("name", COMMANDS)
def test_trainings_go_to_their_end_and_no_step_waits_for_the_device(name: str) -> None:
    lines = trace_once(COMMANDS[name])
    assert [line["network"] for line in lines] == networks_of(COMMANDS[name])
    assert [line for line in lines if line["step_waits"]] == []
    # What fits in the rehearsal fits in the training.
    assert all(line["fits_as_rehearsed"] for line in lines)
    # A window's numbers are read at once, at its end.
    reads = [n for line in lines for place, n in line["waits"].items() if "averages.py" in place]
    assert reads == [1] * len(lines)


def test_the_memory_of_steps_stays_within_bounds() -> None:
    peaks = {
        (name, line["network"]): line["peak_gib"]
        for name in ("240 px", "256 px")
        for line in trace_once(COMMANDS[name])
    }
    assert peaks.keys() == MOST_GIB.keys()
    assert {key: peak for key, peak in peaks.items() if peak > MOST_GIB[key]} == {}
    assert min(peaks.values()) > 1  # it did count


def test_optimizers_are_fused_and_resume_on_the_device_without_a_wait() -> None:
    adamw, sgd = trace_once(("small_unet", "--optimizers"))
    assert adamw["kernels"] == ["aten._fused_adamw_.default"]
    assert sgd["kernels"] == ["aten._fused_sgd_.default"]
    assert adamw["places"] == {key: ["cuda:0"] for key in ("step", "exp_avg", "exp_avg_sq")}
    assert sgd["places"] == {"momentum_buffer": ["cuda:0"]}
    assert adamw["step_waits"] == sgd["step_waits"] == {}


def test_a_full_device_is_seen() -> None:
    with pytest.raises(RuntimeError, match="out of memory with 8 pairs of 32x32 px"):
        trace_once(("small_unet", *TINY, "--card-gib", "0.001"))


def test_a_wait_in_a_step_is_seen() -> None:
    [line] = trace_once(("waiting", *TINY))
    [(place, times)] = line["step_waits"].items()
    assert "networks.py" in place
    assert times == 4  # two steps, and two that are rehearsed
