"""A sweep's plan and its runs' metrics.json in, rows out; gaps are refused or listed, never filled.

The plan names every run that the sweep expects. A row is made only of a run that is done; any other run is
missing, with its reason.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hvae_hpc.errors import UserError
from hvae_hpc.plan import Plan, read_states
from hvae_hpc.results.statistics import Summary, summarise
from hvae_hpc.rundir import RunResult
from hvae_hpc.stages import GenerateConfig, LikelihoodConfig, QualityConfig, SegmentConfig

KNOWN_GENERATORS = ("lsgan", "vae", "hvae")
"""The paper's generators in the order of its tables; others follow in the plan's order."""

SEGMENT_COLUMNS = (
    *("data", "arm", "generator", "n_synthetic", "n_standard", "seed", "split_seed"),
    *("dice", "precision", "recall", "hausdorff_95", "hausdorff_95_unit", "median_dice"),
    *("n_cases", "generator_seed", "wall_s", "run_id", "folder"),
)
SET_MEASURES = (
    *("kid", "precision", "recall", "density", "coverage", "duplicates", "distinct"),
    *("area", "components", "row", "column", "agreement", "copies"),
)
"""Measures of the quality stage that have an interval; which ones a run has depends on its source."""
MASK_MEDIANS = tuple(f"{name}_median{of}" for name in ("area", "components", "row", "column") for of in ("", "_test"))
SET_COLUMNS = (
    *(f"{name}{end}" for name in SET_MEASURES for end in ("", "_low", "_high")),
    *(*MASK_MEDIANS, "copying"),
)
QUALITY_COLUMNS = (
    *("data", "source", "seed", "split_seed", "n"),
    *("psnr_mean", "psnr_sd", "ssim_mean", "ssim_sd", *SET_COLUMNS, "wall_s", "run_id", "folder"),
)
LIKELIHOOD_METRICS = (
    *("cases", "log_likelihood", "spread", "effective_samples", "acceptance"),
    *("bits_per_pixel", "importance_bound", "elbo"),
)
LIKELIHOOD_COLUMNS = (
    *("data", "generator", "seed", "split_seed", *LIKELIHOOD_METRICS, "elbo_flow"),
    *("wall_s", "run_id", "folder"),
)
COST_COLUMNS = (
    *("run_id", "stage", "data", "device", "host", "processes", "attempt", "wall_s", "spent_s"),
    *("peak_memory_mib", "energy_j", "torch", "code_sha"),
)
_MOST_NAMED = 9


def generators_of(plan: Plan) -> tuple[str, ...]:
    """Return what makes pairs (generators, and their samplers): LSGAN, VAE, HVAE first, others in the plan's order."""
    configs = [run.config for run in plan.runs.values()]
    named = dict.fromkeys(c.source for c in configs if isinstance(c, GenerateConfig))
    named |= dict.fromkeys(c.arm.generator for c in configs if isinstance(c, SegmentConfig))
    known = [name for name in KNOWN_GENERATORS if name in named]
    return (*known, *(name for name in named if name and name not in known))


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What the runs of a plan have given so far.

    Attributes:
        segment: one row per done segment run; columns SEGMENT_COLUMNS.
        quality: one row per done quality run; columns QUALITY_COLUMNS; an sd over one draw is NaN, and so is a
            set measure that the source does not have.
        likelihood: one row per done likelihood run; columns LIKELIHOOD_COLUMNS; elbo_flow is NaN for a VAE.
        costs: one row per done run: where it was made and what it took; columns COST_COLUMNS.
        case_dice: id of a done segment run to its Dice by case id.
        done: ids of all runs that are done.
        missing: "folder: reason" of every other expected run.
        code_shas: code version to the number of runs that it made.
    """

    segment: pd.DataFrame
    quality: pd.DataFrame
    likelihood: pd.DataFrame
    costs: pd.DataFrame
    case_dice: dict[str, dict[str, float]]
    done: frozenset[str]
    missing: tuple[str, ...]
    code_shas: dict[str, int]

    def dice(self, data: str, arm: str) -> Summary | None:
        """Return the summary of an arm's Dice over its done runs; None where there is none."""
        values = self.segment.loc[(self.segment["data"] == data) & (self.segment["arm"] == arm), "dice"]
        return summarise(values) if len(values) else None


def collect(plan: Plan, partial: bool = False) -> Collected:
    """Read the metrics.json of all runs of a plan.

    Args:
        plan: what is expected in its runs folder.
        partial: go on where runs are missing; they are listed in the answer.

    Raises:
        UserError: runs are missing, unless partial.
    """
    rows: dict[str, list[dict[str, Any]]] = {"segment": [], "quality": [], "likelihood": [], "costs": []}
    case_dice: dict[str, dict[str, float]] = {}
    done: set[str] = set()
    missing: list[str] = []
    code_shas: Counter[str] = Counter()
    for run_id, state in read_states(plan, results=True).items():
        run, folder = plan.runs[run_id], plan.folder(run_id)
        place = folder.relative_to(plan.runs_folder)
        if state.result is None:
            # The list names the folder already.
            missing.append(f"{place}: {state.reason.removeprefix(f'{folder}/') or 'no metrics.json yet'}")
            continue
        try:
            if isinstance(run.config, SegmentConfig):
                rows["segment"].append(_segment_row(run.config, state.result, str(place)))
                case_dice[run_id] = {case: numbers["dice"] for case, numbers in state.result.per_case.items()}
            elif isinstance(run.config, QualityConfig):
                rows["quality"].append(_quality_row(run.config, state.result, str(place)))
            elif isinstance(run.config, LikelihoodConfig):
                rows["likelihood"].append(_likelihood_row(run.config, state.result, str(place)))
        except UserError as error:
            missing.append(f"{place}: {error}")
            continue
        rows["costs"].append(_cost_row(state.result))
        done.add(run_id)
        code_shas[state.result.provenance.code_sha] += 1
    for run_id, why in _other_cases(rows["segment"], case_dice).items():
        missing.append(f"{plan.folder_name(run_id)}: {why}")
        rows["segment"] = [row for row in rows["segment"] if row["run_id"] != run_id]
        done.discard(run_id)
    if missing and not partial:
        raise UserError(
            f"sweep {plan.sweep}: {len(missing)} of {len(plan.runs)} runs have no valid metrics.json; "
            f"run the sweep command again, or add --partial\n{name_some(missing)}"
        )
    return Collected(
        segment=pd.DataFrame(rows["segment"], columns=list(SEGMENT_COLUMNS)),
        quality=pd.DataFrame(rows["quality"], columns=list(QUALITY_COLUMNS)),
        likelihood=pd.DataFrame(rows["likelihood"], columns=list(LIKELIHOOD_COLUMNS)),
        costs=pd.DataFrame(rows["costs"], columns=list(COST_COLUMNS)),
        case_dice=case_dice,
        done=frozenset(done),
        missing=tuple(missing),
        code_shas=dict(sorted(code_shas.items())),
    )


def _other_cases(rows: list[dict[str, Any]], case_dice: dict[str, dict[str, float]]) -> dict[str, str]:
    """Return the runs whose test cases are not those of most runs of their data set and split, and why."""
    sets: dict[tuple[str, int], Counter[frozenset[str]]] = {}
    for row in rows:
        cases = frozenset(case_dice[row["run_id"]])
        sets.setdefault((row["data"], row["split_seed"]), Counter())[cases] += 1
    found = {}
    for row in rows:
        usual = sets[row["data"], row["split_seed"]].most_common(1)[0][0]
        if odd := usual ^ frozenset(case_dice[row["run_id"]]):
            found[row["run_id"]] = f"metrics.json: other test cases than its like ({min(odd)}); delete the folder"
    return found


def name_some(lines: Sequence[str]) -> str:
    """Return the first few lines, indented, and how many more there are."""
    shown = [f"  {line}" for line in lines[:_MOST_NAMED]]
    if len(lines) > _MOST_NAMED:
        shown.append(f"  ... and {len(lines) - _MOST_NAMED} more")
    return "\n".join(shown)


def _segment_row(config: SegmentConfig, result: RunResult, folder: str) -> dict[str, Any]:
    per_case = [numbers.get("dice", math.nan) for numbers in result.per_case.values()]
    if not per_case or not all(map(math.isfinite, per_case)):
        raise UserError("metrics.json: per_case has no finite dice for every case; delete the folder")
    return {
        "data": config.data,
        "arm": config.arm.name,
        "generator": config.arm.generator,
        "n_synthetic": config.arm.n_synthetic,
        "n_standard": config.arm.n_standard,
        "seed": config.seed,
        "split_seed": config.split.seed,
        **_metrics(result, ["dice", "precision", "recall", "hausdorff_95"]),
        "hausdorff_95_unit": result.details.get("hausdorff_95_unit", "px"),
        "median_dice": float(np.median(per_case)),
        "n_cases": len(per_case),
        "generator_seed": config.arm.generator_seed,
        "wall_s": result.provenance.wall_s,
        "run_id": result.run_id,
        "folder": folder,
    }


def _quality_row(config: QualityConfig, result: RunResult, folder: str) -> dict[str, Any]:
    n = int(_metrics(result, ["n"])["n"])
    # The sd over a single draw does not exist, whatever the file holds in its place.
    sds = _metrics(result, ["psnr_sd", "ssim_sd"]) if n > 1 else {"psnr_sd": math.nan, "ssim_sd": math.nan}
    return {
        "data": config.data,
        "source": config.source,
        "seed": config.seed,
        "split_seed": config.split.seed,
        "n": n,
        **_metrics(result, ["psnr_mean", "ssim_mean"]),
        **sds,
        **dict.fromkeys(SET_COLUMNS, math.nan),
        **_metrics(result, ["kid", "coverage", "duplicates"] if config.features else []),
        **_metrics(result, [name for name in SET_COLUMNS if name in result.metrics]),
        "wall_s": result.provenance.wall_s,
        "run_id": result.run_id,
        "folder": folder,
    }


def _likelihood_row(config: LikelihoodConfig, result: RunResult, folder: str) -> dict[str, Any]:
    with_flow = _metrics(result, ["elbo_flow"]) if "elbo_flow" in result.metrics else {"elbo_flow": math.nan}
    return {
        "data": config.data,
        "generator": config.generator,
        "seed": config.seed,
        "split_seed": config.split.seed,
        **_metrics(result, LIKELIHOOD_METRICS),
        **with_flow,
        "wall_s": result.provenance.wall_s,
        "run_id": result.run_id,
        "folder": folder,
    }


def _cost_row(result: RunResult) -> dict[str, Any]:
    made = result.provenance
    named = ("device", "host", "processes", "attempt", "wall_s", "peak_memory_mib", "code_sha")
    return {
        "run_id": result.run_id,
        "stage": result.stage,
        "data": result.config.get("data", ""),
        **{name: getattr(made, name) for name in named},
        "wall_s": made.wall_s / made.at_once,
        "spent_s": max(made.spent_s, made.wall_s) / made.at_once,
        "energy_j": made.gpu.get("energy_j", math.nan),
        "torch": made.versions.get("torch", ""),
    }


def _metrics(result: RunResult, names: Iterable[str]) -> dict[str, float]:
    values = {name: result.metrics.get(name, math.nan) for name in names}
    for name, value in values.items():
        if not math.isfinite(value):
            got = value if name in result.metrics else "missing"
            raise UserError(f"metrics.json: {name} is {got}, expected a finite number; delete the folder")
    return values
