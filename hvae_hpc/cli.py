"""The console script ``hvae-hpc``: all commands by short names."""

import pkgutil
import sys
from collections.abc import Sequence

from hvae_hpc import __version__
from hvae_hpc.errors import UserError, run_command, say

COMMANDS = {
    "preprocess": ("hvae_hpc.preprocess.__main__:main", "pack scans or 2D pictures into shards"),
    "sweep": ("hvae_hpc.sweep:main", "train, evaluate, make the tables; locally or on SLURM"),
    "results": ("hvae_hpc.results.__main__:main", "make the tables and figures of a runs folder"),
    "export": (
        "hvae_hpc.export.command:main",
        "export a generate run's pairs to nnU-Net or as PNG",
    ),
    "status": (
        "hvae_hpc.jobs.commands.status:main",
        "which runs are done, running, waiting or failed, and why",
    ),
    "why": ("hvae_hpc.jobs.commands.why:main", "why a run failed, and what a retry would change"),
    "logs": (
        "hvae_hpc.jobs.commands.logs:main",
        "a run's status, its last events, and the end of its log",
    ),
    "cancel": (
        "hvae_hpc.jobs.commands.cancel:cancel",
        "cancel a sweep's jobs, or the element of one run",
    ),
    "throttle": (
        "hvae_hpc.jobs.commands.cancel:throttle",
        "limit how many elements of an array run at a time",
    ),
}
"""Name to ``module:function``, and what the command does."""


def main() -> int:
    """Run the console script; returns its exit code."""
    return run_command(_dispatch)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        say("usage: hvae-hpc COMMAND ...\n")
        for name, (_, about) in COMMANDS.items():
            say(f"  {name:11} {about}")
        say("\nexample: hvae-hpc sweep demo     (each command has its own --help)")
        return 0
    name, *rest = argv
    if name == "--version":
        say(f"hvae_hpc {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}")
    return pkgutil.resolve_name(COMMANDS[name][0])(rest)


if __name__ == "__main__":
    sys.exit(main())
