"""A process that damages one input after another and gives it to the real commands, under limits.

Lines "KIND SEED" come in on stdin; an :class:`Outcome` as JSON goes out for each.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hvae_hpc.cli import _dispatch
from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.store.manifest import MANIFEST
from hvae_hpc.preprocess.store.reader import DatasetReader
from tests.fuzz.inputs import KINDS, Commands, Draw

MOST_BYTES = 2**30
"""What one input may ask for, beyond what the process had."""
MOST_SECONDS = 10.0
"""What it may compute; on a machine with nothing else to do it is what a person waits."""
EXPECTED = r"^error: |^  |^warning: |records of ours|they count as none"
"""Of lines on stderr: the one of a fault, a bad case or an option in it, and a note."""


def main() -> None:
    """Answer until stdin ends."""
    good, place = map(Path, sys.argv[1:3])
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as nowhere:
        os.dup2(nowhere.fileno(), 1)
    for kind in KINDS:  # imports, pools and caches are no input's fault
        with contextlib.suppress(Exception):
            run_input(good, place, kind, 0)
    base = _read_status("VmRSS")
    limit = _read_status("VmSize") + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        kind, seed = line.split()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # of CPU; its signal ends the process
        began = time.process_time()
        outcome, text = run_input(good, place, kind, int(seed))
        seconds = time.process_time() - began
        grown = max(0, _read_status("VmHWM") - base) / 2**20
        answer = {"outcome": outcome, "text": text, "seconds": seconds, "mib": grown}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def run_input(
    good: Path, place: Path, kind: str, seed: int, intact: bool = False
) -> tuple[str, str]:
    """Make an input, give it to its commands, and judge how they end.

    Returns:
        "done", "one line", "no memory", or what is wrong: "traceback", "noise", "bad pairs". And
        the last words of the command.
    """
    here = place / "input"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(good / kind, here)
    commands = KINDS[kind](here, Draw(kind, seed, intact))
    with contextlib.chdir(here):
        return _run_commands(commands)


def _run_commands(commands: Commands) -> tuple[str, str]:
    outcome, said = "done", ""
    for command in commands:
        code, errors = _run_command(command)
        lines = [line for line in errors.splitlines() if line.strip()]
        said = lines[-1][:300] if lines else said
        if code is None:
            return "traceback", f"{command[0]}: {said}"
        strange = [line for line in lines if not re.search(EXPECTED, line)]
        if code not in (0, 1, 2) or strange or (code == 2 and not lines):
            return "noise", f"{command[0]}: exit code {code}, {(strange or lines or [''])[0][:300]}"
        if code:
            memory = "fit into memory" in errors
            outcome = "no memory" if memory or outcome == "no memory" else "one line"
        elif command[0] == "preprocess" and Path("out", MANIFEST).exists():
            try:
                _check_pairs()
            except Exception as error:
                return "bad pairs", f"{type(error).__name__}: {error}"
    return outcome, said


def _run_command(command: tuple[str, ...]) -> tuple[int | None, str]:
    """Run a command as its script does; returns its exit code, None for a traceback, and its stderr."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        with _streams_into(output.fileno(), errors.fileno()):
            try:
                code: int | None = run_command(_dispatch, command)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
                code = None
        errors.seek(0)
        text = errors.read().decode(errors="backslashreplace")
    return code, re.sub(r"\r? *\d+%\|[^\r\n]*", "", text)  # without the progress bar


@contextlib.contextmanager
def _streams_into(output: int, errors: int) -> Iterator[None]:
    """Lead what Python and what C libraries print into other files."""
    kept = [os.dup(number) for number in (1, 2)]
    os.dup2(output, 1)
    os.dup2(errors, 2)
    try:
        with (
            open(1, "w", closefd=False) as out,
            open(2, "w", buffering=1, closefd=False, errors="backslashreplace") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _check_pairs() -> None:
    """Read what was packed: images within 0 and 1, masks of 0 and 1, a tumour in each."""
    pairs = DatasetReader(Path("out")).read_all()
    if not (pairs.images.min() >= 0 and pairs.images.max() <= 1):  # nan is neither
        raise ValueError("an image is not within 0 and 1")
    if not (set(np.unique(pairs.masks)) <= {0, 1} and pairs.masks.any(axis=(1, 2)).all()):
        raise ValueError("a mask is empty, or holds other values than 0 and 1")


def _read_status(name: str) -> int:
    """Return a size of this process, in bytes, as Linux gives it."""
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"{name}:\s+(\d+) kB", text)
    assert match
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
