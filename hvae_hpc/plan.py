"""The plan: all runs that a sweep expects, in one file that everything later reads; and which of them are done.

It is written before anything starts: tasks find their runs in it, status and tables what is missing. Done is read
from the runs' own files, never from anybody's memory: a run is done when its metrics.json is valid, its parents are
done, and it was made from just these makings of them. So a parent that was deleted and made anew takes
along what hangs on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from hvae_hpc.config import dump, load, read_json
from hvae_hpc.errors import UserError
from hvae_hpc.identity import content_hash
from hvae_hpc.resources import Resources
from hvae_hpc.rundir import RunResult, write_json
from hvae_hpc.runs import Run
from hvae_hpc.stages import CONFIGS, Stage
from hvae_hpc.states import Remembered, list_folders

C = TypeVar("C")

PLAN_SCHEMA = 2
PLANS = "plans"
AGAIN = "give the sweep command again to make it anew"


@dataclass(frozen=True, kw_only=True)
class Array:
    """One SLURM array of a submission, or its last job, which collects the tables.

    Attributes:
        name: sweep, stage, data set and source, as squeue shows it.
        stage: of all its runs; "tables" for the last job.
        elements: the run ids that each element makes, one after the other; none for the last job.
        after: what of the submission it waits for: (number of an array, place of an element in it).
        after_jobs: SLURM ids of elements of earlier submissions that it waits for.
        minutes: time limit of an element.
        seconds: what all its runs together are expected to take.
        grace_s: seconds that SLURM leaves between SIGTERM and the end when it preempts in this partition.
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
    script: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs that a sweep expects, where their data lies, and what each stage may use.

    Attributes:
        sweep: the sweep's name.
        runs_folder: where the runs' folders lie.
        code_sha: of the package that planned.
        data: data set to ``folder`` and ``content_hash``.
        resources: stage to what it may use.
        runs: run id to run, parents before children.
        arrays: of a submission; parents' arrays first, the last job last.
        totals: of a submission: what it will cost, by name (see :mod:`hvae_hpc.jobs.costs`).
        allow_code_drift: an element also starts where the package has changed since.
        requeues: times that an element may send itself back to the queue at its time limit.
    """

    sweep: str
    runs_folder: Path
    code_sha: str
    data: Mapping[str, dict[str, str]]
    resources: Mapping[str, Resources]
    runs: Mapping[str, Run]
    arrays: tuple[Array, ...] = ()
    totals: Mapping[str, float] = field(default_factory=dict)
    allow_code_drift: bool = False
    requeues: int = 100

    def folder(self, run_id: str) -> Path:
        """The run's folder."""
        return self.runs_folder / self.folder_name(run_id)

    def folder_name(self, run_id: str) -> str:
        """The run's folder below the runs folder."""
        run = self.runs[run_id]
        return f"{run.stage}/{run.label}-{run_id}"

    def parents(self, run_id: str) -> dict[str, str]:
        """Role to run id of a run's parents that are runs."""
        return {role: parent for role, parent in self.runs[run_id].parents.items() if role != "data"}

    def configs(self, kind: type[C]) -> list[C]:
        """Return the configs of one stage's runs, in the plan's order."""
        return [run.config for run in self.runs.values() if isinstance(run.config, kind)]


@dataclass(frozen=True, kw_only=True)
class _RunEntry:
    stage: Stage
    run_id: str
    config: dict[str, Any]
    parents: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _PlanFile:
    schema: int
    sweep: str
    runs_folder: str
    code_sha: str
    data: dict[str, dict[str, str]]
    resources: dict[str, Resources]
    runs: tuple[_RunEntry, ...]
    arrays: tuple[Array, ...] = ()
    totals: dict[str, float] = field(default_factory=dict)
    allow_code_drift: bool = False
    requeues: int = 100


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
            f"{runs_folder}: no plan of a sweep in it; give the folder that a sweep printed as its runs folder"
        )
    if sweep is not None and plan_path(runs_folder, sweep) not in plans:
        known = ", ".join(path.stem for path in plans)
        raise UserError(f"{runs_folder}: has no sweep {sweep!r}, expected one of {known}")
    return [path for path in plans if sweep in (None, path.stem)]


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan, atomically."""
    entries = [
        _RunEntry(stage=run.stage, run_id=run_id, config=dump(run.config), parents=dict(run.parents))
        for run_id, run in plan.runs.items()
    ]
    file = {**vars(plan), "schema": PLAN_SCHEMA, "runs_folder": str(plan.runs_folder), "runs": entries}
    write_json(path, dump(file))


def read_plan(path: Path) -> Plan:
    """Read a plan and check that its runs are distinct, have their parents, and read the same data.

    Raises:
        UserError: it is missing, truncated, of another schema, or does not hold together.
    """
    return _make_plan(_read_file(path), path)


def read_element(path: Path, array: int, place: int) -> tuple[Plan, tuple[str, ...]]:
    """Read of a submission's plan just what one element needs: its runs and what they are made from.

    Returns:
        The plan with only these runs, and the ids of those that the element makes.
    """
    data = _read_file(path)
    try:
        ids = tuple(data["arrays"][array]["elements"][place])
        entries = {entry["run_id"]: entry for entry in data["runs"]}
        needed, open_ids = set[str](), list(ids)
        while open_ids:
            run_id = open_ids.pop()
            needed.add(run_id)
            open_ids += [parent for role, parent in entries[run_id]["parents"].items() if role != "data"]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: has no array {array} with an element {place} that holds together; {AGAIN}") from error
    return _make_plan({**data, "runs": [entry for i, entry in entries.items() if i in needed]}, path), ids


def _read_file(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict) or data.get("schema") != PLAN_SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else None
        raise UserError(f"{path}: schema {schema!r}, expected {PLAN_SCHEMA}; {AGAIN}")
    return data


def _make_plan(data: dict[str, Any], path: Path) -> Plan:
    file = load(_PlanFile, data, str(path))
    runs: dict[str, Run] = {}
    alike: dict[str, Any] = {}
    for entry in file.runs:
        config = _load_config(entry, alike, f"{path}: {entry.stage} {entry.run_id}")
        run = Run(stage=entry.stage, config=config, parents=entry.parents)
        what = f"{path}: {run.stage} {run.label}"
        if entry.run_id in runs:
            raise UserError(f"{what} ({entry.run_id}) stands in it twice; {AGAIN}")
        if config.data not in file.data:
            raise UserError(f"{what} reads {config.data!r}, expected one of {', '.join(file.data)}; {AGAIN}")
        content = file.data[config.data].get("content_hash")
        if entry.parents.get("data") != content:
            raise UserError(f"{what} reads other data than the plan's {config.data} ({content}); {AGAIN}")
        lost = [parent for role, parent in entry.parents.items() if role != "data" and parent not in runs]
        if lost:
            raise UserError(f"{what} has a parent {lost[0]} that does not stand before it; {AGAIN}")
        runs[entry.run_id] = run
    values = {name: value for name, value in vars(file).items() if name != "schema"}
    return Plan(**{**values, "runs_folder": Path(file.runs_folder), "runs": runs})


def _load_config(entry: _RunEntry, alike: dict[str, Any], where: str) -> Any:
    """Load a run's config; of those that differ only in the seed, which are most of a large plan, only the first."""
    key, seed = repr((entry.stage, {**entry.config, "seed": None})), entry.config.get("seed")
    if key in alike and type(seed) is int:
        return replace(alike[key], seed=seed)
    alike[key] = load(CONFIGS[entry.stage], entry.config, where)
    return alike[key]


def plan_id(plan: Plan) -> str:
    """Return 12 digits that follow from all that the plan says, for the names of what is submitted."""
    said = [plan.sweep, str(plan.runs_folder), list(plan.runs), dump(plan.resources), dump(plan.data), plan.code_sha]
    return content_hash([*said, dump(plan.arrays), plan.allow_code_drift])[:12]


@dataclass(frozen=True, kw_only=True)
class State:
    """How a run stands.

    Attributes:
        reason: why it is not done, for people; "" where there simply is nothing yet, and where it is done.
        stamp: names this making of the run; "" where it is not done.
        attempt: the one that made it.
        wall_s: seconds of its device that this attempt took.
        result: its metrics.json where it is done and was asked for, else None.
    """

    reason: str = ""
    stamp: str = ""
    attempt: int = 0
    wall_s: float = 0.0
    result: RunResult | None = None

    @property
    def done(self) -> bool:
        """Whether it need not be made."""
        return bool(self.stamp)


def read_states(plan: Plan, *, results: bool = False) -> dict[str, State]:
    """Return every run's state, in the plan's order (parents before children).

    Args:
        plan: of the sweep.
        results: read the whole results as well, also those that did not change since they were last looked at.
    """
    remembered = Remembered(plan.runs_folder / PLANS / f"{plan.sweep}.states")
    there = list_folders(plan.runs_folder, {run.stage for run in plan.runs.values()})
    states: dict[str, State] = {}
    for run_id in plan.runs:
        folder = plan.folder_name(run_id)
        stamps = {role: states[parent].stamp for role, parent in plan.parents(run_id).items()}
        states[run_id] = State()
        if folder in there:
            states[run_id] = _read_state(remembered, f"{plan.runs_folder}/{folder}", run_id, stamps, results)
    remembered.write()
    return states


def read_state(plan: Plan, run_id: str, parent_stamps: Mapping[str, str]) -> State:
    """Return one run's state, given its parents' stamps ("" for a parent that is not done)."""
    return _read_state(Remembered(None), str(plan.folder(run_id)), run_id, parent_stamps, True)


def _read_state(
    remembered: Remembered, folder: str, run_id: str, parent_stamps: Mapping[str, str], whole: bool
) -> State:
    try:
        made = remembered.read(folder, run_id, whole)
    except UserError as error:
        return State(reason=str(error))
    if made is None:
        return State()
    if made.parent_stamps != dict(parent_stamps):
        return State(reason="what it was made from was made anew, or is gone")
    result = made.result if whole else None
    return State(stamp=made.stamp, attempt=made.attempt, wall_s=made.wall_s, result=result)
