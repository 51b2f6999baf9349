"""What a run's log and files say of its attempts: how far each came, how long it took, why it ended."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.provenance import job_id
from hvae_hpc.rundir import METRICS, append_log, read_log

STALLS = 10
"""Attempts of one element that may end where they began before the run is given up."""


def checkpoint_at(folder: Path) -> int:
    """Return the images seen of the newest checkpoint, by its name; 0 where there is none."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*-*.pt")), default=0)


def how_far(folder: Path) -> float:
    """Return a number that grows with what is done of a run: images seen, or infinity for all of it."""
    return float("inf") if (folder / METRICS).exists() else checkpoint_at(folder)


def failed_in(folder: Path, job: str) -> bool:
    """Tell whether a run failed in an earlier life of this very element, which does not try it again."""
    last: dict[str, Any] = next((entry for entry in reversed(read_log(folder)) if "event" in entry), {})
    return bool(job) and last.get("event") == "failed" and last.get("job_id") == job


def check_stall(folder: Path, log: Sequence[dict[str, Any]]) -> None:
    """Give a run up that one element began again and again without getting further.

    The element may be new with the next sweep command; then all is forgotten.
    """
    starts = [entry.get("at") for entry in log if entry.get("event") == "started" and entry.get("job_id")]
    mine = [entry for entry in log if entry.get("event") == "started" and entry.get("job_id") == job_id()]
    if job_id() and len(mine) >= STALLS and set(starts[-STALLS:]) == {checkpoint_at(folder)}:
        raise UserError(
            f"began {STALLS} times at images_seen = {checkpoint_at(folder)} and never got further; in the site file "
            "give its stage more minutes, or a smaller checkpoint_every_s"
        )


def spent_s(log: Sequence[dict[str, Any]]) -> float:
    """Return the seconds between the beginning and the last sign of life of each earlier attempt."""
    spent, began = 0.0, None
    for before, entry in zip([{}, *log], [*log, {"event": "started"}], strict=True):
        if entry.get("event") == "started":
            spent += float(before.get("time", 0.0)) - began if began is not None else 0.0
            began = float(entry.get("time", 0.0))
    return spent


def record(folder: Path, event: Literal["failed", "blocked", "again"], message: str) -> str:
    """Log why an attempt ended without a result, and return that as one line."""
    line = " ".join(message.split())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        append_log(folder, {"event": event, "reason": line, "job_id": job_id()})
    except OSError:  # a full disk is one of the failures to tell of
        print(f"{folder}: the failure could not be logged", file=sys.stderr)
    return line
