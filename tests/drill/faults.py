"""Faults on purpose, for the drill: what goes wrong, when, and how it is done to a process or to a run's folder.

A process that is struck is a child that nobody has waited for yet, so its number cannot be
another's by then.
"""

import contextlib
import os
import random
import resource
import signal
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Kind = Literal["USR2", "TERM", "KILL", "disk full", "damaged"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIGNALS = {
    "USR2": signal.SIGUSR2,
    "TERM": signal.SIGTERM,
    "KILL": signal.SIGKILL,
    "damaged": signal.SIGKILL,
}
ROOM = (0, 0, 500, 4000, 20_000)
"""Bytes up to which a file may still grow on the full disk."""


class Fault(NamedTuple):
    """One fault.

    Attributes:
        kind: "damaged" is KILL, and then damage to the newest checkpoint.
        share: of the time that the run has left undisturbed, after which it strikes.
        fresh: whether the process is a new one, which has its imports still before it.
        detail: between 0 and 1: how much room the disk has, or what the damage is.
    """

    kind: Kind
    share: float
    fresh: bool
    detail: float


def draw_fault(chance: random.Random, fresh: float, checkpoints: bool) -> Fault:
    """Draw a fault; the numbers taken from ``chance`` are as many for each.

    Args:
        chance: the source of all randomness.
        fresh: share of processes that are new ones.
        checkpoints: whether the run leaves any that could be damaged.
    """
    kind = chance.choice(KINDS if checkpoints else KINDS[:-1])
    return Fault(kind, chance.random(), chance.random() < fresh, chance.random())


def strike(pid: int, fault: Fault) -> None:
    """Do it to a process of ours that was not waited for: send the signal, or let its files not grow any more.

    The kernel refuses the writes: to a process whose files are too large it sends EFBIG where a
        full disk has ENOSPC.
    """
    with contextlib.suppress(ProcessLookupError):  # it ended
        if fault.kind == "disk full":
            room = ROOM[int(fault.detail * len(ROOM))]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        else:
            os.kill(pid, SIGNALS[fault.kind])


def damage(path: Path, detail: float) -> None:
    """Damage a file as a bad disk or a crash does: flip a bit, cut it short, or fill its end with zeros."""
    content = bytearray(path.read_bytes())
    way, place = int(3 * detail), int(3 * detail % 1 * len(content))
    if way == 0:
        content[place] ^= 1
    else:
        content[place:] = bytes(len(content) - place if way == 1 else 0)
    if bytes(content) == path.read_bytes():  # its end was zeros already
        content.append(0)
    path.write_bytes(content)
