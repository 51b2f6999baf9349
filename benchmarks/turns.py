"""What benchmarks of training steps share: waiting for the device, ratios, hardware."""

import platform
import statistics
from pathlib import Path

import torch

PEAKS = {
    "a40": 1.5e14,
    "a6000": 1.55e14,
    "a100": 3.12e14,
    "l40s": 3.62e14,
    "h100": 9.89e14,
    "h200": 9.89e14,
}
"""Dense bfloat16 operations per second of NVIDIA's data sheets (SXM where there are several).

Their figures "with sparsity" are twice these."""


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float | None:
    """Return how many times as long the slow side takes, median over turns; None without it."""
    if slow not in seconds or fast not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def peak_of(device: str) -> float | None:
    """Return a GPU's dense bfloat16 operations per second by its name; None for others."""
    words = device.lower().replace("-", " ").split()
    return next((peak for name, peak in PEAKS.items() if name in words), None)


def name_device() -> str:
    """Return the GPU's name, or the processor's with the threads that torch uses."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    return f"{model}, {torch.get_num_threads()} threads"
