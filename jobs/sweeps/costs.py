"""What runs will cost: seconds, bytes and files, before they run.

Where the sweep has finished runs of the same kind (stage, data, network), their time per image
counts; it carries over to other arms and seeds. Else the time is estimated from the networks'
multiplications. Estimates fill elements and give a first idea of GPU-hours; they promise nothing.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from hvae_hpc.config.model import NetworkConfig, UNetConfig
from hvae_hpc.config.resources import START_S, Resources
from hvae_hpc.config.stages import (
    AugmentConfig,
    GenerateConfig,
    LikelihoodConfig,
    QualityConfig,
    SegmentConfig,
    StageConfig,
    TrainConfig,
)
from hvae_hpc.runs.done import ResultSummary
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run

FLOPS_GPU, FLOPS_CPU = 2e13, 3e10
"""Operations per second that small networks reach: a data-centre GPU in bfloat16, a CPU thread."""
FLOAT32_COST = 8.0
"""Times that a GPU takes longer in float32."""
SECONDS_PER_RUN = 2.0
"""Reading the data, making the network, writing the results."""
SECONDS_PER_COPY = 0.03
SECONDS_PER_COMPARISON = 0.01
TYPICAL_PX = 240
FILES_PER_RUN = 6
HEADROOM = 1.3
"""A time limit is this many times the longest that was measured (the 95th percentile)."""


class Seconds(NamedTuple):
    """What a run is expected to take, and a time that it hardly exceeds.

    ``high`` is None where no run of its kind was measured.
    """

    expected: float
    high: float | None


def minutes_for(seconds: float, resources: Resources) -> int:
    """Return the time limit in minutes in which so much work is done and can be saved.

    It is at most the stage's longest.
    """
    return min(resources.minutes, math.ceil((seconds + START_S + resources.signal_lead_s) / 60) + 2)


def expected_seconds(
    plan: Plan, results: Mapping[str, ResultSummary], run_ids: Iterable[str]
) -> dict[str, Seconds]:
    """Return what each run will take, from what the plan's finished runs took."""
    rates = defaultdict[Hashable, list[float]](list)  # seconds per image
    for run_id, result in results.items():
        if result.attempt == 1:  # later attempts did only a part
            run = plan.runs[run_id]
            rates[_kind(run)].append(result.wall_s / _images(run.config))

    seconds = {}
    for run_id in run_ids:
        run = plan.runs[run_id]
        images, measured = _images(run.config), sorted(rates[_kind(run)])
        if measured:
            high = measured[math.ceil(0.95 * len(measured)) - 1] * images * HEADROOM
            seconds[run_id] = Seconds(median(measured) * images, high)
        else:
            seconds[run_id] = Seconds(_estimate(run.config, plan.resources[run.stage]), None)
    return seconds


def _kind(run: Run) -> Hashable:
    """Return what runs have in common whose time per image is alike."""
    config = {
        key: value
        for key, value in vars(run.config).items()
        if key not in ("seed", "arm", "keep_weights")
    }
    if "optim" in config:
        config["optim"] = tuple(
            (key, value) for key, value in vars(config["optim"]).items() if key != "images"
        )
    return (run.stage, *config.items())


def _images(config: StageConfig) -> int:
    """Return how many images a run works on; for a likelihood, passes through the decoder."""
    if isinstance(config, (TrainConfig, SegmentConfig)):
        return config.optim.images
    if isinstance(config, LikelihoodConfig):
        leaps = (1 + config.estimates) * config.chains * config.temperatures * config.leaps
        cases = min(config.cases or config.split.test, config.split.test)
        return cases * (leaps + config.importance_samples // 2)
    return config.n_images * config.draws if isinstance(config, QualityConfig) else config.n_pairs


def _estimate(config: StageConfig, resources: Resources) -> float:
    """Return the seconds of a run, from its networks' operations or a constant per image."""
    speed = FLOPS_GPU * resources.tasks if resources.gpus else FLOPS_CPU * resources.threads
    pixels, images = (config.image_px or TYPICAL_PX) ** 2, _images(config)
    seconds = operations = 0.0
    if isinstance(config, AugmentConfig):
        seconds = SECONDS_PER_COPY * images
    elif isinstance(config, GenerateConfig):
        seconds = SECONDS_PER_COMPARISON * images
    elif isinstance(config, QualityConfig):
        seconds = SECONDS_PER_COMPARISON * images
        if config.features:  # the judge, taken for the default network, looks at three sets
            operations = 3 * config.n_images * _unet_flops(UNetConfig())
    elif isinstance(config, LikelihoodConfig):  # in float32, with the default network
        operations = images * NetworkConfig().operations_per_pixel()
        operations *= FLOAT32_COST if resources.gpus else 1
    elif isinstance(config, SegmentConfig):
        operations = images * 3 * _unet_flops(config.unet)
    else:
        operations = images * config.model.operations_per_pixel()
    return SECONDS_PER_RUN + seconds + operations * pixels / speed


def _unet_flops(unet: UNetConfig) -> float:
    """Return a forward pass's operations per pixel.

    Every level costs alike: twice the channels, a quarter of the pixels.
    """
    return 18.0 * unet.base_channels**2 * 5 * unet.depth


def expected_bytes(run: Run) -> tuple[float, float]:
    """Return the bytes that a run keeps, and those that it needs while it runs.

    While it runs there are two checkpoints: weights, their average, and two moments each.
    """
    config = run.config
    pixels = (config.image_px or TYPICAL_PX) ** 2
    log = 50_000.0
    if isinstance(config, SegmentConfig):
        weights = 4.0 * 30 * config.unet.base_channels**2 * 4**config.unet.depth
        return log + 6 * 6 * pixels + (weights if config.keep_weights else 0), 2 * 4 * weights
    if isinstance(config, TrainConfig):
        weights = 4.0 * config.model.weight_count()
        return log + weights, 2 * 4 * weights
    pairs = config.n_pairs if isinstance(config, (GenerateConfig, AugmentConfig)) else 0
    return log + 5.0 * pairs * pixels, 0.0


def add_up(
    plan: Plan, run_ids: Sequence[str], seconds: Mapping[str, Seconds], calls: int
) -> dict[str, float]:
    """Return what a submission costs.

    Args:
        plan: with the submission's arrays.
        run_ids: what it makes.
        seconds: by run.
        calls: of SLURM's clients.

    Returns:
        ``runs``, ``elements``, ``gpu_hours``, ``cpu_hours``, ``measured`` (share of the runs),
        ``files`` and ``bytes`` that are kept, ``bytes_peak`` with the checkpoints of all elements
        at once, ``submission_files`` (before anything runs), and ``calls`` to the scheduler.
    """
    hours = {run_id: seconds[run_id].expected / 3600 for run_id in run_ids}
    needs = {run_id: plan.resources[plan.runs[run_id].stage] for run_id in run_ids}
    kept = sum(expected_bytes(plan.runs[run_id])[0] for run_id in run_ids)
    elements = [element for array in plan.arrays for element in array.elements]
    working = sum(
        max(expected_bytes(plan.runs[run_id])[1] for run_id in element) for element in elements
    )
    return {
        "runs": float(len(run_ids)),
        "elements": float(len(elements)),
        "gpu_hours": sum(hours[i] * needs[i].nodes * needs[i].gpus for i in run_ids),
        "cpu_hours": sum(hours[i] * needs[i].tasks * needs[i].cpus for i in run_ids),
        "measured": sum(seconds[i].high is not None for i in run_ids) / max(1, len(run_ids)),
        "files": float(FILES_PER_RUN * len(run_ids) + len(elements) + len(plan.arrays) + 2),
        "submission_files": float(len(plan.arrays) + 2),
        "bytes": kept,
        "bytes_peak": kept + working,
        "calls": float(calls),
    }
