"""What torch compiled is found by the next process; it lies in a folder of this user alone."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training import device
from hvae_hpc.training.compile_cache import private_folder, use_private_cache
from tests import ROOT

SET_BY_US = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def test_the_folder_is_this_users_alone_and_found_again(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "compiled").touch()
    assert private_folder(tmp_path) == folder
    assert (folder / "compiled").exists()


def link_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "spoil",
    [
        link_away,
        lambda path: path.chmod(0o720),
        lambda path: path.chmod(0o705),
        lambda path: (path.rmdir(), path.touch(0o600)),
        pytest.param(
            lambda path: os.chown(path, 65534, -1),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away"),
        ),
    ],
)
def test_a_folder_that_may_be_others_is_refused(
    tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    folder = private_folder(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=f"{folder}: (is not a folder of this|cannot be made)"):
        private_folder(tmp_path)


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


def train_small() -> dict[str, Any]:
    """Train, compiled; return the notes, torch's counts of hits and misses, and the weights."""
    from hvae_hpc.config.model import OptimConfig
    from hvae_hpc.training.batches import to_tensors
    from hvae_hpc.training.loop import train
    from tests.tiny import make_pairs

    with tempfile.TemporaryDirectory() as run:
        folder = Path(run)
        place = Workplace(folder=folder, data=folder, parents={}, resources=Resources(compile="on"))
        optim = OptimConfig(images=8, batch_size=4, lr=1e-2, ema_decay=0.0, precision="fp32")
        model = device.build(Small, 0, torch.device("cpu"))
        report = train(model, to_tensors(make_pairs(6, 16), 0), optim, 0, None, place)
    assert report is not None
    counts: Counter[str] = sys.modules["torch._dynamo.utils"].counters["inductor"]
    return {
        "notes": list(report.notes),
        **{name: counts[f"fxgraph_cache_{name}"] for name in ("hit", "miss")},
        "weights": [weight.tolist() for weight in report.weights.values()],
    }


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch compiles for a CPU by g++, which is not here"
)
def test_another_process_compiles_nothing_and_has_the_same_weights(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    own = temporary / f"hvae_hpc-{os.getuid()}"
    env = {name: value for name, value in os.environ.items() if name not in SET_BY_US}
    script = (
        "import json\nfrom tests.training.test_compile_cache import train_small\n"
        "print(json.dumps(train_small()))"
    )

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
        assert list(temporary.iterdir()) == [own]  # nothing of torch's lies beside it
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    cold, warm = in_a_new_process(), in_a_new_process()
    assert cold["notes"] == []
    assert cold["miss"] > 0
    assert warm == {**cold, "hit": cold["miss"], "miss": 0}


def test_without_a_folder_of_its_own_a_process_has_a_temporary_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import codecache

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in SET_BY_US:
        monkeypatch.setenv(name, "")
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, "")
    own = tmp_path / f"hvae_hpc-{os.getuid()}"
    own.symlink_to(tmp_path / "elsewhere")
    folder = use_private_cache.__wrapped__()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    headers = f"{folder}/headers" if shutil.which("openssl") else ""
    assert headers == codecache._HEADER_DIR
    assert f"not kept: {own}: cannot be made" in capsys.readouterr().out


def test_a_gpu_s_node_without_a_compiler_or_headers_runs_eager_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert device.find_missing_tools() == "a C compiler (gcc)"

    network = nn.Linear(1, 1)
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(network, "parameters", lambda: iter([on_gpu]))
    place = Workplace(folder=tmp_path, data=tmp_path, parents={}, resources=Resources())
    assert device.CompiledForward(network, True, place).parts == ()
    assert "a C compiler (gcc) is missing on this node" in capsys.readouterr().out

    (tmp_path / "gcc").touch(0o755)
    monkeypatch.setattr(device.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    header = tmp_path / "Python.h"
    assert device.find_missing_tools() == f"{header} (package python3-dev)"
    header.touch()
    assert device.find_missing_tools() == ""
