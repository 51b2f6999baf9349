"""What torch compiled is taken from an earlier process, if it is whole, ours, and of the same kind; nothing is in $HOME."""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvae_hpc.config.resources import Resources
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.runs.scratch import own_folder, remove_unused
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training import device
from hvae_hpc.training.graphs import Headers, KeptGraphs, make_key
from tests import ROOT

CPU = torch.device("cpu")
SET_BY_US = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    (tmp_path / "run").mkdir()
    return Workplace(
        folder=tmp_path / "run",
        data=tmp_path,
        parents={},
        resources=Resources(scratch=str(tmp_path / "node")),
        caches=tmp_path / "caches",
    )


def compile_something(kept: KeptGraphs, text: str) -> None:
    """Leave what torch would: files, and a count of graphs that it did not find."""
    (kept.folder / "ab").mkdir(exist_ok=True)
    (kept.folder / "ab" / f"{text}.py").write_text(text)
    from torch._dynamo.utils import counters

    counters["inductor"]["fxgraph_cache_miss"] += 1


def names(kept: KeptGraphs) -> list[str]:
    return sorted(path.name for path in kept.folder.rglob("*.py"))


def test_what_was_compiled_is_found_by_the_next_of_its_kind_and_by_no_other(
    place: Workplace,
) -> None:
    first = KeptGraphs("a network", CPU, place)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(first.folder)
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(first.folder))
    assert first.folder.is_relative_to(place.resources.scratch)
    assert not first.found
    compile_something(first, "one")
    first.keep()
    first.close()
    assert not first.folder.exists()
    again = KeptGraphs("a network", CPU, place)
    assert again.found
    assert names(again) == ["one.py"]
    assert again.path is not None
    before = again.path.stat().st_mtime_ns
    again.keep()  # nothing new
    assert again.path.stat().st_mtime_ns == before
    compile_something(again, "two")
    again.keep()
    other, same = KeptGraphs("another network", CPU, place), KeptGraphs("a network", CPU, place)
    assert not other.found
    assert (names(other), names(same)) == ([], ["one.py", "two.py"])
    for kept in (again, other, same):
        kept.close()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (damage, "it is damaged"),
        (lambda path: os.truncate(path, 100), "it is damaged"),
        (lambda path: path.write_bytes(b""), "it is damaged"),
        (lambda path: path.chmod(0o620), "others may have written it"),
        (lambda path: path.chmod(0o602), "others may have written it"),
        (lambda path: os.chown(path, 65534, -1), "others may have written it"),
        (
            lambda path: (
                path.rename(path.with_suffix(".x")),
                path.symlink_to(path.with_suffix(".x")),
            ),
            "symbolic links",
        ),
    ],
)
def test_a_file_that_is_damaged_or_may_be_others_is_not_used_and_made_anew(
    place: Workplace, spoil: Callable[[Path], Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = KeptGraphs("a network", CPU, place)
    compile_something(first, "one")
    first.keep()
    assert first.path is not None
    if "chown" in spoil.__code__.co_names and os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    spoil(first.path)
    again = KeptGraphs("a network", CPU, place)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{first.path}: not used, compiled anew: ")
    assert why in line
    assert not again.found
    assert names(again) == []
    compile_something(again, "one")
    again.keep()
    last = KeptGraphs("a network", CPU, place)
    assert last.found
    assert last.path is not None
    assert last.path.stat().st_mode & 0o777 == 0o600
    for kept in (first, again, last):
        kept.close()


def test_a_fork_leaves_the_folder_to_the_process_that_made_it(place: Workplace) -> None:
    kept = KeptGraphs("a network", CPU, place)
    if not (child := os.fork()):
        kept.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert kept.folder.exists()
    kept.close()
    assert not kept.folder.exists()


def test_headers_are_made_where_something_is_compiled_and_done_without_where_they_cannot_be(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(f"torch._inductor.codecache.{name}", "")

    def make(name: str) -> str:
        from torch._inductor import codecache

        made.append(name)
        path = Path(codecache._HEADER_DIR) / name
        path.write_text("a compiled header")
        if name == "too large":
            raise OSError(28, "No space left on device")
        return str(path)

    headers = Headers(make, str(place.resources.scratch))
    kept = KeptGraphs("a network", CPU, place)
    with monkeypatch.context() as patch:
        patch.setattr("hvae_hpc.training.graphs._misses", lambda: 0)
        assert headers("header") == ""  # all was found so far
    compile_something(kept, "one")
    path = Path(headers("header"))
    assert path.is_relative_to(place.resources.scratch)
    assert not path.is_relative_to(kept.folder)
    kept.close()
    assert path.exists()  # for the next network
    path.unlink()
    make_again, headers.make = (
        headers.make,
        lambda name: str(path),
    )  # as torch, which does not look for it
    assert headers("header") == ""
    headers.make = make_again
    assert capsys.readouterr().out == ""
    assert headers("too large") == ""
    assert (
        "read with every kernel, slowly: [Errno 28] No space left on device\n"
        in capsys.readouterr().out
    )
    assert not path.parent.exists()
    assert headers("header") == ""
    assert made == ["header", "too large"]


def test_of_a_file_for_which_there_is_no_room_nothing_is_used_or_kept(place: Workplace) -> None:
    first = KeptGraphs("a network", CPU, place)
    compile_something(first, "one")
    (first.folder / "ab" / "kernel.so").write_bytes(os.urandom(2**20))
    first.keep()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        again = KeptGraphs("a network", CPU, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not again.found
    assert list(again.folder.iterdir()) == []
    assert not remove_unused(again.folder)  # it is held as before
    for kept in (first, again):
        kept.close()


def test_a_new_folder_that_another_process_takes_for_one_that_was_left_is_not_used(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, list[int]()

    def make_and_lose_the_first(**options: Any) -> str:
        folder = make(**options)
        if not made:  # as remove_unused does, before it removes it
            made.append(os.open(folder, os.O_RDONLY))
            fcntl.flock(made[0], fcntl.LOCK_EX)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose_the_first)
    kept = KeptGraphs("a network", CPU, place)
    assert not os.path.samestat(kept.folder.stat(), os.fstat(made[0]))
    assert not remove_unused(kept.folder)
    os.close(made[0])
    kept.close()


def test_a_temporary_folder_in_the_home_folder_is_not_used(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for scratch in ("", "$NOT_SET_HERE"):
        kept = KeptGraphs("a network", CPU, replace(place, resources=Resources(scratch=scratch)))
        assert not kept.folder.is_relative_to(tmp_path)
        kept.close()


def test_a_folder_that_cannot_be_written_loses_nothing_but_the_file(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.caches is not None
    place.caches.write_text("a file where the folder should be")
    kept = KeptGraphs("a network", CPU, place)
    compile_something(kept, "one")
    kept.keep()
    assert "what torch compiled is not kept" in capsys.readouterr().out
    kept.close()


def test_without_scratch_torch_compiles_into_a_private_folder_of_the_temporary_one(
    place: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"hvae_hpc-{os.getuid()}"
    for scratch in ("", "$NOT_SET_HERE"):
        kept = KeptGraphs("a network", CPU, replace(place, resources=Resources(scratch=scratch)))
        assert kept.folder.stat().st_mode & 0o777 == 0o700
        assert (own in kept.folder.parents) == (scratch == "")
        kept.close()
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_folder_of_a_killed_process_is_removed_by_the_next(place: Workplace) -> None:
    mine = KeptGraphs("a network", CPU, place)
    if not (child := os.fork()):
        KeptGraphs("a network", CPU, place)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = set(mine.folder.parent.iterdir()) - {mine.folder}
    other = KeptGraphs("a network", CPU, place)
    assert not left.exists()
    assert mine.folder.exists()
    for kept in (mine, other):
        kept.close()


def test_the_key_is_of_code_network_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(("unet", (64, 64)), CPU)
    assert make_key(("unet", (64, 64)), CPU) == key
    others = {make_key(("unet", (64, 32)), CPU)}
    for where, what in (
        ("hvae_hpc.training.graphs.code_sha", lambda: "000000000000"),
        ("hvae_hpc.training.graphs._processor", lambda: ["model name: another"]),
        ("os.getuid", lambda: 4711),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, what)
            others.add(make_key(("unet", (64, 64)), CPU))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        others.add(make_key(("unet", (64, 64)), CPU))
    assert len(others - {key}) == 5


class Small(nn.Module):
    """As little as can be trained: one layer, which compiles in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 1)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("all", self),)

    def draw(self, n: int, share: float, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def forward(self, batch: Batch, phase: str) -> Loss:
        return Loss((self.layer(batch["image"][:, 0]).tanh() ** 2).mean(), {})


def count_graphs() -> dict[str, int]:
    dynamo = sys.modules.get(
        "torch._dynamo.utils"
    )  # importing it makes the shared folder that must not be made
    found = dynamo.counters["inductor"] if dynamo else Counter[str]()
    return {name: found[f"fxgraph_cache_{name}"] for name in ("hit", "miss")}


def train_small(folder: Path) -> dict[str, Any]:
    """Train, compiled; returns what was noted, how often torch had to compile, headers it compiled, and the weights."""
    from hvae_hpc.config.model import OptimConfig
    from hvae_hpc.training.batches import to_tensors
    from hvae_hpc.training.loop import train
    from tests.tiny import make_pairs

    before = count_graphs()
    with tempfile.TemporaryDirectory() as run:
        resources = Resources(compile="on")
        of = Workplace(
            folder=Path(run), data=folder, parents={}, resources=resources, caches=folder / "caches"
        )
        optim = OptimConfig(images=8, batch_size=4, lr=1e-2, ema_decay=0.0, precision="fp32")
        report = train(
            device.build(Small, 0, CPU), to_tensors(make_pairs(6, 16), 0), optim, 0, None, of
        )
    assert report.weights is not None
    return {
        "notes": list(report.notes),
        "headers": len(list(own_folder(Path(tempfile.gettempdir())).rglob("*.gch"))),
        **{name: count - before[name] for name, count in count_graphs().items()},
        "weights": [weight.tolist() for weight in report.weights.values()],
    }


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch compiles for a CPU by g++, which is not here"
)
def test_another_process_compiles_nothing_and_has_the_same_weights(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    script = f"import json\nfrom tests.training.test_graphs import *\nprint(json.dumps(train_small(Path({str(tmp_path)!r}))))"
    env = {name: value for name, value in os.environ.items() if name not in SET_BY_US}

    def in_a_new_process() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**env, "TMPDIR": str(temporary), "HOME": str(home)},
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert list(home.iterdir()) == []
        assert [path.name for path in temporary.iterdir()] == [f"hvae_hpc-{os.getuid()}"]
        assert [path for path in temporary.rglob("*") if path.is_file()] == []
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    cold, warm = in_a_new_process(), in_a_new_process()
    assert cold["notes"] == []
    assert cold["miss"] > 0
    assert (cold["headers"] > 0) == (shutil.which("openssl") is not None)
    hits = {"hit": cold["miss"], "miss": 0}
    assert warm == {
        "notes": ["compiled by an earlier run"],
        "headers": 0,
        **hits,
        "weights": cold["weights"],
    }
