"""Compile the Triton kernels that inductor wrote, by triton's own ptxas; no GPU is needed for that."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch._inductor.codecache import _load_triton_kernel_from_source
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from triton.backends.compiler import GPUTarget

from tests.gpu_without_gpu.fake_inductor import Kernel

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132}
"""Of an A100 and of an H100; the sizes of blocks that are tried depend on them."""


class Driver:
    """Answers triton for a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """Return what is compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Return the number of the only device."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return the only device."""
        return torch.device("cuda", 0)


def compile_all(
    kernels: Sequence[Kernel], targets: Sequence[str], most_forms: int = 0
) -> dict[str, Any]:
    """Compile kernels for targets such as "sm_90", in the forms that autotuning would try there.

    Args:
        kernels: that inductor wrote.
        targets: each kernel is compiled for all of them before the next one.
        most_forms: of each kernel; 0 for all.

    Returns:
        the number of different kernels, of forms compiled for each target, and what failed.
    """
    # Alike but for their names: graphs of one network often hold the same kernel.
    sources = {kernel.source.replace(kernel.name, "kernel"): kernel for kernel in kernels}
    result: dict[str, Any] = {"kernels": len(sources), **dict.fromkeys(targets, 0), "failed": []}
    triton_helpers.set_driver_to_gpu = lambda: None
    for number, kernel in enumerate(sources.values(), 1):
        for target in targets:
            triton.runtime.driver.set_active(Driver(int(target.removeprefix("sm_"))))

            # The product compiles in this very way; it drops a form that needs too much shared memory.
            try:
                source = retarget(kernel.source, target)
                tuner = _load_triton_kernel_from_source(kernel.name, source)
                tuner.configs = tuner.configs[: most_forms or None]
                tuner._precompile_worker()
                result[target] += len(tuner.compile_results)
            except Exception as error:
                result["failed"].append(f"{target} {kernel.name}: {type(error).__name__}: {error}")
        if number % 50 == 0:
            print(f"{number} of {len(sources)} kernels", file=sys.stderr, flush=True)
    return result


def retarget(source: str, target: str) -> str:
    """Return a kernel's source with the properties of another GPU in it."""
    capability = int(target.removeprefix("sm_"))
    properties = DeviceProperties(
        type="cuda",
        index=0,
        multi_processor_count=MULTIPROCESSORS[target],
        cc=capability,
        major=capability // 10,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
    )
    changed, places = re.subn(r"DeviceProperties\(.*?\)", repr(properties), source)
    assert places == 1, f"{places} DeviceProperties in a kernel, expected one"
    return changed
