"""What all tests share."""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.minislurm.fixtures import harsh_slurm, minislurm, reason_to_skip, strict_slurm  # noqa: F401

sys.path.insert(0, str(ROOT))  # tests.tiny

# A shell's background job ignores Ctrl-C, and so would all that the tests start, tests of Ctrl-C
# among them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the file of the user's queue out of the home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


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


FIRST = ("test_faults.py", "test_launcher.py", "test_local.py", "test_distributed.py")
"""What takes longest begins first, or the others would be done and wait for it."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side (pytest -n), keep a file's tests in one process, and all files that need a SLURM: two are enough."""
    from xdist.scheduler import LoadScopeScheduling

    needs = re.compile("minislurm|strict_slurm|harsh_slurm|needs_slurm|needs_accounting")
    here = Path(__file__).parent
    slurm = {
        f"tests/{path.name}" for path in here.glob("test_*.py") if needs.search(path.read_text())
    }
    config.option.loadscopereorder = False  # by FIRST, not by the number of tests

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "slurm" if file in slurm and not file.endswith(FIRST[0]) else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first; skip what needs a SLURM where there is none: marked, pytest folds them into one line."""
    items.sort(
        key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST)
    )
    reasons = {"needs_slurm": reason_to_skip(), "needs_accounting": reason_to_skip(accounting=True)}
    for item in items:
        needs = [name for name in reasons if item.get_closest_marker(name)]
        needs += ["needs_slurm"] if "minislurm" in getattr(item, "fixturenames", ()) else []
        strict = {"strict_slurm", "harsh_slurm"} & set(getattr(item, "fixturenames", ()))
        needs += ["needs_accounting"] if strict else []
        for reason in {reasons[name] for name in needs} - {""}:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per reason for which tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, number in reasons.items():
        terminalreporter.write_line(f"{number} tests skipped: {reason}")
