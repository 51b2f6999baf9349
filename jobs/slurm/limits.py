"""What a cluster has, as SLURM tells it before anything is submitted: partitions, nodes, limits."""

import contextlib
import getpass
import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import NamedTuple

from hvae_hpc.config.resources import Resources, count_gpus
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.slurm.client import ask


class Node(NamedTuple):
    """What a node has, or what a run asks of it: GPUs, memory in GB (inf if not known), cores."""

    gpus: int
    memory_gb: float
    cpus: int


def of_each_node(asked: Resources) -> Node:
    """Return what a run asks of each of its nodes."""
    return Node(asked.gpus, asked.memory_gb, asked.cpus * asked.tasks_per_node)


@frozen
class Partition:
    """What a partition allows; 0 is no limit, or none that is known.

    Attributes:
        minutes: longest time limit.
        grace_s: seconds from SIGTERM to the end when SLURM preempts.
        nodes: its nodes by name; none where SLURM does not tell.
        max_nodes: the most nodes of one job.
    """

    minutes: int
    grace_s: int
    nodes: Mapping[str, Node] = field(default_factory=dict)
    max_nodes: int = 0

    def find_best_nodes(self, asked: Resources) -> list[Node]:
        """Return what its best nodes, as many as a run asks for, have of what it asks.

        GPUs count first, then memory: with fewer cores a run is only slower.
        """
        wanted = of_each_node(asked)
        nodes = sorted(Node._make(map(min, node, wanted)) for node in self.nodes.values())
        return nodes[-min(asked.nodes, self.max_nodes or asked.nodes) :]

    def suits(self, asked: Resources) -> bool:
        """Tell whether it is known to have the nodes that a run asks for."""
        return self.find_best_nodes(asked) == [of_each_node(asked)] * asked.nodes

    def tell_lack(self, asked: Resources, minutes: int = 0) -> str:
        """Return what of a run's nodes and minutes it is known not to have, in words, or ""."""
        if 0 < self.minutes < minutes:
            return f"allows {self.minutes} of {minutes} minutes"
        if not self.nodes or self.suits(asked):
            return ""
        gpus, memory_gb, cpus = of_each_node(asked)
        return (
            f"has too few nodes with gpus = {gpus}, memory_gb = {memory_gb:g} and {cpus} cores, "
            f"expected {asked.nodes}"
        )


@frozen
class Cluster:
    """What SLURM allows.

    Attributes:
        partitions: by name; none where SLURM was not asked.
        max_array_size: the highest index of an array, plus one.
        submit_limit: elements that the user may have in the queue; 0 for no limit that we know of.
        name: what SLURM calls it.
    """

    partitions: dict[str, Partition] = field(default_factory=dict)
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

    def find_suited(self, asked: Resources) -> list[str]:
        """Return the partitions that are known to have the nodes that a run asks for."""
        return [name for name, each in sorted(self.partitions.items()) if each.suits(asked)]

    def check_suits(self, stage: str, asked: Resources) -> None:
        """Refuse resources that their partition does not have: such a job might wait for ever.

        Raises:
            UserError: it names the partitions that have them.
        """
        lack = self.check_partition(asked.partition).tell_lack(asked)
        if not lack:
            return
        suited = self.find_suited(asked)
        others = f"give --partition {' or '.join(suited)}, or " if suited else ""
        raise UserError(
            f"{stage}: partition {asked.partition} {lack}; {others}"
            f"lower them under [{stage}] in the site file (--site)"
        )


def read_cluster() -> Cluster:
    """Ask SLURM for what it allows: three calls, and one more where there is accounting."""
    nodes = _ask_nodes()
    partitions = {}
    for line in ask(["scontrol", "--all", "--oneliner", "show", "partition"]).splitlines():
        words = dict(re.findall(r"(\w+)=(\S+)", line))
        name = words["PartitionName"]
        cap_mb = re.sub(r"\D+", "", words.get("MaxMemPerNode", ""))  # "" for UNLIMITED
        cap_gb = int(cap_mb or 0) / 1024 or math.inf
        partitions[name] = Partition(
            minutes=_minutes(words.get("MaxTime", "0")),
            grace_s=int(words.get("GraceTime", "0")),
            nodes={
                node: has._replace(memory_gb=min(has.memory_gb, cap_gb))
                for node, has in nodes.get(name, {}).items()
            },
            max_nodes=int(re.sub(r"\D+", "", words.get("MaxNodes", "")) or 0),
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


def _ask_nodes() -> dict[str, dict[str, Node]]:
    """Return partition to node to its size; empty where sinfo is refused."""
    nodes: dict[str, dict[str, Node]] = {}
    with contextlib.suppress(UserError, ValueError):
        answer = ask(["sinfo", "--all", "--noheader", "--Node", "--format=%R|%N|%m|%c|%G"])
        for line in answer.splitlines():
            partition, node, memory, cpus, devices = line.strip().split("|")
            size_gb = int(memory.rstrip("+")) / 1024
            nodes.setdefault(partition, {})[node] = Node(
                gpus=count_gpus(devices),
                memory_gb=size_gb if size_gb > 1 / 1024 else math.inf,  # 1 MB: nobody set it
                cpus=int(cpus.rstrip("+")),
            )
    return nodes


def _minutes(text: str) -> int:
    """Turn "2-03:04:05" into minutes; 0 for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)
