"""The plan: all runs that a sweep expects, in one file that everything later reads.

It is written before anything starts: tasks find their runs in it, status and tables what is
    missing.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from hvae_hpc.config.loader import dump, load, read_json
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS, STAGE_VERSIONS, Stage
from hvae_hpc.errors import UserError
from hvae_hpc.runs.collector import collector_paused
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.identity import content_hash, make_run_id
from hvae_hpc.runs.run import Run

C = TypeVar("C")

PLAN_SCHEMA = 3
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
        grace_s: seconds that SLURM leaves between SIGTERM and the end when it preempts in this
            partition.
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
        totals: of a submission: what it will cost, by name (see :mod:`hvae_hpc.jobs.sweeps.costs`).
        allow_code_drift: an element also starts where the package has changed since.
        requeues: times that an element may send itself back to the queue at its time limit.
        changes: run id to the fields of its stage's resources that a run has otherwise, after it
            failed with these.
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
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def resources_of(self, run_id: str) -> Resources:
        """What a run may use."""
        return replace(self.resources[self.runs[run_id].stage], **self.changes.get(run_id, {}))

    def folder(self, run_id: str) -> Path:
        """The run's folder."""
        return self.runs_folder / self.folder_name(run_id)

    def folder_name(self, run_id: str) -> str:
        """The run's folder below the runs folder."""
        run = self.runs[run_id]
        return f"{run.stage}/{run.label}-{run_id}"

    def parents(self, run_id: str) -> dict[str, str]:
        """Role to run id of a run's parents that are runs."""
        return {
            role: parent for role, parent in self.runs[run_id].parents.items() if role != "data"
        }

    def configs(self, kind: type[C]) -> list[C]:
        """Return the configs of one stage's runs, in the plan's order."""
        return [run.config for run in self.runs.values() if isinstance(run.config, kind)]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What runs that differ only in seed and parents have in common, which is nearly all of a large plan."""

    stage: Stage
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _PlanFile:
    schema: int
    sweep: str
    runs_folder: str
    code_sha: str
    data: dict[str, dict[str, str]]
    resources: dict[str, Resources]
    kinds: tuple[_Kind, ...]
    parents: tuple[dict[str, str], ...]
    runs: tuple[str, ...]
    arrays: tuple[Array, ...] = ()
    totals: dict[str, float] = field(default_factory=dict)
    allow_code_drift: bool = False
    requeues: int = 100
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


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
    """Write a plan, atomically: kinds of runs, sets of parents, and a line per run: id, numbers of these two, seed."""
    kinds: dict[Any, tuple[int, _Kind]] = {}
    parents: dict[tuple[tuple[str, str], ...], int] = {}
    lines = []
    for run_id, run in plan.runs.items():
        alike = (run.stage, replace(run.config, seed=0))
        if alike not in kinds:
            config = {name: value for name, value in dump(run.config).items() if name != "seed"}
            kinds[alike] = (len(kinds), _Kind(stage=run.stage, config=config))
        of_run = parents.setdefault(tuple(run.parents.items()), len(parents))
        lines.append(f"{run_id} {kinds[alike][0]} {of_run} {run.config.seed}")
    tables = {
        "kinds": [kind for _, kind in kinds.values()],
        "parents": list(map(dict, parents)),
        "runs": lines,
    }
    write_json(
        path,
        dump({**vars(plan), "schema": PLAN_SCHEMA, "runs_folder": str(plan.runs_folder), **tables}),
    )


@collector_paused()
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
        lines = {line.partition(" ")[0]: line for line in data["runs"]}
        needed, open_ids = set[str](), list(ids)
        while open_ids:
            run_id = open_ids.pop()
            needed.add(run_id)
            parents = data["parents"][int(lines[run_id].split()[2])]
            open_ids += [parent for role, parent in parents.items() if role != "data"]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}: has no array {array} with an element {place} that holds together; {AGAIN}"
        ) from error
    return _make_plan(
        {**data, "runs": [line for run_id, line in lines.items() if run_id in needed]}, path
    ), ids


def _read_file(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict) or data.get("schema") != PLAN_SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else None
        raise UserError(f"{path}: schema {schema!r}, expected {PLAN_SCHEMA}; {AGAIN}")
    return data


def _make_plan(data: dict[str, Any], path: Path) -> Plan:
    file = load(_PlanFile, data, str(path))
    firsts: list[Run | None] = [None] * len(
        file.kinds
    )  # loaded when a run needs them: an element needs few
    labels = [""] * len(file.kinds)
    checked, current = set[tuple[int, int]](), dict[str, set[bool]]()
    runs: dict[str, Run] = {}
    for run_id, number, of_run, seed in _read_lines(file, path):
        if run_id in runs:
            raise UserError(f"{path}: run {run_id} stands in it twice; {AGAIN}")
        if (number, of_run) not in checked:
            kind, parents = file.kinds[number], file.parents[of_run]
            where = f"{path}: {kind.stage} {run_id}"
            if (first := firsts[number]) is None:
                config = load(CONFIGS[kind.stage], kind.config, where)
                first = firsts[number] = Run(stage=kind.stage, config=config, parents=parents)
                asked = {**kind.config, "seed": seed}
                made_now = make_run_id(kind.stage, STAGE_VERSIONS[kind.stage], asked, parents)
                current.setdefault(kind.stage, set()).add(made_now == run_id)
                labels[number] = first.label.removesuffix(str(config.seed))
            _check_parents(first.config.data, parents, file, runs, where)
            checked.add((number, of_run))
        runs[run_id] = _like(firsts[number], seed, file.parents[of_run], f"{labels[number]}{seed}")
    for stage, said in current.items():
        if len(said) > 1:
            raise UserError(
                f"{path}: mixes runs of stage {stage} by two versions of the program; {AGAIN}"
            )
    values = {
        name: value
        for name, value in vars(file).items()
        if name not in ("schema", "kinds", "parents")
    }
    return Plan(**{**values, "runs_folder": Path(file.runs_folder), "runs": runs})


def _read_lines(file: _PlanFile, path: Path) -> Iterator[tuple[str, int, int, int]]:
    """Return of each run id, numbers of its kind and its parents, and seed; of all lines at once, which is faster."""
    words = " ".join(file.runs).split(" ")
    if file.runs and {line.count(" ") for line in file.runs} == {3}:
        with contextlib.suppress(ValueError):
            kinds, parents, seeds = (list(map(int, words[place::4])) for place in (1, 2, 3))
            if (
                min(kinds) >= 0 <= min(parents)
                and max(kinds) < len(file.kinds)
                and max(parents) < len(file.parents)
            ):
                return zip(words[::4], kinds, parents, seeds, strict=True)
    for line in file.runs:
        _refuse_line(line, file, path)
    return iter(())


def _refuse_line(line: str, file: _PlanFile, path: Path) -> None:
    """Raise for a run's line that cannot be read; a good one is let pass."""
    with contextlib.suppress(ValueError):
        _, number, parents, _ = [0, *map(int, line.split(" ")[1:])]
        if 0 <= number < len(file.kinds) and 0 <= parents < len(file.parents):
            return
    tables = f"{len(file.kinds)} kinds, {len(file.parents)} sets of parents"
    raise UserError(
        f"{path}: got the run {line!r}, expected an id, numbers of one of {tables}, and a seed; {AGAIN}"
    )


def _check_parents(
    data: str, parents: Mapping[str, str], file: _PlanFile, runs: Mapping[str, Run], where: str
) -> None:
    if data not in file.data:
        raise UserError(f"{where} reads {data!r}, expected one of {', '.join(file.data)}; {AGAIN}")
    content = file.data[data].get("content_hash")
    if parents.get("data") != content:
        raise UserError(f"{where} reads other data than the plan's {data} ({content}); {AGAIN}")
    lost = [parent for role, parent in parents.items() if role != "data" and parent not in runs]
    if lost:
        raise UserError(f"{where} has a parent {lost[0]} that does not stand before it; {AGAIN}")


def _like(first: Run | None, seed: int, parents: Mapping[str, str], label: str) -> Run:
    """Return a run as another, but of another seed; quickly, since all that the two share was checked."""
    assert first is not None
    config, run = object.__new__(type(first.config)), object.__new__(Run)
    config.__dict__.update(first.config.__dict__, seed=seed)
    run.__dict__.update(
        stage=first.stage, config=config, parents=parents, label=label
    )  # the last as it would find out
    return run


def plan_id(plan: Plan) -> str:
    """Return 12 digits that follow from all that the plan says, for the names of what is submitted."""
    said = [
        plan.sweep,
        str(plan.runs_folder),
        list(plan.runs),
        dump(plan.resources),
        dump(plan.data),
        plan.code_sha,
    ]
    return content_hash([*said, dump(plan.arrays), plan.allow_code_drift, dump(plan.changes)])[:12]
