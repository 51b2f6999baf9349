"""Fills the disk before any write of a submission to a SLURM whose partition starts nothing.

``unshare -m python -m tests.drill.full_submission PROJECT``: the project's runs folder is a small
disk of its own. What was seen is printed, a line of JSON for each kind of file.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hvae_hpc import sweep
from hvae_hpc.jobs.state.submissions import Submissions
from tests.drill.small_disk import Filler, mount
from tests.drill.test_faults import queued_runs


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(project: Path) -> None:
    os.chdir(project)
    disk = project / "runs"
    mount(disk)
    filler = Filler(disk)

    def submit() -> int:
        return sweep.main(["--site", "site.toml", "--partition", "gpu"])

    def start_anew() -> None:
        # Where a plain user mounts what only he sees, he is root, whatever his environment says.
        ask("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def tell(kinds: list[str]) -> Iterator[dict[str, Any]]:
        for kind in kinds:
            code, said = filler.run(submit, (kind, 1))
            jobs = len(ask("squeue", "-h").splitlines())
            again, said_again = filler.run(submit)
            queue: Any = SimpleNamespace(client=ask)  # all that is asked of a MiniSlurm
            runs = queued_runs(project, queue)
            yield {
                "file": kind,
                "code": code,
                "said": said.splitlines(),
                "jobs": jobs,
                "again": again,
                "said_again": said_again,
                "runs": sorted(runs.values()),
                "noted": sorted(job.job for job in Submissions(disk).jobs),
                "queued": sorted(set(ask("squeue", "-h", "-o", "%F").split())),
                "temporary": [str(path) for path in disk.rglob("*.tmp")],
            }
            start_anew()

    filler.silent = False
    with open(os.devnull, "w") as sys.stdout:
        submit()
    sys.stdout = sys.__stdout__
    filler.silent = True
    start_anew()
    for seen in tell(list(dict.fromkeys(filler.seen))):
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
