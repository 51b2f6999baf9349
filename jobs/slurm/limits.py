"""What a cluster has, as SLURM tells before anything is submitted: its partitions, their nodes, limits."""

import contextlib
import getpass
import re

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.client import Cluster, Partition, ask


def read_cluster() -> Cluster:
    """Ask SLURM for what it allows: three calls, one more where there is accounting."""
    partitions, nodes = {}, _ask_nodes()
    for line in ask(["scontrol", "--all", "--oneliner", "show", "partition"]).splitlines():
        words = dict(re.findall(r"(\w+)=(\S+)", line))
        name, limit, grace = (
            words["PartitionName"],
            words.get("MaxTime", "0"),
            int(words.get("GraceTime", "0")),
        )
        sizes, most = nodes.get(name, {}), re.sub(r"\D+", "", words.get("MaxMemPerNode", ""))
        memory_gb = (
            min(
                (mb for mb in (max(sizes.values(), default=0), int(most or 0)) if mb > 1), default=0
            )
            / 1024
        )
        partitions[name] = Partition(
            minutes=_minutes(limit), grace_s=grace, memory_gb=memory_gb, nodes=frozenset(sizes)
        )
    settings = dict(
        re.findall(r"^(\w+)\s*= (\S*)", ask(["scontrol", "show", "config"]), re.MULTILINE)
    )
    elements = 0
    if "slurmdbd" in settings.get("AccountingStorageType", ""):
        with contextlib.suppress(
            UserError, KeyError
        ):  # many sites hide it: then sbatch's refusal teaches it
            user = ["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}"]
            elements = min(
                map(int, re.findall(r"\d+", ask([*user, "format=maxsubmit,grpsubmit"]))), default=0
            )
    size, name = int(settings.get("MaxArraySize", "1001")), settings.get("ClusterName", "")
    return Cluster(partitions=partitions, max_array_size=size, submit_limit=elements, name=name)


def _ask_nodes() -> dict[str, dict[str, int]]:
    """Return partition to node to its memory, MB; 1 where nobody has configured it, nothing where sinfo is refused."""
    nodes: dict[str, dict[str, int]] = {}
    with contextlib.suppress(UserError, ValueError):
        for line in ask(
            ["sinfo", "--all", "--noheader", "--Node", "--format=%R|%N|%m"]
        ).splitlines():
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
