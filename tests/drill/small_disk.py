"""A small disk that only this process and its children see, and that is full just before a chosen write to it."""

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hvae_hpc.errors import run_command
from hvae_hpc.runs import folder as rundir
from hvae_hpc.runs.lease import LEASE

PAGE = 4096
DISK_MIB = 24
Command = Callable[[], object]


def mount(disk: Path) -> None:
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)], check=True
    )


class Filler:
    """Notes what is written to the disk, by kind of file, and fills the disk just before a chosen write.

    Args:
        disk: where it is mounted.
    """

    def __init__(self, disk: Path) -> None:
        self.disk, self.seen, self.fills_at, self.silent = disk, list[str](), ("", 0), True
        sys.addaudithook(self.hear)
        draw = rundir.secrets.token_hex

        def token(n: int) -> str:
            # Asked for just before an atomic write, whoever writes: h5py and pyarrow tell no hook.
            self.note(sys._getframe(1).f_locals["path"])
            return draw(n)

        rundir.secrets = SimpleNamespace(token_hex=token)

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        if (
            event == "open"
            and isinstance(given[0], (str, os.PathLike))
            and isinstance(given[2], int)
        ):
            path = Path(given[0])
            lease = path.name.startswith(LEASE)
            if given[2] & (os.O_WRONLY | os.O_RDWR) and (path.suffix != ".tmp" or lease):
                self.note(path)

    def note(self, path: Path) -> None:
        if self.silent or not path.is_relative_to(self.disk):
            return
        kind = re.sub(r"[0-9a-f]{12,}|\d+(-[0-9a-f]{8})?", "#", str(path.relative_to(self.disk)))
        self.seen.append(kind)
        if (kind, self.seen.count(kind)) == self.fills_at:
            self.silent = True
            with open(self.disk / "filler", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, os.statvfs(self.disk).f_bavail * PAGE)
            self.silent = False

    def run(self, command: Command, fills_at: tuple[str, int] = ("", 0)) -> tuple[int, str]:
        """Run a command in a process of its own; returns exit code, and what it said on standard error."""
        out = self.disk.parent / "said"
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                sys.stdout, sys.stderr = open(os.devnull, "w"), open(2, "w", buffering=1)  # noqa: SIM115
                self.seen, self.fills_at, self.silent = [], fills_at, False
                code = run_command(lambda _: int(command() or 0))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (self.disk / "filler").unlink(missing_ok=True)
        return code, out.read_text()
