"""A sweep's plan and its runs' metrics.json in, rows out; gaps are refused or listed, never filled.

The plan names every run that the sweep expects. A row is made only of a run that is done; any other
run is missing, with its reason.
"""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from hvae_hpc.errors import UserError
from hvae_hpc.results.reading import parents_text
from hvae_hpc.results.records import Records, read_records
from hvae_hpc.results.statistics import Summary, summarise
from hvae_hpc.runs.done import Made, follow
from hvae_hpc.runs.plan import Plan

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
MASK_MEDIANS = tuple(
    f"{name}_median{of}" for name in ("area", "components", "row", "column") for of in ("", "_test")
)
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
DRAW_METRICS = ("draws", "rejected", "smallest_mask_px", "acceptance")
DRAW_COLUMNS = ("data", "source", "split_seed", "seed", *DRAW_METRICS, "run_id")
COST_COLUMNS = (
    *("run_id", "stage", "data", "device", "host", "processes", "attempt", "wall_s", "spent_s"),
    *("peak_memory_mib", "energy_j", "torch", "code_sha"),
)
BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("attempt", "processes", "at_once"), (1, 1e6)),
    **dict.fromkeys(("wall_s", "spent_s", "peak_memory_mib", "energy_j"), (0, 1e12)),
    "n": (1, 1e6),
}
OF_SEGMENT = {**dict.fromkeys(("dice", "precision", "recall"), (0, 1)), "hausdorff_95": (0, 1e6)}
SHARES = ("precision", "recall", "coverage", "duplicates", "agreement", "copies", "copying")
OF_STAGE: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "segment": OF_SEGMENT,
    "generate": {**dict.fromkeys(DRAW_METRICS, (0, 1e12)), "acceptance": (0, 1)},
    "quality": {
        **dict.fromkeys(SHARES, (0, 1)),
        **{
            "ssim_mean": (-1, 1),
            "ssim_sd": (0, 1),
            "psnr_sd": (0, 1e6),
            "density": (0, 1e6),
            "distinct": (0, 1e6),
        },
    },
}
"""What numbers can be: those of all stages, and of some."""
REQUIRED = {
    "segment": tuple(OF_SEGMENT),
    "quality": ("n", "psnr_mean", "ssim_mean"),
    "likelihood": LIKELIHOOD_METRICS,
}
"""Stage to the metrics that each of its runs must have."""
METRICS = {
    "segment": REQUIRED["segment"],
    "quality": (*REQUIRED["quality"], "psnr_sd", "ssim_sd", *SET_COLUMNS),
    "likelihood": (*REQUIRED["likelihood"], "elbo_flow"),
    "generate": DRAW_METRICS,
}
"""Stage to the metrics that are kept of its runs."""
NOT_YET = "no metrics.json yet"
_MOST_NAMED = 9


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What the runs of a plan have given so far.

    Attributes:
        segment: one row per done segment run; columns SEGMENT_COLUMNS.
        quality: one row per done quality run; columns QUALITY_COLUMNS; an sd over one draw is NaN,
            and so is a set measure that the source does not have.
        likelihood: one row per done likelihood run; columns LIKELIHOOD_COLUMNS; elbo_flow is NaN
            for a VAE.
        draws: one row per done generate run; columns DRAW_COLUMNS; acceptance is NaN where no chain
            drew.
        costs: one row per done run: where it was made and what it took; columns COST_COLUMNS.
        case_dice: id of a segment run to its Dice by case id.
        done: ids of all runs that are done.
        missing: "folder: reason" of every other expected run.
        code_shas: code version to the number of runs that it made.
    """

    segment: pd.DataFrame
    quality: pd.DataFrame
    likelihood: pd.DataFrame
    draws: pd.DataFrame
    costs: pd.DataFrame
    case_dice: Mapping[str, Mapping[str, float]]
    done: frozenset[str]
    missing: tuple[str, ...]
    code_shas: dict[str, int]

    def dice(self, data: str, arm: str) -> Summary | None:
        """Return the summary of an arm's Dice over its done runs; None where there is none."""
        values = self.segment.loc[
            (self.segment["data"] == data) & (self.segment["arm"] == arm), "dice"
        ]
        return summarise(values) if len(values) else None


def collect(plan: Plan, partial: bool = False) -> Collected:
    """Read the metrics.json of all runs of a plan; of those that did not change since, what was kept of them.

    Args:
        plan: what is expected in its runs folder.
        partial: go on where runs are missing; they are listed in the answer.

    Raises:
        UserError: runs are missing, unless partial.
    """
    records = read_records(plan, METRICS)
    faults = {**_wrong_numbers(plan, records), **records.faults}
    undone = _undone(plan, records, faults)
    if odd := _other_cases(records, undone.keys()):
        undone = _undone(plan, records, {**faults, **odd})
    reasons = undone | records.doubled
    missing = (
        [f"{plan.folder_name(i)}: {reasons[i] or NOT_YET}" for i in plan.runs if i in reasons]
        if reasons
        else []
    )
    done = plan.runs.keys() - reasons.keys()
    if missing and not partial:
        raise UserError(refusal(plan, missing))
    believed = {stage: _without(frame, reasons.keys()) for stage, frame in records.frames.items()}
    of_stages = [_costs(stage, frame) for stage, frame in believed.items()]
    costs = pd.concat(of_stages) if of_stages else pd.DataFrame(columns=list(COST_COLUMNS))
    return Collected(
        segment=_segments(believed.get("segment")),
        quality=_qualities(believed.get("quality")),
        likelihood=_select(believed.get("likelihood"), LIKELIHOOD_COLUMNS),
        draws=_select(believed.get("generate"), DRAW_COLUMNS),
        costs=costs,
        case_dice=records.dice,
        done=frozenset(done),
        missing=tuple(missing),
        code_shas={
            str(sha): int(n) for sha, n in costs["code_sha"].value_counts().sort_index().items()
        },
    )


def _without(frame: pd.DataFrame, undone: Set[str]) -> pd.DataFrame:
    if not undone:
        return frame
    keep = np.array([run_id not in undone for run_id in frame["run_id"].tolist()], dtype=bool)
    return frame if keep.all() else frame[keep]


def refusal(plan: Plan, missing: Sequence[str]) -> str:
    """Return what a user is told whose sweep is not done."""
    return (
        f"sweep {plan.sweep}: {len(missing)} of {len(plan.runs)} runs have no valid metrics.json; "
        f"run the sweep command again, or add --partial\n{name_some(missing)}"
    )


def _undone(plan: Plan, records: Records, faults: Mapping[str, str]) -> dict[str, str]:
    """Return the runs that are not done, and why."""
    if not faults and _all_fit(plan, records):
        return {}
    states = follow(plan, _reader(records, faults))
    return {run_id: state.reason for run_id, state in states.items() if not state.stamp}


def _all_fit(plan: Plan, records: Records) -> bool:
    """Return whether every run is there, and made from its parents as they are: the usual case, found out quickly."""
    stamps, made_from = dict[str, str](), dict[str, str]()
    for frame in records.frames.values():
        run_ids = frame["run_id"].tolist()
        stamps.update(zip(run_ids, frame["stamp"].tolist(), strict=True))
        made_from.update(zip(run_ids, frame["parents"].tolist(), strict=True))
    if len(stamps) < len(plan.runs):
        return False
    sets_of_parents = {id(run.parents): run.parents for run in plan.runs.values()}
    expected = {
        key: parents_text(
            {role: stamps[run_id] for role, run_id in parents.items() if role != "data"}
        )
        for key, parents in sets_of_parents.items()
    }
    wanted = [expected[id(run.parents)] for run in plan.runs.values()]
    return [made_from[run_id] for run_id in plan.runs] == wanted


def _reader(records: Records, faults: Mapping[str, str]) -> Callable[[str], Made | None]:
    """Return what tells how a run was made, for :func:`hvae_hpc.runs.done.follow`."""
    made: dict[str, Made] = {}

    @cache
    def make(stamp: str, parents: str) -> Made:
        return Made(stamp=stamp, parent_stamps=json.loads(parents), attempt=0, wall_s=0.0)

    for frame in records.frames.values():
        run_ids, stamps, parents = (frame[name].tolist() for name in ("run_id", "stamp", "parents"))
        made.update(zip(run_ids, map(make, stamps, parents), strict=True))

    def read(run_id: str) -> Made | None:
        if run_id in faults:
            raise UserError(faults[run_id])
        return made.get(run_id)

    return read if faults else made.get


def _wrong_numbers(plan: Plan, records: Records) -> dict[str, str]:
    """Return the runs that lack a number that their stage always has, or have an impossible one, and why."""
    found: dict[str, str] = {}
    for stage, frame in records.frames.items():
        needed = dict.fromkeys(REQUIRED.get(stage, ()), np.ones(len(frame), dtype=bool))
        if stage == "quality":
            needed |= dict.fromkeys(("psnr_sd", "ssim_sd"), frame["n"].to_numpy() > 1)
            configs: list[Any] = [plan.runs[run_id].config for run_id in frame["run_id"]]
            featured = [config.features for config in configs]
            needed |= dict.fromkeys(
                ("kid", "coverage", "duplicates"), np.array(featured, dtype=bool)
            )
        for name, among in needed.items():
            reason = f"metrics.json: {name} is missing, expected a finite number; delete the folder"
            found |= dict.fromkeys(frame["run_id"][frame[name].isna() & among], reason)
        for name, (low, high) in {**BOUNDS, **OF_STAGE.get(stage, {})}.items():
            if name in frame:
                wrong = frame[(frame[name] < low) | (frame[name] > high)]
                for run_id, value in zip(wrong["run_id"], wrong[name], strict=True):
                    got = f"{name} is {value:g}, expected {low:g} to {high:g}"
                    found[run_id] = f"metrics.json: {got}; delete the folder"
    return found


def _other_cases(records: Records, undone: Set[str]) -> dict[str, str]:
    """Return the done runs whose test cases are not those of most done runs of their data set and split, and why."""
    found: dict[str, str] = {}
    if (frame := records.frames.get("segment")) is None:
        return found
    for _, like in _without(frame, undone).groupby(["data", "split_seed"]):
        usual, *others = like["case_set"].value_counts().index
        for which in others:
            if odd := set(records.dice.case_sets[usual]) ^ set(records.dice.case_sets[which]):
                reason = (
                    f"metrics.json: other test cases than its like ({min(odd)}); delete the folder"
                )
                found |= dict.fromkeys(like.loc[like["case_set"] == which, "run_id"], reason)
    return found


def name_some(lines: Sequence[str]) -> str:
    """Return the first few lines, indented, and how many more there are."""
    shown = [f"  {line}" for line in lines[:_MOST_NAMED]]
    if len(lines) > _MOST_NAMED:
        shown.append(f"  ... and {len(lines) - _MOST_NAMED} more")
    return "\n".join(shown)


def _select(frame: pd.DataFrame | None, columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns)) if frame is None else frame[list(columns)]


def _segments(frame: pd.DataFrame | None) -> pd.DataFrame:
    if frame is not None:
        frame = frame.assign(hausdorff_95_unit=frame["unit"], n_cases=frame["n_cases"].astype(int))
    return _select(frame, SEGMENT_COLUMNS)


def _qualities(frame: pd.DataFrame | None) -> pd.DataFrame:
    if frame is not None:
        # The sd over a single draw does not exist, whatever the file holds in its place.
        sds = {name: frame[name].where(frame["n"] > 1) for name in ("psnr_sd", "ssim_sd")}
        frame = frame.assign(n=frame["n"].astype(int), **sds)
    return _select(frame, QUALITY_COLUMNS)


def _costs(stage: str, frame: pd.DataFrame) -> pd.DataFrame:
    at_once = frame["at_once"].clip(lower=1)
    return frame.assign(
        stage=stage,
        processes=frame["processes"].astype(int),
        attempt=frame["attempt"].astype(int),
        wall_s=frame["wall_s"] / at_once,
        spent_s=np.maximum(frame["spent_s"], frame["wall_s"]) / at_once,
        peak_memory_mib=frame["peak_memory_mib"]
        * at_once,  # each run told of its own process alone
        energy_j=(frame["energy_j"] / at_once).where(
            frame["processes"] == 1
        ),  # only one GPU was asked
    )[list(COST_COLUMNS)]
