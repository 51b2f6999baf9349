"""The signals that mean "save and leave": a flag that the training loop reads between steps, and nothing else.

USR2 comes some time before a time limit, TERM at a preemption or a cancellation, INT from a
keyboard. The handler is installed in the main process, before anything slow is imported; until then
the step's shell has them ignored.
"""

import signal

_SEEN: list[int] = []


def install() -> None:
    """Make USR2, TERM and INT set the flag."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def ignore() -> None:
    """Ignore them while Python ends: it would give them their deadly default back."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, frame: object) -> None:
    _SEEN.append(number)


def ask_to_leave() -> None:
    """Set the flag without a signal."""
    _SEEN.append(0)


def leave_asked() -> bool:
    """Tell whether this process was asked to save and leave."""
    return bool(_SEEN)


def time_is_up() -> bool:
    """Tell whether the time limit alone asked: what is preempted or cancelled is SLURM's business, not ours."""
    return set(_SEEN) == {signal.SIGUSR2}
