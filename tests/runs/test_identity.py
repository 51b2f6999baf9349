"""Run ids follow from content: from all of it that counts, and from nothing else."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.model import OptimConfig, UNetConfig
from hvae_hpc.config.stages import SegmentConfig, SplitConfig
from hvae_hpc.runs import identity
from hvae_hpc.runs.identity import canonical_json, content_hash
from hvae_hpc.runs.run import Run
from tests import ROOT

CONFIG = SegmentConfig(
    data="d",
    split=SplitConfig(),
    image_px=0,
    arm=ArmConfig(name="reference"),
    unet=UNetConfig(),
    optim=OptimConfig(images=32),
)


def test_equal_values_have_equal_text_whatever_their_order() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, True]}) == '{"a":[1.5,null,true],"b":1}'
    assert content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


def test_the_run_id_is_pinned() -> None:
    # If this fails, every result that anybody has is orphaned: raise STAGE_VERSIONS on
    # purpose, never by accident.
    run = Run(stage="segment", config=CONFIG, parents={"data": "x"})
    assert run.run_id == "11fdba969f4c"
    assert run.label == "d-reference-s0"


def test_all_that_counts_changes_the_run_id() -> None:
    base = Run(stage="segment", config=CONFIG, parents={"data": "x"})
    others = [
        replace(base, parents={"data": "y"}),
        replace(base, parents={"data": "x", "pairs": "z"}),
        replace(base, config=replace(CONFIG, seed=1)),
        replace(base, config=replace(CONFIG, optim=replace(CONFIG.optim, precision="fp32"))),
        replace(base, config=replace(CONFIG, split=SplitConfig(seed=1))),
    ]
    assert len({base.run_id, *(run.run_id for run in others)}) == 6


def test_a_stage_version_changes_the_run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Run(stage="segment", config=CONFIG, parents={}).run_id
    monkeypatch.setitem(sys.modules["hvae_hpc.config.stages"].STAGE_VERSIONS, "segment", 99)
    assert Run(stage="segment", config=CONFIG, parents={}).run_id != before


def test_the_code_hash_follows_the_files_of_the_package_and_not_its_place(tmp_path: Path) -> None:
    root = ROOT

    def sha_of(copy: Path) -> str:
        code = "from hvae_hpc.runs.identity import code_sha; print(code_sha())"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    for name in ("one", "two"):
        for folder in ("hvae_hpc", "jobs", "preprocess", "results"):
            shutil.copytree(
                root / folder,
                tmp_path / name / folder,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
    assert sha_of(tmp_path / "one") == sha_of(tmp_path / "two") == identity.code_sha()
    with open(tmp_path / "two" / "jobs" / "dag.py", "a") as file:
        file.write("# changed\n")
    assert sha_of(tmp_path / "two") != sha_of(tmp_path / "one")
