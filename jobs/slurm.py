"""What SLURM says: its partitions and the user's queue, one call each; every refusal becomes one clear line."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from hvae_hpc.errors import UserError


def is_available() -> bool:
    """Tell whether sbatch is on the PATH."""
    return shutil.which("sbatch") is not None


def ask(command: Sequence[str]) -> str:
    """Run one SLURM client command and return what it prints.

    Raises:
        UserError: it is not there, fails, or does not answer within a minute.
    """
    try:
        # SLURM_BITSTR_LEN=0: squeue prints element lists whole instead of "12_[0-1,...]".
        environment = {**os.environ, "SLURM_BITSTR_LEN": "0"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on the PATH; log in to a SLURM node, or use --local") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not answer within 60 s; try again later") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise UserError(f"{' '.join(command)}: {said}") from error
    return done.stdout


def check_partition(partition: str) -> None:
    """Make sure that a partition exists.

    Raises:
        UserError: it does not; the ones that do are named.
    """
    known = sorted(
        {line.strip().rstrip("*") for line in ask(["sinfo", "--noheader", "--format=%R"]).splitlines()} - {""}
    )
    if partition not in known:
        raise UserError(f"unknown partition {partition!r}; this cluster has {', '.join(known)}")


class Element(NamedTuple):
    """One element of an array that waits or runs."""

    array: str
    place: int
    comment: str


def queued_elements() -> list[Element]:
    """Return the elements of the user's arrays that wait or run."""
    elements = []
    for line in ask(["squeue", "--me", "--array", "--noheader", "--format=%F %K %k"]).splitlines():
        array, index, comment = line.split(maxsplit=2)
        if index.isdigit():  # "N/A": a job that is no array
            elements.append(Element(array, int(index), comment.strip()))
    return elements
