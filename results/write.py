"""A sweep's results folder, step by step: collect, tables, verdict, figures, rows, report."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hvae_hpc.errors import UserError, printable, say
from hvae_hpc.jobs.state.run_status import read_statuses
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import read_device_hours
from hvae_hpc.results.collect import NOT_YET, Collected, collect, name_some
from hvae_hpc.results.figures.write import write_figures
from hvae_hpc.results.report import write_report
from hvae_hpc.results.rows import write_rows
from hvae_hpc.results.scores import score_arms
from hvae_hpc.results.tables.build import build_tables
from hvae_hpc.results.tables.device_hours import build_device_hours
from hvae_hpc.results.tables.table import Table
from hvae_hpc.results.tables.verdict import judge
from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.plan import Plan, plan_path, read_plan


def write_results(
    runs: Path, sweep: str, partial: bool = False, out: Path | None = None
) -> list[Path]:
    """Print one sweep's tables and write them, the figures, the rows and the report.

    Args:
        runs, sweep: the runs folder, and the sweep's name.
        partial: show what is there where runs are missing.
        out: the folder for ``<sweep>/``; None for ``RUNS/results``.

    Returns:
        The written files.

    Raises:
        UserError: no such plan, or runs are missing and partial is off.
    """
    # The folder may have been moved since the plan was written.
    plan = replace(read_plan(plan_path(runs, sweep)), runs_folder=runs)
    folder = (out or runs / "results") / sweep
    refuse_links(folder / "rows", out or runs)

    collected, device_hours = ask_jobs(plan, collect(plan))
    missing = _write_text(
        folder / "missing.txt", "".join(f"{line}\n" for line in collected.missing)
    )
    some = f"{len(collected.missing)} of {len(plan.runs)} runs"
    if collected.missing and not partial:
        raise UserError(
            f"sweep {plan.sweep}: {some} have no valid metrics.json; "
            f"run the sweep command again, or add --partial\n{name_some(collected.missing)}\n"
            f"all of them are listed in {missing[0]}"
        )

    if collected.costs.empty:
        say(f"sweep {plan.sweep}: no run is done yet\n{name_some(collected.missing)}")
        return missing

    scores = score_arms(plan, collected)
    tables = build_tables(plan, collected, scores)
    paths = _write_tables(folder, sweep, tables)
    verdicts = [*map(printable, judge(plan, collected, scores))]
    paths += _write_verdicts(folder, verdicts)
    if collected.missing:
        say(f"missing, {some}:\n{name_some(collected.missing)}")

    figures, remarks = write_figures(plan, collected, scores, folder)
    for remark in remarks:
        say(remark)
    paths += [*figures, *missing, *write_rows(collected, folder)]

    paths += _write_text(folder / "spent.csv", device_hours.to_csv() if device_hours else "")
    built = {name: table for name, table in tables.items() if table}
    report = folder / "report.html"
    write_report(report, plan, collected, built, verdicts, figures, remarks, device_hours)
    paths.append(report)
    say(f"{len(paths)} files are in {folder}")
    say(f"open {report}")
    return paths


def ask_jobs(plan: Plan, collected: Collected) -> tuple[Collected, Table | None]:
    """Add what the files of jobs tell: why runs are missing, and where all attempts' time went.

    Returns:
        What was collected, with better reasons; and the table of device hours, None where no time
        is known.
    """
    sweep_status = read_statuses(plan, collected.results, Submissions(plan.runs_folder), None)

    # Why there is nothing yet, where their files say it.
    better = {
        f"{plan.folder_name(run_id)}: {NOT_YET}": (
            f"{plan.folder_name(run_id)}: {status.kind}: {status.reason}"
        )
        for run_id, status in sweep_status.statuses.items()
        if status.kind in ("failed", "lost", "blocked")
    }
    missing = tuple(better.get(line, line) for line in collected.missing)

    hours = read_device_hours(sweep_status)
    table = build_device_hours([of_stage._asdict() for of_stage in hours])
    return replace(collected, missing=missing), table


def _write_tables(folder: Path, sweep: str, tables: Mapping[str, Table | None]) -> list[Path]:
    """Print the tables and write each as Markdown, CSV and LaTeX."""
    paths = []
    for name, table in tables.items():
        if table:
            say(table.to_text())
        latex = table.to_latex(f"{sweep}-{name}") if table else ""
        paths += _write_text(folder / f"{name}.md", table.to_markdown() if table else "")
        paths += _write_text(folder / f"{name}.csv", table.to_csv() if table else "")
        paths += _write_text(folder / f"{name}.tex", latex)
    return paths


def _write_verdicts(folder: Path, verdicts: Sequence[str]) -> list[Path]:
    """Print and write two lines per data set."""
    if verdicts:
        say("Verdict\n\n" + "\n".join(textwrap.fill(line, 100) for line in verdicts) + "\n")
    return _write_text(folder / "verdict.txt", "".join(f"{line}\n" for line in verdicts))


def _write_text(path: Path, text: str) -> list[Path]:
    """Write a file; where there is nothing to write, remove the file of an earlier time."""
    if text:
        write_atomic(path, text)
        return [path]
    path.unlink(missing_ok=True)
    return []
