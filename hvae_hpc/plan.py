"""The plan: all runs that a sweep expects, in one file that everything later reads.

It is written before anything starts: tasks find their runs in it, status and tables what is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvae_hpc.config import dump, load, read_json
from hvae_hpc.errors import UserError
from hvae_hpc.identity import content_hash
from hvae_hpc.resources import Resources
from hvae_hpc.rundir import write_json
from hvae_hpc.stages import CONFIGS, Run

PLAN_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs that a sweep expects, where their data lies, and what each stage may use.

    Attributes:
        sweep: the sweep's name.
        runs_folder: absolute.
        code_sha: of the package that planned.
        data: name to folder and content hash.
        resources: stage to what it may use.
        runs: run id to run, parents before children.
    """

    sweep: str
    runs_folder: Path
    code_sha: str
    data: Mapping[str, dict[str, str]]
    resources: Mapping[str, Resources]
    runs: Mapping[str, Run]

    def folder(self, run_id: str) -> Path:
        """The run's folder."""
        return self.runs_folder / self.runs[run_id].folder

    def parents(self, run_id: str) -> dict[str, str]:
        """Role to run id of a run's parents that are runs."""
        return {role: parent for role, parent in self.runs[run_id].parents.items() if role != "data"}


def plan_path(plan: Plan) -> Path:
    """Where the plan of a sweep lies: ``RUNS/plans/<sweep>.json``."""
    return plan.runs_folder / "plans" / f"{plan.sweep}.json"


def write_plan(plan: Plan, path: Path, **more: Any) -> None:
    """Write a plan; ``more`` is kept beside it."""
    runs = [
        {
            "stage": run.stage,
            "run_id": run_id,
            "folder": run.folder,
            "config": dump(run.config),
            "parents": dump(run.parents),
        }
        for run_id, run in plan.runs.items()
    ]
    write_json(
        path,
        {
            "schema": PLAN_SCHEMA,
            "sweep": plan.sweep,
            "runs_folder": str(plan.runs_folder),
            "code_sha": plan.code_sha,
            "data": dump(plan.data),
            "resources": dump(plan.resources),
            "runs": runs,
            **more,
        },
    )


def read_plan(path: Path) -> tuple[Plan, dict[str, Any]]:
    """Read a plan and what was kept beside it.

    Raises:
        UserError: it is missing, truncated or of another schema.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("schema") != PLAN_SCHEMA:
        raise UserError(f"{path}: not a plan of schema {PLAN_SCHEMA}; give the sweep command again to make it anew")
    runs = {}
    for entry in data["runs"]:
        config = load(CONFIGS[entry["stage"]], entry["config"], f"{path}: {entry['run_id']}")
        run = Run(stage=entry["stage"], config=config, parents=entry["parents"])
        if run.run_id != entry["run_id"]:
            raise UserError(
                f"{path}: run {entry['run_id']} is {run.run_id} for this code; give the sweep command again"
            )
        runs[run.run_id] = run
    plan = Plan(
        sweep=data["sweep"],
        runs_folder=Path(data["runs_folder"]),
        code_sha=data["code_sha"],
        data=data["data"],
        resources={stage: load(Resources, value, f"{path}: {stage}") for stage, value in data["resources"].items()},
        runs=runs,
    )
    return plan, {key: value for key, value in data.items() if key not in ("schema", "runs")}


def plan_id(plan: Plan) -> str:
    """Return 12 digits that follow from the plan's runs and resources, for the names of what is submitted."""
    return content_hash([plan.sweep, list(plan.runs), dump(plan.resources), dump(plan.data), plan.code_sha])[:12]
