"""The logs that the processes of elements and of local workers print into."""

import contextlib
from pathlib import Path

from hvae_hpc.jobs.state.submissions import SUBMISSIONS
from hvae_hpc.runs.files import read_last_lines


def process_logs(runs_folder: Path, element: str, process: str = "*") -> list[Path]:
    """Return the logs of an element's processes, or of one of them, the newest last.

    Args:
        runs_folder: of the submission.
        element: SLURM's ``<array>_<place>``; "" for local workers.
        process: number of the process in the element; "*" for all.
    """
    pattern = f"{SUBMISSIONS}/*/{element}_{process}_log.out" if element else "local/*.log"
    return sorted(runs_folder.glob(pattern), key=lambda path: path.lstat().st_mtime)


def read_tail(path: Path, n_bytes: int = 256_000, width: int = 1000) -> list[str]:
    """Return a log's last lines as a terminal would show them.

    Args:
        path: of the log.
        n_bytes: no more is read, from its end.
        width: characters of a line that are kept.
    """
    lines = []
    with contextlib.suppress(OSError):
        lines = [line.decode(errors="replace") for line in read_last_lines(path, n_bytes)]
    # A progress bar overwrites its line after each "\r".
    return [line.rstrip("\r").rpartition("\r")[2][:width] for line in lines]


def read_end(path: Path, run_id: str, number: int) -> list[str]:
    """Return a log's last lines; where other runs of the element follow, those of this run."""
    lines = read_tail(path, n_bytes=10_000_000)
    places = [place for place, line in enumerate(lines) if f"({run_id})" in line]
    end = places[-1] + 1 if places else len(lines)
    return lines[max(0, end - number) : end]
