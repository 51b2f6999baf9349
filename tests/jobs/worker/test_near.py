"""Copies on a node's own disk: made once, whole or not at all, never removed from under a reader, and never needed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.worker.near import work_near
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.reader import DatasetReader
from hvae_hpc.runs.folder import PAIRS, read_result
from hvae_hpc.runs.scratch import held
from hvae_hpc.runs.workplace import Outcome, Workplace
from tests import ROOT
from tests.jobs.worker.test_run import make_plan, run_named
from tests.tiny import make_data_set

OWN = f"hvae_hpc-{os.getuid()}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data_set(tmp_path / "shared")


def place(
    data: Path, scratch: Path | str, stopped: Callable[[], bool] = lambda: False
) -> Workplace:
    folder = data.parent / "run"
    folder.mkdir(exist_ok=True)
    return Workplace(
        folder=folder,
        data=data,
        parents={},
        resources=Resources(scratch=str(scratch)),
        stopped=stopped,
    )


def read(workplace: Workplace) -> Outcome:
    """What a stage does: read, and say where and what."""
    pairs = DatasetReader(workplace.data).read_all()
    return Outcome(
        metrics={"sum": float(pairs.images.sum())}, details={"data": str(workplace.data)}
    )


def near(data: Path, where: Workplace) -> Outcome:
    outcome = work_near(read, where, read_manifest(data).content_hash, {})
    assert outcome is not None
    assert outcome.metrics == read(place(data, "")).metrics
    return outcome


def copies(scratch: Path) -> list[str]:
    return sorted(path.parent.name for path in (scratch / OWN).glob("*/*/manifest.json"))


def test_a_data_set_is_copied_once_and_read_from_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch, digest = tmp_path / "node", read_manifest(data).content_hash
    for _ in range(2):
        outcome = near(data, place(data, scratch))
        assert outcome.details["data"] == str(scratch / OWN / "data" / digest)
        assert outcome.notes == ("data read from the node's copy",)
    moved = data.rename(data.with_name("moved"))
    assert near(moved, place(moved, scratch)).details == outcome.details
    assert capsys.readouterr().out.count("copied ") == 1
    assert (scratch / OWN).stat().st_mode & 0o077 == 0


def test_without_scratch_the_shared_one_is_read_and_nothing_is_said(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = near(data, place(data, ""))
    assert (outcome.notes, outcome.details["data"]) == ((), str(data))
    assert capsys.readouterr().out == ""


def test_where_there_can_be_no_copy_the_shared_one_is_read_and_one_line_says_why(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / OWN).symlink_to(tmp_path)
    for scratch, why in (
        (tmp_path / "trap", "not a folder of ours alone"),
        ("$NOT_SET_HERE", "variables that are set"),
    ):
        outcome = near(data, place(data, scratch))
        assert outcome.details["data"] == str(data)
        (line,) = capsys.readouterr().out.splitlines()
        assert line == f"run: {outcome.notes[0]}"
        assert line.startswith("run: read from the shared disk: ")
        assert why in line


CHILD = """
import os, sys
from pathlib import Path
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.jobs.worker.near import work_near
from tests.jobs.worker.test_near import place, read
data, scratch, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
asked = iter(range(1, 10**6))
def stopped():  # is asked before each file that is copied
    if next(asked) == kill_at:
        os.kill(os.getpid(), 9)
    return False
where, digest = place(data, scratch, stopped), read_manifest(data).content_hash
print("ready", flush=True)
sys.stdin.readline()
print(work_near(read, where, digest, {}).notes[0], flush=True)
"""


def start(data: Path, scratch: Path, kill_at: int = 0) -> subprocess.Popen[str]:
    """Start a process that reads as soon as it gets a line."""
    command = [sys.executable, "-c", CHILD, str(data), str(scratch), str(kill_at)]
    root = ROOT
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_processes_that_come_at_once_make_one_copy(tmp_path: Path) -> None:
    data = make_data_set(tmp_path / "shared", n=40, side=160)
    children = [start(data, tmp_path / "node") for _ in range(3)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60)[0].splitlines() for child in children]
    assert [lines[-1] for lines in said] == ["data read from the node's copy"] * 3
    assert sum(line.startswith("copied ") for lines in said for line in lines) == 1


def test_what_a_killed_process_left_is_cleared_by_the_next(data: Path, tmp_path: Path) -> None:
    child = start(data, tmp_path / "node", kill_at=2)
    child.communicate("\n", timeout=60)
    assert child.returncode == -signal.SIGKILL
    digest = read_manifest(data).content_hash
    (left,) = (tmp_path / "node" / OWN / "data").iterdir()
    assert left.name.startswith(digest)
    assert left.suffix == ".unfinished"
    other = make_data_set(tmp_path / "shared", "other", seed=1)
    near(other, place(other, tmp_path / "node"))
    assert [path.name for path in (tmp_path / "node" / OWN / "data").iterdir()] == [
        read_manifest(other).content_hash
    ]


def test_who_is_asked_to_leave_while_it_copies_leaves_nothing(data: Path, tmp_path: Path) -> None:
    near(data, place(data, tmp_path / "node", lambda: True))
    assert not list((tmp_path / "node" / OWN / "data").iterdir())


def spoil_size(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_pixels(path: Path) -> None:
    """Change a byte of a compressed image, which only a reader of that row notices."""
    import h5py

    with h5py.File(path, "r") as file:
        at = file["images"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as file:
        file.seek(at + 40)
        byte = file.read(1)[0]
        file.seek(at + 40)
        file.write(bytes([byte ^ 255]))


@pytest.mark.parametrize("spoil", [spoil_size, Path.unlink])
def test_a_copy_cut_short_is_made_anew(
    data: Path, tmp_path: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    near(data, place(data, tmp_path / "node"))
    (shard,) = (tmp_path / "node").rglob("*.h5")
    spoil(shard)
    assert near(data, place(data, tmp_path / "node")).notes == ("data read from the node's copy",)
    assert capsys.readouterr().out.count("copied ") == 2
    assert shard.read_bytes() == (data / shard.name).read_bytes()


def test_a_copy_whose_pixels_are_wrong_is_removed_and_the_shared_one_read(
    data: Path, tmp_path: Path
) -> None:
    near(data, place(data, tmp_path / "node"))
    (shard,) = (tmp_path / "node").rglob("*.h5")
    spoil_pixels(shard)
    outcome = near(data, place(data, tmp_path / "node"))
    assert outcome.details["data"] == str(data)
    assert outcome.notes == ("read from the shared disk: the node's copy of data is damaged",)
    assert copies(tmp_path / "node") == []
    assert near(data, place(data, tmp_path / "node")).notes == ("data read from the node's copy",)


def test_damage_of_the_shared_one_is_never_copied_and_is_told_as_ever(
    data: Path, tmp_path: Path
) -> None:
    spoil_pixels(data / "shard-0.h5")
    with pytest.raises(UserError, match=f"{data}/shard-0.h5: shard is damaged"):
        work_near(read, place(data, tmp_path / "node"), read_manifest(data).content_hash, {})
    assert not list((tmp_path / "node" / OWN / "data").iterdir())


def test_a_stage_s_own_refusal_is_passed_on_and_its_good_copy_stays(
    data: Path, tmp_path: Path
) -> None:
    made = []

    def refuse(workplace: Workplace) -> Outcome:
        made.append(workplace.data)
        raise UserError("image_px is 7")

    with pytest.raises(UserError, match="image_px is 7"):
        work_near(refuse, place(data, tmp_path / "node"), read_manifest(data).content_hash, {})
    assert len(made) == 1
    assert copies(tmp_path / "node") == [read_manifest(data).content_hash]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, on which a data set of 360 KiB fits twice."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("may not mount a small disk here: run the tests as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def make_large(folder: Path, seed: int) -> Path:
    return make_data_set(folder / "shared", f"large{seed}", n=12, side=96, seed=seed)


def test_what_was_used_longest_ago_makes_room_and_what_is_used_stays(
    tmp_path: Path, small_disk: Path
) -> None:
    first, second, third, fourth = (make_large(tmp_path, seed) for seed in range(4))
    digests = {
        folder: read_manifest(folder).content_hash for folder in (first, second, third, fourth)
    }
    for age, folder in ((30, second), (20, first)):
        near(folder, place(folder, small_disk))
        os.utime(small_disk / OWN / "data" / digests[folder], times=(10**9 - age, 10**9 - age))
    near(third, place(third, small_disk))
    assert copies(small_disk) == sorted([digests[first], digests[third]])
    with held(small_disk / OWN / "data" / digests[first]) as mine:  # older than the third
        assert mine
        os.utime(small_disk / OWN / "data" / digests[first], times=(1, 1))
        near(second, place(second, small_disk))
        assert copies(small_disk) == sorted([digests[first], digests[second]])
        with held(small_disk / OWN / "data" / digests[second]):
            outcome = near(third, place(third, small_disk))
    assert outcome.details["data"] == str(third)
    assert "are in use and leave too little room" in outcome.notes[0]
    assert copies(small_disk) == sorted([digests[first], digests[second]])


def test_what_never_fits_removes_nothing(tmp_path: Path, small_disk: Path) -> None:
    fits, never = make_large(tmp_path, 0), make_data_set(tmp_path / "shared", "huge", n=40, side=96)
    near(fits, place(fits, small_disk))
    outcome = near(never, place(never, small_disk))
    assert "MiB free" in outcome.notes[0]
    assert copies(small_disk) == [read_manifest(fits).content_hash]


def test_a_disk_that_fills_while_it_is_copied_to_has_nothing_left_on_it(
    data: Path, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = make_large(tmp_path, 0)

    def fill() -> bool:
        with contextlib.suppress(OSError), open(small_disk / "others", "wb") as file:
            for _ in range(2**10):
                file.write(bytes(2**10))
        return False

    outcome = near(large, place(large, small_disk, fill))
    assert outcome.details["data"] == str(large)
    assert outcome.notes == ("data read from the shared disk: No space left on device",)
    assert not list((small_disk / OWN / "data").iterdir())
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_run_reads_data_and_its_parent_s_pairs_near_with_the_same_numbers(tmp_path: Path) -> None:
    shared = make_plan(tmp_path)
    near_by = replace(
        shared, resources=dict.fromkeys(shared.resources, Resources(scratch=str(tmp_path / "node")))
    )
    train, generate, arm = (
        run_named(shared, *of)
        for of in [("train", "vae"), ("generate", "vae"), ("segment", "vae+4")]
    )
    for run_id in (train, generate):
        assert execute(shared, run_id).state == "done"
    results = []
    for plan in (shared, near_by):
        assert execute(plan, arm).state == "done"
        result = read_result(plan.folder(arm), arm)
        assert result is not None
        results.append(result)
        shutil.rmtree(plan.folder(arm))
    assert [result.provenance.notes for result in results] == [
        (),
        ("data read from the node's copy", "pairs read from the node's copy"),
    ]
    assert results[0].per_case == results[1].per_case
    (copy,) = (tmp_path / "node" / OWN / "pairs").iterdir()
    assert copy.name == results[1].parent_results["pairs"]
    assert [path.name for path in copy.iterdir()] == [PAIRS]
