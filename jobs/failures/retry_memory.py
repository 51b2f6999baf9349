"""What was tried before: one small file beside the submissions.

What it says of runs is theirs wherever they are submitted, nodes are kept apart by cluster.
"""

import contextlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hvae_hpc.config.loader import dump, load, read_json
from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError, printable
from hvae_hpc.jobs.sites.site import Site
from hvae_hpc.jobs.slurm.client import Cluster
from hvae_hpc.jobs.state.submissions import SUBMISSIONS
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.plan import Plan

MEMORY_FILE = "retries.json"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What is remembered of a run that failed.

    Attributes:
        tries: class of failure to how often it was tried again after it.
        changes: fields of its stage's resources that it has otherwise since.
        answered: the last failure that was answered: its element and the attempts until then.
    """

    tries: dict[str, int] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    answered: str = ""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is remembered of a runs folder.

    Attributes:
        runs: by run id.
        nodes: cluster to node to the time until which no run goes there, in seconds since 1970.
    """

    runs: dict[str, Tried] = field(default_factory=dict)
    nodes: dict[str, dict[str, float]] = field(default_factory=dict)


def read_memory(runs_folder: Path) -> Memory:
    """Return what is remembered of a runs folder; nothing where nothing was ever tried again, or it is damaged."""
    path = runs_folder / SUBMISSIONS / MEMORY_FILE
    if not path.exists():
        return Memory()
    try:
        memory = load(Memory, read_json(path), str(path))
        for run_id, tried in memory.runs.items():
            if bad := [
                f"{name} = {value!r}"
                for name, value in tried.changes.items()
                if not _may_be(name, value)
            ]:
                raise UserError(f"{path}: run {run_id} has {bad[0]}")
    except UserError as error:
        print(printable(f"warning: {error}; what was tried before is forgotten"), file=sys.stderr)
        return Memory()
    return memory


def _may_be(name: str, value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        return False
    return name == "memory_gb" or (name in ("minutes", "micro_batch") and isinstance(value, int))


def write_memory(runs_folder: Path, memory: Memory) -> None:
    """Keep it, for all later commands."""
    write_json(runs_folder / SUBMISSIONS / MEMORY_FILE, dump(memory))


def with_memory(plan: Plan, memory: Memory, site: Site, cluster: Cluster | None = None) -> Plan:
    """Return the plan with the changed resources of runs that failed; what a person gave more of since stays so."""
    changes: dict[str, dict[str, Any]] = {}
    for run_id in plan.runs.keys() & memory.runs.keys():
        had, mine = plan.resources[plan.runs[run_id].stage], memory.runs[run_id].changes
        if more := {name: value for name, value in mine.items() if _is_more(name, value, had)}:
            with contextlib.suppress(ValueError):  # a limit that leaves no time to work, by hand
                fitted = site.fit(replace(had, **more), cluster)
                changes[run_id] = {name: getattr(fitted, name) for name in more}
    return replace(plan, changes=changes)


def _is_more(name: str, value: float, had: Resources) -> bool:
    if name == "micro_batch":
        return not 0 < had.micro_batch <= value
    return name == "minutes" or bool(value > getattr(had, name))
