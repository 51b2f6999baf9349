"""Nodes that are left out for a while after they failed: which of a partition's, and never most of them."""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import replace

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.slurm.client import Cluster


def without_bad_nodes(
    resources: Resources, until: Mapping[str, float], cluster: Cluster
) -> Resources:
    """Exclude nodes that failed lately, the latest first: a fault of our own may look like that of many nodes.

    Nothing is excluded where features are asked for, since nobody knows which nodes have them.

    Args:
        resources: of a stage, with its partition.
        until: node to the time until which no run goes there, in seconds since 1970.
        cluster: for the partition's nodes, of which what a run needs is left, and half of what the
            user left.
    """
    if resources.constraint:
        return resources
    mine = cluster.check_partition(resources.partition).nodes - expand_hosts(resources.exclude)
    bad = sorted(
        (node for node in mine & until.keys() if until[node] > time.time()),
        key=lambda n: (-until[n], n),
    )
    most = max(0, len(mine) - max(resources.nodes, math.ceil(len(mine) / 2)))
    return replace(resources, exclude=",".join([*filter(None, [resources.exclude]), *bad[:most]]))


def expand_hosts(text: str) -> frozenset[str]:
    """Return the nodes that a list as SLURM writes it names: "n[1-3,07],gpu5"."""
    found = set[str]()
    todo = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text)
    while todo:
        name = todo.pop()
        if not (match := re.search(r"\[([\d,-]*)\]", name)):
            found.add(name.strip())
            continue
        for part in match[1].split(","):
            first, _, last = part.partition("-")
            if first.isdigit() and (last or first).isdigit():
                numbers = range(int(first), int(last or first) + 1)
                todo += [
                    f"{name[: match.start()]}{n:0{len(first)}}{name[match.end() :]}"
                    for n in numbers
                ]
    return frozenset(found - {""})
