"""What a site runs when a sweep is over: one command, once, started by the last job."""

import os
import subprocess
import sys
from pathlib import Path

from hvae_hpc.errors import UserError, say
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.state.submissions import PLAN_FILE, Submissions
from hvae_hpc.jobs.state.sweep_status import read_sweep_statuses
from hvae_hpc.runs.lease import job_id
from hvae_hpc.runs.plan import read_plan


def run_on_end(submission: Path, site_file: Path | None) -> None:
    """Run the site's ``on_end`` in a last job, if nothing of its sweep goes on without a person.

    The command is read from the user's and the administrator's site files alone: others may write
    in the runs folder. It finds the sweep's name, the report's path and the sweep's totals in its
    environment. Whatever goes wrong is one line in the last job's log.

    Args:
        submission: the folder of the submission whose last job this process is.
        site_file: the user's; None for none.
    """
    try:
        command = read_site(site_file).resources["tables"].on_end
        plan = read_plan(submission / PLAN_FILE)
        submissions = Submissions(plan.runs_folder)
        last_jobs = [
            job.job for job in submissions.jobs if submissions.makes_tables(plan.sweep, job)
        ]
        # After this job comes that of the retries, or of a later command.
        if not command or job_id() in last_jobs[:-1]:
            return

        (status,) = read_sweep_statuses(plan.runs_folder, plan.sweep)
        report = plan.runs_folder / f"results/{plan.sweep}/report.html"
        about = {"sweep": plan.sweep, "report": report, **status.totals}.items()
        told = {f"HVAE_HPC_{name.upper()}": str(value) for name, value in about}
        # Where SLURM starts this job again, the log is there: the command was run.
        with open(submissions.folder / f"on_end-{job_id()}.log", "x") as log:
            subprocess.run(command, env=os.environ | told, stdout=log, stderr=log, check=True)
    except FileExistsError:
        return
    except (UserError, OSError, subprocess.CalledProcessError) as error:
        say(f"on_end: {error}", to=sys.stderr)
