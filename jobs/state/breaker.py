"""The breaker of an array: the small file that says that its first elements failed alike and the rest is held."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError


class Breaker(NamedTuple):
    """Why the rest of an array is held.

    Attributes:
        reason: for people, with a run that failed.
        elements: SLURM's ``<array>_<place>`` of those that failed; all others of the array are
            held.
        node: on which all of them ran; "" for several.
    """

    reason: str
    elements: tuple[str, ...]
    node: str


def breaker_file(submission: Path, number: int) -> Path:
    """Return where the breaker of a submission's array lies, if there is one."""
    return submission / f"breaker-{number:03d}.json"


def decided_file(submission: Path, number: int) -> Path:
    """Return the file whose maker decides whether the rest of a submission's array begins."""
    return submission / f"canary-{number:03d}"


def forget(submission: Path, number: int) -> None:
    """Let canaries decide anew: a submission of just the same elements has the same name."""
    for path in (breaker_file(submission, number), decided_file(submission, number)):
        path.unlink(missing_ok=True)


def read_breakers(submissions: Path, names: Iterable[str]) -> dict[tuple[str, int], Breaker]:
    """Return the breakers of submissions by name and number of the array; one that cannot be read holds nothing."""
    found = {}
    for name in names:
        for path in (submissions / name).glob("breaker-*.json"):
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                data = read_json(path)
                number = int(path.stem.partition("-")[2])
                found[name, number] = Breaker(
                    str(data["reason"]), tuple(data["elements"]), str(data["node"])
                )
    return found
