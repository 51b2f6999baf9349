"""How busy a run kept its GPU and what energy it took, where NVML tells: recorded, never needed."""

import contextlib
import os
import threading
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

SAMPLE_S = 5.0


class GPUMeter:
    """Samples utilisation in a thread while it is entered; without a GPU or NVML it does nothing.

    Attributes:
        found: ``utilisation`` (mean share of the time in which a kernel ran, 0 to 1),
            ``memory_mib`` (largest, of all processes on the GPU), ``energy_j``; what NVML does not
            tell is missing.
    """

    def __init__(self, wanted: bool) -> None:
        self.found: dict[str, float] = {}
        found: tuple[ModuleType | None, Any] = _find_gpu() if wanted else (None, None)
        self._nvml, self._handle = found
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._start_mj = 0.0

    def __enter__(self) -> Self:
        if self._nvml:
            with contextlib.suppress(self._nvml.NVMLError):
                self._start_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._nvml:
            self._thread.join(SAMPLE_S)

    def read(self) -> dict[str, float]:
        """Return what was found so far."""
        if self._nvml and self._start_mj:
            with contextlib.suppress(self._nvml.NVMLError):
                used_mj = (
                    self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._start_mj
                )
                self.found["energy_j"] = used_mj / 1000
        return dict(self.found)

    def _sample(self) -> None:
        assert self._nvml is not None
        shares: list[float] = []
        while not self._stop.wait(
            0.1 if not shares else SAMPLE_S
        ):  # a short run is sampled at least once
            with contextlib.suppress(self._nvml.NVMLError):
                shares.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
                self.found["utilisation"] = sum(shares) / len(shares)
            with contextlib.suppress(self._nvml.NVMLError):
                used = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 2**20
                self.found["memory_mib"] = max(used, self.found.get("memory_mib", 0.0))


def _find_gpu() -> tuple[ModuleType | None, Any]:
    """Return NVML and the first GPU that this process may use; (None, None) where there is none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
        by_number = first.isdigit()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(first))
            if by_number
            else pynvml.nvmlDeviceGetHandleByUUID(first)
        )
    except Exception:  # no pynvml, no driver, a MIG slice of an old one: nothing depends on it
        return None, None
    return pynvml, handle
