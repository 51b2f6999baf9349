"""Training steps on a CUDA device that is not there: errors, waits for the device, memory and graphs."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.gpu_without_gpu.fake_cuda import reason_to_skip
from tests.gpu_without_gpu.processes import Trace, run_trace

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "none")

SMALL = "--px 32 --batch 8 --steps 8"
HVAES = "small_hvae small_fixed small_metropolis"
COMMANDS = {
    "hvae compiled": "hvae --px 256 --compile on",
    "unet compiled": "unet --compile on",
    "table1": "unet lsgan vae hvae",
    "hvae": "hvae --px 256",
    "hvae recompute": "hvae --px 256 --recompute",
    "small": f"small_unet small_lsgan small_vae {HVAES} {SMALL} --precision bf16 fp32",
    "small fp16": f"small_unet small_lsgan small_vae {SMALL} --precision fp16",
    "small parts": f"small_vae {HVAES} {SMALL} --micro-batch 4",
    "graphs": f"small_unet small_lsgan small_vae {HVAES} {SMALL} --compile graphs",
}
"""What takes longest comes first."""


@pytest.fixture(scope="module")
def traces() -> dict[str, Future[list[Trace]]]:
    """Start all traces, two at a time."""
    pool = ThreadPoolExecutor(2)
    started = {name: pool.submit(run_trace, words.split()) for name, words in COMMANDS.items()}
    pool.shutdown(wait=False)
    return started


Traces = dict[str, Future[list[Trace]]]


@pytest.mark.parametrize("name", COMMANDS)
def test_trainings_go_through_and_no_step_waits_for_the_device(traces: Traces, name: str) -> None:
    lines = traces[name].result()
    words = COMMANDS[name].split()
    precisions = max(1, len([word for word in words if word in ("bf16", "fp16", "fp32")]))
    assert len(lines) == precisions * (len(words[: words.index("--px")]) if "--px" in words else 0)
    assert not any(line["step_waits"] for line in lines)
