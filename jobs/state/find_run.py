"""From what a person types to the one run that is meant, and its status."""

import argparse
import difflib
import shlex
from pathlib import Path

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import (
    SweepStatus,
    make_sweep_status,
    read_our_queue,
    read_plans,
)
from hvae_hpc.runs.plan import Plan

MOST_NAMED = 9


def add_run(parser: argparse.ArgumentParser) -> None:
    """Let a command take a run and its runs folder, for :func:`find_run`."""
    known_by = "a run: its label, STAGE/LABEL, the beginning of its id, or its folder"
    parser.add_argument("run", metavar="RUN", help=known_by)
    add_runs_folder(parser)


def add_runs_folder(parser: argparse.ArgumentParser) -> None:
    """Let a command take a runs folder."""
    about = "the runs folder (default: ./runs)"
    parser.add_argument("--runs", type=Path, default=Path("runs"), help=about)


def name_run(plan: Plan, run_id: str) -> str:
    """Return a run as a command takes it, with ``--runs`` where that is not ./runs."""
    runs = plan.runs_folder.resolve()
    flag = "" if runs == Path("runs").resolve() else f" --runs {shlex.quote(str(runs))}"
    return plan.folder_name(run_id) + flag


def find_status(options: argparse.Namespace) -> tuple[SweepStatus, str]:
    """Return the status of the sweep of the run that a command's options name, and the run's id."""
    plan, run_id = find_run(options.runs, options.run)
    submissions = Submissions(plan.runs_folder)
    return make_sweep_status(plan, submissions, *read_our_queue(submissions)), run_id


def find_run(runs_folder: Path, text: str, stage: str = "") -> tuple[Plan, str]:
    """Return the plan and the id of the run that a person means.

    Args:
        runs_folder: of one or more sweeps.
        text: the beginning of a run id, a label, ``<stage>/<label>``, or the run's folder.
        stage: of the run; "" for any.

    Raises:
        UserError: none is meant, or several are; they are named.
    """
    wanted = Path(text).name if Path(text).is_dir() else text.rstrip("/")
    matches: dict[str, tuple[Plan, str]] = {}
    labels: dict[str, None] = {}  # in the plan's order
    for plan in read_plans(runs_folder):
        for run_id, run in plan.runs.items():
            if stage not in ("", run.stage):
                continue
            # By the id in the plan: the package may have named the run differently since.
            folder = plan.folder_name(run_id)
            labels[run.label] = None
            called = (run.label, f"{run.stage}/{run.label}", folder, folder.partition("/")[2])
            if wanted in called or run_id.startswith(wanted):
                matches[folder] = (plan, run_id)

    if not matches:
        close = difflib.get_close_matches(wanted.rpartition("/")[2], labels)
        labels_shown = ", ".join(close or [*labels][:MOST_NAMED])
        kind = f"{stage} run" if stage else "run"
        raise UserError(f"{runs_folder}: no {kind} {text!r}; give a label, such as {labels_shown}")
    names = list(matches)
    if len(names) > 1:
        more = [f"... ({len(names)} in all)"] if len(names) > MOST_NAMED else []
        ask = f"{text!r} may be any of these; give one of them"
        raise UserError("\n  ".join([ask, *names[:MOST_NAMED], *more]))
    return matches[names[0]]
