"""Errors of users, told in one line.

Every command runs inside :func:`run_command`. A :class:`UserError` (a wrong path, an unknown key, a
truncated file) becomes one line on stderr and exit code 2. Anything else is a bug of ours and keeps
its traceback.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's errors where a file may not grow: a full disk, a quota, a limit of file size."""

DEVICE_MEMORY = "|".join(
    (
        r"CUDA out of memory",
        r"CUDA (driver )?error: out of memory",
        r"CUDA_ERROR_OUT_OF_MEMORY",
        r"Triton Error \[CUDA\]: out of memory",
        r"Cuda failure (\d+ )?'out of memory'",
        r"Failed to CUDA \w*alloc",
        r"CU\w+_\w*ALLOC\w*_FAILED",
        r"Unable to find a valid cuDNN algorithm",
        # cuDNN's trials of algorithms say this of too little memory for each.
        r"(GET|FIND) was unable to find an engine",
    )
)
"""What torch, the CUDA driver, Triton, NCCL and cuDNN say where a GPU's memory is not enough."""


class UserError(Exception):
    """One line for a person: what was got, what was expected, and what to do next."""


class NonFiniteError(UserError):
    """A loss, a gradient or a metric became nan or infinite; the message says when."""


def is_gpu_lost() -> bool:
    """Tell whether the GPU does nothing more in this process: after some faults each call fails."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def printable(text: str) -> str:
    """Escape what a terminal would obey or refuse: control characters, and what is not UTF-8."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def say(*texts: object, to: TextIO | None = None) -> None:
    """Print texts on lines of their own; what is printed may come from anybody's files.

    Args:
        texts: their line breaks stay; all else that a terminal would obey is escaped.
        to: standard output where it is None.
    """
    lines = [line for text in texts for line in str(text).expandtabs().split("\n")]
    print(*map(printable, lines), sep="\n", file=to, flush=True)


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function and turn a user's fault into one line and exit code 2.

    Args:
        command: takes the arguments after the program's name, returns the exit code.
        argv: those arguments; None for the process's own.

    Returns:
        The exit code: the command's own, 2 for a user's fault, 130 for Ctrl-C, 141 where nobody
        reads on.
    """
    # What it writes shows patients: the group may read at most, and others nothing.
    umask = os.umask(0o077)
    os.umask(umask | 0o027)
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        say(f"error: {error}", to=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command continues from what is there", to=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (less, head) went away.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        os.umask(umask)
