"""What each stage may use on this cluster.

Four layers say it, each laid over the one before: the library's defaults, the administrator's
file, the user's file, and the command's flags. Then the administrator's caps cut what is above
them, and say so. Tables ``[retry]`` lie over the library's retry policy in the same way.

The administrator's file is ``/etc/hvae_hpc/site.toml``, or ``$HVAE_HPC_SITE`` where that is not
there. Only this one may hold ``[caps]``.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from hvae_hpc.config.loader import load, merge, read_toml
from hvae_hpc.config.resources import Resources, is_option
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.sites.retry_policy import Failure, Rule, check_tables, read_rules
from hvae_hpc.jobs.slurm.client import POLL_S, is_available
from hvae_hpc.jobs.slurm.limits import Cluster

SITES = Path(__file__).parent
SYSTEM_SITE = Path("/etc/hvae_hpc/site.toml")
EVERY_STAGE = "all"
CAPPED = ("nodes", "gpus", "cpus", "memory_gb", "minutes", "array_parallelism")
"""The fields of Resources that have a cap of the same name."""


@frozen
class Caps:
    """What an administrator allows at most; 0 is no cap.

    Attributes:
        nodes, gpus, cpus, memory_gb, minutes, array_parallelism: of every stage's resources.
        elements: of a user's in the queue at a time, all sweeps together.
        partitions: the only ones that may be used; none for all.
        poll_s: seconds between two looks at the queue by a user's processes together.
        requeues: times that an element may send itself back at its time limit.
        retries: of a run, whatever ``--retries`` says; 0 for none.
        canary: elements of an array that go ahead where it has twice as many or more; 0 for none.
        forbidden_args: options that sbatch_args and srun_args may not have.
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
    forbidden_args: tuple[str, ...] = ()


@frozen
class Site:
    """What a cluster allows.

    Attributes:
        resources: by stage.
        caps: the administrator's.
        notes: what was cut, one line per stage.
        rules: of retries, by class of failure.
        cluster: what SLURM allows; empty where nobody asked it.
        misfits: stage to why none of several partitions has what it asks for.
    """

    resources: dict[str, Resources]
    caps: Caps
    notes: tuple[str, ...] = ()
    misfits: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[Failure, Rule] = field(default_factory=dict)
    cluster: Cluster = Cluster()

    def fit(self, resources: Resources, why: str = "the caps") -> tuple[Resources, str]:
        """Cut resources to the caps, and to what their partition has if it is known.

        Returns:
            The resources, and the cuts in words.

        Raises:
            UserError: what is left has no time to work; ``why`` says what cuts it.
        """
        limits = {name: getattr(self.caps, name) for name in CAPPED}
        if self.cluster.partitions:
            partition = self.cluster.check_partition(resources.partition)
            known = {"minutes": partition.minutes}
            if nodes := partition.find_best_nodes(resources):
                _, known["memory_gb"], cpus = map(min, zip(*nodes, strict=True))
                known["cpus"] = cpus // resources.tasks_per_node
            for name, most in known.items():
                limits[name] = min(filter(None, (limits[name], most)), default=0)

        if not resources.array_parallelism:  # as many as fit, which is above any cap
            resources = replace(resources, array_parallelism=limits["array_parallelism"])
        cuts = {name: most for name, most in limits.items() if 0 < most < getattr(resources, name)}
        words = [f"{name} {getattr(resources, name):g} to {most:g}" for name, most in cuts.items()]
        if "minutes" in cuts:
            cuts["minutes_min"] = min(resources.minutes_min, cuts["minutes"])
        try:
            return replace(resources, **cuts), ", ".join(words)
        except ValueError as error:
            raise UserError(f"{why}: {error}") from error


def read_site(path: Path | None, flags: Mapping[str, Any] | None = None) -> Site:
    """Return every stage's resources, the caps and the rules of retries.

    Args:
        path: the user's file; None for none.
        flags: fields of Resources that the command line gives, for the stages they make sense for.

    Raises:
        UserError: a file is missing or wrong, or holds caps without being the administrator's.
    """
    library, chosen = read_toml(SITES / "default.toml", SITES), os.environ.get("HVAE_HPC_SITE")
    named_file = Path(chosen) if chosen else None
    admin_file = SYSTEM_SITE if SYSTEM_SITE.is_file() else named_file

    # Each file is a layer over those before it.
    known = vars(Resources())
    layers, retry_rules, limits = [library], dict[str, Any](), dict[str, Any]()
    files = [file for file in (admin_file, path) if file]
    for file in files:
        tables = read_toml(file, SITES)
        if "caps" in tables and file != admin_file:
            expected = f"the administrator's file ({SYSTEM_SITE} or $HVAE_HPC_SITE)"
            raise UserError(f"{file}: [caps] stand only in {expected}")
        check_tables(tables, [EVERY_STAGE, *library, "caps", "retry"], str(file))
        retry_rules[str(file)] = tables.pop("retry", {})
        limits |= tables.pop("caps", {})
        for name, table in tables.items():  # the file and the table of an unknown key
            unknown = {key: value for key, value in table.items() if key not in known}
            load(Resources, unknown, f"{file}: {name}")
        layers.append(tables)
    caps, rules = load(Caps, limits, f"{admin_file}: caps"), read_rules(retry_rules)

    # Each stage is put together, then cut.
    where = " and ".join(map(str, files)) or "site"
    asked = {
        stage: _load_stage(stage, layers, flags or {}, f"{where}: {stage}") for stage in library
    }
    site = Site(resources=asked, caps=caps, rules=rules)
    site = _fit_stages(site, f"capped by {admin_file}")
    for stage, resources in site.resources.items():
        if wrong := _find_wrong_option(stage, resources, caps):
            raise UserError(f"{where}: {stage}: {wrong}")
    return site


def _find_wrong_option(stage: str, asked: Resources, caps: Caps) -> str:
    """Return what is wrong with a stage's further options of sbatch and srun; "" for nothing."""
    for option in (*asked.sbatch_args, *asked.srun_args):
        if is_option(option, caps.forbidden_args):
            return f"the administrator forbids {option!r}; take it out"
    if asked.gpus_in_gres not in (0, asked.gpus):
        gres = asked.sbatch_args["gres"]
        return f"gres is {gres!r}, expected as many GPUs as gpus = {asked.gpus}"
    if stage != "tables" and (asked.on_end or is_option("mail", asked.sbatch_args)):
        return "on_end and mail are for the last job; put them under [tables]"
    return ""


def _fit_stages(site: Site, why: str) -> Site:
    """Cut the resources of all stages, and note the cuts."""
    resources, notes = {}, list(site.notes)
    for stage, asked in site.resources.items():
        resources[stage], cuts = site.fit(asked, f"{stage}, {why}")
        if cuts:
            notes.append(f"{stage}: {cuts}, {why}")
    return replace(site, resources=resources, notes=tuple(notes))


def _load_stage(
    stage: str, layers: Sequence[Mapping[str, Any]], flags: Mapping[str, Any], where: str
) -> Resources:
    """Put the layers of a stage and its flags together.

    Nodes and GPUs by flags are for the generators' training alone, constraints for GPU stages.
    """
    # Account and QOS of the user's profile: sbatch would take them from there too.
    profile = {name: os.environ.get(f"SBATCH_{name.upper()}") for name in ("account", "qos")}
    table: dict[str, Any] = {name: value for name, value in profile.items() if value is not None}
    for layer in layers:
        table = merge(merge(table, layer.get(EVERY_STAGE, {})), layer.get(stage, {}))
    not_for_stage = {"nodes", "gpus"} if stage != "train" else set[str]()
    if not table.get("gpus"):
        not_for_stage = not_for_stage | {"constraint"}
    table |= {name: value for name, value in flags.items() if name not in not_for_stage}

    resources = load(Resources, table, where)
    if stage != "train" and resources.tasks > 1:
        raise UserError(
            f"{where} asks for {resources.tasks} processes per run; "
            "only train runs on several nodes or GPUs, give nodes = 1 and gpus = 1 or 0"
        )
    return resources


def fit_cluster(site: Site, partition: str, cluster: Cluster) -> Site:
    """Give every stage an existing, allowed partition, and no more than that has.

    Args:
        site: as it was read.
        partition: for the stages that have none of their own; of several, with commas between
            them, each stage gets the first that has all that it asks for.
        cluster: what SLURM allows.

    Raises:
        UserError: a partition is unknown, not among the administrator's, or its time limit leaves
            no time to work.
    """
    resources, notes, misfits = {}, list(site.notes), dict[str, str]()
    allowed = site.caps.partitions
    for stage, asked in site.resources.items():
        names = (asked.partition or partition).split(",")
        for name in names:
            if allowed and name not in allowed:
                expected = f"the administrator's ({', '.join(allowed)})"
                raise UserError(f"{stage}: partition {name!r} is not among {expected}")
        lacks = {
            name: cluster.check_partition(name).tell_lack(asked, asked.minutes) for name in names
        }
        fitting = [name for name in names if not lacks[name]]
        resources[stage] = replace(asked, partition=[*fitting, *names][0])
        if len(names) == 1:  # it cuts what is asked, or refuses it
            continue
        reasons = "; ".join(f"{name} {lack}" for name, lack in lacks.items() if lack)
        if not fitting:
            misfits[stage] = (
                f"{stage}: no partition fits: {reasons}; name another one, "
                f"or ask for less under [{stage}] in the site file"
            )
        elif lacks[names[0]]:
            notes.append(f"{stage}: partition {fitting[0]}, since {reasons}")
    site = replace(site, resources=resources, notes=tuple(notes), misfits=misfits, cluster=cluster)
    return _fit_stages(site, "all that its partition has")


FLAGS: Mapping[str, tuple[str, type, str, str]] = {
    "account": ("--account", str, "A", "SLURM account"),
    "qos": ("--qos", str, "Q", "SLURM quality of service"),
    "constraint": ("--constraint", str, "C", "features that GPU nodes must have"),
    "minutes": ("--time", int, "MIN", "longest time limit of an element, in minutes"),
    "nodes": ("--nodes", int, "N", "nodes per generator training"),
    "gpus": ("--gpus-per-node", int, "N", "GPUs per node of a generator training"),
    "array_parallelism": (
        "--array-parallelism",
        int,
        "N",
        "most elements of an array that run at a time",
    ),
    "exclude": ("--exclude", str, "NODES", "nodes that no job may use"),
    "nice": ("--nice", int, "N", "lower the jobs' priority by N"),
    "container": ("--container", str, "IMAGE", "run in this image by apptainer"),
}
"""Fields of Resources to their flag, its type, its value's name and its help."""


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(FLAGS)) -> None:
    """Give a command the flags of some fields of Resources, and ``--site``."""
    group = parser.add_argument_group(
        "SLURM", "flags override the site file; the administrator's caps limit both"
    )
    for name in names:
        flag, kind, metavar, about = FLAGS[name]
        group.add_argument(flag, dest=name, type=kind, metavar=metavar, help=about)
    about = "TOML file with resources by stage (see jobs/sites/default.toml)"
    group.add_argument("--site", type=Path, metavar="FILE", help=about)


def flags_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that were given, by the names that Resources has for them."""
    given = vars(options)
    return {name: given[name] for name in FLAGS if given.get(name) is not None}


def require_partition(options: argparse.Namespace, *others: str) -> None:
    """Raise UserError where flags for SLURM, or others that are for it alone, have no partition."""
    given = [*(FLAGS[name][0] for name in flags_of(options)), *others]
    if given and not options.partition:
        raise UserError(f"{', '.join(given)}: for SLURM; add --partition P, or leave this out")


def place_of(options: argparse.Namespace, **others: str) -> list[str]:
    """Return a command's flags that say where it works, for the next command that it prints.

    Args:
        options: of the command.
        others: flags that the next command has otherwise.
    """
    given = vars(options) | others
    flags = ["--local"] if given["local"] else []
    if is_available() and not (given["local"] or given["partition"]):
        flags = ["--partition", "P"]  # a place must be chosen here
    for name in ("partition", "account", "qos", "site"):
        if given[name]:
            flags += [f"--{name}", str(given[name])]
    return flags
