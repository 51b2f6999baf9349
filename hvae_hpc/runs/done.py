"""Which runs are done, and what is known of their results.

A run is done when its metrics.json is valid, its parents are done, and it was made from just these
makings of them. A parent that is made again therefore takes along what hangs on it.

To read 10,000 files strictly takes seconds. What was read is kept in one file per sweep,
``plans/<sweep>.cache``, and a metrics.json is read again only when it changed. The cache is a
shortcut and nothing else: one that is damaged, foreign or of another version is ignored, and who
cannot write it goes without.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from hvae_hpc.errors import UserError, printable
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.files import RECORD_BYTES, read_file
from hvae_hpc.runs.folder import METRICS, RunResult, read_result, result_stamp, write_atomic
from hvae_hpc.runs.plan import PLANS, Plan
from hvae_hpc.runs.run import Run

CACHE_TITLE = "hvae_hpc results 1"
"""The first words of a cache; another number for another content."""
SETTLED_NS = 2_000_000_000
"""A younger file may change again without a change of its time: file systems' clocks are coarse."""
LONGEST_REASON = 500
LONGEST_TEXT = 100
"""Letters; what a file says may be of any length."""
BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("attempt", "processes", "at_once"), (1, 1e6)),
    **dict.fromkeys(("wall_s", "spent_s", "peak_memory_mib", "energy_j"), (0, 1e12)),
}
"""What numbers of a provenance can be."""
REMADE = "what it was made from was made again, or is gone"


@frozen
class ResultSummary:
    """What is known of a run's result.

    Attributes:
        reason: why the run is not done, for people; "" where there is nothing yet, or it is done.
        stamp: names this making of the run; "" where it is not done.
        parent_stamps: role to stamp of each parent run that was read.
        attempt: the one that made it.
        wall_s, spent_s: seconds of its device that this attempt took, and all attempts together.
        processes: that trained it together.
        host, started_at: the node, and when the attempt began, in seconds since 1970.
        peak_memory_mib: of the host's, of all that its element did at once.
        energy_j: its GPU's; None where nobody knows.
        device: "cpu" or the GPU's name.
        job: SLURM's id of the element that made it; "" for a local process.
        torch, code_sha: versions of torch and of this package.
        metrics: name to number.
        hausdorff_unit: "mm" or "px".
        case_dice: Dice by case id, in the order of the ids; empty where not every case has one.
    """

    reason: str = ""
    stamp: str = ""
    parent_stamps: dict[str, str] = field(default_factory=dict)
    attempt: int = 0
    wall_s: float = 0.0
    spent_s: float = 0.0
    processes: int = 1
    host: str = ""
    started_at: float = 0.0
    peak_memory_mib: float = 0.0
    energy_j: float | None = None
    device: str = ""
    job: str = ""
    torch: str = ""
    code_sha: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    hausdorff_unit: str = "px"
    case_dice: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it need not be made."""
        return bool(self.stamp)


Results = Mapping[str, ResultSummary]
"""Run id to what is known of its result."""


@frozen
class _Entry:
    """What the cache holds of a run: its summary's fields, and what marked its metrics.json then.

    Attributes:
        mark: its times of change (ns, of the content and of the inode), size (bytes) and inode.
    """

    mark: list[int]
    summary: dict[str, Any]


def read_results(plan: Plan) -> dict[str, ResultSummary]:
    """Return what is known of every run's result, in the plan's order (parents before children).

    Raises:
        UserError: a stage's folder cannot be read.
    """
    now = time.time_ns()
    path = plan.runs_folder / PLANS / f"{plan.sweep}.cache"
    cached, entries = _read_cache(path), dict[str, _Entry]()
    folders = list_folders(plan)

    results: dict[str, ResultSummary] = {}
    for run_id, run in plan.runs.items():
        stamps = {role: results[parent].stamp for role, parent in plan.parents(run_id).items()}
        entry = None
        if f"{run.label}-{run_id}" in folders[run.stage]:
            entry = _read_entry(plan, run_id, cached.get(run_id))
        results[run_id] = _judge(entry, stamps)
        if isinstance(entry, _Entry) and now - max(entry.mark[:2]) > SETTLED_NS:
            entries[run_id] = entry

    if entries != cached:
        _write_cache(path, entries)
    return results


def read_summary(plan: Plan, run_id: str, parent_stamps: Mapping[str, str]) -> ResultSummary:
    """Return what is known of one run's result, given its parents' stamps."""
    return _judge(_read_entry(plan, run_id, None), parent_stamps)


def _judge(entry: _Entry | str | None, parent_stamps: Mapping[str, str]) -> ResultSummary:
    """Return what counts of a run's result: nothing where it was made from other makings.

    Args:
        entry: what its file says, why that cannot be believed, or None where there is no file.
        parent_stamps: of its parents as they are now; "" for one that is not done.
    """
    if not isinstance(entry, _Entry):
        return ResultSummary(reason=entry or "")
    if entry.summary["parent_stamps"] != parent_stamps:
        return ResultSummary(reason=REMADE)
    return ResultSummary(**entry.summary)


def _read_entry(plan: Plan, run_id: str, cached: _Entry | None) -> _Entry | str | None:
    """Return what a run's metrics.json says, why it is not believed, or None if there is none."""
    folder = plan.folder(run_id)
    try:
        # The mark is taken before the reading: a change in between is seen the next time.
        file = os.stat(f"{folder}/{METRICS}")  # noqa: PTH116 (10,000 Path objects take longer)
        mark = [file.st_mtime_ns, file.st_ctime_ns, file.st_size, file.st_ino]
        if cached and cached.mark == mark:
            return cached
        result = read_result(folder, run_id)
        if result is None:
            return None
        _check(plan.runs[run_id], result)
        return _Entry(mark=mark, summary=vars(_summarise(result)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = f"{METRICS}: cannot be read ({error.strerror}); check path and permission"
    except UserError as error:
        reason = str(error).removeprefix(f"{folder}/")
    except (ArithmeticError, RecursionError) as error:  # of hostile numbers and nesting
        reason = f"{METRICS}: cannot be used ({error}); delete the folder"
    return printable(reason)[:LONGEST_REASON]


def _check(run: Run, result: RunResult) -> None:
    """Refuse a result of another stage or other parents than the plan's, or with an odd provenance.

    Raises:
        UserError: what is wrong.
    """
    wrong = ""
    if result.stage != run.stage:
        wrong = f"is of stage {result.stage!r}, expected {run.stage!r}"
    elif result.parents != run.parents:
        wrong = "says it was made from other runs or data than the plan names"
    else:
        made = {**result.provenance.gpu, **vars(result.provenance)}
        for name, (low, high) in BOUNDS.items():
            if name in made and not low <= made[name] <= high:
                wrong = f"{name} is {made[name]:g}, expected {low:g} to {high:g}"
    if wrong:
        raise UserError(f"{METRICS}: {wrong}; delete the folder")


def _summarise(result: RunResult) -> ResultSummary:
    """Return what is kept of a run's result."""
    made = result.provenance
    # Of several processes, only one asked its GPU.
    energy_j = made.gpu.get("energy_j") if made.processes == 1 else None
    case_dice = {
        _clean(case): numbers["dice"]
        for case, numbers in sorted(result.per_case.items())
        if "dice" in numbers
    }
    return ResultSummary(
        stamp=result_stamp(result),
        parent_stamps=result.parent_results,
        attempt=made.attempt,
        # Runs at once on a device share its time and energy; each saw its own memory alone.
        wall_s=made.wall_s / made.at_once,
        spent_s=max(made.spent_s, made.wall_s) / made.at_once,
        peak_memory_mib=made.peak_memory_mib * made.at_once,
        energy_j=None if energy_j is None else energy_j / made.at_once,
        processes=made.processes,
        host=_clean(made.host),
        started_at=made.started_at,
        device=_clean(made.device),
        job=made.job_id,
        torch=_clean(made.versions.get("torch", "")),
        code_sha=_clean(made.code_sha),
        metrics=result.metrics,
        hausdorff_unit=_clean(str(result.details.get("hausdorff_95_unit", "px"))),
        case_dice=case_dice if len(case_dice) == len(result.per_case) else {},
    )


def _clean(text: str) -> str:
    """Return what may stand in a table: control characters escaped, and not without end."""
    return (text if text.isprintable() else printable(text))[:LONGEST_TEXT]


def list_folders(plan: Plan) -> dict[str, set[str]]:
    """Return the names of the runs' folders by stage, by one look at each stage of a plan.

    Raises:
        UserError: a stage's folder cannot be read.
    """
    folders: dict[str, set[str]] = {}
    for stage in {run.stage for run in plan.runs.values()}:
        folder = plan.runs_folder / stage
        try:
            folders[stage] = {path.name for path in folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            folders[stage] = set()
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be read ({error.strerror}); correct that first"
            ) from error
    return folders


def _read_cache(path: Path) -> dict[str, _Entry]:
    """Return what an earlier process kept; nothing where the file is not just what it wrote."""
    with contextlib.suppress(OSError, ValueError):
        title, _, body = read_file(path, RECORD_BYTES).decode().partition("\n")
        if title == _title(body):
            return {run_id: _Entry(**entry) for run_id, entry in json.loads(body).items()}
    return {}


def _write_cache(path: Path, entries: Mapping[str, _Entry]) -> None:
    """Keep what was read for the next time, where there is a place for it."""
    if path.parent.is_dir() and not path.parent.is_symlink():
        body = json.dumps({run_id: vars(entry) for run_id, entry in entries.items()})
        with contextlib.suppress(UserError, OSError):
            write_atomic(path, f"{_title(body)}\n{body}")


def _title(body: str) -> str:
    """Return the first line of a cache with such a body."""
    return f"{CACHE_TITLE}, {hashlib.sha256(body.encode()).hexdigest()}"
