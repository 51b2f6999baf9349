"""The logs that the processes of elements and of local workers print into."""

import os
from collections import deque
from pathlib import Path

from hvae_hpc.jobs.state.submissions import SUBMISSIONS


def process_logs(runs_folder: Path, element: str, process: str = "*") -> list[Path]:
    """Return the logs of an element's processes, or of one of them; of local workers for ""; the newest last."""
    pattern = f"{SUBMISSIONS}/*/{element}_{process}_log.out" if element else "local/*.log"
    return sorted(runs_folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def read_tail(path: Path, n_bytes: int = 256_000, width: int = 1000) -> list[str]:
    """Return a log's last lines as a terminal would show them, cut to a width; of a long log few bytes are read."""
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - n_bytes)
        file.seek(start)
        lines = file.read(n_bytes).decode(errors="replace").split("\n")
    return [
        line.rstrip("\r").rpartition("\r")[2][:width]
        for line in lines[start > 0 and len(lines) > 1 :]
    ]


def read_end(path: Path, run_id: str, number: int) -> list[str]:
    """Return a log's last lines; where other runs of the element follow, the last ones up to this run's end."""
    last, mine = deque[str](maxlen=number), list[str]()
    with open(path, errors="replace") as file:
        for line in file:
            last.append(line.rstrip("\n").rpartition("\r")[2])
            if f"({run_id})" in line:
                mine = list(last)
    return mine or list(last)
