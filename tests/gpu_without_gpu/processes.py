"""Traces in processes of their own: the fake device must be there before torch."""

import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests import ROOT

Trace = dict[str, Any]

TINY = ("--px", "32", "--batch", "8", "--steps", "2")
"""Options for the small networks, where no size matters."""


def run_trace(words: tuple[str, ...]) -> list[Trace]:
    """Run one command line of ``python -m tests.gpu_without_gpu``; return its lines.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.gpu_without_gpu", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout)[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run_traces(commands: Sequence[tuple[str, ...]], at_once: int = 2) -> Iterator[list[Trace]]:
    """Run several, some at once; yield the lines of each, in their order."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(run_trace, commands)


trace_once = functools.cache(run_trace)
"""Run a command line; a second time, return the lines of the first."""


def networks_of(words: Sequence[str]) -> list[str]:
    """Return the networks that a command line names, which come before its options."""
    return list(itertools.takewhile(lambda word: not word.startswith("--"), words))
