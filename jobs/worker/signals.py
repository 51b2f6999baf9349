"""The signals that mean "save and leave": they set a flag, which a training reads between steps.

USR2 comes some time before a time limit, TERM at a preemption or a cancellation, INT from a
keyboard. The main process installs the handler before it imports anything slow. Until then the
shell that starts it ignores these signals.
"""

import signal

_SEEN: list[int] = []


def install() -> None:
    """Make USR2, TERM and INT set the flag."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def ignore() -> None:
    """Ignore the signals while Python ends, which would restore their deadly default."""
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
    """Tell whether the time limit alone asked: SLURM itself sees to what it preempts or cancels."""
    return set(_SEEN) == {signal.SIGUSR2}
