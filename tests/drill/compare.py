"""Whether a run that was disturbed came out as the undisturbed one: numbers, weights, pairs, and nothing left lying."""

from pathlib import Path
from typing import Any

from hvae_hpc.errors import UserError
from hvae_hpc.runs.folder import LOG, METRICS, read_log, read_result

COMPARED = ("metrics", "per_case", "config", "parents", "details")
"""Of metrics.json; the rest of it says how it was made."""


def compare(undisturbed: Path, disturbed: Path, run_id: str) -> list[str]:
    """Return in what a finished run differs from an undisturbed one, bit for bit; nothing where it does not.

    Args:
        undisturbed: the folder of the one.
        disturbed: the folder of the other.
        run_id: of both.
    """
    try:
        one, other = (read_result(folder, run_id) for folder in (undisturbed, disturbed))
    except UserError as error:
        return [str(error)]
    if one is None or other is None:
        return ["has no metrics.json"]
    found = []
    for name in COMPARED:
        if getattr(one, name) != getattr(other, name):
            found.append(f"{METRICS}: {name}: {_first(getattr(one, name), getattr(other, name))}")
    here, there = _files(undisturbed), _files(disturbed)
    found += [f"{name} is missing" for name in sorted(here - there)]
    found += [f"{name} is left over" for name in sorted(there - here)]
    for name in sorted(here & there - {METRICS, LOG, "inputs.json"}):
        if (undisturbed / name).read_bytes() != (disturbed / name).read_bytes():
            found.append(f"{name} differs")
    starts = sum(record.get("event") == "started" for record in read_log(disturbed))
    if other.provenance.attempt != starts:
        found.append(f"made by attempt {other.provenance.attempt} of {starts} in its log")
    return found


def _files(folder: Path) -> set[str]:
    return {
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") or path.suffix == ".tmp"
    }


def _first(one: Any, other: Any) -> str:
    """Show the first number in which two tables differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(key for key in sorted({*one, *other}) if one.get(key) != other.get(key))
        return f"{key} {_first(one.get(key), other.get(key))}"
    return f"{other!r}, undisturbed {one!r}"
