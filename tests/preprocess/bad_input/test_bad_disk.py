"""A disk that refuses, and other processes at the same folder."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.journal import JOURNAL
from hvae_hpc.preprocess.store.manifest import MANIFEST
from hvae_hpc.preprocess.store.reader import DatasetReader
from hvae_hpc.runs.lease import is_held
from tests.preprocess.bad_input.command import Outcome, environment, run_process, run_quietly
from tests.preprocess.bad_input.folders import (
    arguments,
    data_set,
    is_line,
    lay_out,
    store,
    write_recipes,
)
from tests.preprocess.scans import draw_case


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen of what the machine does, and of other processes."""

    wrong: str
    line: str


UNTOUCHED = "what was there before is untouched"
FULL = Seen(
    wrong="the disk is full in the middle of a shard",
    line=f"<file>: cannot be written (No space left on device); {UNTOUCHED}",
)
LIMIT = Seen(
    wrong="a limit or quota ends a shard",
    line=f"<file>: cannot be written (File too large); {UNTOUCHED}",
)
NO_BYTE = Seen(
    wrong="the disk has not a byte left",
    line="<file>: cannot be written (No space left on device); make room there, or choose another folder",
)
AT_ONCE = Seen(
    wrong="two packings of one folder at once",
    line="<file>: another packing is writing there; wait for it, or choose another --out",
)
DISK = [FULL, LIMIT, NO_BYTE, AT_ONCE]


LIMITED = """
import resource, sys
from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
sys.exit(run_command(main, sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A packing that the disk stopped in the middle of a shard, and what came before and after it.

    Attributes:
        seen: what should be seen.
        stopped: what was.
        emptied: of the same command on a disk without a byte left, where there is such a disk.
        before, after: the data set's bytes before, and after every stopped one.
        names: what lay in the folder, after every stopped one.
        verified: what ``--verify`` said, after every stopped one.
        again: the same command, with room.
        final, reference: the bytes then, and those of a packing that was never stopped.
    """

    seen: Seen
    stopped: Outcome
    emptied: Outcome | None
    before: dict[str, bytes]
    after: list[dict[str, bytes]]
    names: list[set[str]]
    verified: list[int]
    again: Outcome
    final: dict[str, bytes]
    reference: dict[str, bytes]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """Mount a disk of 2 MiB; yields a function that enlarges it."""
    folder.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        return (
            subprocess.run(
                command, check=False, capture_output=True, env={"PATH": os.defpath}
            ).returncode
            == 0
        )

    if os.geteuid() != 0 or not mount("size=2m"):
        pytest.skip(
            "this machine lets nobody mount a small disk here; the limit of a file's size stands for it"
        )
    try:
        yield lambda: mount("remount", "size=64m")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, env={"PATH": os.defpath})


@pytest.fixture(scope="module", params=[FULL, LIMIT], ids=lambda seen: seen.wrong)
def stop(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("disk")
    with contextlib.ExitStack() as stack:
        enlarge = stack.enter_context(small_disk(place / "disk")) if request.param is FULL else None
        stack.enter_context(contextlib.chdir(place))
        write_recipes(place)
        store()(Path("raw/small/small"), *draw_case())
        argv, out = arguments("noise", "disk/out"), Path("disk/out")
        assert run_quietly(*argv).code == 0
        before = data_set(out)
        noise = (
            np.random.default_rng(0).random((256, 256, 12)).astype(np.float32) + 1
        )  # nothing makes this smaller
        tumour = np.zeros(noise.shape, np.uint8)
        tumour[100:120, 100:120] = 1
        store(ending=".nii", image_as=np.float32)(Path("raw/noise/noise"), noise, tumour)

        after, names, verified, emptied = [], [], [], None

        def look() -> None:
            after.append(data_set(out))
            names.append({path.name for path in out.iterdir()})
            verified.append(run_quietly("--verify", str(out), "--workers", "1").code)

        # In a process of its own: HDF5 may keep a file open that it could not write.
        stopped = run_process(*argv, code="" if enlarge else LIMITED)
        look()
        if enlarge:
            with contextlib.suppress(OSError), open("disk/filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1024))
            emptied = run_quietly(*argv)
            look()
            Path("disk/filler").unlink()
            enlarge()
        again = run_quietly(*argv)
        final = data_set(out)
        assert run_quietly(*arguments("noise", "reference")).code == 0
        yield Stop(
            seen=request.param,
            stopped=stopped,
            emptied=emptied,
            before=before,
            after=after,
            names=names,
            verified=verified,
            again=again,
            final=final,
            reference=data_set(Path("reference")),
        )


def test_a_disk_that_refuses_is_one_line_and_exit_code_2(stop):
    assert stop.stopped.code == 2, stop.stopped.err
    (shard,) = {name for name in stop.final if name.startswith("shard-")}
    assert len(stop.stopped.lines) == 1, stop.stopped.lines
    assert is_line(stop.stopped.lines[0], f"error: {stop.seen.line}", f"disk/out/{shard}"), (
        stop.stopped.lines
    )


def test_a_disk_without_a_byte_left_is_one_line_and_exit_code_2(stop):
    if stop.emptied is None:
        pytest.skip("a limit of a file's size is no full disk")
    assert stop.emptied.code == 2
    assert len(stop.emptied.lines) == 1
    assert is_line(stop.emptied.lines[0], f"error: {NO_BYTE.line}", "disk/out")


def test_a_disk_that_refuses_leaves_the_older_data_set_whole_and_no_temporary_files(stop):
    assert stop.stopped.code != 0
    assert all(after == stop.before for after in stop.after)
    assert set(stop.verified) == {0}
    for names in stop.names:
        assert names - set(stop.before) == {JOURNAL, "summary.json"}


def test_with_room_the_same_command_ends_as_if_nothing_had_happened(stop):
    assert stop.again.code == 0, stop.again.err
    assert "1 of them are packed already" in stop.again.out
    assert stop.final == stop.reference


# Other processes.

WAITING = """
import sys, time
from pathlib import Path
import hvae_hpc.preprocess.pack as pack
from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
inner = pack.pack_case
def wait(*given):
    while not Path("go").exists():
        time.sleep(0.01)
    return inner(*given)
pack.pack_case = wait
sys.exit(run_command(main, sys.argv[1:]))
"""
SLOW = """
import sys, time
import hvae_hpc.preprocess.pack as pack
from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
pack.PAIRS_PER_SHARD = 4
inner = pack.add_to_journal
def add(*given):
    inner(*given)
    time.sleep(0.3)  # the kill comes in the middle on a slow machine too
pack.add_to_journal = add
sys.exit(run_command(main, sys.argv[1:]))
"""


def start_driver(code: str, *argv: str) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv], env=environment(), start_new_session=True, **quiet
    )


def wait_for(what: Callable[[], object], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def alive_in(session: int) -> list[str]:
    """Return the processes of a session that still run: a driver and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(path.parent.name)
    return found


def test_of_two_packings_of_one_folder_the_second_is_told_and_the_first_ends_well(good, here):
    lay_out(good("scans"), here)
    first = start_driver(WAITING, *arguments("scans"))
    try:
        assert wait_for(lambda: first.poll() is not None or is_held(Path("out")))
        assert first.poll() is None
        second = run_process(*arguments("scans"))
        assert second.code == 2
        assert len(second.lines) == 1
        assert is_line(second.lines[0], f"error: {AT_ONCE.line}", "out")
        Path("go").touch()
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.wait()
    assert data_set(Path("out")) == data_set(good("scans") / "out")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_packing_killed_in_the_middle_is_taken_up_and_leaves_no_process(
    here, run, monkeypatch, workers
):
    write_recipes(here)
    for number in range(40):
        store(ending=".nii")(
            here / "raw" / f"case{number:02}" / f"case{number:02}", *draw_case(number)
        )
    out, argv = Path("out"), [*arguments("scans"), "--workers", workers]
    killed = start_driver(SLOW, *argv)
    try:
        # The first shard is in the journal before the second one is begun.
        assert wait_for(lambda: killed.poll() is not None or len(list(out.glob("shard-*.h5"))) > 1)
        assert killed.poll() is None
        n_processes = len(alive_in(killed.pid))
    finally:
        killed.kill()
        killed.wait()
    assert n_processes >= (3 if workers == "2" else 1)
    assert wait_for(lambda: not alive_in(killed.pid), seconds=10), alive_in(killed.pid)
    assert not (out / MANIFEST).exists()
    with pytest.raises(UserError, match="no manifest"):
        DatasetReader(out)

    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 4)
    again = run(*argv)
    assert again.code == 0, again.err
    known = int(re.search(r"^(\d+) of them are packed already", again.out, re.MULTILINE)[1])
    assert 4 <= known < 40
    assert run(*arguments("scans", "reference")).code == 0
    assert data_set(out) == data_set(Path("reference"))
    assert len(list(out.glob("shard-*.h5"))) == 10
