"""Which runs are done, and what their metrics.json said when they were last read, so that few need be read again.

Done is read from the runs' own files, never from anybody's memory: a run is done when its
metrics.json is valid, its parents are done, and it was made from just these makings of them. So a
parent that was deleted and made anew takes along what hangs on it.

Reading 10,000 of them strictly takes many seconds, looking whether they changed a tenth of one. The
file beside the plan in which this is kept is only ever a shortcut: damaged, foreign or of another
    version it is ignored, and a
metrics.json that changed in any way is read again. Whoever writes last wins, and who cannot write
goes without.
"""

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.errors import UserError, printable
from hvae_hpc.runs.folder import (
    METRICS,
    RESULT_SCHEMA,
    RunResult,
    read_result,
    result_stamp,
    write_atomic,
)
from hvae_hpc.runs.plan import PLANS, Plan

TITLE = f"hvae_hpc states 5, results {RESULT_SCHEMA}"
SETTLED_NS = 2_000_000_000
"""A younger file may change again without that its time does: clocks of file systems are coarse."""

LONGEST_REASON = 500
"""Letters; what a file says may be of any length."""


class Made(NamedTuple):
    """What of a run's metrics.json tells how the run stands and what its like will cost.

    ``wall_s`` and ``energy_j`` are the run's shares of its device's. ``result`` is the whole of it
    where it was asked for.
    """

    stamp: str
    parent_stamps: dict[str, str]
    attempt: int
    wall_s: float
    host: str = ""
    started_at: float = 0.0
    peak_memory_mib: float = 0.0
    energy_j: float | None = None
    device: str = ""
    job: str = ""
    result: RunResult | None = None


class Remembered:
    """What the metrics.json files of a plan's runs said, by run id.

    Args:
        path: where it is kept; None for nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known = _read(path) if path else {}
        self._kept: dict[str, list[Any]] = {}
        self._changed = False

    def read(self, folder: str, run_id: str, whole: bool = False) -> Made | None:
        """Return what a run's metrics.json says, read anew only where it must be; None where there is none.

        Args:
            folder: the run's.
            run_id: of the run.
            whole: read it in any case, for the result.

        Raises:
            UserError: it is there but cannot be believed.
        """
        found = look_at(f"{folder}/{METRICS}")
        if found is None:
            return None
        mark = [found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino]
        known = self._known.get(run_id)
        if known and known[0] == mark and not whole:
            self._kept[run_id] = known
            return Made(*known[1:])
        result = read_result(Path(folder), run_id)
        if result is None:
            return None
        origin = result.provenance
        at_once = max(1, origin.at_once)
        # Only one GPU was asked.
        energy_j = origin.gpu.get("energy_j") if origin.processes == 1 else None
        made = Made(
            stamp=result_stamp(result),
            parent_stamps=result.parent_results,
            attempt=origin.attempt,
            wall_s=origin.wall_s / at_once,
            host=origin.host,
            started_at=origin.started_at,
            peak_memory_mib=origin.peak_memory_mib * at_once,
            energy_j=None if energy_j is None else energy_j / at_once,
            device=origin.device,
            job=origin.job_id,
            result=result if whole else None,
        )
        # The mark was taken before reading: a change in between is seen the next time.
        if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > SETTLED_NS:
            self._kept[run_id] = [mark, *made[:-1]]
            self._changed |= self._kept[run_id] != known
        return made

    def write(self) -> None:
        """Keep what was read for the next time, where there is something new and a place for it."""
        if self.path and self._changed and self.path.parent.is_dir():
            body = json.dumps(self._kept)
            with contextlib.suppress(UserError, OSError):
                write_atomic(
                    self.path, f"{TITLE}, {hashlib.sha256(body.encode()).hexdigest()}\n{body}\n"
                )


def look_at(path: str) -> os.stat_result | None:
    """Return what the file system says of a file; None where there is none.

    Raises:
        UserError: it is no file, or its place cannot be looked at.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (10,000 Path objects cost more than the calls)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check path and permission"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is no file; move it away to make it anew")
    return found


def _read(path: Path) -> dict[str, list[Any]]:
    """Return what an earlier process kept; nothing where the file is not just what such a process wrote."""
    with contextlib.suppress(OSError, ValueError):
        title, _, body = path.read_text().partition("\n")
        body = body.removesuffix("\n")
        if title == f"{TITLE}, {hashlib.sha256(body.encode()).hexdigest()}":
            known: dict[str, list[Any]] = json.loads(body)
            return known
    return {}


def list_folders(runs_folder: Path, stages: Iterable[str]) -> dict[str, set[str]]:
    """Return the names of the runs' folders that are there by stage, by one look at each stage and not at each run.

    Raises:
        UserError: a stage's folder cannot be read.
    """
    found: dict[str, set[str]] = {}
    for stage in stages:
        try:
            found[stage] = set(os.listdir(runs_folder / stage))  # noqa: PTH208 (as above)
        except (FileNotFoundError, NotADirectoryError):
            found[stage] = set()
        except OSError as error:
            raise UserError(
                f"{runs_folder / stage}: cannot be read ({error.strerror}); mend that first"
            ) from error
    return found


class ResultSummary(NamedTuple):
    """How a run stands.

    Attributes:
        reason: why it is not done, for people; "" where there simply is nothing yet, and where it
            is done.
        stamp: names this making of the run; "" where it is not done.
        attempt: the one that made it.
        wall_s: seconds of its device that this attempt took.
        host, started_at: the node on which it was made, and when that began, in seconds since 1970.
        peak_memory_mib: of the host's, of all that its element did at once; 0 where it is not done.
        energy_j: its GPU's; None where nobody knows.
        device: "cpu" or the GPU's name.
        job: SLURM's id of the element that made it; "" for a local process.
        result: its metrics.json where it is done and was asked for, else None.
    """

    reason: str = ""
    stamp: str = ""
    attempt: int = 0
    wall_s: float = 0.0
    host: str = ""
    started_at: float = 0.0
    peak_memory_mib: float = 0.0
    energy_j: float | None = None
    device: str = ""
    job: str = ""
    result: RunResult | None = None

    @property
    def done(self) -> bool:
        """Whether it need not be made."""
        return bool(self.stamp)


def read_results(plan: Plan, *, whole: bool = False) -> dict[str, ResultSummary]:
    """Return every run's state, in the plan's order (parents before children).

    Args:
        plan: of the sweep.
        whole: read the whole results as well, also those that did not change since they were last
            looked at.
    """
    remembered = Remembered(plan.runs_folder / PLANS / f"{plan.sweep}.states")
    there = list_folders(plan.runs_folder, {run.stage for run in plan.runs.values()})

    def read(run_id: str) -> Made | None:
        stage, _, name = plan.folder_name(run_id).partition("/")
        return (
            remembered.read(f"{plan.runs_folder}/{stage}/{name}", run_id, whole)
            if name in there[stage]
            else None
        )

    results = follow(plan, read)
    remembered.write()
    return results


def follow(plan: Plan, read: Callable[[str], Made | None]) -> dict[str, ResultSummary]:
    """Return every run's state, in the plan's order, given what its metrics.json says.

    Args:
        plan: of the sweep.
        read: from a run id; raises UserError where the file cannot be believed.
    """
    results: dict[str, ResultSummary] = {}
    stamps: dict[
        int, dict[str, str]
    ] = {}  # by the parents' identity: most runs share them with others
    alike: dict[
        tuple[int, int], ResultSummary
    ] = {}  # by the identity of parents and of what was made, where these are shared
    kept = []  # an identity is one only while its object lives
    for run_id, run in plan.runs.items():
        if (of_parents := stamps.get(id(run.parents))) is None:
            of_parents = {
                role: results[parent].stamp
                for role, parent in run.parents.items()
                if role != "data"
            }
            stamps[id(run.parents)] = of_parents
        try:
            made = read(run_id)
        except (
            UserError,
            RecursionError,
        ) as error:  # the latter of a file nested just too deeply to be stamped
            results[run_id] = _not_believed(error)
            continue
        pair = (id(of_parents), id(made))
        if (state := alike.get(pair)) is None:
            state = alike[pair] = _to_state(made, of_parents)
            kept.append(made)
        results[run_id] = state
    return results


def read_summary(plan: Plan, run_id: str, parent_stamps: Mapping[str, str]) -> ResultSummary:
    """Return one run's state, given its parents' stamps ("" for a parent that is not done)."""
    folder = str(plan.folder(run_id))
    try:
        return _to_state(Remembered(None).read(folder, run_id, True), parent_stamps)
    except (UserError, RecursionError) as error:
        return _not_believed(error)


def _not_believed(error: Exception) -> ResultSummary:
    return ResultSummary(reason=printable(str(error))[:LONGEST_REASON])


def _to_state(made: Made | None, parent_stamps: Mapping[str, str]) -> ResultSummary:
    if made is None:
        return ResultSummary()
    if made.parent_stamps != parent_stamps:
        return ResultSummary(reason="what it was made from was made anew, or is gone")
    return ResultSummary("", made.stamp, *made[2:])
