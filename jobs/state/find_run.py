"""From what a person types to the one run that is meant."""

import argparse
import difflib
from pathlib import Path

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.state.sweep_status import read_plans
from hvae_hpc.runs.plan import Plan

MOST_NAMED = 9


def add_run(parser: argparse.ArgumentParser) -> None:
    """Let a command take a run and its runs folder, for :func:`find_run`."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="beginning of a run id, a label, STAGE/LABEL, or the run's folder",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the runs folder (default: ./runs)"
    )


def find_run(runs_folder: Path, text: str, stage: str = "") -> tuple[Plan, str]:
    """Return the run that a person means, and a plan with it.

    Args:
        runs_folder: of one or more sweeps.
        text: the beginning of a run id, a label, ``<stage>/<label>``, or the run's folder.
        stage: whose runs are meant where a label is that of several stages' runs.

    Raises:
        UserError: none is meant, or several are; they are named.
    """
    wanted = Path(text).name if Path(text).is_dir() else text.rstrip("/")
    found, labels = dict[str, tuple[Plan, str]](), set[str]()
    for plan in read_plans(runs_folder):
        for run_id, run in plan.runs.items():
            folder = plan.folder_name(run_id)
            labels.add(run.label)
            known = (run.label, f"{run.stage}/{run.label}", folder, folder.partition("/")[2])
            if wanted in known or run_id.startswith(wanted):
                found[folder] = (plan, run_id)
    if not found:
        close = difflib.get_close_matches(wanted.rpartition("/")[2], labels, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else "give the beginning of a run id, or a label"
        )
        raise UserError(f"{runs_folder}: no run {text!r}; {hint}")
    if len(found) > 1:
        found = {
            folder: meant for folder, meant in found.items() if folder.startswith(f"{stage}/")
        } or found
    if len(found) > 1:
        names = [
            *list(found)[:MOST_NAMED],
            *([f"... ({len(found)} in all)"] if len(found) > MOST_NAMED else []),
        ]
        raise UserError("\n  ".join([f"{text!r} may be any of these; give one of them", *names]))
    return next(iter(found.values()))
