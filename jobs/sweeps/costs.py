"""What runs will cost: seconds, bytes and files, before they run.

Where the sweep has finished runs of the same kind (stage, data, network), their time per image
counts; it carries over to other arms and seeds. Else the time of a training is estimated from its
network's multiplications, and the time of another stage from the paper's settings. Estimates fill
elements and give a first idea of GPU-hours; they promise nothing.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from hvae_hpc.config.model import NetworkConfig
from hvae_hpc.config.resources import START_S, Resources
from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.runs.done import Results
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run

FLOPS_GPU, FLOPS_CPU = 2e13, 3e10
"""Operations per second that small networks reach: a data-centre GPU in bfloat16, a CPU thread."""
SECONDS_PER_RUN = 2.0
"""Reading the data, making the network, writing the results."""
SECONDS = {"likelihood": 5000.0, "generate": 10.0, "augment": 15.0, "quality": 900.0}
"""What a run of these stages takes on images of ``TYPICAL_PX`` with the paper's settings."""
TYPICAL_PX = 240
SMALL_BYTES = 2e6
"""What every run keeps: its log, its metrics and some samples."""
FILES_PER_RUN = 6
HEADROOM = 1.3
"""A time limit is this many times the longest that was measured (the 95th percentile)."""


class Seconds(NamedTuple):
    """What a run is expected to take, and a time that it hardly exceeds.

    ``high`` is infinite where no run of its kind was measured.
    """

    expected: float
    high: float = math.inf


def minutes_for(seconds: float, resources: Resources) -> int:
    """Return the time limit in minutes in which so much work is done and can be saved.

    It is at most the stage's longest.
    """
    whole_s = seconds + START_S + resources.signal_lead_s
    return math.ceil(min(resources.minutes, whole_s / 60 + 2))


def duration(seconds: float) -> str:
    """Return a time for people: "40 s", "12 min", "1 h 12 min", "2 d 3 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def percentile_95(values: Iterable[float]) -> float:
    """Return the least of some values that 95 % of them do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1]


def expected_seconds(plan: Plan, results: Results, run_ids: Iterable[str]) -> dict[str, Seconds]:
    """Return what each run will take, from what the plan's finished runs took."""
    rates, seconds = measure_rates(plan, results), {}
    for run_id in run_ids:
        run = plan.runs[run_id]
        images, measured = count_images(run), rates[kind_of(run)]
        if measured:
            high = percentile_95(measured) * images * HEADROOM
            seconds[run_id] = Seconds(median(measured) * images, high)
        else:
            seconds[run_id] = Seconds(_estimate(run, plan.resources[run.stage]))
    return seconds


def measure_rates(plan: Plan, results: Results) -> defaultdict[Hashable, list[float]]:
    """Return the seconds per image that the plan's finished runs took, by their kind."""
    rates = defaultdict[Hashable, list[float]](list)
    for run_id, result in results.items():
        if result.attempt == 1 and result.wall_s > 0:  # later attempts did only a part
            run = plan.runs[run_id]
            rates[kind_of(run)].append(result.wall_s / count_images(run))
    return rates


def kind_of(run: Run) -> Hashable:
    """Return what runs have in common whose time per image is alike."""
    config = {
        key: value
        for key, value in vars(run.config).items()
        if key not in ("seed", "split", "arm", "keep_weights")
    }
    if "optim" in config:
        config["optim"] = replace(config["optim"], images=config["optim"].batch_size)
    return (run.stage, *config.items())


def count_images(run: Run) -> int:
    """Return how many images a training sees; 1 for other stages, whose settings are all alike."""
    return run.config.optim.images if isinstance(run.config, (TrainConfig, SegmentConfig)) else 1


def _pixels(run: Run) -> int:
    return (run.config.image_px or TYPICAL_PX) ** 2


def _count_operations(run: Run) -> float:
    """Return the operations of a training for one image; 0 for other stages."""
    config = run.config
    if isinstance(config, TrainConfig):
        return config.model.operations_per_pixel() * _pixels(run)
    if isinstance(config, SegmentConfig):  # every level costs alike: half the pixels a side
        operations = 3 * 18.0 * config.unet.base_channels**2 * 5 * config.unet.depth
        operations *= 2.0 if config.unet.encoder == "residual" else 1.0
        return operations * _pixels(run)
    return 0.0


def _estimate(run: Run, resources: Resources) -> float:
    """Return the seconds of a run: a training's from its operations, else a number per stage."""
    operations = _count_operations(run)
    if not operations:
        return SECONDS_PER_RUN + SECONDS[run.stage] * _pixels(run) / TYPICAL_PX**2
    speed = FLOPS_GPU * resources.tasks if resources.gpus else FLOPS_CPU * resources.threads
    return SECONDS_PER_RUN + count_images(run) * operations / speed


def expected_bytes(run: Run) -> tuple[float, float]:
    """Return the bytes that a run keeps, and those that it needs besides while it runs.

    While it runs there are two checkpoints: weights, their average, and two moments each.
    """
    config = run.config
    if isinstance(config, SegmentConfig):
        weights = 4.0 * 30 * config.unet.base_channels**2 * 4**config.unet.depth
        return SMALL_BYTES + weights * config.keep_weights, 8 * weights
    if isinstance(config, TrainConfig):
        network = getattr(config.model, "network", NetworkConfig())
        weights = 4.0 * network.weight_count()
        return SMALL_BYTES + weights, 8 * weights
    return SMALL_BYTES + 5.0 * getattr(config, "n_pairs", 0) * _pixels(run), 0.0


def add_up(plan: Plan, seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """Return what runs cost.

    Args:
        plan: of their sweep; that of a submission has arrays.
        seconds: by run.

    Returns:
        ``elements``, ``gpu_hours``, ``cpu_hours``, ``measured`` (share of the runs), ``files`` and
        ``bytes`` that are kept, and ``bytes_peak`` with the checkpoints of all elements that may
        run at once.
    """
    gpu_hours = cpu_hours = kept = 0.0
    for run_id, (expected, _) in seconds.items():
        run = plan.runs[run_id]
        needs = plan.resources[run.stage]
        gpu_hours += expected / 3600 * needs.nodes * needs.gpus
        cpu_hours += expected / 3600 * needs.tasks * needs.cpus
        kept += expected_bytes(run)[0]

    n_elements, working = 0, 0.0
    for array in plan.arrays:
        n_elements += len(array.elements)
        needed = [
            max(expected_bytes(plan.runs[run_id])[1] for run_id in element)
            for element in array.elements
        ]
        at_once = plan.resources[array.stage].array_parallelism or len(needed)
        working += sum(sorted(needed)[-at_once:])

    measured = sum(high < math.inf for _, high in seconds.values())
    return {
        "elements": n_elements,
        "gpu_hours": gpu_hours,
        "cpu_hours": cpu_hours,
        "measured": measured / max(1, len(seconds)),
        "files": FILES_PER_RUN * len(seconds) + n_elements + len(plan.arrays) + 2,
        "bytes": kept,
        "bytes_peak": kept + working,
    }
