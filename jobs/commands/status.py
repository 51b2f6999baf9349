"""``hvae-hpc status``: how a sweep stands, on one screen or as one JSON object.

The table has a line per stage, and for segment a line per arm; the data sets stand side by side
where the terminal is wide enough, else one below the other. Below it: what is left, what went wrong
and what to do, what runs now.
"""

import argparse
import json
import shutil
import sys
import time
from collections import ChainMap, Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hvae_hpc.config.stages import CONFIGS, SegmentConfig
from hvae_hpc.jobs.failures.classify import classify, gather
from hvae_hpc.jobs.state.device_hours import OUTCOMES, Spending, read_spending
from hvae_hpc.jobs.state.element_ends import read_ends
from hvae_hpc.jobs.state.run_status import KINDS, Kind
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import SweepStatus, read_sweep_statuses, to_plain
from hvae_hpc.runs.done import read_results

COLUMNS = dict(zip(KINDS, ("done", "run", "wait", "lost", "fail", "block", "open"), strict=True))
"""Short, so that two data sets stand side by side on 80 characters, in full trouble on some 100."""
AGAIN: tuple[Kind, ...] = ("failed", "lost", "blocked")
WAITS = {
    "Dependency": "what they need",
    "Priority": "others of higher priority",
    "Resources": "free nodes",
}
"""SLURM's commonest reasons, in plain words."""
MOST_LINES = 8
REFRESH_S = 5.0


def render(sweep_status: SweepStatus, width: int, costs: bool = False) -> Iterator[str]:
    """Yield how a sweep stands, in lines for a person.

    Args:
        sweep_status: of the sweep.
        width: of the terminal, in characters; only the table heeds it.
        costs: say what it took too.
    """
    yield f"sweep {sweep_status.plan.sweep}  ({sweep_status.plan.runs_folder})"
    parts = [
        _table(sweep_status, width),
        _totals(sweep_status),
        _troubles(sweep_status),
        _at_work(sweep_status),
    ]
    for part in parts + [_costs(sweep_status)] * costs:
        if lines := list(part):
            yield ""
            yield from lines


def _table(sweep_status: SweepStatus, width: int) -> Iterator[str]:
    plan = sweep_status.plan
    counts = Counter[tuple[str, str, str]]()  # data set, line of the table, kind of status
    for run_id, run in plan.runs.items():
        lines = (
            [run.stage, f"  {run.config.arm.name}"]
            if isinstance(run.config, SegmentConfig)
            else [run.stage]
        )
        counts.update((run.config.data, line, sweep_status.statuses[run_id].kind) for line in lines)
    present = dict.fromkeys(line for _, line, _ in counts)
    order = sorted(CONFIGS, key="segment".__eq__)  # which is the last: its arms follow
    names = sorted(present, key=lambda line: [*order, line].index(line))
    kinds = [kind for kind in KINDS if kind == "done" or sweep_status.totals[kind]]
    blocks = {data: _block(counts, data, names, kinds) for data in plan.data}
    label = max(map(len, [*names, *blocks]))
    if label + sum(3 + len(block[0]) for block in blocks.values()) <= width:
        yield (
            " " * label
            + "".join(f"   {data:{len(block[0])}}" for data, block in blocks.items()).rstrip()
        )
        for name, *cells in zip(["", *names], *blocks.values(), strict=True):
            yield "   ".join([f"{name:{label}}", *cells]).rstrip()
    else:
        for data, block in blocks.items():
            rows = zip([data, *names], block, strict=True)
            yield from (f"{name:{label}}   {row}".rstrip() for name, row in rows if row.strip())


def _block(
    counts: Counter[tuple[str, str, str]], data: str, names: list[str], kinds: list[Kind]
) -> list[str]:
    """Return a data set's part of the table, all its lines equally long; the first names the columns."""
    cells = [[COLUMNS[kind] for kind in kinds]]
    for name in names:
        total = sum(counts[data, name, kind] for kind in kinds)
        done = f"{counts[data, name, 'done']}/{total}" if total else ""
        cells.append([done, *(f"{counts[data, name, kind] or ''}" for kind in kinds[1:])])
    return _align(cells)


def _align(lines: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Return lines of columns, two spaces apart; the first ``left`` columns are aligned at their left ends."""
    aligned = []
    for number, column in enumerate(zip(*lines, strict=True)):
        width = max(map(len, column))
        aligned.append(
            [cell.ljust(width) if number < left else cell.rjust(width) for cell in column]
        )
    return ["  ".join(line) for line in zip(*aligned, strict=True)]


def _totals(sweep_status: SweepStatus) -> Iterator[str]:
    totals = sweep_status.totals
    parts = [f"{totals[kind]:,} {kind}" for kind in KINDS[1:] if totals[kind]]
    yield ", ".join([f"{totals['done']:,} of {totals['runs']:,} runs done", *parts])
    waits = Counter(
        status.reason for status in sweep_status.statuses.values() if status.kind == "waiting"
    )
    if waits:
        yield "waiting for " + ", ".join(
            f"{WAITS.get(reason, reason)} ({n:,})" for reason, n in waits.most_common(4)
        )
    if totals["done"] < totals["runs"]:
        unit = "gpu" if totals["gpu_hours_left"] else "cpu"
        hours = totals[f"{unit}_hours_left"]
        about = f"about {hours:,.1f}" if hours >= 0.05 else "less than 0.1"
        how = (
            f"for {100 * totals['measured']:.0f} % of the runs from measured times"
            if totals["measured"]
            else "a first guess"
        )
        yield f"left: {about} {unit.upper()}-hours ({how})"
    else:
        yield f"tables and figures: python -m hvae_hpc.results {sweep_status.plan.runs_folder}"
        yield f"what it took: hvae-hpc status {sweep_status.plan.runs_folder} --costs"
    if sweep_status.asked_at is not None:
        yield f"the queue is as SLURM gave it {duration(time.time() - sweep_status.asked_at)} ago"
    elif sweep_status.note:
        yield f"the queue is not known, this is from the runs' own files alone: {sweep_status.note}"


def _troubles(sweep_status: SweepStatus) -> Iterator[str]:
    """Yield what is failed, lost and blocked, by reason, and what to do."""
    plan, groups = sweep_status.plan, _group(sweep_status)
    names = {
        ids[0]: f"{plan.runs[ids[0]].stage} {plan.runs[ids[0]].label}" for ids in groups.values()
    }
    shown = list(groups.items())[:MOST_LINES]
    classes = _classify(sweep_status, shown)
    for (kind, reason), ids in shown:
        more = f" and {len(ids) - 1:,} more" if len(ids) > 1 else ""
        failure = classes[ids[0]]
        known = "" if failure in ("lost", "blocked by parent", "held") else f" ({failure})"
        yield f"{kind}{known}: {names[ids[0]]}{more}: {reason}"
    if len(groups) > MOST_LINES:
        yield f"... and {sum(map(len, list(groups.values())[MOST_LINES:])):,} more, for other reasons"
    if groups:
        counted = [
            f"{sweep_status.totals[kind]:,} {kind}" for kind in AGAIN if sweep_status.totals[kind]
        ]
        yield f"more of it: hvae-hpc why {next(iter(names.values())).replace(' ', '/')}"
        yield f"next: the same sweep command takes up the {', '.join(counted)} runs again"


Groups = dict[tuple[Kind, str], list[str]]


def _group(sweep_status: SweepStatus) -> Groups:
    """Return the runs that are failed, lost and blocked, by kind and reason; of a kind the most first."""
    groups: Groups = {}
    for run_id, status in sweep_status.statuses.items():
        if status.kind in AGAIN:
            reason = status.reason.replace(f"{sweep_status.plan.folder(run_id)}/", "")
            groups.setdefault((status.kind, reason), []).append(run_id)
    return dict(
        sorted(groups.items(), key=lambda group: (AGAIN.index(group[0][0]), -len(group[1])))
    )


def _classify(
    sweep_status: SweepStatus, groups: Sequence[tuple[tuple[Kind, str], list[str]]]
) -> dict[str, str]:
    """Return the classes of failures, a group's that of its first: the reason is the same, and logs may be many."""
    submissions = Submissions(sweep_status.plan.runs_folder)
    ends, classes = read_ends(submissions) if groups else {}, dict[str, str]()
    for _, ids in groups:
        failure = classify(
            gather(sweep_status.plan, ids[0], sweep_status.statuses[ids[0]], submissions, ends)
        )
        classes |= dict.fromkeys(ids, "held" if sweep_status.statuses[ids[0]].held else failure)
    return classes


def _spending(sweep_status: SweepStatus) -> list[Spending]:
    plan = sweep_status.plan
    return read_spending(
        plan, read_results(plan), sweep_status.statuses, Submissions(plan.runs_folder)
    )


def _costs(sweep_status: SweepStatus) -> Iterator[str]:
    """Yield what the sweep took, by what came of it, and what to ask for."""
    spent = _spending(sweep_status)
    for unit in ("gpu", "cpu"):
        of_unit = [spending for spending in spent if spending.unit == unit]
        hours = {
            outcome: sum(spending.hours[outcome] for spending in of_unit) for outcome in OUTCOMES
        }
        if of_unit:
            parts = [
                f"{hours[outcome]:,.2f} {outcome}"
                for outcome in OUTCOMES
                if hours[outcome] >= 0.005
            ]
            yield (
                f"spent: {sum(hours.values()):,.2f} {unit.upper()}-hours"
                + f" ({', '.join(parts)})" * bool(parts)
            )
    if known := [spending.energy_kwh for spending in spent if spending.energy_kwh is not None]:
        yield f"energy: {sum(known):,.2f} kWh of GPUs, as far as they tell"
    yield from (f"advice: {line}" for spending in spent for line in spending.advice)


def _at_work(sweep_status: SweepStatus) -> Iterator[str]:
    """Yield what runs now, and how far it is."""
    lines, places = [], []
    for run_id, (share, seconds_left, host, seconds) in list(sweep_status.progress.items())[
        :MOST_LINES
    ]:
        run, element = sweep_status.plan.runs[run_id], sweep_status.statuses[run_id].element
        left = (
            "finishing"
            if share == 1
            else f"since {duration(seconds)}"
            if seconds is not None
            else ""
        )
        left = f"{duration(seconds_left)} left" if seconds_left else left
        lines.append((run.stage, run.label, "" if share is None else f"{100 * share:.0f} %", left))
        places.append(f"on {host}" + (f" ({element})" if element else ""))
    yield from map("  ".join, zip(_align(lines, left=2), places, strict=True))
    if len(sweep_status.progress) > MOST_LINES:
        yield f"... and {len(sweep_status.progress) - MOST_LINES:,} more at work"


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
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="hvae-hpc status", description="What is done, running, lost, failed, and why."
    )
    parser.add_argument(
        "runs", type=Path, nargs="?", default=Path("runs"), help="the runs folder (default: ./runs)"
    )
    parser.add_argument(
        "--sweep", metavar="NAME", help="this sweep alone (default: all of the folder)"
    )
    parser.add_argument(
        "--watch", action="store_true", help="draw it again every few seconds, until Ctrl-C"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--costs", action="store_true", help="say what it took too, and what to ask for"
    )
    options = parser.parse_args(argv)
    if options.json:
        print(json.dumps(_plain(read_sweep_statuses(options.runs, options.sweep), options.costs)))
    elif options.watch and sys.stdout.isatty():
        _watch(options.runs, options.sweep, options.costs)
    else:
        print("\n".join(_screen(options.runs, options.sweep, options.costs)))
    return 0


def _plain(sweeps: Sequence[SweepStatus], costs: bool) -> dict[str, Any]:
    classes = [
        _classify(sweep_status, list(_group(sweep_status).items())) for sweep_status in sweeps
    ]
    plain = to_plain(sweeps, ChainMap(*classes))
    for sweep_status, sweep in zip(sweeps, plain["sweeps"], strict=True):
        sweep |= (
            {"costs": [spending._asdict() for spending in _spending(sweep_status)]} if costs else {}
        )
    return plain


def _screen(runs_folder: Path, sweep: str | None, costs: bool) -> list[str]:
    width, lines = shutil.get_terminal_size((120, 50)).columns, list[str]()
    for sweep_status in read_sweep_statuses(runs_folder, sweep):
        lines += [*([""] if lines else []), *render(sweep_status, width, costs)]
    if sys.stdout.isatty():  # one screen stays one; a file or a pipe gets all of it
        lines = [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]
    return lines


def _watch(runs_folder: Path, sweep: str | None, costs: bool) -> None:
    """Draw the screen again and again, in the terminal's second page, so that the first is as before."""
    lines: list[str] = []
    print("\033[?1049h\033[?25l", end="")
    try:
        while True:
            began = time.monotonic()
            lines = _screen(runs_folder, sweep, costs)
            shown, room = lines, shutil.get_terminal_size().lines - 1
            if len(lines) > room:
                shown = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"]
            print(
                "\033[H" + "".join(f"{line}\033[K\n" for line in shown) + "\033[J",
                end="",
                flush=True,
            )
            # A large sweep on a slow disk takes its time: at most a fifth of it is
            # spent on looking.
            time.sleep(max(REFRESH_S, 4 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        pass
    finally:
        print("\033[?25h\033[?1049l", end="", flush=True)
    print("\n".join(lines))
