"""The rows behind the tables, as CSV and Parquet, for whoever wants other tables than ours.

``rows/segment``, ``quality``, ``likelihood`` and ``costs`` have a row per done run;
``rows/cases.parquet`` has one per run and test case. Column names are those of
:mod:`hvae_hpc.results.collect`; run ids join them.
"""

from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hvae_hpc.results.collect import MORE_MEASURES, Collected
from hvae_hpc.results.tables.table import to_csv
from hvae_hpc.runs.folder import write_atomic, write_atomic_by

KINDS = ("segment", "quality", "likelihood", "costs")
ENDINGS = ("csv", "parquet")


def write_rows(collected: Collected, folder: Path) -> list[Path]:
    """Write all rows to ``folder/rows``; a kind of run that the sweep does not have gets no file.

    Raises:
        UserError: the disk refused.
    """
    paths = []
    rows_folder = folder / "rows"
    for name in KINDS:
        rows: pd.DataFrame = getattr(collected, name)
        if name == "segment":
            rows = rows.drop(columns=[m for m in MORE_MEASURES if rows[m].isna().all()])
        if len(rows):
            paths += [rows_folder / f"{name}.csv", rows_folder / f"{name}.parquet"]
            write_atomic(paths[-2], to_csv(rows))
            write_atomic_by(paths[-1], partial(rows.to_parquet, index=False))
    if len(collected.segment):
        paths.append(rows_folder / "cases.parquet")
        write_atomic_by(paths[-1], partial(pq.write_table, _list_cases(collected)))

    # Files of an earlier time must not lie beside those of now.
    ours = {rows_folder / f"{name}.{end}" for name in (*KINDS, "cases") for end in ENDINGS}
    for path in ours.difference(paths):
        path.unlink(missing_ok=True)
    return paths


def _list_cases(collected: Collected) -> pa.Table:
    """Return run id, case and Dice of every test case."""
    columns: dict[str, list[object]] = {"run_id": [], "case": [], "dice": []}
    for run_id in collected.segment["run_id"]:
        case_dice = collected.results[run_id].case_dice
        columns["run_id"] += [run_id] * len(case_dice)
        columns["case"] += case_dice
        columns["dice"] += case_dice.values()
    return pa.table(columns)
