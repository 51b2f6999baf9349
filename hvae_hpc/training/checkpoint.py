"""Checkpoints: all that a training needs to go on, written atomically, verified when read.

A file's name says how far the training was and the SHA-256 of its bytes. So a damaged one is known
before it is loaded, and the one before it is taken. Two are kept. A snapshot is something else:
the weights to use, without what trained them.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from hvae_hpc.errors import UserError, is_gpu_lost
from hvae_hpc.runs.files import WEIGHT_BYTES, open_file, read_file
from hvae_hpc.runs.folder import append_log, find_checkpoints, remove_checkpoints, write_atomic
from hvae_hpc.training.device import is_out_of_memory
from hvae_hpc.training.distributed import ALONE, Team

KEPT = 2
State = dict[str, Any]
"""What a training needs to go on, or weights to use, by name."""


def save_checkpoint(folder: Path, images_seen: int, state: State) -> None:
    """Write a checkpoint and remove all but the newest two.

    Raises:
        UserError: the disk refused; the earlier checkpoints are still there.
    """
    content = _to_bytes({"images_seen": images_seen, **state})
    digest = hashlib.sha256(content).hexdigest()[:16]
    write_atomic(folder / f"checkpoint-{images_seen:012d}-{digest}.pt", content)
    # Those of more images are damaged: this training went on from one before them.
    remove_checkpoints(folder, beyond=images_seen)
    for old in find_checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def load_checkpoint(folder: Path, team: Team = ALONE) -> State | None:
    """Return the newest undamaged checkpoint's state, or None where there is none.

    Beside the state it holds ``images_seen``. A damaged checkpoint is named in the log and passed
    over. The first process reads and hands out what it read: the others' view of the disk may be
    older.
    """
    content = team.hand_out(_read_newest(folder) if team.rank == 0 else None)
    if content is None:
        return None
    with loading(f"{folder}: its checkpoint"):
        return dict(_load(io.BytesIO(content)))


def _read_newest(folder: Path) -> bytes | None:
    for path in find_checkpoints(folder):
        with loading(path):
            content = read_file(path, WEIGHT_BYTES)
        if hashlib.sha256(content).hexdigest()[:16] == path.stem.rsplit("-", 1)[1]:
            return content
        append_log(folder, {"event": "checkpoint_damaged", "file": path.name})
    return None


def save_snapshot(path: Path, state: State) -> None:
    """Write weights to use, atomically."""
    write_atomic(path, _to_bytes(state))


def _to_bytes(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_snapshot(path: Path) -> State:
    """Read what :func:`save_snapshot` wrote, tensors on the CPU.

    Raises:
        UserError: missing or damaged.
    """
    with loading(path), open_file(path, WEIGHT_BYTES) as file:
        return _load(file)


@contextlib.contextmanager
def loading(what: object) -> Iterator[None]:
    """Tell in a line that a file cannot be loaded, or holds other things than it should."""
    try:
        yield
    except Exception as error:  # a damaged zip, pickle or storage each raise something else
        if isinstance(error, UserError) or is_out_of_memory(error) or is_gpu_lost():
            raise
        raise UserError(
            f"{what}: cannot be read ({type(error).__name__}); delete its folder to train it again"
        ) from error


def _load(file: IO[bytes]) -> State:
    return torch.load(file, map_location="cpu", weights_only=True)
