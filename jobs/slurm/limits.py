"""What a cluster has, as SLURM tells it before anything is submitted: partitions, nodes, limits."""

import contextlib
import getpass
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.client import ask


class Node(NamedTuple):
    """What a job may have of a node: cores, host memory in GB (inf if nobody set it), GPUs."""

    cpus: int
    memory_gb: float
    gpus: int

    def suits(self, asked: Resources) -> bool:
        """Tell whether one node of a run fits on it."""
        return self.gpus >= asked.gpus and self.share(asked) == 1

    def share(self, asked: Resources) -> float:
        """Return how much it has of the cores and the memory that a run asks for: 1 for all."""
        cpus = asked.cpus * asked.tasks_per_node
        return min(1, self.cpus / cpus) * min(1, self.memory_gb / asked.memory_gb)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """What a partition allows; 0 is no limit, or none that is known.

    Attributes:
        minutes: longest time limit.
        grace_s: seconds from SIGTERM to the end when SLURM preempts.
        memory_gb: host memory of its largest node, or what a job may have there.
        nodes: its nodes by name; none where SLURM does not tell.
    """

    minutes: int
    grace_s: int
    memory_gb: float = 0.0
    nodes: Mapping[str, Node] = field(default_factory=dict)

    def best_node(self, asked: Resources) -> Node | None:
        """Return the least of the best nodes for a run; None where none is known to suit."""
        nodes = [node for node in self.nodes.values() if node.gpus >= asked.gpus]
        nodes.sort(key=lambda node: node.share(asked), reverse=True)
        return nodes[min(asked.nodes, len(nodes)) - 1] if nodes else None

    def count_suited(self, asked: Resources) -> int:
        """Count the nodes that one node of a run fits on."""
        return sum(node.suits(asked) for node in self.nodes.values())


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

    def find_suited(self, asked: Resources) -> list[str]:
        """Return the partitions that have the nodes that a run asks for."""
        return sorted(
            name
            for name, partition in self.partitions.items()
            if partition.count_suited(asked) >= asked.nodes
        )

    def check_suits(self, stage: str, asked: Resources) -> None:
        """Refuse resources that their partition does not have: such a job might wait for ever.

        Raises:
            UserError: it names the partitions that have them.
        """
        partition = self.check_partition(asked.partition)
        suited = partition.count_suited(asked)
        if suited >= asked.nodes or not partition.nodes:
            return
        others = " or ".join(self.find_suited(asked))
        raise UserError(
            f"{stage}: partition {asked.partition} has {suited} nodes with gpus = {asked.gpus}, "
            f"cpus = {asked.cpus * asked.tasks_per_node} and memory_gb = {asked.memory_gb:g}, "
            f"expected {asked.nodes}; "
            + (f"give --partition {others}, or " if others else "")
            + f"lower them under [{stage}] in the site file (--site)"
        )


def read_cluster() -> Cluster:
    """Ask SLURM for what it allows: three calls, and one more where there is accounting."""
    nodes = _ask_nodes()
    partitions = {}
    for line in ask(["scontrol", "--all", "--oneliner", "show", "partition"]).splitlines():
        words = dict(re.findall(r"(\w+)=(\S+)", line))
        name = words["PartitionName"]
        cap_gb = _limit(words, "MaxMemPerNode") / 1024
        cap_cpus = _limit(words, "MaxCPUsPerNode")
        capped = {
            node: Node(int(min(cpus, cap_cpus)), min(memory_gb, cap_gb), gpus)
            for node, (cpus, memory_gb, gpus) in nodes.get(name, {}).items()
        }
        memory_gb = max([node.memory_gb for node in capped.values()], default=cap_gb)
        partitions[name] = Partition(
            minutes=_minutes(words.get("MaxTime", "0")),
            grace_s=int(words.get("GraceTime", "0")),
            memory_gb=memory_gb if memory_gb < math.inf else 0,
            nodes=capped,
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
            memory_mb = int(memory.rstrip("+"))  # 1 where nobody has configured it
            memory_gb = memory_mb / 1024 if memory_mb > 1 else math.inf
            size = Node(int(cpus.rstrip("+")), memory_gb, _count_gpus(devices))
            nodes.setdefault(partition, {})[node] = size
    return nodes


def _count_gpus(devices: str) -> int:
    """Count the GPUs of "gpu:a100:4(S:0-1),gpu:2,shard:8"; "gpu" alone is one."""
    gpus = [each for each in devices.split(",") if each.startswith("gpu")]
    counts = [re.search(r":(\d+)(\(|$)", each) for each in gpus]
    return sum(int(count[1]) if count else 1 for count in counts)


def _limit(words: Mapping[str, str], name: str) -> float:
    """Return a limit of a partition; infinite for UNLIMITED, and for none."""
    text = words.get(name, "")
    return int(text) if text.isdigit() and int(text) > 0 else math.inf


def _minutes(text: str) -> int:
    """Turn "2-03:04:05" into minutes; 0 for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    days, hours, minutes, seconds = (
        (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    )
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)
