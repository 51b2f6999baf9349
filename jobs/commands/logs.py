"""``hvae-hpc logs``: how a run stands, the last events of its log in plain words, the end of its process's log."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.jobs.state.element_logs import process_logs, read_end
from hvae_hpc.jobs.state.find_run import add_run, find_run
from hvae_hpc.jobs.state.run_log import describe
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import make_sweep_status, read_our_queue
from hvae_hpc.runs.folder import read_log


def main(argv: Sequence[str]) -> int:
    """Print how a run stands, the last events of its log, and the end of the log of the process that made it."""
    parser = argparse.ArgumentParser(prog="hvae-hpc logs", description=main.__doc__)
    add_run(parser)
    parser.add_argument(
        "--lines", type=int, default=20, metavar="N", help="of each log (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    plan, run_id = find_run(options.runs, options.run)
    run, log, submissions = (
        plan.runs[run_id],
        read_log(plan.folder(run_id)),
        Submissions(plan.runs_folder),
    )
    status = make_sweep_status(plan, submissions, *read_our_queue(submissions)).statuses[run_id]
    print(f"{run.stage} {run.label} ({run_id})")
    element = f" ({status.element})" if status.element else ""
    print(": ".join(filter(None, [f"{status.kind}{element}", status.reason])))
    print(f"\n{plan.folder(run_id)}" + ("/log.jsonl" if log else ": nothing yet"))
    for record in log[-options.lines :]:
        print(
            f"  {time.strftime('%b %d %H:%M:%S', time.localtime(record.get('time', 0)))}  {describe(record)}"
        )
    began = next(
        (record for record in reversed(log) if record.get("event") == "started"), {"job_id": None}
    )
    if path := _process_log(plan.runs_folder, [status.element or None, began.get("job_id")]):
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
