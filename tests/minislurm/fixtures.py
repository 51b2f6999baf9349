"""Private SLURMs of four nodes for the whole test session; conftest imports the fixtures from here."""

import getpass
from collections.abc import Iterator

import pytest

from tests.minislurm.minislurm import PACKAGES, MiniSlurm, MiniSlurmConfig, missing_programs


def reason_to_skip(*, accounting: bool = False) -> str:
    """Say why tests with real SLURM daemons cannot run here; "" where they can."""
    missing = missing_programs(accounting=accounting)
    how = f"install the Debian packages {PACKAGES} (INSTALL_SLURM=1 does)"
    return f"no {', '.join(missing)}: {how}" if missing else ""


@pytest.fixture(scope="session")
def minislurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniSlurm]:
    """Four idle nodes with 4 CPUs and 2 GPUs each; a test that uses them leaves them idle."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with MiniSlurm(MiniSlurmConfig(folder=tmp_path_factory.mktemp("minislurm"))) as slurm:
        yield slurm


STRICT = """
JobRequeue=0
AccountingStorageEnforce=associations,limits
PartitionName=graceful Nodes=ALL PriorityTier=1 GraceTime=10
PartitionName=short Nodes=ALL PriorityTier=1 MaxTime=20
Licenses=tea:2
"""


@pytest.fixture(scope="session")
def strict_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniSlurm]:
    """A SLURM with accounting, JobRequeue=0, MaxArraySize 100, a grace time, a short partition, two licences, and at most 50 elements per user."""
    if reason := reason_to_skip(accounting=True):
        pytest.skip(reason)
    config = MiniSlurmConfig(
        folder=tmp_path_factory.mktemp("strict"),
        accounting=True,
        max_array_size=100,
        extra_slurm_conf=STRICT,
    )
    with MiniSlurm(config) as slurm:
        me = getpass.getuser()
        slurm.client("sacctmgr", "-i", "add", "account", "lab")
        slurm.client("sacctmgr", "-i", "add", "user", me, "account=lab")
        slurm.client("sacctmgr", "-i", "modify", "user", me, "set", "defaultaccount=lab")
        slurm.client("sacctmgr", "-i", "modify", "user", me, "set", "maxsubmitjobs=50")
        yield slurm


HARSH = """
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=1
"""


@pytest.fixture(scope="session")
def harsh_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniSlurm]:
    """A SLURM with accounting that ends what takes more memory than it asked for, and cancels what it preempts."""
    if reason := reason_to_skip(accounting=True):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("harsh")
    with MiniSlurm(
        MiniSlurmConfig(folder=folder, accounting=True, extra_slurm_conf=HARSH)
    ) as slurm:
        slurm.client("scontrol", "update", "PartitionName=gpu", "PreemptMode=CANCEL")
        yield slurm
