"""A private SLURM of four nodes for the whole test session; conftest imports ``minislurm`` from here."""

from collections.abc import Iterator

import pytest

from hvae_hpc.jobs.minislurm import PACKAGES, MiniSlurm, MiniSlurmConfig, missing_programs


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
