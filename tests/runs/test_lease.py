"""One writer per folder: real processes race for it, are killed, stopped and continued.

A file system without hard links, and other machines, are made up by what each child says of itself;
the rest is real.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.runs import lease
from hvae_hpc.runs.folder import (
    CONFIG,
    INPUTS,
    LOG,
    METRICS,
    SNAPSHOT,
    append_log,
    read_log,
    write_atomic,
)
from hvae_hpc.runs.lease import LEASE, LostError, is_held, locked
from hvae_hpc.runs.plan import write_plan
from tests import ROOT
from tests.jobs.worker.test_run import make_plan, run_named

BEAT_S = 0.15
DEAD_S = lease.MISSED * BEAT_S
"""How long the children's leases are watched before they count as dead."""

PREAMBLE = f"""
import errno, os, random, sys, time
from pathlib import Path
from hvae_hpc.runs import lease
from hvae_hpc.errors import run_command
from hvae_hpc.runs.lease import locked
from hvae_hpc.runs.folder import append_log, write_json
lease.HEARTBEAT_S, lease.LOOK_EVERY_S = {BEAT_S}, 0.05
"""
NO_LINKS = """
def refuse(*_):
    raise OSError(errno.EPERM, "Operation not permitted")
os.link = refuse
"""
ELSEWHERE = "lease._machine = lambda: str(os.getpid())\n"
HOLD = """
with locked(Path("run")) as mine:
    print("holds" if mine else "held", flush=True)
    sys.stdin.readline()
    write_json(Path("run/metrics.json"), {"by": os.getpid()})
"""


class Child:
    """A process that runs some lines of Python in a folder; ended with the test."""

    def __init__(self, folder: Path, code: str, *argv: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *argv],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hears(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ends(self, said: str = "") -> tuple[int, str, str]:
        out, err = self.process.communicate(said, timeout=120)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path):
    children: list[Child] = []

    def begin(code: str, *argv: str) -> Child:
        children.append(Child(tmp_path, code, *argv))
        return children[-1]

    yield begin
    for child in children:
        child.process.kill()
        child.process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", BEAT_S)
    monkeypatch.setattr(lease, "LOOK_EVERY_S", 0.05)


Start = Callable[..., Child]


def leases(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{LEASE}*"))


def leave_behind(folder: Path, number: int, **who: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{LEASE}{number}"
    there = {
        "token": "t",
        "host": "n9",
        "machine": "m",
        "pid": 7,
        "began": "1",
        "job": "",
        "every_s": BEAT_S,
    }
    path.write_text(json.dumps(there | who))
    return path


@pytest.mark.parametrize("setting", ["", NO_LINKS])
def test_a_folder_has_one_writer_and_one_that_is_killed_holds_nothing(
    setting: str, start: Start, tmp_path: Path
) -> None:
    killed = start(setting + HOLD)
    assert killed.hears() == "holds"
    assert leases(tmp_path / "run") == [f"{LEASE}1"]
    assert is_held(tmp_path / "run")
    assert start(setting + HOLD).hears() == "held"
    killed.process.kill()
    killed.process.wait()
    assert not is_held(tmp_path / "run")
    holder = start(setting + HOLD)  # at once: it is known on this machine that the process is gone
    assert holder.hears() == "holds"
    assert holder.ends("\n")[0] == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.json"}


RACE = """
def doze(function):
    def slow(*given):
        time.sleep(random.choice([0, 0, 0, 0.02]) * random.random())
        found = function(*given)
        time.sleep(random.choice([0, 0, 0, 0.02]) * random.random())
        return found
    return slow
lease._look, lease._create = doze(lease._look), doze(lease._create)
until = time.monotonic() + float(sys.argv[1])
holds = 0
while time.monotonic() < until:
    with locked(Path("run")) as mine:
        if mine:
            append_log(Path("run"), {"event": "begin", "by": os.getpid()})
            time.sleep(0.01 * random.random())
            append_log(Path("run"), {"event": "end", "by": os.getpid()})
            holds += 1
    time.sleep(0.01 * random.random())
print(holds)
"""


@pytest.mark.parametrize("setting", ["", NO_LINKS])
def test_processes_that_race_for_a_folder_never_hold_it_together(
    setting: str, start: Start, tmp_path: Path
) -> None:
    leave_behind(tmp_path / "run", 3)  # it blocks nobody for ever
    # No living process misses so many beats, also on a slow machine.
    slow = f"lease.HEARTBEAT_S = 20\n{setting}"
    racers = [start(slow + (ELSEWHERE if i % 2 else "") + RACE, "3") for i in range(5)]
    began = time.monotonic()
    for racer in racers:
        code, out, err = racer.ends()
        assert code == 0, err
        assert int(out) > 0
    events = [(entry["event"], entry["by"]) for entry in read_log(tmp_path / "run")]
    assert len(events) >= 100, time.monotonic() - began
    assert len(events) == 2 * sum(event == "begin" for event, _ in events)
    for (first, by), (second, other) in zip(events[::2], events[1::2], strict=True):
        assert (first, second, by) == ("begin", "end", other)
    assert leases(tmp_path / "run") == []


def test_of_many_that_find_a_dead_lease_one_takes_over_after_its_time(
    start: Start, tmp_path: Path
) -> None:
    """Each holds on to what it got: a second winner would be seen."""
    lost = start(ELSEWHERE + HOLD)
    assert lost.hears() == "holds"
    lost.process.kill()
    lost.process.wait()
    began = time.monotonic()
    patient = """
    until = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < until:
        with locked(Path("run")) as mine:
            if mine:
                print("holds", flush=True)
                sys.stdin.readline()
        time.sleep(0.02)
    """
    takers = [start(ELSEWHERE + textwrap.dedent(patient), str(3 * DEAD_S)) for _ in range(6)]
    while leases(tmp_path / "run") != [f"{LEASE}2"]:
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    assert time.monotonic() - began > DEAD_S
    time.sleep(DEAD_S)
    for taker in takers:
        taker.process.kill()
    assert sorted(taker.process.communicate()[0] for taker in takers) == [""] * 5 + ["holds\n"]


@pytest.mark.parametrize("setting", [ELSEWHERE, ""], ids=["another machine", "this machine"])
def test_who_was_stopped_for_too_long_writes_nothing_more(
    setting: str, start: Start, tmp_path: Path, quick: None
) -> None:
    stopped = start(
        setting + f"def main(_):\n{textwrap.indent(HOLD, '    ')}\nsys.exit(run_command(main))"
    )
    assert stopped.hears() == "holds"
    time.sleep(DEAD_S)
    assert start(setting + HOLD).hears() == "held"  # it is alive, so far
    stopped.process.send_signal(signal.SIGSTOP)
    with locked(tmp_path / "run", wait="always") as mine:
        assert mine
        assert leases(tmp_path / "run") == [f"{LEASE}2"]
        stopped.process.send_signal(signal.SIGCONT)
        code, _, err = stopped.ends("\n")
        assert code == 2
        said = rf"error: run: lost the folder to process {os.getpid()} on \S+: this process gave no sign of life for .*\n"
        assert re.fullmatch(said, err), err
        assert leases(tmp_path / "run") == [f"{LEASE}2"]
        write_atomic(tmp_path / "run/metrics.json", "mine")
    assert (tmp_path / "run/metrics.json").read_text() == "mine"
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_write_that_was_under_way_when_another_took_over_fails(tmp_path: Path) -> None:
    """Whatever was written, it gets no final name, also where the folder is free again."""
    with locked(tmp_path) as mine:
        assert mine
        write_atomic(tmp_path / "file", "before")
        mine.path.unlink()
        mine.path.with_name(f"{LEASE}2").touch()
        with pytest.raises(LostError, match="lost the folder to process 0 on another host"):
            write_atomic(tmp_path / "file", "after")
        mine.path.with_name(f"{LEASE}2").unlink()
        with pytest.raises(LostError, match="lost the folder:"):
            append_log(tmp_path, {"event": "after"})
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
    assert (tmp_path / "file").read_text() == "before"
    append_log(tmp_path, {"event": "who holds nothing writes as ever"})


def comes_and_goes(old: Path) -> None:
    old.unlink()  # taken over, and released
    leave_behind(old.parent, 1)  # and taken again


@pytest.mark.parametrize(
    "happens", [comes_and_goes, Path.touch], ids=["others came and went", "the dead is alive"]
)
def test_who_acts_on_an_old_look_steps_back(
    happens: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"machine": lease._machine(), "pid": 2**22 + 1}
    old, create = leave_behind(tmp_path / "run", 3, **gone), lease._create
    monkeypatch.setattr(lease, "_create", lambda *given: (happens(old), create(*given))[1])
    with locked(tmp_path / "run") as mine:
        assert not mine
    assert leases(tmp_path / "run") == [f"{LEASE}1" if happens is comes_and_goes else f"{LEASE}3"]


@pytest.mark.parametrize("content", ["", "{", '{"token": 3}', '{"from": "a later version"}'])
def test_a_lease_that_cannot_be_read_blocks_for_its_time(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{LEASE}1").write_text(content)
    (tmp_path / f"{LEASE}1.swp").touch()  # none of ours
    with locked(tmp_path) as mine:
        assert not mine
    later = time.monotonic() + lease.MISSED * lease.HEARTBEAT_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with locked(tmp_path) as mine:
        assert mine
    assert {path.name for path in tmp_path.iterdir()} == {f"{LEASE}1.swp"}


def test_who_looks_once_waits_in_doubt_alone(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture
) -> None:
    path = leave_behind(tmp_path / "run", 1, every_s=0.6)
    with locked(tmp_path / "run", wait="in doubt") as mine:
        assert mine
    assert "waits for process 7 on n9" in capsys.readouterr().err
    leave_behind(tmp_path / "run", 1, every_s=1e6)
    child = f"import os, time; time.sleep(0.3); os.utime({str(path)!r})"  # a sign of life
    with (
        subprocess.Popen([sys.executable, "-c", child]),
        locked(tmp_path / "run", wait="in doubt") as mine,
    ):
        assert not mine


def test_a_full_disk_takes_no_lease_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with (
        pytest.raises(UserError, match=r"run: cannot be written \(No space left on device\)"),
        locked(tmp_path / "run"),
    ):
        pass
    assert list((tmp_path / "run").iterdir()) == []


KILLED_AT = """
taken = empty = 0
for line in range(1000):
    lines = 0

    def count(frame, event, _):
        global lines
        if frame.f_code.co_filename == lease.__file__ and event == "line":
            lines += 1
            if lines > line:
                os.kill(os.getpid(), 9)
        return count

    if not (child := os.fork()):
        sys.settrace(count)
        with locked(Path(f"run-{line}")) as mine:
            os._exit(0 if mine else 3)
    ended = os.waitpid(child, 0)[1]
    empty += any(not path.read_text() for path in Path(f"run-{line}").glob(".lease-*"))
    with locked(Path(f"run-{line}")) as mine:
        taken += bool(mine)
    if not ended:
        break
print(line, taken, empty, ended, flush=True)
"""


def test_who_is_killed_at_any_line_of_taking_a_folder_holds_nothing(start: Start) -> None:
    lines, taken, empty, ended = map(int, start(KILLED_AT).ends()[1].split())
    assert lines > 30
    assert (taken, empty, ended) == (lines + 1, 0, 0)


def test_without_links_only_a_lease_that_was_not_written_yet_blocks(start: Start) -> None:
    lines, taken, empty, ended = map(int, start(NO_LINKS + KILLED_AT).ends()[1].split())
    assert 1 <= empty <= 4  # it says nothing, so it is dead only after its time
    assert (taken + empty, ended) == (lines + 1, 0)


EXECUTE = """
import hvae_hpc.training.train
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.runs.plan import read_plan
plan = read_plan(Path(sys.argv[1]))
lease.HEARTBEAT_S = 0.5
for name in ("a", "b"):
    if not os.fork():
        sys.stdout = open(name, "w", buffering=1)
        while (report := execute(plan, sys.argv[2])).state == "busy":
            time.sleep(0.1)
        print(report.state, report.message)
        os._exit(0)
for _ in "ab":
    print(os.wait()[1], flush=True)
"""


def test_two_elements_that_got_one_run_make_it_once_also_where_one_is_stopped(
    start: Start, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path)
    write_plan(plan, tmp_path / "plan.json")
    run_id = run_named(plan, "train", "vae")
    folder = plan.folder(run_id)
    both = start(ELSEWHERE + EXECUTE, str(tmp_path / "plan.json"), run_id)
    while not any(entry.get("event") == "training" for entry in read_log(folder)):
        assert both.process.poll() is None
        time.sleep(0.01)
    (by,) = (json.loads((folder / name).read_text())["pid"] for name in leases(folder))
    os.kill(by, signal.SIGSTOP)
    try:
        assert both.hears() == "0"  # the other one made it
        result = (folder / "metrics.json").read_bytes()
    finally:
        os.kill(by, signal.SIGCONT)
    code, out, err = both.ends()
    assert (code, out, err) == (0, "0\n", "")
    lost, made = sorted((tmp_path / name).read_text() for name in "ab")
    assert re.fullmatch(r"\S+: lost the folder: .*\ndone was done already\n", lost), lost
    assert re.fullmatch(r"done .* nats ELBO\n", made), made
    assert (folder / "metrics.json").read_bytes() == result
    events = [entry.get("event") for entry in read_log(folder)]
    assert events.count("started") == 2
    assert "failed" not in events
    assert {path.name for path in folder.iterdir()} == {
        CONFIG,
        INPUTS,
        LOG,
        METRICS,
        SNAPSHOT,
    }
