"""One command as one SLURM job, such as the packing of a data set."""

import time
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.slurm.sbatch import python_command, sbatch_text
from hvae_hpc.jobs.state.submissions import comment_of, submitting
from hvae_hpc.jobs.submit.prepare import check_path
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.identity import content_hash


def submit_command(
    name: str, command: Sequence[str], resources: Resources, folder: Path
) -> tuple[str, bool]:
    """Submit one command as one job, unless it is in the queue already.

    Args:
        name: of the job.
        command: argv after Python.
        resources: of its stage, with a partition.
        folder: for the sbatch text and the log; of two jobs with one folder only one is in the
            queue.

    Returns:
        The job's id, and whether it was in the queue already.
    """
    check_path(folder)
    comment = comment_of(f"command-{content_hash(str(folder))[:12]}", 0)
    with submitting(folder):
        for row in slurm.read_queue(not_before=time.time()).rows:
            if row.comment == comment:
                return row.job, True

        argv = [*python_command(resources), *command]
        text = sbatch_text(folder, name, resources, argv, comment=comment)
        write_atomic(folder / f"{name}.sh", text)  # for people
        return slurm.parse_job_id(slurm.sbatch([], text)), False
