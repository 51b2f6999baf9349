"""``hvae-hpc status``: the status of a sweep, on one screen or as one JSON object.

The table has a line per stage, and for segment a line per arm. Data sets stand side by side where
the terminal is wide enough. Below the table stand what is left, what went wrong and what to do, and
what runs now.
"""

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hvae_hpc.config.stages import CONFIGS, SegmentConfig
from hvae_hpc.jobs.failures.classify import classify, gather
from hvae_hpc.jobs.state.device_hours import StageHours, read_device_hours
from hvae_hpc.jobs.state.element_ends import read_ends
from hvae_hpc.jobs.state.run_status import KINDS, UNASKED, Kind
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import Progress, SweepStatus, read_sweep_statuses
from hvae_hpc.runs.done import read_results

SCHEMA = 1
"""Of what ``--json`` prints."""
COLUMNS = dict(zip(KINDS, ("done", "run", "wait", "lost", "fail", "block", "open"), strict=True))
"""Short, so that two data sets stand side by side on 80 to 100 characters."""
TROUBLES: tuple[Kind, ...] = ("failed", "lost", "blocked")
WAITS = {
    "Dependency": "what they need",
    "Priority": "others of higher priority",
    "Resources": "free nodes",
}
"""SLURM's commonest reasons, in plain words."""
MOST_LINES = 8
REFRESH_S = 5.0


Group = tuple[tuple[Kind, str], list[str]]
"""A kind of trouble and its reason, and the runs that have it."""


def render(sweep: SweepStatus, width: int, costs: bool = False) -> Iterator[str]:
    """Yield the status of a sweep in lines for a person.

    Args:
        sweep: to be shown.
        width: of the terminal, in characters; only the table heeds it.
        costs: say what the sweep took, too.
    """
    yield f"sweep {sweep.plan.sweep}  ({sweep.plan.runs_folder})"
    parts = [_table(sweep, width), _totals(sweep), _describe_troubles(sweep), _describe_work(sweep)]
    if costs:
        parts.append(_costs(sweep))
    for part in parts:
        if lines := list(part):
            yield ""
            yield from lines


def _table(sweep: SweepStatus, width: int) -> Iterator[str]:
    """Yield how many runs of each stage, arm and data set have each kind of status."""
    plan = sweep.plan
    counts: dict[str, dict[str, Counter[Kind]]] = {}  # name of the line, data set
    for run_id, run in plan.runs.items():
        arms = [f"  {run.config.arm.name}"] if isinstance(run.config, SegmentConfig) else []
        for name in [run.stage, *arms]:
            line = counts.setdefault(name, {data: Counter() for data in plan.data})
            line[run.config.data][sweep.statuses[run_id].kind] += 1

    # Segment is the last stage, and its arms follow.
    stages = [*(stage for stage in CONFIGS if stage != "segment"), "segment"]
    names = sorted(counts, key=lambda name: [*stages, name].index(name))
    kinds = [kind for kind in KINDS if kind == "done" or sweep.totals[kind]]
    blocks = {
        data: _count_block([counts[name][data] for name in names], kinds) for data in plan.data
    }
    label = max(map(len, [*names, *blocks]))

    if label + sum(3 + len(block[0]) for block in blocks.values()) <= width:
        heading = "".join(f"   {data:{len(block[0])}}" for data, block in blocks.items())
        yield " " * label + heading.rstrip()
        for name, *cells in zip(["", *names], *blocks.values(), strict=True):
            yield "   ".join([f"{name:{label}}", *cells]).rstrip()
        return
    for data, block in blocks.items():
        for name, row in zip([data, *names], block, strict=True):
            if row.strip():
                yield f"{name:{label}}   {row}".rstrip()


def _count_block(counts: Sequence[Counter[Kind]], kinds: Sequence[Kind]) -> list[str]:
    """Return a data set's part of the table, in lines of one length, headings first."""
    rows = [[COLUMNS[kind] for kind in kinds]]
    for count in counts:
        done = f"{count['done']}/{count.total()}" if count else ""
        rows.append([done, *(str(count[kind] or "") for kind in kinds[1:])])
    return _align(rows)


def _align(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Return rows as lines of columns; the first ``left`` columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


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
        about = f"about {hours:,.1f}" if hours >= 0.05 else "less than 0.1"
        how = (
            f"for {measured:.0f} % of the runs from measured times" if measured else "a first guess"
        )
        yield f"left: {about} {unit.upper()}-hours ({how})"
    else:
        yield f"tables and figures: python -m hvae_hpc.results {sweep.plan.runs_folder}"
        yield f"what it took: hvae-hpc status {sweep.plan.runs_folder} --costs"

    if sweep.asked_at is not None:
        yield f"the queue is as SLURM gave it {duration(time.time() - sweep.asked_at)} ago"
    elif sweep.note:
        yield f"the queue is not known, this is from the runs' own files alone: {sweep.note}"


def _describe_troubles(sweep: SweepStatus) -> Iterator[str]:
    """Yield what is failed, lost and blocked, by reason, and what to do."""
    plan, groups = sweep.plan, _group_troubles(sweep)
    if not groups:
        return
    shown, others = groups[:MOST_LINES], groups[MOST_LINES:]
    failures = _classify(sweep, shown)
    for (kind, reason), run_ids in shown:
        run, failure = plan.runs[run_ids[0]], failures[run_ids[0]]
        more = f" and {len(run_ids) - 1:,} more" if len(run_ids) > 1 else ""
        known = "" if failure in ("lost", "blocked by parent", "held") else f" ({failure})"
        yield f"{kind}{known}: {run.stage} {run.label}{more}: {reason}"
    if others:
        yield f"... and {sum(len(run_ids) for _, run_ids in others):,} more, for other reasons"

    first = plan.runs[groups[0][1][0]]
    counted = [f"{sweep.totals[kind]:,} {kind}" for kind in TROUBLES if sweep.totals[kind]]
    yield f"more of the first: hvae-hpc why {first.stage}/{first.label}"
    yield f"next: the same sweep command makes these runs again: {', '.join(counted)}"


def _group_troubles(sweep: SweepStatus) -> list[Group]:
    """Return the runs that are failed, lost and blocked, by reason; of a kind the most first."""
    groups: dict[tuple[Kind, str], list[str]] = {}
    for run_id, (kind, _, reason) in sweep.statuses.items():
        if kind in TROUBLES:
            reason = reason.replace(f"{sweep.plan.folder(run_id)}/", "")
            groups.setdefault((kind, reason), []).append(run_id)
    return sorted(groups.items(), key=lambda group: (TROUBLES.index(group[0][0]), -len(group[1])))


def _classify(sweep: SweepStatus, groups: Sequence[Group]) -> dict[str, str]:
    """Return run id to class of failure: that of its group's first run, as logs may be many."""
    submissions, failures = Submissions(sweep.plan.runs_folder), dict[str, str]()
    ends = read_ends(submissions)
    for _, run_ids in groups:
        status = sweep.statuses[run_ids[0]]
        evidence = gather(sweep.plan, run_ids[0], status, submissions, ends)
        failures |= dict.fromkeys(run_ids, "held" if status.held else classify(evidence))
    return failures


def _describe_work(sweep: SweepStatus) -> Iterator[str]:
    """Yield what runs now, and how far it is."""
    rows, places = [], []
    for run_id, progress in list(sweep.progress.items())[:MOST_LINES]:
        share, left = progress.progress, ""
        if progress.seconds_left:
            left = f"{duration(progress.seconds_left)} left"
        elif progress.seconds is not None:
            left = "finishing" if share == 1 else f"since {duration(progress.seconds)}"
        run, element = sweep.plan.runs[run_id], sweep.statuses[run_id].element
        rows.append((run.stage, run.label, "" if share is None else f"{100 * share:.0f} %", left))
        places.append(f"on {progress.host}" + (f" ({element})" if element else ""))
    yield from map("  ".join, zip(_align(rows, left=2), places, strict=True))
    if len(sweep.progress) > MOST_LINES:
        yield f"... and {len(sweep.progress) - MOST_LINES:,} more at work"


def _costs(sweep: SweepStatus) -> Iterator[str]:
    """Yield what the sweep took, by stage and by what came of it, and what to ask for."""
    spent = _read_costs(sweep)
    for stage in spent:
        hours = ", ".join(f"{n:,.2f} {name}" for name, n in stage.hours.items() if n >= 0.005)
        total = f"{sum(stage.hours.values()):,.2f} {stage.unit.upper()}-hours"
        yield f"spent: {stage.stage}: {total}" + (f" ({hours})" if hours else "")
    if known := [stage.energy_kwh for stage in spent if stage.energy_kwh is not None]:
        yield f"energy: {sum(known):,.2f} kWh of GPUs, as far as they tell"
    for stage in spent:
        yield from (f"advice: {line}" for line in stage.advice)


def _read_costs(sweep: SweepStatus) -> list[StageHours]:
    submissions = Submissions(sweep.plan.runs_folder)
    return read_device_hours(sweep.plan, read_results(sweep.plan), sweep.statuses, submissions)


def duration(seconds: float) -> str:
    """Return a time for people: "40 s", "12 min", "1 h 12 min", "2 d 3 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def main(argv: Sequence[str]) -> int:
    """Show what is done, running, lost and failed, and why."""
    parser = argparse.ArgumentParser(prog="hvae-hpc status", description=main.__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="?", default=Path("runs"), help="runs folder (default: ./runs)")
    add("--sweep", metavar="NAME", help="this sweep alone (default: all of the folder)")
    add("--watch", action="store_true", help="draw it again every few seconds, until Ctrl-C")
    add("--json", action="store_true", help="print one JSON object")
    add("--costs", action="store_true", help="say what it took too, and what to ask for")
    options = parser.parse_args(argv)
    if options.json:
        sweeps = read_sweep_statuses(options.runs, options.sweep)
        print(json.dumps(_to_plain(sweeps, options.costs)))
    elif options.watch and sys.stdout.isatty():
        _watch(options)
    else:
        print("\n".join(_screen(options)))
    return 0


def _to_plain(sweeps: Sequence[SweepStatus], costs: bool) -> dict[str, Any]:
    """Return everything as plain data with stable names."""
    queue = {"queue_asked_at": sweeps[0].asked_at, "note": sweeps[0].note}
    plain = [_sweep_to_plain(sweep, costs) for sweep in sweeps]
    return {"schema": SCHEMA, "time": time.time(), **queue, "sweeps": plain}


def _sweep_to_plain(sweep: SweepStatus, costs: bool) -> dict[str, Any]:
    plan, runs = sweep.plan, []
    failures = _classify(sweep, _group_troubles(sweep))
    for run_id, status in sweep.statuses.items():
        run, progress = plan.runs[run_id], sweep.progress.get(run_id, Progress())
        names: dict[str, Any] = {"run_id": run_id, "stage": run.stage, "label": run.label}
        names |= status._asdict() | progress._asdict()
        runs.append({**names, "failure": failures.get(run_id, "")})
    plain: dict[str, Any] = {"sweep": plan.sweep, "runs_folder": str(plan.runs_folder)}
    plain |= {"totals": sweep.totals, "runs": runs}
    if costs:
        plain["costs"] = [stage._asdict() for stage in _read_costs(sweep)]
    return plain


def _screen(options: argparse.Namespace) -> list[str]:
    """Return the lines of all sweeps; on a terminal none is longer than the screen is wide."""
    width, lines = shutil.get_terminal_size((120, 50)).columns, list[str]()
    for sweep in read_sweep_statuses(options.runs, options.sweep):
        lines += [*([""] if lines else []), *render(sweep, width, options.costs)]
    if sys.stdout.isatty():
        lines = [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]
    return lines


def _watch(options: argparse.Namespace) -> None:
    """Draw the screen again and again, on the terminal's second page; the first stays as it was."""
    lines: list[str] = []
    print("\033[?1049h\033[?25l", end="")
    try:
        while True:
            began = time.monotonic()
            lines = _screen(options)
            shown, room = lines, shutil.get_terminal_size().lines - 1
            if len(lines) > room:
                shown = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"]
            drawn = "".join(f"{line}\033[K\n" for line in shown)
            print(f"\033[H{drawn}\033[J", end="", flush=True)
            # At most a fifth of the time is spent on looking: a large sweep loads the disk.
            time.sleep(max(REFRESH_S, 4 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        pass
    finally:
        print("\033[?25h\033[?1049l", end="", flush=True)
    print("\n".join(lines))
