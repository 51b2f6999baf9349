"""What energy a run's GPU took: recorded where NVML tells, never needed."""

import os


def read_energy_j() -> float | None:
    """Return the energy in J that this process's first GPU took since its driver was loaded.

    None where there is no GPU, or where NVML does not tell.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
        if first.isdigit():
            gpu = pynvml.nvmlDeviceGetHandleByIndex(int(first))
        else:
            gpu = pynvml.nvmlDeviceGetHandleByUUID(first)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1000
    except Exception:  # no pynvml, no driver, a MIG slice of an old one: nothing depends on it
        return None
