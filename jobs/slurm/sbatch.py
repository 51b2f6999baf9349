"""sbatch texts, as submitit writes them; its pickles and signal handlers are not used."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvae_hpc.config.resources import Resources


def python_command(resources: Resources) -> list[str]:
    """Return how Python is called: in the container where there is one.

    By -P it looks for no modules in the working folder, which may be somebody else's.
    """
    python = resources.python or ("python3" if resources.container else sys.executable)
    command = [python, "-P", "-u"]
    if resources.container:
        gpus = ["--nv"] if resources.gpus else []
        command = ["apptainer", "exec", *gpus, resources.container, *command]
    return command


def sbatch_text(
    folder: Path,
    name: str,
    resources: Resources,
    command: Sequence[str],
    *,
    comment: str,
    elements: int = 0,
) -> str:
    """Return the text for sbatch, as submitit writes it.

    Args:
        folder: for the logs.
        name: of the job.
        resources: of its stage, with a partition.
        command: what each process runs; quoted, never interpreted.
        comment: by which the queue is searched for it.
        elements: of an array; 0 for a single job.
    """
    from submitit.slurm.slurm import SlurmExecutor

    parameters: dict[str, Any] = {
        "job_name": name,
        "comment": comment,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "gpus_per_node": 0 if resources.gpus_in_gres else resources.gpus,
        "cpus_per_task": resources.cpus,
        "mem": f"{math.ceil(resources.memory_gb * 1024)}MB",
        "signal_delay_s": resources.signal_lead_s,
        "stderr_to_stdout": True,  # one log per element
        "array_parallelism": resources.array_parallelism or elements,
        "map_count": elements,
        "setup": list(resources.setup),
        "additional_parameters": _more_options(resources),
        # SLURM 22.05 to 23.11: srun does not inherit --cpus-per-task.
        "srun_args": [
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={resources.cpus}",
            *(
                f"--{name}" if value is True else f"--{name}={value}"
                for name, value in resources.srun_args.items()
            ),
        ],
    }
    executor = SlurmExecutor(folder)
    executor.parameters = {key: value for key, value in parameters.items() if value}
    executor.parameters["wckey"] = None  # else submitit names itself, which a site may refuse
    # The shell makes the step ignore the signals until Python has its handlers: what is
    # ignored stays so over exec. A single command has no handlers: it has nothing to save,
    # and ends when it is told to.
    ignored = "USR2 TERM" if elements else "USR2"
    step = "sh -c " + shlex.quote(f"trap '' {ignored}; exec " + shlex.join(command))
    return str(executor._make_submission_file_text(step, ""))


def _more_options(resources: Resources) -> dict[str, Any]:
    """Return the options of sbatch that submitit has no name for."""
    options: dict[str, Any] = {"requeue": True}
    if resources.nice:
        options["nice"] = resources.nice
    if resources.minutes_min and resources.minutes_min < resources.minutes:
        options["time-min"] = resources.minutes_min
    return options | resources.sbatch_args
