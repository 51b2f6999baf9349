"""No command ends in a traceback or a wait, whatever a file of a runs folder holds.

Every file of a small folder is changed at random, and the commands that only look are run in this process. The seeds
are fixed; ``HOSTILE_FILES`` asks for more of them (``make drill``).
"""

import contextlib
import io
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.export.command import main as export
from hvae_hpc.jobs.commands import logs, status, why
from hvae_hpc.jobs.commands.cancel import cancel
from hvae_hpc.results import write
from tests.fuzz.damage import become_other, change_value, put_words
from tests.jobs.hostile_runs import make_hostile_runs
from tests.jobs.queues import in_queue, queue_of

SEEDS = int(os.environ.get("HOSTILE_FILES", "60"))
FIRST = int(os.environ.get("HOSTILE_FIRST", "0"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    make_hostile_runs(folder)
    return folder


def test_commands_that_look_never_end_in_a_traceback(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin-without-slurm")
    monkeypatch.setattr(os, "fsync", lambda file: None)  # what is written here may be lost
    monkeypatch.setattr(write, "write_figures", lambda *_: ([], []))
    monkeypatch.setattr(write, "write_report", lambda path, *_: path)
    monkeypatch.setattr(write, "write_rows", lambda *_: [])
    rows = [in_queue("small-abc", [0, 1], state) for state in ("RUNNING", "PENDING")]
    queue = queue_of(*rows, rows[0]._replace(comment="", job="12"))
    asked: list[str] = []
    monkeypatch.setattr("hvae_hpc.jobs.slurm.client.read_queue", lambda **_: queue)
    monkeypatch.setattr("hvae_hpc.jobs.slurm.client.ask", lambda *said: asked.append(str(said)))
    files = sorted(path.relative_to(base) for path in base.rglob("*") if path.is_file())
    assert len(files) > 20

    def give_up(*_: object) -> None:
        raise TimeoutError("it waits")

    faults, before = [], signal.signal(signal.SIGALRM, give_up)
    for seed in range(FIRST, FIRST + SEEDS):
        draw = random.Random(seed)
        runs = tmp_path / "runs"
        shutil.copytree(base, runs)
        file = files[seed % len(files)]
        change = damage_file(runs / file, draw)
        for name, error in try_commands(runs, draw):
            faults.append(f"seed {seed}, {file}, {change}: {name}: {error}")
        shutil.rmtree(runs)
    signal.signal(signal.SIGALRM, before)
    assert not faults, "\n".join(faults)


def damage_file(path: Path, draw: random.Random) -> str:
    """Change a file in one way of many; returns which."""
    is_json = path.suffix in (".json", ".jsonl") or path.name.startswith(".lease")
    changes = [become_other, put_words, *[change_value] * 4 * is_json]
    change = draw.choice(changes)
    if change is become_other:
        return become_other(path, draw)
    path.write_bytes(change(path.read_bytes(), draw))
    return change.__name__


def try_commands(runs: Path, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield the commands that ended in anything but an answer or one line, and that error."""
    here = ["--runs", str(runs)]
    run = draw.choice([path.name for path in sorted(runs.glob("segment/*"))] or ["x"])
    commands: dict[str, Callable[[], object]] = {
        "status": lambda: status.main([str(runs), "--costs"]),
        "status --json": lambda: status.main([str(runs), "--json", "--costs"]),
        "logs": lambda: logs.main([run, *here]),
        "why": lambda: why.main([run, *here]),
        "cancel": lambda: cancel(here),
        "results": lambda: write.write_results(runs, "small", partial=True),
        "export": lambda: export(["hvae", "--png", str(runs.parent / "png"), *here]),
    }
    for name, command in commands.items():
        screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # refuses what a terminal does
        signal.alarm(30)
        try:
            with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                command()
        except UserError:
            pass
        except Exception as error:
            yield name, f"{type(error).__name__}: {error}"[:300]
        finally:
            signal.alarm(0)
