"""The command that turns a runs folder into tables and figures: ``python -m hvae_hpc.results RUNS``."""

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hvae_hpc.errors import UserError, printable, run_command
from hvae_hpc.runs.folder import write_atomic

if TYPE_CHECKING:
    from hvae_hpc.results.collect import Collected
    from hvae_hpc.results.tables.dice import Table
    from hvae_hpc.runs.plan import Plan

ENDINGS = ("md", "csv", "tex")
"""Of each table's files."""
_DESCRIPTION = """\
Make Tables 1 and 2 and the figures of every sweep in a runs folder, beside the published numbers.
The tables are printed; all files go to RUNS/results/<sweep>/."""
_EXAMPLE = """\
example:
  python -m hvae_hpc.results runs --sweep table1 --partial

A sweep with missing runs is refused; with --partial it is shown with the counts of what is there."""


def write_results(
    runs: Path, sweep: str, partial: bool = False, out: Path | None = None
) -> list[Path]:
    """Print one sweep's tables and write them and the figures.

    Args:
        runs: the runs folder.
        sweep: the sweep's name.
        partial: show what is there where runs are missing.
        out: the folder for ``<sweep>/``; None for ``RUNS/results``.

    Returns:
        The written files.

    Raises:
        UserError: no such plan, or runs are missing and partial is off.
    """
    # pandas and matplotlib take a second that --help and a wrong path need not wait for.
    from hvae_hpc.results.collect import collect, name_some, refusal
    from hvae_hpc.results.figures.write import write_figures
    from hvae_hpc.results.report import write_report
    from hvae_hpc.results.rows import write_rows
    from hvae_hpc.results.tables.arms import build_arms, score_arms, supported_best
    from hvae_hpc.results.tables.claims import build_claims
    from hvae_hpc.results.tables.dice import (
        build_table1,
        build_table2,
        render_csv,
        render_markdown,
        render_text,
        without_constants,
    )
    from hvae_hpc.results.tables.draws import build_draws
    from hvae_hpc.results.tables.likelihood import build_likelihoods
    from hvae_hpc.results.tables.quality import build_quality
    from hvae_hpc.results.tables.rendering import render_latex
    from hvae_hpc.results.tables.verdict import judge
    from hvae_hpc.runs.plan import plan_path, read_plan

    plan = replace(
        read_plan(plan_path(runs, sweep)), runs_folder=runs
    )  # which may have been moved since
    collected, spent = _add_what_jobs_know(plan, collect(plan, partial=True))
    folder = (out or runs / "results") / sweep
    missing = _list_missing(folder / "missing.txt", collected.missing)
    if collected.missing and not partial:
        listed = f"\nall of them are listed in {missing[0]}" if missing else ""
        raise UserError(refusal(plan, collected.missing) + listed)
    scores = score_arms(plan, collected)
    built = {
        "table1": build_table1(plan, collected, supported_best(scores)),
        "arms": build_arms(plan, collected, scores),
        "table2": build_table2(plan, collected),
        "quality": build_quality(plan, collected),
        "likelihoods": build_likelihoods(plan, collected),
        "draws": build_draws(plan, collected),
        "claims": build_claims(plan, collected),
    }
    tables = {name: without_constants(table) for name, table in built.items() if table is not None}
    paths = []
    for name, table in tables.items():
        print(render_text(table))
        texts = (render_markdown(table), render_csv(table), render_latex(table, f"{sweep}-{name}"))
        for ending, text in zip(ENDINGS, texts, strict=True):
            paths.append(folder / f"{name}.{ending}")
            write_atomic(paths[-1], text)
    verdicts = [printable(verdict.sentence) for verdict in judge(collected, scores)]
    if verdicts:
        print(
            "Verdict\n\n" + "\n".join(textwrap.fill(sentence, 100) for sentence in verdicts) + "\n"
        )
        paths.append(folder / "verdict.txt")
        write_atomic(paths[-1], "".join(f"{sentence}\n" for sentence in verdicts))
    there = {f"{name}.{ending}": name in tables for name in built for ending in ENDINGS}
    _forget(folder, there | {"verdict.txt": bool(verdicts), "spent.csv": bool(spent)})
    if collected.missing:
        print(
            f"missing, {len(collected.missing)} of {len(plan.runs)} runs:\n{name_some(collected.missing)}"
        )
    figures, remarks = write_figures(plan, collected, scores, folder)
    for line in remarks:
        print(printable(line))
    paths += [*figures, *missing, *write_rows(collected, folder)]
    if spent:
        paths.append(folder / "spent.csv")
        write_atomic(paths[-1], render_csv(spent))
    report = write_report(
        folder / "report.html", plan, collected, tables, verdicts, figures, remarks, spent
    )
    paths.append(report)
    names = ", ".join(str(path.relative_to(folder)) for path in paths)
    print(f"{len(paths)} files are in {folder}: {names}")
    print(f"open {report}")
    return paths


def _add_what_jobs_know(plan: "Plan", collected: "Collected") -> tuple["Collected", "Table | None"]:
    """Say of what is missing why, as far as files tell, and where the time of all attempts went."""
    from hvae_hpc.jobs.state.device_hours import call_silent_lost, read_device_hours
    from hvae_hpc.jobs.state.run_status import read_run_status
    from hvae_hpc.jobs.state.submissions import Submissions
    from hvae_hpc.results.collect import NOT_YET
    from hvae_hpc.results.tables.device_hours import build_spent
    from hvae_hpc.runs.done import ResultSummary

    results, numbers = (
        dict.fromkeys(plan.runs, ResultSummary()),
        ["attempt", "wall_s", "peak_memory_mib", "energy_j"],
    )
    for run_id, *values, energy_j in collected.costs[["run_id", *numbers]].itertuples(index=False):
        known = dict(
            zip(numbers, [*values, energy_j if energy_j >= 0 else None], strict=True)
        )  # it may be NaN
        results[run_id] = ResultSummary(stamp="-", **known)
    submissions = Submissions(plan.runs_folder)
    statuses = call_silent_lost(plan, read_run_status(plan, results, submissions, None))
    why = {
        f"{plan.folder_name(i)}: {NOT_YET}": f"{plan.folder_name(i)}: {status.kind}: {status.reason}"
        for i, status in statuses.items()
        if status.kind in ("failed", "lost", "blocked")
    }
    missing = tuple(why.get(line, line) for line in collected.missing)
    spent = build_spent(
        [spending._asdict() for spending in read_device_hours(plan, results, statuses, submissions)]
    )
    return replace(collected, missing=missing), spent


def _forget(folder: Path, there: Mapping[str, bool]) -> None:
    """Remove files of an earlier time that this one does not have; they must not lie beside those of now."""
    for name, is_there in there.items():
        if not is_there:
            (folder / name).unlink(missing_ok=True)


def _list_missing(path: Path, missing: Sequence[str]) -> list[Path]:
    """Write what is missing and why, a line each; where nothing is, remove the list of an earlier time.

    Returns:
        The list's path; none where nothing is missing, or nothing can be written there.
    """
    with contextlib.suppress(UserError):
        if missing:
            write_atomic(path, "".join(f"{line}\n" for line in missing))
            return [path]
        path.unlink(missing_ok=True)
    return []


def main(argv: Sequence[str]) -> int:
    """Parse the arguments and make each sweep's results; a sweep that is refused does not stop the others."""
    options = _parser().parse_args(argv)
    from hvae_hpc.runs.plan import find_plans

    code = 0
    for path in find_plans(options.runs, options.sweep):
        try:
            write_results(options.runs, path.stem, options.partial, options.out)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hvae_hpc.results",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", type=Path, metavar="RUNS", help="the runs folder of one or more sweeps"
    )
    parser.add_argument("--sweep", metavar="NAME", help="only this sweep")
    parser.add_argument("--partial", action="store_true", help="go on where runs are missing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write to DIR/<sweep>/ instead")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
