"""What a cluster has: its partitions' nodes and memory, of made-up clients."""

from pathlib import Path

import pytest

from hvae_hpc.jobs.slurm.limits import read_cluster

SCONTROL = """#!/bin/sh
case "$*" in *partition*)
    echo "PartitionName=gpu MaxTime=1-00:00:00 MaxMemPerNode=UNLIMITED GraceTime=30"
    echo "PartitionName=capped MaxTime=UNLIMITED MaxMemPerNode=4096"
    echo "PartitionName=unset MaxTime=01:00:00 MaxMemPerNode=UNLIMITED";;
*) echo "ClusterName = one";; esac
"""
SINFO = """#!/bin/sh
printf 'gpu|n1|8192\\ngpu|n2|16384+\\ncapped|n1|8192\\nunset|n3|1\\n'
"""


@pytest.mark.parametrize("answers", [True, False])
def test_a_partition_has_the_memory_of_its_largest_node_or_what_it_is_capped_at(
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
    found = {
        name: (partition.memory_gb, sorted(partition.nodes))
        for name, partition in partitions.items()
    }
    if answers:
        assert found == {
            "gpu": (16.0, ["n1", "n2"]),
            "capped": (4.0, ["n1"]),
            "unset": (0.0, ["n3"]),
        }
    else:
        assert found == {"gpu": (0.0, []), "capped": (4.0, []), "unset": (0.0, [])}
    assert (partitions["gpu"].minutes, partitions["gpu"].grace_s, partitions["capped"].minutes) == (
        1440,
        30,
        0,
    )
