"""The packing command as a person gives it: in this process, in one of its own, without root's rights."""

import contextlib
import ctypes
import functools
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
from tests import ROOT


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What stood on stderr, less the progress bar, which others may write behind."""
        return [
            line for line in re.split(r"[\r\n]", re.sub(r" *\d+%\|.*?\]", "", self.err)) if line
        ]


def environment() -> dict[str, str]:
    """Return that of a plain terminal on a machine without SLURM: its stdout takes sound UTF-8 alone."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")
    }
    return {
        **kept,
        "PATH": "/nowhere",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "MPLCONFIGDIR": ".",
    }


def run_process(*argv: str, code: str = "", **options: object) -> Outcome:
    """Run the command in a process of its own, or a driver's code with the command's arguments."""
    start = ["-c", code] if code else ["-m", "hvae_hpc.preprocess"]
    done = subprocess.run(
        [sys.executable, *start, *argv], capture_output=True, env=environment(), **options
    )
    texts = [stream.decode(errors="backslashreplace") for stream in (done.stdout, done.stderr)]
    return Outcome(code=done.returncode, out=texts[0], err=texts[1])


def run_quietly(*argv: str) -> Outcome:
    """Run the command in this process, outside of a test."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = run_command(main, argv)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
"""linux/prctl.h, linux/capability.h"""


def drop_roots_rights() -> None:
    """Let what this process starts be root without root's right to read everything."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "root here cannot give up its rights")


@functools.cache
def why_not_without_rights() -> str:
    """Return why a root without its rights cannot run the command here, or ""."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", "import hvae_hpc.errors"],
            capture_output=True,
            check=False,
            cwd="/",
            env=environment(),
            preexec_fn=drop_roots_rights,
        )
    except subprocess.SubprocessError:
        return "root here cannot give up its rights"
    return "the code belongs to another user, who lets nobody read it" if probe.returncode else ""


def run_without_rights(*argv: str) -> Outcome:
    """Run the command without root's right to read what a file's mode forbids."""
    if os.geteuid() != 0:
        return run_process(*argv)
    if why_not_without_rights():
        pytest.skip(why_not_without_rights())
    return run_process(*argv, preexec_fn=drop_roots_rights)
