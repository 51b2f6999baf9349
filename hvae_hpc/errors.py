"""What a person did wrong, said in one line.

Every command runs inside :func:`run_command`: a :class:`UserError` (a wrong path, an unknown key, a
truncated file) becomes one line on stderr and exit code 2; anything else is a bug of ours and keeps
its traceback.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file may not grow: the disk is full, or a quota, or a limit of one file."""

DEVICE_MEMORY = r"CUDA (driver )?error: out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
"""What the CUDA driver and its libraries say of memory, for which torch has no class of errors."""


class UserError(Exception):
    """What was got, what was expected, and what to do next, in one line for a person to read."""


class NonFiniteError(UserError):
    """A loss, a gradient or a metric that is no number, and when it became so."""


def printable(text: str) -> str:
    """Escape what a terminal would obey or refuse: control characters, and bytes of a name that are no UTF-8."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function and turn a user's fault into one line and exit code 2.

    Args:
        command: takes the arguments after the program's name, returns the exit code.
        argv: those arguments; None for the process's own.

    Returns:
        The exit code: the command's own, 2 for a user's fault, 130 for Ctrl-C.
    """
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again goes on from what is there", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # the reader of our output (less, head) went away: nothing to tell anybody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
