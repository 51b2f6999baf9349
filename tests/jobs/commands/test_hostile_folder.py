"""No command ends in a traceback or a wait, whatever a file of a runs folder holds.

Every file of a small folder is changed at random, and the commands that only look are run in this process. The seeds
are fixed; ``HOSTILE_FILES`` asks for more of them (``make drill``).
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.export.command import main as export
from hvae_hpc.jobs.commands import logs, status, why
from hvae_hpc.jobs.commands.cancel import cancel
from hvae_hpc.jobs.failures.retry import RetryHistory, RunRetries, write_history
from hvae_hpc.results import write
from hvae_hpc.runs.folder import append_log, write_json
from tests.jobs.queues import in_queue, make_plan, queue_of, submit
from tests.results.made_up import PAPER_ARMS, fake_metrics, finish, make_runs, write_samples

SEEDS = int(os.environ.get("HOSTILE_FILES", "120"))
FIRST = int(os.environ.get("HOSTILE_FIRST", "0"))
ARMS = (PAPER_ARMS[0], *(arm for arm in PAPER_ARMS if arm.name == "hvae+100"))
VALUES: list[Any] = [
    *(None, True, -1, 0, 7, 1.5, -1e300, 1e308, 10**30, "", "x", "x" * 300, "../../x", "\x1b[2Ja"),
    *("\ud800", "=1+1", [], {}, [1], [[1]], ["x"], {"a": 1}, {"a": {"b": []}}),
]
WORDS = ["1e400", "NaN", "-Infinity", "9" * 5000, "[" * 20000, '"', "\n", "{", "\0", "\xff", "{}"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a runs folder: done, failed, running and lost runs, two submissions, retries, samples."""
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    runs = make_runs(arms=ARMS, seeds=3, sources=("hvae", "real"))
    plan = make_plan(folder, runs)
    *done, failed, lost = runs
    for run in done:
        finish(folder, run, fake_metrics(run))
    write_samples(folder, runs)
    name = submit(plan, [[failed.run_id], [lost.run_id]])
    (folder / "submissions" / name / "12_0_0_log.out").write_text("element begins\nMemoryError\n")
    started = {"event": "started", "attempt": 1, "at": 0, "host": "n3", "job_id": "12_0"}
    ended = {"event": "failed", "reason": "x", "job_id": "12_0", "errno": 28, "errors": ["OSError"]}
    for run, records in ((failed, [started, ended]), (lost, [{**started, "job_id": "12_1"}])):
        (folder / run.folder).mkdir(parents=True)
        (folder / run.folder / f"checkpoint-{160:012}-{'a' * 16}.pt").touch()
        (folder / run.folder / ".lease-1").write_text('{"token": "x", "pid": 1, "every_s": 20.0}')
        for record in (*records[:1], {"images_seen": 160, "loss": 0.5}, *records[1:]):
            append_log(folder / run.folder, record)
    write_history(folder, RetryHistory(runs={failed.run_id: RunRetries(counts={"lost": 1})}))
    ends = {"12_0": "FAILED, exit code 1 on n3", "12_1": "TIMEOUT on n3"}
    write_json(folder / "submissions" / "ends.json", {"asked_at": 1.0, "ends": ends})
    return folder


def test_commands_that_look_never_end_in_a_traceback(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin-without-slurm")
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
        change = damage(runs / file, draw)
        for name, error in try_commands(runs, draw):
            faults.append(f"seed {seed}, {file}, {change}: {name}: {error}")
        shutil.rmtree(runs)
    signal.signal(signal.SIGALRM, before)
    assert not faults, "\n".join(faults)


def damage(path: Path, draw: random.Random) -> str:
    """Change a file in one way of many; returns which."""
    kinds: list[Callable[[Path, random.Random], str]] = [become_other, change_bytes]
    if path.suffix in (".json", ".jsonl") or path.name.startswith(".lease"):
        kinds += 4 * [change_value]
    return draw.choice(kinds)(path, draw)


def become_other(path: Path, draw: random.Random) -> str:
    """Put something else in the place of a file."""
    path.unlink()
    kinds: dict[str, Callable[[], Any]] = {
        "FIFO": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "endless": lambda: path.symlink_to("/dev/zero"),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "1 TiB": lambda: (path.touch(), os.truncate(path, 2**40)),
        "gone": lambda: None,
    }
    kind = draw.choice(list(kinds))
    kinds[kind]()
    return kind


def change_bytes(path: Path, draw: random.Random) -> str:
    """Cut a file short, or put other bytes or words into it."""
    content = path.read_bytes()
    place = draw.randrange(len(content) + 1)
    word = draw.choice([*(word.encode("latin1") for word in WORDS), draw.randbytes(20)])
    kept = draw.choice([b"", content[place:], content[place + len(word) :]])
    path.write_bytes(content[:place] + word + kept)
    return f"bytes at {place}"


def change_value(path: Path, draw: random.Random) -> str:
    """Change, remove or add one value of a JSON file, or of one line of it."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = draw.randrange(len(lines))
    data: Any = json.loads(lines[number])
    holders = [node for node in _nodes(data) if node]
    node = draw.choice(holders)
    key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
    value = draw.choice([*VALUES, "gone"])
    if value == "gone":
        del node[key]
    elif isinstance(node, dict) and draw.random() < 0.1:
        node["odd"] = value
    else:
        node[key] = value
    lines[number] = json.dumps(data)
    path.write_text("\n".join(lines) + "\n")
    return f"{key} = {value!r}"


def _nodes(data: Any) -> Iterator[Any]:
    if isinstance(data, dict | list):
        yield data
        for item in data.values() if isinstance(data, dict) else data:
            yield from _nodes(item)


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
