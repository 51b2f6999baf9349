"""A sweep's plan and its runs' results in, rows out; gaps are refused or listed, never filled.

The plan names every run that the sweep expects. A row is made only of a run that is done and whose
numbers can be; any other run is missing, with its reason.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.stages import QualityConfig
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.done import REMADE, Results, ResultSummary, read_results
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run

SET_MEASURES = (
    *("kid", "precision", "recall", "density", "coverage", "duplicates", "distinct"),
    *("area", "components", "row", "column", "agreement", "copies"),
    *("contrast", "lesion_mean", "lesion_sd", "lesion_edge", "texture"),
)
"""Measures of the quality stage that have an interval; a run has those that its source and its
version of the code allow."""
MASK_MEDIANS = tuple(
    f"{name}_median{of}" for name in ("area", "components", "row", "column") for of in ("", "_test")
)
MORE_MEASURES = (
    *("dice_with_tumour", "dice_small", "dice_medium", "dice_large"),
    *("surface_dice_2", "area_error"),
)
"""Measures that not every segment run has: its test cases or its version do not allow them."""
SET_COLUMNS = (
    *(f"{name}{end}" for name in SET_MEASURES for end in ("", "_low", "_high")),
    *(*MASK_MEDIANS, "copying"),
)
LIKELIHOOD_METRICS = (
    *("cases", "log_likelihood", "log_likelihood_before", "gap", "temperatures"),
    *("effective_samples", "acceptance", "bits_per_pixel", "importance_bound", "elbo"),
)
DRAW_METRICS = ("draws", "rejected", "smallest_mask_px", "acceptance", "movement")

COLUMNS = {
    "segment": (
        *("data", "arm", "generator", "n_synthetic", "n_standard", "seed", "split_seed"),
        *("dice", "precision", "recall", "hausdorff_95", "hausdorff_95_unit", "median_dice"),
        *("test_cases", *MORE_MEASURES, "generator_seed"),
    ),
    "quality": (
        *("data", "source", "seed", "split_seed", "n"),
        *("psnr_mean", "psnr_sd", "ssim_mean", "ssim_sd", *SET_COLUMNS),
    ),
    "likelihood": ("data", "generator", "seed", "split_seed", *LIKELIHOOD_METRICS, "elbo_flow"),
    "generate": ("data", "source", "split_seed", "seed", *DRAW_METRICS),
}
"""Stage to the columns of its rows; at the end all have those of RUN_COLUMNS."""
RUN_COLUMNS = ("wall_s", "run_id", "folder")
COST_COLUMNS = (
    *("run_id", "stage", "data", "device", "host", "processes", "attempt", "wall_s", "spent_s"),
    *("peak_memory_mib", "energy_j", "torch", "code_sha"),
)

SHARES = ("precision", "recall", "coverage", "duplicates", "agreement", "copies", "copying")
LARGE = (-1e12, 1e12)
"""No measure of ours comes near it; the square of a larger one may leave the numbers."""
BOUNDS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "segment": {
        **dict.fromkeys(("dice", *MORE_MEASURES, "precision", "recall"), (0, 1)),
        **dict.fromkeys(("hausdorff_95", "area_error"), (0, 1e6)),
    },
    "quality": {
        **dict.fromkeys(("psnr_mean", *SET_COLUMNS), LARGE),
        **dict.fromkeys((*SHARES, "ssim_sd"), (0, 1)),
        **dict.fromkeys(("psnr_sd", "density", "distinct"), (0, 1e6)),
        **{"n": (1, 1e6), "ssim_mean": (-1, 1)},
    },
    "likelihood": dict.fromkeys((*LIKELIHOOD_METRICS, "elbo_flow"), LARGE),
    "generate": {**dict.fromkeys(DRAW_METRICS, (0, 1e12)), "acceptance": (0, 1)},
}
"""Stage to its metrics that stand in tables, and what they can be."""
REQUIRED: Mapping[str, Sequence[str]] = {
    "segment": ("dice", "precision", "recall", "hausdorff_95"),
    "quality": ("n", "psnr_mean", "ssim_mean"),
    "likelihood": LIKELIHOOD_METRICS,
}
"""Stage to the metrics that each of its runs must have."""
ROUNDING = 1e-6
"""Sums of the same numbers in another order differ by less."""
NOT_YET = "no metrics.json yet"
_MOST_NAMED = 9


@frozen
class Collected:
    """What the runs of a plan have given so far.

    Attributes:
        segment: one row per done segment run; columns COLUMNS["segment"]; a measure of
            MORE_MEASURES that it does not have is NaN.
        quality: one row per done quality run; columns COLUMNS["quality"]; an sd over one draw is
            NaN, and so is a set measure that the source does not have.
        likelihood: one row per done likelihood run; columns COLUMNS["likelihood"]; elbo_flow is NaN
            for a VAE.
        generate: one row per done generate run; columns COLUMNS["generate"]; acceptance is NaN
            where no chain drew.
        costs: one row per done run: where it was made and what it took; columns COST_COLUMNS.
        results: what is known of each run of the plan; a result that is not believed is none.
        missing: "folder: reason" of every other expected run.
    """

    segment: pd.DataFrame
    quality: pd.DataFrame
    likelihood: pd.DataFrame
    generate: pd.DataFrame
    costs: pd.DataFrame
    results: Results
    missing: tuple[str, ...]


def rows_of(frame: pd.DataFrame, **values: str) -> pd.DataFrame:
    """Return the rows of a frame whose columns have the given values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


def collect(plan: Plan) -> Collected:
    """Collect the results of all runs that a plan expects in its runs folder."""
    results = read_results(plan)
    impossible = {
        run_id: _check_numbers(plan.runs[run_id], result)
        for run_id, result in results.items()
        if result.done
    }
    results = _refuse(plan, results, impossible)
    results = _refuse(plan, results, _find_other_cases(plan, results))
    missing = tuple(
        f"{plan.folder_name(run_id)}: {result.reason or NOT_YET}"
        for run_id, result in results.items()
        if not result.done
    )

    # Stages in the order of the plan, and in each stage its runs.
    stages = list(dict.fromkeys(run.stage for run in plan.runs.values()))
    rows = [_row(plan, run_id, result) for run_id, result in results.items() if result.done]
    rows.sort(key=lambda row: stages.index(row["stage"]))
    frames = {
        stage: pd.DataFrame(
            [row for row in rows if row["stage"] == stage], columns=[*names, *RUN_COLUMNS]
        )
        for stage, names in COLUMNS.items()
    }
    return Collected(
        **frames,
        costs=pd.DataFrame(rows, columns=[*COST_COLUMNS]),
        results=results,
        missing=missing,
    )


def needed_runs(plan: Plan, run_id: str) -> set[str]:
    """Return the ids of a run and of all runs that it needed, such as its generator's training.

    A run that made more pairs than the network took counts whole.
    """
    parents = plan.parents(run_id).values()
    return {run_id}.union(*(needed_runs(plan, parent) for parent in parents))


def network_cost(collected: Collected, networks: Sequence[set[str]]) -> tuple[float, set[str]]:
    """Return the device seconds that a network needed, mean over an arm's networks, and of what.

    All attempts at all its runs count.

    Args:
        networks: the ids of the runs that each of them needed.

    Returns:
        The seconds, and the names of the devices.
    """
    costs = collected.costs.set_index("run_id")
    seconds = costs["spent_s"] * costs["processes"]
    mean = np.mean([sum(seconds[sorted(runs)]) for runs in networks])
    return float(mean), set(costs["device"][sorted(set().union(*networks))])


def name_some(lines: Sequence[str]) -> str:
    """Return the first few lines, indented, and how many more there are."""
    shown = [f"  {line}" for line in lines[:_MOST_NAMED]]
    if len(lines) > _MOST_NAMED:
        shown.append(f"  ... and {len(lines) - _MOST_NAMED} more")
    return "\n".join(shown)


def _refuse(plan: Plan, results: Results, faults: Mapping[str, str]) -> dict[str, ResultSummary]:
    """Return the results; one with a fault, or made from such a one, does not count."""
    believed: dict[str, ResultSummary] = {}
    for run_id, result in results.items():
        reason = ""
        if fault := faults.get(run_id):
            reason = f"metrics.json: {fault}; delete the folder"
        elif not all(believed[parent].done for parent in plan.parents(run_id).values()):
            reason = REMADE
        believed[run_id] = ResultSummary(reason=reason) if result.done and reason else result
    return believed


def _check_numbers(run: Run, result: ResultSummary) -> str:
    """Return which number is missing or cannot be; "" where all are well."""
    metrics = result.metrics
    required = list(REQUIRED.get(run.stage, ()))
    if isinstance(run.config, QualityConfig):
        required += ["psnr_sd", "ssim_sd"] if metrics.get("n", 0) > 1 else []
        required += ["kid", "coverage", "duplicates"] if run.config.features else []

    for name in required:
        if name not in metrics:
            return f"{name} is missing, expected a finite number"
    for name, (low, high) in BOUNDS.get(run.stage, {}).items():
        if name in metrics and not low <= metrics[name] <= high:
            return f"{name} is {metrics[name]:g}, expected {low:g} to {high:g}"

    if run.stage == "segment":
        dice = list(result.case_dice.values())
        if not dice:
            return "per_case has no finite dice for every case"
        if min(dice) < 0 or max(dice) > 1:
            return f"per_case has dice from {min(dice):g} to {max(dice):g}, expected 0 to 1"
        mean = sum(dice) / len(dice)
        if abs(metrics["dice"] - mean) > ROUNDING:
            return f"dice is {metrics['dice']:g}, expected its cases' mean {mean:g}"
    return ""


def _find_other_cases(plan: Plan, results: Results) -> dict[str, str]:
    """Return the done runs whose test cases are not those of most runs of their data and split."""
    likes: dict[tuple[str, int], dict[str, tuple[str, ...]]] = defaultdict(dict)
    for run_id, result in results.items():
        if result.case_dice:
            config: Any = plan.runs[run_id].config
            likes[config.data, config.split.seed][run_id] = tuple(result.case_dice)

    faults: dict[str, str] = {}
    for like in likes.values():
        usual, _ = Counter(like.values()).most_common(1)[0]
        for run_id, cases in like.items():
            if odd := set(cases) ^ set(usual) if cases != usual else set():
                faults[run_id] = f"other test cases than its like ({min(odd)})"
    return faults


def _row(plan: Plan, run_id: str, result: ResultSummary) -> dict[str, Any]:
    """Return the cells of all columns that a done run has."""
    run = plan.runs[run_id]
    config: Any = run.config
    arm = getattr(config, "arm", None) or ArmConfig(
        name="", generator=getattr(config, "generator", "")
    )
    metrics: dict[str, Any] = dict(result.metrics)
    if run.stage == "quality":
        metrics["n"] = int(metrics["n"])
        # The sd over a single draw does not exist, whatever the file holds in its place.
        metrics |= dict.fromkeys(("psnr_sd", "ssim_sd"), np.nan) if metrics["n"] < 2 else {}
    if result.case_dice:
        metrics["median_dice"] = float(np.median(list(result.case_dice.values())))
    return {
        **metrics,
        **vars(arm),
        **vars(result),
        "energy_j": np.nan if result.energy_j is None else result.energy_j,
        "hausdorff_95_unit": result.hausdorff_unit,
        "stage": run.stage,
        "run_id": run_id,
        "folder": plan.folder_name(run_id),
        "data": config.data,
        "seed": config.seed,
        "split_seed": config.split.seed,
        "source": run.source,
        "arm": arm.name,
    }
