"""What each stage may use on this cluster: the library's defaults, the administrator's file, the user's file, flags.

Each is laid over the one before, a table ``[retry]`` over the library's policy; then the
administrator's caps cut what is above them, and say so. The administrator's file is
``/etc/hvae_hpc/site.toml``, and over it ``$HVAE_HPC_SITE``, which cannot lift its caps; only these
may hold ``[caps]``.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hvae_hpc.config.loader import load, merge, read_toml
from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites.retry_policy import Failure, Rule, read_rules
from hvae_hpc.jobs.slurm.client import POLL_S, Cluster

SITES = Path(__file__).parent
SYSTEM_SITE = Path("/etc/hvae_hpc/site.toml")
EVERY_STAGE = "all"


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What an administrator allows at most; 0 is no cap.

    Attributes:
        nodes, gpus, cpus, memory_gb, minutes, array_parallelism: of every stage's resources.
        elements: of a user's in the queue at a time, all sweeps together.
        partitions: the only ones that may be used; none for all.
        poll_s: seconds between two looks at the queue by a user's processes together.
        requeues: times that an element may send itself back at its time limit.
        retries: times that a run may be tried again by itself, whatever ``--retries`` says; 0 for
            never.
        canary: elements of an array that go ahead where it has twice as many or more; 0 for none.
    """

    nodes: int = 0
    gpus: int = 0
    cpus: int = 0
    memory_gb: float = 0.0
    minutes: int = 0
    array_parallelism: int = 0
    elements: int = 0
    partitions: tuple[str, ...] = ()
    poll_s: float = POLL_S
    requeues: int = 100
    retries: int = 10
    canary: int = 3


@dataclass(frozen=True, kw_only=True)
class Site:
    """Resources by stage, the caps, what the caps cut, one line each, and what is tried again how."""

    resources: dict[str, Resources]
    caps: Caps
    notes: tuple[str, ...] = ()
    rules: Mapping[Failure, Rule] = field(default_factory=dict)

    def fit(self, resources: Resources, cluster: Cluster | None = None) -> Resources:
        """Return a stage's resources cut to the caps and to what their partition has, if it is known."""
        mine = _cap({"": resources}, self.caps, "the caps")
        return (fit_cluster(mine, resources.partition, cluster) if cluster else mine).resources[""]


def read_site(path: Path | None, flags: Mapping[str, Any] | None = None) -> Site:
    """Return every stage's resources and the caps.

    Args:
        path: the user's file; None for none.
        flags: fields of Resources that the command line gives, for the stages they make sense for.

    Raises:
        UserError: a file is missing or wrong, or holds caps without being the administrator's.
    """
    default = read_toml(SITES / "default.toml", SITES)
    ours: dict[str, Any] = {}
    system: Path | None = None
    for place in (
        _system_files()
    ):  # the last may be the user's own choice: it cannot lift the first one's caps
        theirs = read_toml(place, SITES)
        caps_here = {**theirs.pop("caps", {}), **ours.get("caps", {})}
        ours, system = {**merge(ours, theirs), "caps": caps_here}, system or place
    caps = load(Caps, ours.pop("caps", {}), f"{system}: caps")
    own = read_toml(path, SITES) if path else {}
    if "caps" in own and path not in _system_files():
        raise UserError(
            f"{path}: [caps] stand only in the administrator's file ({SYSTEM_SITE} or $HVAE_HPC_SITE)"
        )
    own.pop("caps", None)
    rules = read_rules({f"{system}": ours.pop("retry", {}), f"{path}": own.pop("retry", {})})
    resources = {}
    where_from = path or system or "site"
    for stage in default:
        table: dict[str, Any] = {}
        for source, where in ((default, "site"), (ours, system), (own, path)):
            _check_tables(source, list(default), f"{where}")
            table = merge(merge(table, source.get(EVERY_STAGE, {})), source.get(stage, {}))
        table = _with_flags(stage, _from_profile(table), flags or {})
        resources[stage] = load(Resources, table, f"{where_from}: {stage}")
        if stage != "train" and resources[stage].tasks > 1:
            raise UserError(
                f"{where_from}: {stage} asks for {resources[stage].tasks} processes per run; "
                "only train runs on several nodes or GPUs, give nodes = 1 and gpus = 1 or 0"
            )
    return replace(_cap(resources, caps, f"{system}"), rules=rules)


def _system_files() -> list[Path]:
    given = os.environ.get("HVAE_HPC_SITE")
    return [SYSTEM_SITE] * SYSTEM_SITE.is_file() + ([Path(given)] if given else [])


def _check_tables(tables: Mapping[str, Any], stages: list[str], where: str) -> None:
    known = [EVERY_STAGE, *stages]
    for stage, table in tables.items():
        if stage not in known:
            raise UserError(f"{where}: unknown stage {stage!r}; expected {', '.join(known)}")
        if not isinstance(table, dict):
            raise UserError(f"{where}: {stage}: got {table!r}, expected a table [{stage}]")


def _from_profile(table: dict[str, Any]) -> dict[str, Any]:
    """Take account and QOS from the user's profile, where sbatch would: its other variables are not passed on."""
    given = {name: os.environ.get(f"SBATCH_{name.upper()}", "") for name in ("account", "qos")}
    return {**{name: value for name, value in given.items() if value}, **table}


def _with_flags(stage: str, table: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Lay flags over a stage's table: nodes and GPUs are the generator training's, constraints the GPU stages'."""
    mine = {name: value for name, value in flags.items() if value is not None}
    if stage != "train":
        mine = {name: value for name, value in mine.items() if name not in ("nodes", "gpus")}
    if not table.get("gpus"):
        mine.pop("constraint", None)
    return {**table, **mine}


def _cap(resources: dict[str, Resources], caps: Caps, where: str) -> Site:
    notes = []
    capped = {}
    numbers = [
        cap.name for cap in fields(Caps) if cap.name in {other.name for other in fields(Resources)}
    ]
    for stage, asked in resources.items():
        cuts = {
            name: getattr(caps, name)
            for name in numbers
            if 0 < getattr(caps, name) < getattr(asked, name)
        }
        if (
            caps.array_parallelism and not asked.array_parallelism
        ):  # as many as fit is above any cap
            cuts["array_parallelism"] = caps.array_parallelism
        shown = [
            f"{name} {getattr(asked, name)} to {cut}"
            for name, cut in cuts.items()
            if getattr(asked, name)
        ]
        if shown:
            notes.append(f"{stage}: {', '.join(shown)}, capped by {where}")
        if "minutes" in cuts:
            cuts["minutes_min"] = min(asked.minutes_min, cuts["minutes"])
        try:
            capped[stage] = replace(asked, **cuts)
        except ValueError as error:
            raise UserError(f"{where}: {stage}, capped: {error}") from error
    return Site(resources=capped, caps=caps, notes=tuple(notes))


def fit_cluster(site: Site, partition: str, cluster: Cluster) -> Site:
    """Give every stage an existing, allowed partition, and no more time or memory than this one has.

    Raises:
        UserError: a partition is unknown, or not among the administrator's.
    """
    notes = list(site.notes)
    resources = {}
    for stage, asked in site.resources.items():
        name = asked.partition or partition
        if site.caps.partitions and name not in site.caps.partitions:
            raise UserError(
                f"{stage}: partition {name!r} is not among the administrator's ({', '.join(site.caps.partitions)})"
            )
        has = cluster.check_partition(name)
        minutes = min(asked.minutes, has.minutes or asked.minutes)
        memory_gb = min(asked.memory_gb, has.memory_gb or asked.memory_gb)
        for what, before, cut in (
            ("minutes", asked.minutes, minutes),
            ("memory_gb", asked.memory_gb, memory_gb),
        ):
            if cut < before:
                notes.append(
                    f"{stage}: {what} {before:g} to {cut:g}, all that partition {name} has"
                )
        least = min(asked.minutes_min, minutes)
        try:
            fitted = replace(
                asked, partition=name, minutes=minutes, minutes_min=least, memory_gb=memory_gb
            )
        except ValueError as error:
            raise UserError(f"{stage}: partition {name}: {error}") from error
        resources[stage] = fitted
    return replace(site, resources=resources, notes=tuple(notes))


FLAGS = {
    "account": (str, "A", "SLURM account"),
    "qos": (str, "Q", "SLURM quality of service"),
    "constraint": (str, "C", "features that GPU nodes must have"),
    "time": (int, "MIN", "longest time limit of an element, minutes"),
    "nodes": (int, "N", "nodes per generator training"),
    "gpus-per-node": (int, "N", "GPUs per node of a generator training"),
    "array-parallelism": (int, "N", "elements of an array that run at a time"),
    "exclude": (str, "NODES", "nodes not to use"),
    "nice": (int, "N", "lower the jobs' priority"),
    "container": (str, "IMAGE", "run in this image by apptainer"),
}


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(FLAGS)) -> None:
    """Give a command the flags that stand above the site files."""
    group = parser.add_argument_group(
        "SLURM", "what stands here goes before the site file, and below the site's caps"
    )
    for name in names:
        kind, metavar, about = FLAGS[name]
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=about)
    group.add_argument(
        "--site", type=Path, metavar="FILE", help="resources by stage (see jobs/sites/default.toml)"
    )


def flags_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that were given, by the names that Resources has for them."""
    renamed = {"time": "minutes", "gpus-per-node": "gpus"}
    given = {
        renamed.get(name, name).replace("-", "_"): vars(options).get(name.replace("-", "_"))
        for name in FLAGS
    }
    return {name: value for name, value in given.items() if value is not None}
