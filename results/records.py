"""All metrics.json of a plan's runs as columns, each file read again only where it changed.

A file beside the plan keeps the columns of each stage, with what the file system said of every
metrics.json when it was read.
"""

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.results.columns import MARKS, read_columns, schema_of, to_columns, write_columns
from hvae_hpc.results.reading import NO_STAMP, Asked, Row, read_rows
from hvae_hpc.runs.done import SETTLED_NS, list_folders, look_at
from hvae_hpc.runs.folder import METRICS
from hvae_hpc.runs.plan import PLANS, Plan

FLUSH = 10_000
"""Rows that are read before they become columns, which take a tenth of the memory."""
_KIND = 0o170000
"""The bits of a file's mode that say what it is, as stat.S_IFMT takes them of a single one."""


class CaseDice(Mapping[str, dict[str, float]]):
    """Run id to the Dice of each of its test cases, kept as one array for all runs.

    Args:
        run_ids: of the runs.
        case_sets: the different lists of test cases.
        which: for each run the index of its list.
        values: the runs' Dice, one run after the other.
    """

    def __init__(
        self,
        run_ids: Sequence[str],
        case_sets: Sequence[tuple[str, ...]],
        which: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        self.case_sets = case_sets
        lengths = np.array([len(cases) for cases in case_sets], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths[which])]).astype(np.int64)
        self._run_ids, self._which, self._starts, self._values = run_ids, which, starts, values

    @cached_property
    def _places(self) -> dict[str, int]:
        return dict(zip(self._run_ids, range(len(self._run_ids)), strict=True))

    def __getitem__(self, run_id: str) -> dict[str, float]:
        place = self._places[run_id]
        cases, start = self.case_sets[self._which[place]], self._starts[place]
        return dict(zip(cases, self._values[start : start + len(cases)].tolist(), strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(self._run_ids)

    def __len__(self) -> int:
        return len(self._run_ids)


@dataclass(frozen=True, kw_only=True)
class Records:
    """What the metrics.json files of a plan's runs say.

    Attributes:
        frames: stage to one row per readable file, in the plan's order; columns run_id, NAMES,
            COUNTS, TEXTS, ORIGIN, CASE_NUMBERS and the stage's metrics, NaN where a file does not
            have one, and "case_set": which of ``dice.case_sets`` are its test cases.
        dice: of every test case of every segment run.
        faults: run id to why its file cannot be believed, "metrics.json: ...".
        doubled: run id to why it is not known which of two files to believe.
    """

    frames: dict[str, pd.DataFrame]
    dice: CaseDice
    faults: dict[str, str]
    doubled: dict[str, str]


def read_records(plan: Plan, metrics: Mapping[str, tuple[str, ...]]) -> Records:
    """Read what is new, remember the rest.

    Args:
        plan: whose runs.
        metrics: stage to the metrics that are kept of its runs.

    Raises:
        UserError: a stage's folder cannot be read.
    """
    names: dict[str, dict[str, str]] = {run.stage: {} for run in plan.runs.values()}
    for run_id, run in plan.runs.items():
        names[run.stage][run_id] = f"{run.label}-{run_id}"
    elsewhere: dict[str, str] = {}
    faults: dict[str, str] = {}
    sets_of_parents = {
        id(run.parents): run.parents for run in plan.runs.values()
    }  # most runs share them with others
    stamped = {parent for parents in sets_of_parents.values() for parent in parents.values()}
    frames, dice = {}, CaseDice([], [], np.zeros(0, np.int64), np.zeros(0))
    for stage, there in list_folders(plan.runs_folder, names).items():
        reading = names[stage]
        if there != set(reading.values()):
            reading = {run_id: name for run_id, name in reading.items() if name in there}
            elsewhere |= _find_elsewhere(plan, stage, there.difference(reading.values()))
        columns, unread = _read_stage(plan, stage, reading, metrics.get(stage, ()), stamped)
        faults |= unread
        frames[stage] = columns.drop_columns(["case_ids", "case_dice", *MARKS]).to_pandas()
        frames[stage]["case_set"] = _case_sets(columns).indices.to_numpy()
        if stage == "segment":
            dice = _as_dice(columns)
    found = (
        set[str]().union(*(frame["run_id"] for frame in frames.values()), faults)
        if elsewhere
        else set[str]()
    )
    doubled = {
        run_id: f"the same run lies in {folder} as well; keep one of the two and delete the other"
        for run_id, folder in elsewhere.items()
        if run_id in found
    }
    for run_id in elsewhere.keys() - found:
        faults[run_id] = f"lies in {elsewhere[run_id]} instead; rename that folder"
    return Records(frames=frames, dice=dice, faults=faults, doubled=doubled)


def _find_elsewhere(plan: Plan, stage: str, others: Iterable[str]) -> dict[str, str]:
    """Return the runs that lie in other folders than the plan's, by a copy or a renaming, and where."""
    found = {}
    for name in others:
        run_id = name.rpartition("-")[2]
        if run_id in plan.runs and os.path.exists(f"{plan.runs_folder}/{stage}/{name}/{METRICS}"):  # noqa: PTH110 (never raises)
            found[run_id] = f"{stage}/{name}"
    return found


def _read_stage(
    plan: Plan, stage: str, names: Mapping[str, str], metrics: tuple[str, ...], stamped: Set[str]
) -> tuple[pa.Table, dict[str, str]]:
    """Return a stage's columns, in the order of the names (by run id), and the runs whose files are not believed."""
    now, path, schema = (
        time.time_ns(),
        plan.runs_folder / PLANS / f"{plan.sweep}.{stage}.records",
        schema_of(metrics),
    )
    known = read_columns(path, schema)
    unread: dict[str, str] = {}
    folder = f"{plan.runs_folder}/{stage}"
    run_ids, marks = _look(folder, names, unread)
    same = _unchanged(known, run_ids, marks, stamped)
    fresh = np.flatnonzero(same < 0).tolist()
    asked = [
        Asked(
            f"{folder}/{names[run_id]}",
            run_id,
            stage,
            metrics,
            run_id in stamped,
            plan.runs[run_id].parents,
        )
        for run_id in map(run_ids.__getitem__, fresh)
    ]
    rows: dict[int, Row] = {}
    kept = np.flatnonzero(same >= 0)
    as_they_are = np.array_equal(same[kept], np.arange(len(known)))
    parts, places = [known if as_they_are else known.take(pa.array(same[kept]))], kept.tolist()

    def flush() -> None:
        parts.append(to_columns(plan, list(rows.values()), marks[list(rows)], schema))
        places.extend(rows)
        rows.clear()

    for place, row in zip(fresh, read_rows(asked), strict=True):
        if isinstance(row, str):
            unread[run_ids[place]] = row
        elif row is not None:
            rows[place] = row
        if len(rows) >= FLUSH:
            flush()
    flush()
    if as_they_are and len(places) == len(kept):
        return known, unread
    columns = pa.concat_tables(parts).unify_dictionaries()
    parts.clear()
    if places != sorted(places):
        columns = columns.take(pa.array(np.argsort(places)))
    columns = columns.combine_chunks()
    youngest = np.maximum(
        columns.column("mtime_ns").to_numpy(), columns.column("ctime_ns").to_numpy()
    )
    settled = now - youngest > SETTLED_NS
    write_columns(path, columns if settled.all() else columns.filter(pa.array(settled)))
    return columns, unread


def _look(
    folder: str, names: Mapping[str, str], unread: dict[str, str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the runs that have a metrics.json, and what the file system says of it: a row of MARKS each."""
    if (
        all_there := _look_at_all([f"{folder}/{name}/{METRICS}" for name in names.values()])
    ) is not None:
        return list(names), all_there
    run_ids, found = [], list[int]()
    for run_id, name in names.items():
        try:
            of_file = look_at(f"{folder}/{name}/{METRICS}")
        except UserError as error:
            unread[run_id] = str(error).removeprefix(f"{folder}/{name}/")
            continue
        if of_file:
            run_ids.append(run_id)
            found += [of_file.st_mtime_ns, of_file.st_ctime_ns, of_file.st_size, of_file.st_ino]
    return run_ids, np.array(found, dtype=np.int64).reshape(-1, len(MARKS))


def _look_at_all(paths: Sequence[str]) -> NDArray[np.int64] | None:
    """Return MARKS of files that are nearly always all there, in little time and memory; None where they are not."""
    parts = [np.zeros((0, len(MARKS)), dtype=np.int64)]
    with contextlib.suppress(OSError):
        for start in range(0, len(paths), FLUSH):
            found = [os.stat(path) for path in paths[start : start + FLUSH]]  # noqa: PTH116 (as in states)
            of_files = [
                (it.st_mtime_ns, it.st_ctime_ns, it.st_size, it.st_ino, it.st_mode) for it in found
            ]
            said = np.array(of_files, dtype=np.int64).reshape(-1, 5)
            if (said[:, 4] & _KIND != stat.S_IFREG).any():
                return None
            parts.append(said[:, :4])
        return np.concatenate(parts)
    return None


def _unchanged(
    known: pa.Table, run_ids: Sequence[str], marks: NDArray[np.int64], stamped: Set[str]
) -> NDArray[np.int64]:
    """Return for each run its place in what is known; -1 where it is not, has changed, or lacks a stamp."""
    old_ids = known.column("run_id").to_pylist()
    if old_ids == run_ids:
        place = np.arange(len(known))
    else:
        places = dict(zip(old_ids, range(len(known)), strict=True))
        place = np.array([places.get(run_id, -1) for run_id in run_ids], dtype=np.int64)
    if len(known):
        old = np.stack([known.column(name).to_numpy() for name in MARKS], axis=1)
        stamps, lacks = known.column("stamp"), np.zeros(len(known), dtype=bool)
        lacks[
            [
                i
                for i, run_id in enumerate(old_ids)
                if run_id in stamped and stamps[i].as_py() == NO_STAMP
            ]
        ] = True
        place[(old[place] != marks).any(1) | lacks[place]] = -1
    return place


def _case_sets(columns: pa.Table) -> pa.DictionaryArray:
    return columns.column("case_ids").combine_chunks()


def _as_dice(columns: pa.Table) -> CaseDice:
    cases, dice = _case_sets(columns), columns.column("case_dice")
    dice = (
        dice.chunk(0) if dice.num_chunks == 1 else dice.combine_chunks()
    )  # the latter copies in any case
    return CaseDice(
        columns.column("run_id").to_pylist(),
        [tuple(json.loads(names)) for names in cases.dictionary.to_pylist()],
        cases.indices.to_numpy(),
        dice.flatten().to_numpy(),
    )
