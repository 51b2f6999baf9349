"""Made-up submissions and queues, for the tests of everything that looks at them."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm.client import Queue, Queued
from hvae_hpc.jobs.state.submissions import comment_of
from hvae_hpc.runs.folder import append_log
from hvae_hpc.runs.plan import Plan, read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import write_plan


def make_plan(folder: Path, runs: list[Run], sweep: str = "small") -> Plan:
    """Write the plan of some runs with resources, and read it."""
    resources = {stage: asdict(resources) for stage, resources in read_site(None).resources.items()}
    return read_plan(write_plan(folder, runs, sweep, changes={"resources": resources}))


def submit(
    plan: Plan,
    elements: Sequence[Sequence[str]],
    job: str = "12",
    name: str = "small-abc",
    at: float = 0.0,
) -> str:
    """Write what a submission of one array leaves; returns its name."""
    folder = plan.runs_folder / "submissions" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(
        json.dumps(
            {
                "sweep": plan.sweep,
                "runs_folder": str(plan.runs_folder),
                "arrays": [
                    {
                        "name": f"{plan.sweep}-x",
                        "stage": "segment",
                        "minutes": 0,
                        "elements": elements,
                    }
                ],
            }
        )
    )
    with open(folder / "jobs.jsonl", "a") as file:
        entry = {"array": 0, "job": job, "places": list(range(len(elements))), "time": at}
        file.write(json.dumps(entry) + "\n")
    return name


def in_queue(
    name: str, places: Sequence[int], state: str, reason: str = "None", job: str = "12"
) -> Queued:
    """Make up a line of the queue: elements of a submission's first array."""
    return Queued(job, tuple(places), state, reason, comment_of(name, 0))


def queue_of(*rows: Queued) -> Queue:
    """Make up a queue that SLURM gave just now."""
    return Queue(time.time(), rows)


def log(plan: Plan, run_id: str, *records: dict[str, object]) -> None:
    """Add records to a run's log; "time" is seconds from now."""
    plan.folder(run_id).mkdir(parents=True, exist_ok=True)
    for record in records:
        append_log(
            plan.folder(run_id),
            {**record, "time": time.time() + float(str(record.get("time", 0.0)))},
        )
