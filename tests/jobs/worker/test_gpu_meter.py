"""What NVML tells of a run's GPU; NVML itself is made up, as no machine of ours has one."""

import sys
from types import ModuleType

import pytest

from hvae_hpc.jobs.worker import provenance as gpu


class FakeNVML(ModuleType):
    """Counts energy up by 5 J per question."""

    class NVMLError(Exception):
        """As in pynvml."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.energy_mj, self.handles = 0, list[object]()

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


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNVML:
    fake = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.mark.parametrize(("visible", "handle"), [("1,0", 1), ("GPU-abc", "GPU-abc"), (None, 0)])
def test_it_looks_at_the_gpu_that_slurm_made_visible(
    nvml: FakeNVML, monkeypatch: pytest.MonkeyPatch, visible: str | None, handle: object
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.read_energy_j() == 5.0
    assert nvml.handles == [handle]


def test_without_a_gpu_or_nvml_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.read_energy_j() is None
