"""The plan: all runs that a sweep expects, in one file that every later step reads.

The sweep command writes it before anything starts. Elements find their runs in it; the status and
the tables learn from it what is missing.
"""

from dataclasses import field, replace
from pathlib import Path
from typing import TypeVar

from hvae_hpc.config.loader import dump, load, read_json
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS, Stage
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import Record, write_atomic
from hvae_hpc.runs.identity import (
    JOB,
    NAME,
    RUN_ID,
    SHA256,
    canonical_json,
    content_hash,
    require_form,
)
from hvae_hpc.runs.run import Run

C = TypeVar("C")

PLAN_SCHEMA = 4
PLANS = "plans"
LONGEST_FOLDER = 200
"""Letters of the name of a run's folder; most file systems take 255."""
REPLAN = "give the sweep command again to write a new plan"


@frozen
class Array:
    """One SLURM array of a submission, or its last job, which makes the tables.

    Attributes:
        name: sweep, stage, data set and source, as squeue shows it.
        stage: of all its runs; "tables" for the last job.
        elements: the run ids that each element makes, one after the other; none for the last job.
        after: what of the submission it waits for: (number of an array, place of an element in it).
        after_jobs: SLURM ids of what else it waits for: elements of earlier submissions, and jobs
            that a person named.
        minutes: time limit of an element.
        seconds: what all its runs together are expected to take.
        grace_s: seconds between SIGTERM and the end when SLURM preempts in this partition.
        canaries: how many of its elements, the first, go ahead; 0 for none.
        script: the sbatch text; only ``--dependency`` is added when it is submitted.
    """

    name: str
    stage: str
    elements: tuple[tuple[str, ...], ...] = ()
    after: tuple[tuple[int, ...], ...] = ()
    after_jobs: tuple[str, ...] = ()
    minutes: int = 30
    seconds: float = 0.0
    grace_s: int = 0
    canaries: int = 0
    script: str = ""

    def __post_init__(self) -> None:
        require_form("name", self.name, NAME)
        for job in self.after_jobs:
            require_form("after_jobs", job, JOB)

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs of all elements."""
        return tuple(run_id for element in self.elements for run_id in element)


@frozen
class Plan:
    """All runs that a sweep expects, where their data lies, and what each stage may use.

    Attributes:
        sweep: the sweep's name.
        runs_folder: where the runs' folders lie.
        code_sha: of the package that planned.
        data: data set to ``folder``, ``content_hash`` and, of phantoms, ``made_up``.
        resources: stage to what it may use.
        runs: run id to run, parents before children.
        arrays: of a submission; parents' arrays first, the last job last.
        allow_code_drift: an element also starts where the package has changed since.
        requeues: times that an element may requeue itself at its time limit.
        changes: run id to the fields of its stage's resources that a run has otherwise, after it
            failed with these.
        smallest_effect: difference in Dice that is of interest; the verdict needs it, no run does.
    """

    sweep: str
    runs_folder: Path
    code_sha: str
    data: dict[str, dict[str, str]]
    resources: dict[str, Resources]
    runs: dict[str, Run]
    arrays: tuple[Array, ...] = ()
    allow_code_drift: bool = False
    requeues: int = 100
    changes: dict[str, Record] = field(default_factory=dict)
    smallest_effect: float = 0.02

    def __post_init__(self) -> None:
        require_form("sweep", self.sweep, NAME)
        for name, data in self.data.items():
            require_form("data", name, NAME)
            require_form(f"data.{name}.content_hash", data.get("content_hash", ""), SHA256)
            if "folder" not in data:
                raise ValueError(f"data.{name} has no folder; {REPLAN}")

    def resources_of(self, run_id: str) -> Resources:
        """What a run may use."""
        resources = self.resources.get(self.runs[run_id].stage, Resources())
        return replace(resources, **self.changes.get(run_id, {}))

    def folder(self, run_id: str) -> Path:
        """The run's folder."""
        return self.runs_folder / self.folder_name(run_id)

    def folder_name(self, run_id: str) -> str:
        """The run's folder below the runs folder."""
        run = self.runs[run_id]
        return f"{run.stage}/{run.label}-{run_id}"

    def parents(self, run_id: str) -> dict[str, str]:
        """Role to run id of a run's parents that are runs; the other one is the data set."""
        parents = self.runs[run_id].parents
        return {role: parent for role, parent in parents.items() if role != "data"}

    def configs(self, kind: type[C]) -> list[C]:
        """Return the configs of one stage's runs, in the plan's order."""
        return [run.config for run in self.runs.values() if isinstance(run.config, kind)]


@frozen
class _RunEntry:
    """A run as it stands in the file; its config is loaded by its stage."""

    run_id: str
    stage: Stage
    config: Record
    parents: dict[str, str]

    def __post_init__(self) -> None:
        require_form("run_id", self.run_id, RUN_ID)


def plan_path(runs_folder: Path, sweep: str) -> Path:
    """Where the plan of a sweep lies: ``RUNS/plans/<sweep>.json``."""
    return runs_folder / PLANS / f"{sweep}.json"


def find_plans(runs_folder: Path, sweep: str | None = None) -> list[Path]:
    """Return the plans of all sweeps in a runs folder, by name, or the one that is named.

    Raises:
        UserError: the folder or the plans are not there.
    """
    if not runs_folder.is_dir():
        raise UserError(f"{runs_folder}: no such folder; expected the runs folder of a sweep")
    plans = sorted((runs_folder / PLANS).glob("*.json"), key=lambda path: path.stem)
    if not plans:
        raise UserError(
            f"{runs_folder}: no plan of a sweep in it; give the runs folder that a sweep printed"
        )
    if sweep is not None and plan_path(runs_folder, sweep) not in plans:
        known = ", ".join(path.stem for path in plans)
        raise UserError(f"{runs_folder}: has no sweep {sweep!r}, expected one of {known}")
    return [path for path in plans if sweep in (None, path.stem)]


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan into its runs folder, atomically."""
    refuse_links(path, plan.runs_folder)
    entries = [
        {"run_id": run_id, "stage": run.stage, "config": run.config, "parents": run.parents}
        for run_id, run in plan.runs.items()
    ]
    values = {**vars(plan), "schema": PLAN_SCHEMA, "runs_folder": str(plan.runs_folder)}
    write_atomic(path, canonical_json(dump({**values, "runs": entries})) + "\n")


def read_plan(path: Path) -> Plan:
    """Read a plan and check that its runs are distinct, have their parents, and read the same data.

    Raises:
        UserError: it is missing, truncated, of another schema, or does not hold together.
    """
    data = read_json(path)
    schema = data.pop("schema", None) if isinstance(data, dict) else None
    if schema != PLAN_SCHEMA:
        raise UserError(f"{path}: schema {schema!r}, expected {PLAN_SCHEMA}; {REPLAN}")
    entries = data.get("runs")
    if not isinstance(entries, list):
        raise UserError(f"{path}: has no list of runs; {REPLAN}")
    runs_folder = Path(str(data.get("runs_folder")))
    plan = load(Plan, {**data, "runs_folder": runs_folder, "runs": {}}, str(path))

    for number, values in enumerate(entries):
        entry = load(_RunEntry, values, f"{path}: runs[{number}]")
        where = f"{path}: {entry.stage} {entry.run_id}"
        config = load(CONFIGS[entry.stage], entry.config, where)
        run = Run(stage=entry.stage, config=config, parents=entry.parents)
        _check_run(plan, entry.run_id, run, where)
        plan.runs[entry.run_id] = run

    # Arrays and changes are of runs that the plan has, and of fields that resources have.
    named = {run_id for array in plan.arrays for run_id in array.run_ids}
    if strange := {*named, *plan.changes} - plan.runs.keys():
        raise UserError(f"{path}: names a run {min(strange)!r} that it does not hold; {REPLAN}")
    for run_id, changes in plan.changes.items():
        load(Resources, {**changes}, f"{path}: changes.{run_id}")
    return plan


def _check_run(plan: Plan, run_id: str, run: Run, where: str) -> None:
    """Refuse a run that is in the plan already, reads other data, or comes before a parent."""
    data = run.config.data
    if len(f"{run.label}-{run_id}") > LONGEST_FOLDER:
        raise UserError(f"{where} has a label too long for the name of a folder; {REPLAN}")
    if run_id in plan.runs:
        raise UserError(f"{where} is in the plan twice; {REPLAN}")
    if data not in plan.data:
        raise UserError(f"{where} reads {data!r}, expected one of {', '.join(plan.data)}; {REPLAN}")
    content = plan.data[data].get("content_hash")
    if run.parents.get("data") != content:
        raise UserError(f"{where} reads other data than the plan's {data} ({content}); {REPLAN}")
    for role, parent in run.parents.items():
        if role != "data" and parent not in plan.runs:
            raise UserError(
                f"{where} has a parent {parent} that does not stand before it; {REPLAN}"
            )


def plan_id(plan: Plan) -> str:
    """Return 12 digits that follow from all that the plan says, for names of submissions."""
    values = {**vars(plan), "runs_folder": str(plan.runs_folder), "runs": list(plan.runs)}
    return content_hash(dump(values))[:12]
