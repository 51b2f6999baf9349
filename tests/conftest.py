"""What all tests share."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests import ROOT
from tests.minislurm.fixtures import harsh_slurm, minislurm, reason_to_skip, strict_slurm  # noqa: F401

sys.path.insert(0, str(ROOT))  # tests.tiny

# A shell's background job ignores Ctrl-C, and so would all that the tests start, tests of Ctrl-C
# among them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the file of the user's queue out of the home folder, and away from the next test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Pin torch to one thread where it is used at all: results are equal bit for bit only then."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# Vector files of figures take half of the time that results take: of all processes, but where
# they are looked at.
os.environ["HVAE_HPC_FIGURES"] = "png"


@pytest.fixture(scope="module")
def all_formats() -> Iterator[None]:
    """Write the vector files of figures too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HVAE_HPC_FIGURES")
        yield


LONGEST = (
    "test_faults.py",
    "test_local_sweep.py",
    "test_compiled_steps.py",
    "test_drill.py",
    "test_eager_steps.py",
    "test_prepare.py",
    "test_kills.py",
    "test_disk_full.py",
    "test_distributed.py",
)
"""These files begin first: what takes longest is not to be waited for at the end."""


SLOW = {
    "test_commands.py",
    "test_compile_cache.py",
    "test_compiled_steps.py",
    "test_disk_full.py",
    "test_distributed.py",
    "test_drill.py",
    "test_eager_steps.py",
    "test_kills.py",
    "test_local_sweep.py",
    "test_multinode.py",
    "test_pool.py",
    "test_report.py",
}
"""Files of tests that compile, start a browser, or take long for other reasons."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, skip what needs a SLURM that is not there, and mark it slow."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    no_slurm, no_accounting = reason_to_skip(), reason_to_skip(accounting=True)
    for item in items:
        names = {*getattr(item, "fixturenames", ()), *(mark.name for mark in item.iter_markers())}
        needs_accounting = names & {"strict_slurm", "harsh_slurm", "needs_accounting"}
        needs_slurm = names & {"minislurm", "needs_slurm"}
        if needs_slurm or needs_accounting or item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
        reason = no_accounting if needs_accounting else no_slurm if needs_slurm else ""
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per reason for which tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, number in reasons.items():
        terminalreporter.write_line(f"{number} tests skipped: {reason}")
