"""The few images that a run leaves for the figures, which need neither torch nor shards."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from hvae_hpc.runs.folder import SAMPLES, write_atomic


def write_samples(folder: Path, **arrays: Any) -> None:
    """Write arrays as the run's samples.npz, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(folder / SAMPLES, buffer.getvalue())
