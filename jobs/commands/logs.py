"""``hvae-hpc logs``: a run's status, the last events of its log, the end of its process's log."""

import argparse
import time
from collections.abc import Sequence

from hvae_hpc.errors import say
from hvae_hpc.jobs.state.find_run import add_run, find_status
from hvae_hpc.jobs.state.run_log import local_logs, process_logs, read_end, split_attempts
from hvae_hpc.runs.folder import LogRecord, read_log


def main(argv: Sequence[str]) -> int:
    """Print a run's status, the last events of its log, and the end of its process's log."""
    parser = argparse.ArgumentParser(prog="hvae-hpc logs", description=main.__doc__)
    add_run(parser)
    about = "number of lines of each log (default: %(default)s)"
    parser.add_argument("--lines", type=int, default=20, metavar="N", help=about)
    options = parser.parse_args(argv)

    sweep, run_id = find_status(options)
    plan, (kind, element, reason) = sweep.plan, sweep.statuses[run_id]
    say(f"{plan.runs[run_id]} ({run_id})")
    say(kind + (f" ({element})" if element else "") + (f": {reason}" if reason else ""))

    log = read_log(plan.folder(run_id))
    say(f"\n{plan.folder(run_id)}" + ("/log.jsonl" if log else ": nothing yet"))
    for record in log[-options.lines :]:
        say(f"  {_describe(record)}")

    # The last attempt's process, or that of the element that has it; local workers share a log.
    attempts = split_attempts(log)
    paths = []
    if name := attempts[-1][0]["job_id"] if attempts else element:
        paths = process_logs(plan.runs_folder, name, "0")
    elif attempts:
        paths = local_logs(plan.runs_folder, plan.sweep)
    for path in paths[-1:]:
        say(f"\n{path}")
        for line in read_end(path, run_id, options.lines) or ["nothing yet"]:
            say(f"  {line}")
    return 0


def _describe(record: LogRecord) -> str:
    """Return a record of log.jsonl: "Nov 29 09:24:35  failed, reason loss became nan"."""
    when = time.strftime("%b %d %H:%M:%S", time.localtime(record["time"]))
    words = [str(record["event"])] if "event" in record else []
    for name, value in record.items():
        if name not in ("time", "event"):
            words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return f"{when}  {', '.join(words)}"
