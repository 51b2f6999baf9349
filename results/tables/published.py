"""The numbers that the paper printed, with its digits."""

import csv
from collections.abc import Mapping
from pathlib import Path

from hvae_hpc.results.tables.table import NOTHING

SOURCE = "Kebaili et al. 2023, arXiv:2311.10472"
_FOLDER = Path(__file__).parents[1] / "published"


def read_published(name: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Read "table1" or "table2": (data, method, amount) to column to number.

    Table 2 has no amounts.
    """
    with open(_FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return {
            (row["data"], row["method"], row.get("amount", "")): row for row in csv.DictReader(file)
        }


def format_published(row: Mapping[str, str], prefix: str = "") -> str:
    """Return "mean ± sd" of a published row, a dash for an empty one."""
    return f"{row[f'{prefix}mean']} ± {row[f'{prefix}sd']}" if row else NOTHING
