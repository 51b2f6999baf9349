"""benchmarks/gpu.py: a part that is stopped or fails keeps what it had, and says what stopped it."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

PART = """
import subprocess, sys, time
print('a line of the product', flush=True)
print('{"name": "step", "value": {"s": 0.25, "peak_gib": 5.8}}', flush=True)
if sys.argv[1] == "hangs":
    worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print('{"name": "worker", "value": %d}' % worker.pid, flush=True)
    time.sleep(600)
if sys.argv[1] == "fails":
    raise SystemExit("monai is not installed")
print('{"name": "runs", "value": 3}', flush=True)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "SCRIPT", tmp_path / "part.py")
    (tmp_path / "part.py").write_text(PART)
    return module


def test_partial_results_are_kept_with_the_reason(bench: Any, tmp_path: Path) -> None:
    limits = {"ends": 60, "fails": 60, "hangs": 5}
    parts = {name: bench.run_part(name, [], limit) for name, limit in limits.items()}
    step = {"step": {"s": 0.25, "peak_gib": 5.8}}
    assert parts["ends"]["figures"] == {**step, "runs": 3}
    # What hangs ends with all that it started, as a sweep's workers, which have their own session.
    worker = parts["hangs"]["figures"].pop("worker")
    assert not Path(f"/proc/{worker}/cwd").exists()
    assert parts["fails"]["figures"] == parts["hangs"]["figures"] == step
    assert "not_run" not in parts["ends"]
    assert parts["fails"]["not_run"] == "monai is not installed"
    assert parts["hangs"]["not_run"] == "stopped after 5 s"

    result = {"device": "NVIDIA H200", "versions": {"torch": "2.11.0"}, "parts": parts}
    path = bench.write(result, tmp_path / "out")
    assert path.name == "nvidia-h200.json"
    assert json.loads(path.read_text()) == result
    table = path.with_suffix(".md").read_text()
    assert "| hangs | step | s 0.25, peak_gib 5.8 |" in table
    assert "| fails | not run to its end | monai is not installed |" in table


def test_the_parts_longest_times_are_the_25_minutes(bench: Any) -> None:
    assert sum(bench.MINUTES.values()) == 25


def test_parts_that_are_asked_for_alone_leave_the_others_results(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "describe", lambda device: {"device": "X", "versions": {"a": "1"}})
    monkeypatch.setattr(bench, "run_part", lambda name, *_: {"s": 1.0, "figures": {name: 2}})
    for asked in (["steps", "peers"], ["projection"], ["steps"]):
        words = ["gpu.py", "--out", str(tmp_path), "--only", *asked]
        monkeypatch.setattr(bench.sys, "argv", words)
        bench.main()
    assert json.loads((tmp_path / "x.json").read_text())["parts"].keys() == {
        "steps",
        "peers",
        "projection",
    }
