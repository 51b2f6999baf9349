"""``hvae-hpc logs``: how a run stands, the last events of its log in plain words, the end of its process's log."""

import argparse
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hvae_hpc.jobs.control import add_run, find_run
from hvae_hpc.jobs.overview import make_overview, read_our_queue
from hvae_hpc.jobs.standing import SUBMISSIONS, Submissions
from hvae_hpc.rundir import read_log

EVENTS = {
    "started": "attempt {attempt} began on {host} {job_id}",
    "training": "trains from {images_seen:,} images on",
    "resumed": "went on from a checkpoint at {images_seen:,} images",
    "stopped": "saved, and left",
    "failed": "failed: {reason}",
    "blocked": "{reason}",
    "inputs_changed": "what it is made from was made anew, so it begins anew",
    "checkpoint_damaged": "{file} is damaged, the one before it is taken",
    "died": "{reason}",
    "left": "its element left: {reason}",
    "again": "failed beside other runs, is to be done again alone: {reason}",
    "compile_failed": "could not be compiled, goes on without: {reason}",
}


def main(argv: Sequence[str]) -> int:
    """Print how a run stands, the last events of its log, and the end of the log of the process that made it."""
    parser = argparse.ArgumentParser(prog="hvae-hpc logs", description=main.__doc__)
    add_run(parser)
    parser.add_argument("--lines", type=int, default=20, metavar="N", help="of each log (default: %(default)s)")
    options = parser.parse_args(argv)
    plan, run_id = find_run(options.runs, options.run)
    run, log, submissions = plan.runs[run_id], read_log(plan.folder(run_id)), Submissions(plan.runs_folder)
    standing = make_overview(plan, submissions, *read_our_queue(submissions)).standings[run_id]
    print(f"{run.stage} {run.label} ({run_id})")
    element = f" ({standing.element})" if standing.element else ""
    print(": ".join(filter(None, [f"{standing.kind}{element}", standing.reason])))
    print(f"\n{plan.folder(run_id)}" + ("/log.jsonl" if log else ": nothing yet"))
    for record in log[-options.lines :]:
        print(f"  {time.strftime('%b %d %H:%M:%S', time.localtime(record.get('time', 0)))}  {describe(record)}")
    began = next((record for record in reversed(log) if record.get("event") == "started"), {"job_id": None})
    if path := _process_log(plan.runs_folder, [standing.element or None, began.get("job_id")]):
        print(f"\n{path}")
        for line in read_end(path, run_id, options.lines) or ["nothing yet"]:
            print(f"  {line}")
    return 0


def _process_log(runs_folder: Path, elements: Sequence[str | None]) -> Path | None:
    """Return the log of the first of some elements that has one; "" stands for local workers, None for nobody."""
    for element in elements:
        if element is not None and (paths := process_logs(runs_folder, element, "0")):
            return paths[-1]
    return None


def process_logs(runs_folder: Path, element: str, process: str = "*") -> list[Path]:
    """Return the logs of an element's processes, or of one of them; of local workers for ""; the newest last."""
    pattern = f"{SUBMISSIONS}/*/{element}_{process}_log.out" if element else "local/*.log"
    return sorted(runs_folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def describe(record: Mapping[str, Any]) -> str:
    """Return a record of log.jsonl in plain words."""
    event = record.get("event", "")
    try:
        return (
            EVENTS[event]
            .format(**{**record, "job_id": f"({record['job_id']})" if record.get("job_id") else ""})
            .rstrip()
        )
    except (KeyError, ValueError):  # the numbers of a training, or what another version wrote
        values = {name: value for name, value in record.items() if name not in ("time", "event", "images_seen")}
        said = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        ]
        return ", ".join([event or f"{record.get('images_seen', 0):,} images", *said])


def read_tail(path: Path, n_bytes: int = 256_000, width: int = 1000) -> list[str]:
    """Return a log's last lines as a terminal would show them, cut to a width; of a long log few bytes are read."""
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - n_bytes)
        file.seek(start)
        lines = file.read(n_bytes).decode(errors="replace").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2][:width] for line in lines[start > 0 and len(lines) > 1 :]]


def read_end(path: Path, run_id: str, number: int) -> list[str]:
    """Return a log's last lines; where other runs of the element follow, the last ones up to this run's end."""
    last, mine = deque[str](maxlen=number), list[str]()
    with open(path, errors="replace") as file:
        for line in file:
            last.append(line.rstrip("\n").rpartition("\r")[2])
            if f"({run_id})" in line:
                mine = list(last)
    return mine or list(last)
