"""nnU-Net's own results, read back and set beside ours, case by case.

``hvae-hpc export`` names the files after our cases, so its evaluation of ``imagesTs`` can be joined
to the Dice of our U-Nets on the same cases.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hvae_hpc.errors import UserError
from hvae_hpc.results.labels import arm_label
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.tables.table import Table
from hvae_hpc.runs.files import RECORD_BYTES, plain_name, read_file

SUMMARY = "summary.json"
_EXPORTED = re.compile(r".*(?:real|test)-\d{4}-(.+)\.nii\.gz")


def read_nnunet(folder: Path) -> pd.Series:
    """Return the Dice of each case, by its name as the export writes it.

    A case of several slices has the mean of theirs. Where neither nnU-Net nor the truth has a
    tumour, nnU-Net says NaN, and we say 1.

    Raises:
        UserError: there is no evaluation of nnU-Net v2.
    """
    path = folder / SUMMARY
    try:
        slices = json.loads(read_file(path, RECORD_BYTES))["metric_per_case"]
        dice = {str(of["reference_file"]): float(of["metrics"]["1"]["Dice"]) for of in slices}
        by_file = pd.Series(dice, dtype=float).fillna(1.0)
        if not by_file.between(0, 1).all():
            raise ValueError(f"Dice from {by_file.min()} to {by_file.max()}")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error!r}); expected what nnUNetv2_evaluate_folder writes "
            "into the folder of predictions"
        ) from error
    cases = by_file.index.astype(str).str.extract(_EXPORTED, expand=False)
    return by_file.groupby(cases).mean()


def build_nnunet(folder: Path, sweep: str, scores: Sequence[ArmScores]) -> Table:
    """Return the mean Dice of each arm on nnU-Net's cases, beside nnU-Net's own.

    Raises:
        UserError: as above, or its cases are none of the sweep's test cases.
    """
    theirs = read_nnunet(folder)
    rows, numbers = [], list[dict[str, Any]]()
    for s in scores:
        ours = s.by_case.mean().rename(plain_name)
        both = pd.DataFrame({"dice": ours, "nnunet": theirs}).dropna()
        if len(both):
            gain = f"{(both['nnunet'] - both['dice']).mean():+.3f}"
            means = [f"{mean:.3f}" for mean in both.mean()]
            rows.append((s.data, arm_label(s.arm), str(len(both)), *means, gain))
            arm = {"data": s.data, "arm": s.arm.name}
            numbers += [{**arm, "case": str(case), **dice} for case, dice in both.T.items()]
    if not rows:
        raise UserError(
            f"{folder / SUMMARY}: none of its {len(theirs)} cases that an export named is a test "
            f"case of sweep {sweep}; expected predictions for the imagesTs exported from it"
        )
    note = """
        Dice of nnU-Net, and of our U-Net on the same cases (the mean of its runs that test them).
        nnU-Net was trained on what was exported, whatever our arm. The CSV has each case.
        """
    return Table(
        title=f"nnU-Net beside our U-Net ({sweep})",
        columns=("data", "our arm", "cases", "Dice, ours", "Dice, nnU-Net", "difference"),
        rows=rows,
        notes=[note],
        numbers=numbers,
    )
