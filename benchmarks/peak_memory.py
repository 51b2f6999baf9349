"""The peak memory of a block, on a GPU or of this process."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Yield a list that afterwards holds the block's peak memory above the start, MiB."""
    peak_mib: list[float] = []
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        yield peak_mib
        peak_mib.append((torch.cuda.max_memory_allocated() - start) / 2**20)
        return

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start_kib = _status("VmRSS")
    yield peak_mib
    peak_mib.append((_status("VmHWM") - start_kib) / 1024)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field))
