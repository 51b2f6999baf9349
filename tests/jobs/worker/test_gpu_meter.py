"""What NVML tells of a run's GPU; NVML itself is made up, as no machine of ours has one."""

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from hvae_hpc.jobs.worker import gpu_meter as gpu


class FakeNVML(ModuleType):
    """Counts energy up by 5 J per question; utilisation 50 %, then 100 %."""

    class NVMLError(Exception):
        """As in pynvml."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.energy_mj, self.shares, self.handles = 0, [50, 100], list[object]()

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self.handles.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.handles.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        self.energy_mj += 5000
        return self.energy_mj

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> SimpleNamespace:
        return SimpleNamespace(gpu=self.shares.pop(0) if self.shares else 100)

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> None:
        raise self.NVMLError("not supported")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNVML:
    fake = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpu.Path, "glob", lambda path, pattern: iter(["nvidia0"]))
    monkeypatch.setattr(gpu, "SAMPLE_S", 0.05)
    return fake


def test_utilisation_is_averaged_energy_is_a_difference_and_what_nvml_refuses_is_missing(
    nvml: FakeNVML,
) -> None:
    with gpu.GPUMeter(wanted=True) as meter:
        time.sleep(0.2)
        while nvml.shares:
            time.sleep(0.01)
    found = meter.read()
    assert 0.74 <= found["utilisation"] <= 1.0
    assert found["energy_j"] == 5.0
    assert "memory_mib" not in found


@pytest.mark.parametrize(("visible", "handle"), [("1,0", 1), ("GPU-abc", "GPU-abc"), (None, 0)])
def test_it_looks_at_the_gpu_that_slurm_made_visible(
    nvml: FakeNVML, monkeypatch: pytest.MonkeyPatch, visible: str | None, handle: object
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu.GPUMeter(wanted=True)
    assert nvml.handles == [handle]


def test_without_a_gpu_or_nvml_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for wanted in (True, False):
        with gpu.GPUMeter(wanted=wanted) as meter:
            pass
        assert meter.read() == {}
