"""Which done run's samples.npz a picture is drawn from, and its checked reading.

generate runs leave ``images`` (n, H, W) in [0, 1] and ``masks`` (n, H, W); segment runs also
``predictions`` (n, H, W), ``dice`` (n,) and ``case_ids`` (n,), for test cases.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.runs.folder import SAMPLES
from hvae_hpc.runs.plan import Plan

Samples = dict[str, np.ndarray]
PAIRS = ("images", "masks")
CASES = (*PAIRS, "predictions", "dice", "case_ids")


def first_generate(plan: Plan, collected: Collected, data: str, source: str) -> str | None:
    """Return the folder of the done run of a generator and sampler with the lowest seeds; None where there is none."""
    found = [
        (
            run.config.split.seed,
            run.config.seed,
            str(plan.folder(run_id).relative_to(plan.runs_folder)),
        )
        for run_id, run in plan.runs.items()
        if isinstance(run.config, GenerateConfig)
        and (run.config.data, run.config.source) == (data, source)
        and run_id in collected.done
    ]
    return min(found)[2] if found else None


def first_segment(collected: Collected, data: str, arm: str) -> str | None:
    """Return the folder of an arm's done segment run with the lowest seeds; None where there is none."""
    rows = collected.segment
    rows = rows[(rows["data"] == data) & (rows["arm"] == arm)].sort_values(["split_seed", "seed"])
    return str(rows["folder"].iloc[0]) if len(rows) else None


def read_samples(runs: Path, folder: str | None, names: Sequence[str]) -> Samples:
    """Read arrays of a run's samples.npz; all have the same first axis.

    Raises:
        UserError: no run, no file, or not what was expected in it.
    """
    if folder is None:
        raise UserError("no run is done yet")
    where = f"{folder}/{SAMPLES}"
    try:
        with np.load(runs / folder / SAMPLES, allow_pickle=False) as file:
            samples = {name: file[name] for name in names}
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{where} is not as expected ({error}); delete the folder to make it anew"
        ) from error
    shape = samples["images"].shape
    expected = {name: shape[:1] if name in ("dice", "case_ids") else shape for name in names}
    if (
        len(shape) != 3
        or not all(shape)
        or any(samples[name].shape != expected[name] for name in names)
    ):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in samples.items())
        raise UserError(f"{where} has {shapes}; expected (n, H, W) with one n > 0 for all")
    return samples


def by_case(samples: Samples) -> dict[str, dict[str, Any]]:
    """Turn arrays over cases into one entry per case id."""
    return {
        str(case): {name: array[i] for name, array in samples.items()}
        for i, case in enumerate(samples["case_ids"])
    }
