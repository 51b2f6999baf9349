"""What all tests share."""

import sys
from pathlib import Path

import pytest

from tests.slurm_fixture import minislurm  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests.tiny


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Pin torch to one thread where it is used at all: results are equal bit for bit only then."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
