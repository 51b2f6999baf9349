"""Traces in processes of their own: the fake device must be there before torch."""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests import ROOT

Trace = dict[str, Any]


def run_trace(words: Sequence[str]) -> list[Trace]:
    """Run one command line of ``python -m tests.gpu_without_gpu``; return its lines.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.gpu_without_gpu", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout)[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run_traces(commands: Sequence[Sequence[str]], at_once: int = 2) -> list[list[Trace]]:
    """Run several, some at once; those that take longest come first."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(run_trace, commands))
