"""The rows behind the tables, as CSV and Parquet, for whoever wants other tables than ours.

``rows/segment``, ``quality``, ``likelihood`` and ``costs`` have a row per done run;
``rows/cases.parquet`` has one per run and test case. Column names are those of
:mod:`hvae_hpc.results.collect`; run ids join them.
"""

from array import array
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hvae_hpc.results.collect import Collected
from hvae_hpc.runs.folder import write_atomic_by

ROWS = "rows"


def write_rows(collected: Collected, folder: Path) -> list[Path]:
    """Write all rows to ``folder/rows``; a kind of run that the sweep does not have gets no file.

    Raises:
        UserError: the disk refused.
    """
    paths = []
    there = folder / ROWS
    for name in ("segment", "quality", "likelihood", "costs"):
        rows: pd.DataFrame = getattr(collected, name)
        if len(rows):
            paths += [there / f"{name}.csv", there / f"{name}.parquet"]
            write_atomic_by(paths[-2], partial(rows.to_csv, index=False))
            write_atomic_by(paths[-1], partial(rows.to_parquet, index=False))
    if len(collected.segment):
        paths.append(there / "cases.parquet")
        write_atomic_by(paths[-1], lambda path: pq.write_table(_cases(collected), path))
    for path in {*there.glob("*.csv"), *there.glob("*.parquet")}.difference(paths):
        path.unlink()  # of an earlier time: what is not there now must not lie beside what is
    return paths


def _cases(collected: Collected) -> pa.Table:
    """Return run id, case and Dice of every test case; there may be millions."""
    run_ids: list[str] = []
    cases: list[str] = []
    dice = array("d")
    for run_id in collected.segment["run_id"].tolist():
        of_run = collected.case_dice[run_id]
        run_ids += [run_id] * len(of_run)
        cases += of_run
        dice.extend(of_run.values())
    return pa.table({"run_id": run_ids, "case": cases, "dice": pa.array(memoryview(dice))})
