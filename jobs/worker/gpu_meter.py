"""How busy a run kept its GPU and what energy it took: recorded where NVML tells, never needed."""

import contextlib
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Self

SAMPLE_S = 5.0
"""Seconds between two samples."""


class GPUMeter:
    """Samples a GPU in a thread while it is entered; without a GPU or NVML it does nothing."""

    def __init__(self, wanted: bool) -> None:
        self._nvml: ModuleType | None = None
        self._gpu: Any = None
        if wanted:
            self._nvml, self._gpu = _find_gpu()
        self._readings: dict[str, float] = {}
        self._start_mj = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        if self._nvml:
            with contextlib.suppress(self._nvml.NVMLError):
                self._start_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._nvml:
            self._thread.join(SAMPLE_S)

    def read(self) -> dict[str, float]:
        """Return what was measured so far; what NVML does not tell is missing.

        Returns:
            ``utilisation`` (mean share of the time in which a kernel ran, 0 to 1), ``memory_mib``
            (largest, of all processes on the GPU), ``energy_j``.
        """
        if self._nvml and self._start_mj:
            with contextlib.suppress(self._nvml.NVMLError):
                now_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)
                self._readings["energy_j"] = (now_mj - self._start_mj) / 1000
        return dict(self._readings)

    def _sample(self) -> None:
        assert self._nvml is not None
        shares: list[float] = []
        # The first sample comes soon, so that a short run has one.
        while not self._over.wait(SAMPLE_S if shares else 0.1):
            with contextlib.suppress(self._nvml.NVMLError):
                shares.append(self._nvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu / 100)
                self._readings["utilisation"] = sum(shares) / len(shares)
            with contextlib.suppress(self._nvml.NVMLError):
                used_mib = self._nvml.nvmlDeviceGetMemoryInfo(self._gpu).used / 2**20
                largest = max(used_mib, self._readings.get("memory_mib", 0.0))
                self._readings["memory_mib"] = largest


def _find_gpu() -> tuple[ModuleType | None, Any]:
    """Return NVML and the first GPU that this process may use; (None, None) without one."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
        if first.isdigit():
            return pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(first))
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(first)
    except Exception:  # no pynvml, no driver, a MIG slice of an old one: nothing depends on it
        return None, None
