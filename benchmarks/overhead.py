"""What a run costs beside its training loop: in a bundle, alone, and at table1's size."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bundles import make_plan, plan_reference, run_elements
from turns import synchronise
from unet_steps import make_pairs

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.folder import read_log, read_result
from hvae_hpc.runs.plan import Plan
from hvae_hpc.sweep import read_sweep
from hvae_hpc.training.device import build

MIDDLE = 3
"""The measured arm of the demo is standard x3: 7 of its 16 arms have more pairs, 5 fewer."""


def loop_seconds(log: list[dict[str, Any]]) -> float:
    """Return the seconds that an undisturbed run spent in its training loop, by its log."""
    (began,) = [entry["time"] for entry in log if entry.get("event") == "training"]
    return float([entry["time"] for entry in log if "event" not in entry][-1] - began)


def spent(plan: Plan, run_id: str) -> tuple[float, float]:
    """Return the seconds that a run took in its process, and those of them in its training loop."""
    place = plan.folder(run_id)
    result = read_result(place, run_id)
    assert result is not None
    return result.provenance.wall_s, loop_seconds(read_log(place))


def time_elements(plan: Plan, elements: list[tuple[str, ...]], folder: Path) -> dict[str, float]:
    """Run elements and return what their runs took.

    Returns:
        ``times``: wall time over the time in the training loops. Seconds a run: ``loop``, in its
        training loop; ``beside``, of the wall time beside that; ``further``, in its process beside
        its loop, median of all runs but the first.
    """
    wall = run_elements(plan, elements, folder)
    placed = replace(plan, runs_folder=folder / "runs")
    runs = [spent(placed, run_id) for element in elements for run_id in element]
    loops = sum(loop for _, loop in runs)
    later = runs[-max(1, len(runs) - 1) :]
    return {
        "times": wall / loops,
        "beside": (wall - loops) / len(runs),
        "further": statistics.median(of_run - loop for of_run, loop in later),
        "loop": loops / len(runs),
    }


def measure_overhead(seeds: int, alone: int, gpus: int, smallest: bool) -> dict[str, Any]:
    """Run an arm of the demo as one element, and some reference runs as elements of their own.

    The arm is standard x3: by its steps the middle one of the 16. No arm is smaller than the
    reference.

    Args:
        seeds: of the arm, all in one element.
        alone: how many reference runs have an element of their own.
        gpus: of each run.
        smallest: whether to run the reference as one element too.

    Returns:
        For each way, wall time over the time in the training loops, and the seconds a run takes
        beside its loop. ``start_s``: seconds that an element takes once, to import and to read.
        ``demo_training_s``: seconds in a training loop.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = make_plan(
            folder, seeds, (MIDDLE,), gpus=gpus, threads=torch.get_num_threads(), compile="off"
        )

        # The segment runs need the augmented pairs, so these come first.
        made = [run_id for run_id, run in plan.runs.items() if run.stage == "augment"]
        configs = {
            run_id: run.config
            for run_id, run in plan.runs.items()
            if isinstance(run.config, SegmentConfig)
        }
        ids, middle = (
            [i for i, config in configs.items() if bool(config.arm.n_standard) == x]
            for x in (False, True)
        )
        run_elements(plan, [tuple(made)], folder / "together")

        bundle = time_elements(plan, [tuple(middle)], folder / "together")
        apart = time_elements(plan, [(run_id,) for run_id in ids[:alone]], folder / "apart")
        least: Mapping[str, float] = {}
        if smallest:
            least = time_elements(plan, [tuple(ids)], folder / "together")
    return {
        "bundle_overhead": bundle["times"],
        "bundle_overhead_smallest": least.get("times"),
        "alone_overhead_smallest": apart["times"],
        "overhead_s_a_run_bundled": bundle["beside"],
        "overhead_s_a_run_bundled_smallest": least.get("beside"),
        "overhead_s_a_run_alone_smallest": apart["beside"],
        "start_s": apart["beside"] - bundle["further"],
        "demo_training_s": bundle["loop"],
        "demo_training_smallest_s": apart["loop"],
    }


def measure_beside(device: torch.device, px: int, compiled: bool) -> tuple[float, float]:
    """Return the seconds that a U-Net's run takes beside its loop, and that compiling took.

    On a GPU the run has all 100 cases. On a CPU it has few; the time to predict the others is the
    time of a forward for each.
    """
    gpu, sweep = device.type == "cuda", read_sweep("table1")
    cases, batch, epochs, precision = (100, 32, 7, "bf16") if gpu else (2, 1, 1, "fp32")
    settings = replace(
        sweep.segment,
        epochs=epochs,
        optim={**sweep.segment.optim, "batch_size": batch, "precision": precision},
    )
    few = replace(
        sweep, factors=(), split=replace(sweep.split, train=cases, test=cases), segment=settings
    )

    with tempfile.TemporaryDirectory() as name:
        how = {
            "gpus": int(gpu),
            "threads": torch.get_num_threads(),
            "compile": "on" if compiled else "off",
        }
        plan = plan_reference(few, Path(name), 2 * cases, 2, **how)
        ids = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"]
        for run_id in ids:
            report = execute(plan, run_id)
            if report.state != "done":
                raise SystemExit(
                    f"a run of table1's network ended {report.state}: {report.message}"
                )
        (_, first), (wall, second) = (spent(plan, run_id) for run_id in ids)

    # What predicting one more case takes; the first forward only warms up.
    model = build(lambda: UNet(sweep.segment.unet), 0, device)
    images = make_pairs(1, px, device).images
    times = []
    for _ in range(2):
        began = time.perf_counter()
        model.probability(images)
        synchronise()
        times.append(time.perf_counter() - began)
    return wall - second + (sweep.split.test - cases) * min(times), first - second
