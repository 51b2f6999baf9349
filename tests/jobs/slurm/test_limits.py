"""What a cluster has: its partitions' nodes, cores, memory and GPUs, of made-up clients."""

from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites.site import fit_cluster, read_site
from hvae_hpc.jobs.slurm.limits import Cluster, Node, Partition, read_cluster

SCONTROL = """#!/bin/sh
case "$*" in *partition*)
    echo "PartitionName=gpu MaxTime=1-00:00:00 MaxMemPerNode=UNLIMITED MaxNodes=UNLIMITED GraceTime=30"
    echo "PartitionName=capped MaxTime=UNLIMITED MaxMemPerNode=4096 MaxNodes=1"
    echo "PartitionName=unset MaxTime=01:00:00 MaxMemPerNode=UNLIMITED";;
*) echo "ClusterName = one";; esac
"""
SINFO = """#!/bin/sh
cat << END
gpu|n1|8192|4|gpu:2
gpu|n2|16384+|16|gpu:a100:4(S:0,1),gpu:1,shard:8
capped|n1|8192|4|(null)
unset|n3|1|8+|gpu
END
"""


@pytest.mark.parametrize("answers", [True, False])
def test_nodes_have_what_sinfo_says_up_to_their_partition_s_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    for name, text in (
        ("scontrol", SCONTROL),
        ("sinfo", SINFO if answers else "#!/bin/sh\nexit 1\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    partitions = read_cluster().partitions
    told = {name: partition.nodes for name, partition in partitions.items()}
    if answers:
        assert told == {
            "gpu": {"n1": Node(2, 8.0, 4), "n2": Node(5, 16.0, 16)},
            "capped": {"n1": Node(0, 4.0, 4)},
            "unset": {"n3": Node(1, float("inf"), 8)},
        }
    else:
        assert told == {"gpu": {}, "capped": {}, "unset": {}}
    assert (partitions["gpu"].minutes, partitions["gpu"].grace_s, partitions["capped"].minutes) == (
        1440,
        30,
        0,
    )
    assert {name: each.max_nodes for name, each in partitions.items()} == {
        "gpu": 0,
        "capped": 1,
        "unset": 0,
    }


def test_a_partition_does_not_suit_a_job_of_more_nodes_than_it_allows() -> None:
    nodes = {name: Node(2, 8.0, 4) for name in ("n1", "n2", "n3")}
    asked = Resources(nodes=2, gpus=2, memory_gb=8, cpus=2)
    suited = [
        Partition(minutes=0, grace_s=0, nodes=nodes, max_nodes=n).suits(asked) for n in range(4)
    ]
    assert suited == [True, False, True, True]  # 0 is no limit


def make_cluster(**nodes: list[Node]) -> Cluster:
    """Make a cluster of partitions with so many nodes each."""
    return Cluster(
        partitions={
            name: Partition(
                minutes=0, grace_s=0, nodes={f"{name}{i}": node for i, node in enumerate(sizes)}
            )
            for name, sizes in nodes.items()
        }
    )


def test_cores_are_fitted_to_the_nodes_as_memory_is() -> None:
    small, large, fast = Node(0, 8.0, 4), Node(0, 64.0, 6), Node(2, 64.0, 8)
    cluster = make_cluster(cpu=[small, small, large], gpu=[fast])
    site = fit_cluster(read_site(None), "cpu", cluster)
    assert (site.resources["pack"].cpus, site.resources["pack"].memory_gb) == (6, 16)
    assert "pack: cpus 8 to 6, all that its partition has" in site.notes
    assert site.resources["tables"].cpus == 1
    cluster.check_suits("pack", site.resources["pack"])

    # Cores are counted for each process; with several nodes the least of them counts.
    two = replace(read_site(None).resources["train"], gpus=2, cpus=6)
    assert site.fit(replace(two, partition="gpu"))[0].cpus == 4
    assert site.fit(replace(two, gpus=0, partition="cpu"))[0].cpus == 6
    three_nodes = replace(two, gpus=0, nodes=3, partition="cpu")
    fitted = site.fit(three_nodes)[0]
    assert (fitted.cpus, fitted.memory_gb) == (4, 8)
    cluster.check_suits("train", fitted)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            Resources(partition="cpu", gpus=1, cpus=4, memory_gb=32),
            "train: partition cpu has too few nodes with gpus = 1, memory_gb = 32 and 4 cores, "
            "expected 1; give --partition big or gpu, or lower them under [train] in the site file",
        ),
        (
            Resources(partition="gpu", gpus=2, nodes=3),
            "has too few nodes with gpus = 2, memory_gb = 8 and 2 cores, expected 3; lower them under",
        ),
        (  # one node has the cores, another one the memory
            Resources(partition="mixed", cpus=16, memory_gb=64),
            "has too few nodes with gpus = 0, memory_gb = 64 and 16 cores, expected 1; give --partition",
        ),
    ],
)
def test_what_no_node_of_a_partition_has_is_refused(asked: Resources, message: str) -> None:
    big = Node(4, 512.0, 64)
    cluster = make_cluster(
        cpu=[Node(0, 64.0, 4)],
        gpu=[Node(2, 64.0, 8)] * 2,
        big=[big],
        mixed=[Node(0, 8.0, 64), Node(0, 512.0, 4)],
    )
    with pytest.raises(UserError) as error:
        cluster.check_suits("train", asked)
    assert message in str(error.value)
    cluster.check_suits("train", replace(asked, partition="big", nodes=1))

    # Where SLURM does not tell of nodes, it is asked by sbatch alone.
    unknown = Cluster(partitions={"cpu": Partition(minutes=0, grace_s=0)})
    unknown.check_suits("train", replace(asked, partition="cpu"))
