"""Packing a whole cohort, of links to few cases, by the command as users type it."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess_sides import Work, link_cases, read_status
from preprocess_tables import show

from hvae_hpc.preprocess.store.manifest import read_manifest

SAMPLE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory of a packing at one time, MiB.

    Attributes:
        parent: of the process that the user started.
        workers: of each worker process.
        highest: peak of any worker so far.
    """

    parent: float
    workers: tuple[float, ...]
    highest: float


def pack_cohort(work: Work, scratch: Path, n: int, workers: int) -> dict[str, Any]:
    """Pack n linked cases by the command, watch its memory, and give the same command again.

    Raises:
        SystemExit: the command failed, or the second time changed the data set.
    """
    raw, out = scratch / "linked", scratch / "packed"
    link_cases(work, raw, n)
    recipe = scratch / "linked.toml"
    recipe.write_text(f'extends = "{work.recipe.name}"\naccept = ["repeated"]\n')
    command = [sys.executable, "-m", "hvae_hpc.preprocess", str(recipe)]
    command += ["--raw", str(raw), "--out", str(out)]
    command += ["--workers", str(workers), "--sheet", "0", "--local"]

    seconds, samples = watch(command)
    before = read_manifest(out)
    again, _ = watch(command)
    after = read_manifest(out)
    if len(before.cases) != n or before.content_hash != after.content_hash:
        raise SystemExit(
            f"{len(before.cases)} of {n} cases packed, content {before.content_hash[:12]}; "
            f"the same command again gave {after.content_hash[:12]}"
        )
    print(
        f"{n} cases by {workers} workers: {seconds:.1f} s, {n / seconds:.1f} cases/s, "
        "start of Python included"
    )
    print(
        f"the same command again, nothing changed: {again:.1f} s, "
        f"content {after.content_hash[:12]} as before"
    )
    return {
        "cohort": n,
        "workers": workers,
        "cases_per_s": n / seconds,
        "seconds": seconds,
        "again_s": again,
        "total_mib": max((sample.parent + sum(sample.workers) for sample in samples), default=None),
        **report_memory(samples),
        "same_content_hash": True,
    }


def report_memory(samples: Sequence[Sample]) -> dict[str, Any]:
    """Show the memory of the first and the last quarter of a packing and return the figures."""
    busy = [sample for sample in samples if sample.workers] or samples
    quarter = max(1, len(busy) // 4)
    figures: dict[str, Any] = {}
    rows = []
    for name, part in (("first", busy[:quarter]), ("last", busy[-quarter:])):
        parent = max((sample.parent for sample in part), default=None)
        # With one worker the command works itself.
        worker = max((max(sample.workers, default=sample.parent) for sample in part), default=None)
        highest = part[-1].highest if part else None
        rows.append((f"{name} quarter", parent, worker, highest))
        figures |= {f"parent_mib_{name}_quarter": parent, f"worker_mib_{name}_quarter": worker}
        figures |= {f"worker_peak_mib_after_{name}_quarter": highest}
    show(
        f"memory while packing, MiB, {len(busy)} samples",
        ("", "parent", "largest worker", "any worker's peak till then"),
        rows,
    )
    return figures


def watch(command: Sequence[str]) -> tuple[float, list[Sample]]:
    """Run a command and return its seconds, and its memory over time.

    Raises:
        SystemExit: it failed.
    """
    samples = []
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    process.wait(SAMPLE_S)
                    break
                except subprocess.TimeoutExpired:
                    samples.append(take_sample(process.pid))
        finally:
            process.kill()
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read())
    return seconds, samples


def take_sample(process: int) -> Sample:
    """Look at a command and the workers that it started."""
    parent = read_status(process)
    workers = [read_status(worker) for worker in find_workers(process)]
    resident = tuple(status["VmRSS"] for status in workers if "VmRSS" in status)
    peaks = [status.get("VmHWM", 0.0) for status in workers] or [parent.get("VmHWM", 0.0)]
    return Sample(parent=parent.get("VmRSS", 0.0), workers=resident, highest=max(peaks))


def find_workers(parent: int) -> list[int]:
    """Return a process's children that multiprocessing started as workers."""
    workers = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            # The name before the last bracket may hold anything, spaces and brackets too.
            mother = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if mother == parent and b"spawn_main" in (folder / "cmdline").read_bytes():
                workers.append(int(folder.name))
    return workers
