"""What a cluster has, as SLURM tells it before anything is submitted: partitions, nodes, limits."""

import contextlib
import getpass
import re
from dataclasses import dataclass

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.client import ask


@dataclass(frozen=True, kw_only=True)
class Partition:
    """What a partition allows; 0 is no limit, or none that is known.

    Attributes:
        minutes: longest time limit.
        grace_s: seconds from SIGTERM to the end when SLURM preempts.
        memory_gb: host memory of its largest node, or what a job may have there.
        nodes: names of its nodes.
    """

    minutes: int
    grace_s: int
    memory_gb: float = 0.0
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What SLURM allows.

    Attributes:
        partitions: by name.
        max_array_size: the highest index of an array, plus one.
        submit_limit: elements that the user may have in the queue; 0 for no limit that we know of.
        name: what SLURM calls it.
    """

    partitions: dict[str, Partition]
    max_array_size: int = 1001
    submit_limit: int = 0
    name: str = ""

    def check_partition(self, name: str) -> Partition:
        """Return a partition; a UserError names those that exist."""
        if name not in self.partitions:
            raise UserError(
                f"unknown partition {name!r}; this cluster has {', '.join(sorted(self.partitions))}"
            )
        return self.partitions[name]


def read_cluster() -> Cluster:
    """Ask SLURM for what it allows: three calls, and one more where there is accounting."""
    nodes = _ask_nodes()
    partitions = {}
    for line in ask(["scontrol", "--all", "--oneliner", "show", "partition"]).splitlines():
        words = dict(re.findall(r"(\w+)=(\S+)", line))
        name = words["PartitionName"]
        memory_mb = nodes.get(name, {})
        cap_mb = re.sub(r"\D+", "", words.get("MaxMemPerNode", ""))  # "" for UNLIMITED
        known_mb = [mb for mb in (max(memory_mb.values(), default=0), int(cap_mb or 0)) if mb > 1]
        partitions[name] = Partition(
            minutes=_minutes(words.get("MaxTime", "0")),
            grace_s=int(words.get("GraceTime", "0")),
            memory_gb=min(known_mb, default=0) / 1024,
            nodes=frozenset(memory_mb),
        )

    config = ask(["scontrol", "show", "config"])
    settings = dict(re.findall(r"^(\w+)\s*= (\S*)", config, re.MULTILINE))
    has_accounting = "slurmdbd" in settings.get("AccountingStorageType", "")
    return Cluster(
        partitions=partitions,
        max_array_size=int(settings.get("MaxArraySize", "1001")),
        submit_limit=_ask_submit_limit() if has_accounting else 0,
        name=settings.get("ClusterName", ""),
    )


def _ask_submit_limit() -> int:
    """Return the lowest limit of elements in the queue that the user's associations have.

    Many sites hide it: then it is 0, and sbatch's refusal tells.
    """
    command = ["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}"]
    with contextlib.suppress(UserError, KeyError):  # KeyError: a user without a name
        limits = re.findall(r"\d+", ask([*command, "format=maxsubmit,grpsubmit"]))
        return min(map(int, limits), default=0)
    return 0


def _ask_nodes() -> dict[str, dict[str, int]]:
    """Return partition to node to its memory in MB; 1 where nobody has configured it.

    Empty where sinfo is refused.
    """
    nodes: dict[str, dict[str, int]] = {}
    with contextlib.suppress(UserError, ValueError):
        answer = ask(["sinfo", "--all", "--noheader", "--Node", "--format=%R|%N|%m"])
        for line in answer.splitlines():
            partition, node, size = line.strip().split("|")
            nodes.setdefault(partition, {})[node] = int(size.rstrip("+"))
    return nodes


def _minutes(text: str) -> int:
    """Turn "2-03:04:05" into minutes; 0 for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    days, hours, minutes, seconds = (
        (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    )
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)
