"""Rows of metrics.json files as columns (Arrow's), and the file in which they are kept.

The file is only ever a shortcut: damaged, foreign or of another version it is as if it were not
    there.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.reading import CASE_NUMBERS, ORIGIN, TEXTS, Row
from hvae_hpc.runs.folder import write_atomic_by
from hvae_hpc.runs.identity import code_sha, file_sha256
from hvae_hpc.runs.plan import Plan

TITLE = "hvae_hpc records by code"
MARKS = ("mtime_ns", "ctime_ns", "size", "inode")
"""What the file system said of a metrics.json when it was read."""
NAMES = ("data", "arm", "generator", "source", "folder")
COUNTS = ("seed", "split_seed", "n_synthetic", "n_standard", "generator_seed")
"""NAMES and COUNTS are of a run's config, which its id stands for: they never change, and are kept with the rest."""


def schema_of(metrics: Sequence[str]) -> pa.Schema:
    """Return names and types of the columns of a stage, given the metrics that are kept of its runs."""
    return pa.schema(
        [
            ("run_id", pa.string()),
            *((name, pa.string()) for name in NAMES),
            *((name, pa.int64()) for name in (*COUNTS, *MARKS)),
            *((name, pa.float64()) for name in (*ORIGIN, *CASE_NUMBERS, *metrics)),
            *((name, pa.string()) for name in TEXTS),
            (
                "case_ids",
                pa.dictionary(pa.int32(), pa.string()),
            ),  # a JSON list, the same for most runs
            ("case_dice", pa.large_list(pa.float64())),
        ]
    )


def _describe(plan: Plan, run_id: str) -> tuple[str | int, ...]:
    """Return NAMES and COUNTS of a run; what its stage does not have is empty."""
    config: Any = plan.runs[run_id].config
    arm = getattr(config, "arm", None) or ArmConfig(
        name="", generator=getattr(config, "generator", "")
    )
    names = (
        config.data,
        arm.name,
        arm.generator,
        getattr(config, "source", ""),
        plan.folder_name(run_id),
    )
    return (
        *names,
        config.seed,
        config.split.seed,
        arm.n_synthetic,
        arm.n_standard,
        arm.generator_seed,
    )


def to_columns(
    plan: Plan, rows: Sequence[Row], marks: NDArray[np.int64], schema: pa.Schema
) -> pa.Table:
    """Turn rows into columns.

    Args:
        plan: of the runs.
        rows: of any number of runs.
        marks: MARKS of each, int64 (rows, 4).
        schema: by :func:`schema_of`.
    """
    n_numbers = sum(kind == pa.float64() for kind in schema.types)
    numbers = np.array([row.numbers for row in rows], dtype=np.float64).reshape(
        len(rows), n_numbers
    )
    texts = list(zip(*(row.texts for row in rows), strict=True)) or [()] * len(TEXTS)
    sets = dict.fromkeys(row.cases for row in rows)
    index = {cases: i for i, cases in enumerate(sets)}
    which = pa.array([index[row.cases] for row in rows], pa.int32())
    cases = pa.DictionaryArray.from_arrays(
        which, pa.array([json.dumps(names) for names in sets], pa.string())
    )
    starts = np.concatenate([[0], np.cumsum([len(row.cases) for row in rows])]).astype(np.int64)
    dice = pa.LargeListArray.from_arrays(starts, np.frombuffer(b"".join(row.dice for row in rows)))
    described = list(zip(*(_describe(plan, row.run_id) for row in rows), strict=True))
    described = described or [()] * len((*NAMES, *COUNTS))
    arrays = [[row.run_id for row in rows], *described, *marks.T, *numbers.T, *texts]
    columns = [pa.array(values, kind) for values, kind in zip(arrays, schema.types, strict=False)]
    return pa.table([*columns, cases, dice], schema=schema)


def read_columns(path: Path, schema: pa.Schema) -> pa.Table:
    """Return the columns that an earlier process kept; empty ones where the file is not just what such a one wrote."""
    with contextlib.suppress(OSError, ValueError):
        data = memoryview(path.read_bytes())
        end = len(data) - len(_seal(""))
        if end > 0 and data[end:] == _seal(hashlib.sha256(data[:end]).hexdigest()):
            columns = pa.ipc.open_file(pa.py_buffer(data[:end])).read_all()
            if columns.schema == schema:
                return columns
    return schema.empty_table()


def write_columns(path: Path, columns: pa.Table) -> None:
    """Keep columns for the next time, where there is a place for it."""
    if path.parent.is_dir():
        with contextlib.suppress(UserError, OSError):
            write_atomic_by(path, lambda temporary: _write(temporary, columns))


def _write(path: Path, columns: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, columns.schema) as writer:
        writer.write_table(columns)
    seal = _seal(file_sha256(path))
    with open(path, "ab") as end:
        end.write(seal)


def _seal(digest: str) -> bytes:
    """Return the end of a file with such content, always equally long; another code would keep something else."""
    return f"\n{digest:64} {TITLE} {code_sha()}\n".encode()
