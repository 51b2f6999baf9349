"""Fifty random kills: whatever a training is ended by, and whenever, it ends in the undisturbed training's weights."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hvae_hpc.runs.folder import read_log
from hvae_hpc.training.checkpoint import find_checkpoints, load_snapshot
from tests import ROOT
from tests.training.trainer import MODELS, TERMS, WEIGHTS

KILLS = int(os.environ.get("KILLS", "12"))  # make drill: 50
KINDS = os.environ.get("KINDS", ",".join(MODELS)).split(",")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2)


class Trainer:
    """The process of :mod:`tests.training.trainer`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.trainer"], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, kind: str, folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"kind": kind, "folder": str(folder)}) + "\n")
        self.process.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        return int(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    assert trainer.process.stdin is not None
    trainer.process.stdin.close()
    trainer.process.wait(10)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    return load_snapshot(folder / WEIGHTS), json.loads((folder / TERMS).read_text())


def half_written(folder: Path) -> set[Path]:
    return set(folder.glob(".*.tmp"))


def test_random_kills_change_no_weight(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    whole, seconds = {}, {}
    for kind in KINDS:
        started = time.monotonic()
        trainer.start(kind, tmp_path / kind)
        assert trainer.wait() == 0
        whole[kind], seconds[kind] = read(tmp_path / kind), time.monotonic() - started

    kills = dict.fromkeys(SIGNALS, 0)
    in_a_save = finished = 0
    folders: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    while sum(kills.values()) < KILLS or not (in_a_save and all(folders.values())):
        kind = min(folders, key=lambda kind: len(folders[kind]))
        folder = tmp_path / f"{kind}-{len(folders[kind])}"
        folders[kind].append(folder)
        while not (folder / WEIGHTS).exists():
            process = trainer.start(kind, folder)
            how, before = None, half_written(folder)
            if sum(kills.values()) < KILLS or not in_a_save:
                time.sleep(chance.uniform(0, 0.4 * seconds[kind]))
                how = chance.choice(SIGNALS)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, how)
            status = trainer.wait()
            if how and (status or not (folder / WEIGHTS).exists()):  # else it was done before
                kills[how] += 1
            assert status in (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR2), (
                f"seed {seed}: {kind}: {status}"
            )
            in_a_save += half_written(folder) > before
        finished += 1
        weights, terms = read(folder)
        for name, value in whole[kind][0].items():
            assert torch.equal(weights[name], value), f"seed {seed}: {kind}: {name}"
        assert terms == whole[kind][1], f"seed {seed}: {kind}"
        # Two are kept; a kill before an older one was removed leaves it until the next save.
        assert len(find_checkpoints(folder)) <= 3
    for kind, event in {"hvae that goes back": "rolled_back", "edm": "held_out"}.items():
        for folder in folders.get(kind, ())[:1]:
            assert [entry for entry in read_log(folder) if entry.get("event") == event]
    with capsys.disabled():
        by_name = ", ".join(f"{how.name} {n}" for how, n in kills.items())
        print(
            f"\nkills with seed {seed}: {by_name}; {in_a_save} in a save; {finished} trainings, all as undisturbed"
        )
