"""``hvae-hpc status``: the status of a sweep, on one screen or as one JSON object.

The table has a line per stage, and below segment a line per arm. Below the table stand what is
left, what went wrong and what to do, and what runs now.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from hvae_hpc.config.stages import CONFIGS, SegmentConfig
from hvae_hpc.errors import say
from hvae_hpc.jobs.failures.classify import classify, gather
from hvae_hpc.jobs.state.find_run import name_run
from hvae_hpc.jobs.state.run_status import KINDS, UNASKED, Kind
from hvae_hpc.jobs.state.sweep_status import (
    Progress,
    SweepStatus,
    read_device_hours,
    read_sweep_statuses,
)
from hvae_hpc.jobs.sweeps.costs import duration

SCHEMA = 2
"""Of what ``--json`` prints."""
TROUBLES: tuple[Kind, ...] = ("failed", "lost", "blocked")
WAITS = {
    "Dependency": "what they need",
    "Priority": "others of higher priority",
    "Resources": "free nodes",
}
"""SLURM's commonest reasons, in plain words."""
MOST_LINES = 8
REFRESH_S = 5.0
SLOW = 0.2
"""A run at less than this share of its kind's usual pace is named."""


class Trouble(NamedTuple):
    """Runs that are failed, lost or blocked for the same reason, and the class of that failure."""

    kind: Kind
    reason: str
    failure: str
    run_ids: Sequence[str]


def render(sweep: SweepStatus, costs: bool = False) -> Iterator[str]:
    """Yield the status of a sweep in lines for a person, and what it took where costs are asked."""
    yield f"sweep {sweep.plan.sweep}  ({sweep.plan.runs_folder})"
    parts = [_table(sweep), _totals(sweep), _describe_troubles(sweep), _describe_work(sweep)]
    if costs:
        parts.append(_costs(sweep))
    for part in parts:
        if lines := list(part):
            yield ""
            yield from lines


def _table(sweep: SweepStatus) -> Iterator[str]:
    """Yield a line for each stage and arm.

    It says how many runs of each data set are done, and how many of all have another status.
    """
    plan = sweep.plan
    counts = defaultdict[str, Counter[str]](Counter)
    for run_id, run in plan.runs.items():
        arms = [f"  {run.config.arm.name}"] if isinstance(run.config, SegmentConfig) else []
        kind, data = sweep.statuses[run_id].kind, run.config.data
        for name in [run.stage, *arms]:
            counts[name].update([kind, f"{data} {kind}", data])

    # Segment is the last stage, and its arms follow.
    stages = [*(stage for stage in CONFIGS if stage != "segment"), "segment"]
    names = sorted(counts, key=lambda name: [*stages, name].index(name))
    kinds = [kind for kind in KINDS[1:] if sweep.totals[kind]]
    rows = [["", *plan.data, *kinds]]
    for name in names:
        count = counts[name]
        done = [f"{count[f'{data} done']}/{count[data]} done" for data in plan.data]
        rows.append([name, *done, *(str(count[kind] or "") for kind in kinds)])
    yield from _align(rows, left=1)


def _align(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Yield rows as lines of columns; the first ``left`` columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        yield "  ".join(cells).rstrip()


def _totals(sweep: SweepStatus) -> Iterator[str]:
    """Yield how many runs have each kind of status, and what is left."""
    totals = sweep.totals
    parts = [f"{totals[kind]:,} {kind}" for kind in KINDS[1:] if totals[kind]]
    yield ", ".join([f"{totals['done']:,} of {totals['runs']:,} runs done", *parts])
    waits = Counter(status.reason for status in sweep.statuses.values() if status.kind == "waiting")
    del waits[UNASKED]
    if waits:
        reasons = [f"{WAITS.get(reason, reason)} ({n:,})" for reason, n in waits.most_common(4)]
        yield f"waiting for {', '.join(reasons)}"

    if totals["done"] < totals["runs"]:
        unit = "gpu" if totals["gpu_hours_left"] else "cpu"
        hours, measured = totals[f"{unit}_hours_left"], 100 * totals["measured"]
        how = f"{measured:.0f} % of the runs by measured times, the others a first guess"
        yield f"left: about {hours:,.1f} {unit.upper()}-hours ({how})"
    else:
        yield f"tables and figures: python -m hvae_hpc.results {quote(str(sweep.plan.runs_folder))}"

    if sweep.note:
        yield f"the queue is not known, this is from the runs' own files alone: {sweep.note}"


def _describe_troubles(sweep: SweepStatus) -> Iterator[str]:
    """Yield what is failed, lost and blocked, by reason, and what to do."""
    troubles = _find_troubles(sweep)
    if not troubles:
        return
    for kind, reason, failure, run_ids in troubles[:MOST_LINES]:
        more = f" and {len(run_ids) - 1:,} more" if len(run_ids) > 1 else ""
        known = f" ({failure})" if kind == "failed" else ""
        yield f"{kind}{known}: {sweep.plan.runs[run_ids[0]]}{more}: {reason}"
    if others := troubles[MOST_LINES:]:
        yield f"... and {sum(len(each.run_ids) for each in others):,} more, for other reasons"

    yield f"more of the first: hvae-hpc why {name_run(sweep.plan, troubles[0].run_ids[0])}"
    yield "next: the same sweep command makes these runs again"


def _find_troubles(sweep: SweepStatus) -> list[Trouble]:
    """Return what is failed, lost and blocked, by reason; of a kind the most runs first."""
    plan, statuses = sweep.plan, sweep.statuses
    groups = defaultdict[tuple[Kind, str], list[str]](list)
    for run_id, (kind, _, reason) in statuses.items():
        if kind in TROUBLES:
            groups[kind, reason.replace(f"{plan.folder(run_id)}/", "")].append(run_id)

    # The logs of a group's first run tell the class of all, as logs may be many.
    troubles = []
    for (kind, reason), run_ids in groups.items():
        first = run_ids[0]
        evidence = gather(plan, first, statuses[first], sweep.submissions)
        failure = "held" if statuses[first].held else classify(evidence)
        troubles.append(Trouble(kind, reason, failure, run_ids))
    return sorted(troubles, key=lambda each: (TROUBLES.index(each.kind), -len(each.run_ids)))


def _describe_work(sweep: SweepStatus) -> Iterator[str]:
    """Yield what runs now, and how far it is."""
    rows = []
    for run_id, progress in islice(sweep.progress.items(), MOST_LINES):
        run = sweep.plan.runs[run_id]
        share = "" if progress.progress is None else f"{100 * progress.progress:.0f} %"
        left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"
        pace, usual = progress.images_per_s, progress.usual_images_per_s
        speed = f"{pace:,.1f} images/s (usual {usual:,.1f})" if pace and usual else ""
        rows.append((run.stage, run.label, f"on {progress.host}", share, left, speed))
    if rows:
        yield from _align(rows, left=3)
    if len(sweep.progress) > MOST_LINES:
        yield f"... and {len(sweep.progress) - MOST_LINES:,} more at work"
    for run_id, progress in sweep.progress.items():
        pace, usual = progress.images_per_s, progress.usual_images_per_s
        if pace and usual and pace < SLOW * usual:
            said = f"{pace:,.1f} images/s, usual are {usual:,.1f}"
            yield f"slow: {sweep.plan.runs[run_id]}: {said}; look at node {progress.host}"


def _costs(sweep: SweepStatus) -> Iterator[str]:
    """Yield what the sweep took, by stage and by what came of it."""
    for stage in read_device_hours(sweep):
        hours = ", ".join(f"{n:,.2f} {name}" for name, n in stage.hours.items() if n >= 0.005)
        total = f"{sum(stage.hours.values()):,.2f} {stage.unit.upper()}-hours"
        yield f"spent: {stage.stage}: {total}" + (f" ({hours})" if hours else "")


def main(argv: Sequence[str]) -> int:
    """Show which runs are done, running, waiting, blocked, lost or failed, and why."""
    parser = argparse.ArgumentParser(prog="hvae-hpc status", description=main.__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="?", default=Path("runs"), help="runs folder (default: ./runs)")
    add("--sweep", metavar="NAME", help="only this sweep (default: all sweeps of the folder)")
    add("--watch", action="store_true", help="refresh every few seconds, until Ctrl-C")
    add("--json", action="store_true", help="print one JSON object")
    add("--costs", action="store_true", help="also show device hours by outcome")
    options = parser.parse_args(argv)
    if options.json:
        sweeps = read_sweep_statuses(options.runs, options.sweep)
        queue = {"queue_asked_at": sweeps[0].asked_at, "note": sweeps[0].note}
        plain = [_to_plain(sweep, options.costs) for sweep in sweeps]
        say(json.dumps({"schema": SCHEMA, "time": time.time(), **queue, "sweeps": plain}))
    elif options.watch and sys.stdout.isatty():
        _watch(options)
    else:
        say(_screen(options))
    return 0


def _to_plain(sweep: SweepStatus, costs: bool) -> dict[str, Any]:
    """Return everything of a sweep as plain data with stable names."""
    plan = sweep.plan
    failures = {run_id: each.failure for each in _find_troubles(sweep) for run_id in each.run_ids}
    runs = [
        {
            "run_id": run_id,
            "stage": plan.runs[run_id].stage,
            "label": plan.runs[run_id].label,
            **status._asdict(),
            **sweep.progress.get(run_id, Progress())._asdict(),
            "failure": failures.get(run_id, ""),
        }
        for run_id, status in sweep.statuses.items()
    ]
    plain = {
        "sweep": plan.sweep,
        "runs_folder": str(plan.runs_folder),
        "totals": sweep.totals,
        "runs": runs,
    }
    return plain | (
        {"costs": [stage._asdict() for stage in read_device_hours(sweep)]} if costs else {}
    )


def _screen(options: argparse.Namespace) -> str:
    sweeps = read_sweep_statuses(options.runs, options.sweep)
    return "\n\n".join("\n".join(render(sweep, options.costs)) for sweep in sweeps)


def _watch(options: argparse.Namespace) -> None:
    """Clear the terminal and draw the screen again and again."""
    try:
        while True:
            began = time.monotonic()
            screen = _screen(options)
            sys.stdout.write("\033[H\033[2J")
            say(screen)
            # At most a fifth of the time is spent on looking: a large sweep loads the disk.
            time.sleep(max(REFRESH_S, 4 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        say()
