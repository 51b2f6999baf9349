"""One run in one process: what it goes on from, and what it refuses to go on from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.failures.classify import Evidence, classify
from hvae_hpc.jobs.state.run_status import RunStatus
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.worker import run, signals
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import PAIRS, read_log, read_result
from hvae_hpc.runs.plan import Plan
from hvae_hpc.sweep import read_sweep
from tests.tiny import make_data_set, make_project


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The runs of a tiny sweep on one data set."""
    return make_plan(tmp_path)


def make_plan(folder: Path) -> Plan:
    project = make_project(folder)
    sweep = replace(
        read_sweep(str(project / "sweep.toml")), data=("tiny",), seeds=1, factors=(), doses=(4,)
    )
    folder = project / "shards" / "tiny"
    data = expand.DataSet(name="tiny", folder=folder, manifest=read_manifest(folder))
    return expand.make_plan(sweep, [data], project / "runs", dict.fromkeys(CONFIGS, Resources()))


def run_named(plan: Plan, stage: str, label: str) -> str:
    (run_id,) = [
        i for i, run in plan.runs.items() if (run.stage, run.label) == (stage, f"tiny-{label}-s0")
    ]
    return run_id


def leave_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(10**6))
    return lambda: next(asked) + 1 >= steps


def test_a_run_without_its_parent_is_blocked_and_says_by_what(plan: Plan) -> None:
    report = execute(plan, run_named(plan, "generate", "vae"))
    assert report.state == "blocked"
    assert report.message.startswith("needs train tiny-vae-s0 (")


def test_a_run_that_is_done_is_not_done_again(plan: Plan) -> None:
    run_id = run_named(plan, "train", "vae")
    assert execute(plan, run_id).state == "done"
    before = (plan.folder(run_id) / "metrics.json").read_bytes()
    assert execute(plan, run_id).message == "was done already"
    assert (plan.folder(run_id) / "metrics.json").read_bytes() == before


def test_a_checkpoint_made_from_another_making_of_the_parent_is_not_gone_on_from(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, generate, arm = (
        run_named(plan, *what)
        for what in [("train", "vae"), ("generate", "vae"), ("segment", "vae+4")]
    )
    for run_id in (train, generate):
        assert execute(plan, run_id).state == "done"
    with monkeypatch.context() as patch:
        patch.setattr(signals, "leave_asked", leave_after(4))
        assert execute(plan, arm).state == "stopped"
    assert list(plan.folder(arm).glob("checkpoint-*.pt"))
    (plan.folder(generate) / "metrics.json").unlink()
    assert execute(plan, generate).state == "done"
    assert execute(plan, arm).state == "done"
    events = [record.get("event") for record in read_log(plan.folder(arm)) if "event" in record]
    assert "inputs_changed" in events
    assert "resumed" not in events
    assert read_results(plan)[arm].done


def test_a_stopped_run_goes_on_where_nothing_changed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = run_named(plan, "train", "hvae")
    with monkeypatch.context() as patch:
        patch.setattr(signals, "leave_asked", leave_after(4))
        assert execute(plan, run_id).state == "stopped"
    assert execute(plan, run_id).state == "done"
    assert "resumed" in [record.get("event") for record in read_log(plan.folder(run_id))]
    result = read_result(plan.folder(run_id), run_id)
    assert result is not None
    assert result.provenance.attempt == 2


def test_data_that_was_repacked_after_planning_is_refused(plan: Plan, tmp_path: Path) -> None:
    make_data_set(tmp_path / "shards", "tiny", seed=7)
    report = execute(plan, run_named(plan, "train", "vae"))
    assert report.state == "failed"
    assert "was repacked" in report.message


def test_a_damaged_shard_fails_one_run_with_one_line(plan: Plan) -> None:
    train, generate, quality = (
        run_named(plan, stage, "vae") for stage in ("train", "generate", "quality")
    )
    for run_id in (train, generate, run_named(plan, "segment", "reference")):
        assert execute(plan, run_id).state == "done"
    path = plan.folder(generate) / PAIRS
    path.write_bytes(path.read_bytes()[:-1000])
    report = execute(plan, quality)
    assert report.state == "failed"
    assert "shard is damaged" in report.message
    assert "\n" not in report.message
    assert read_log(plan.folder(quality))[-1]["reason"] == report.message
    assert not (plan.folder(quality) / "metrics.json").exists()


def test_a_gpu_that_does_nothing_more_is_told_apart_from_a_bug(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(run, "stage_function", lambda stage: fail)
    run_id = run_named(plan, "train", "vae")
    # A launch with wrong numbers leaves the GPU as it was.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    report = execute(plan, run_id)
    assert "a bug" in report.message
    assert not report.gpu_lost

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    report = execute(plan, run_id)
    assert "a bug" not in report.message
    assert report.gpu_lost
    evidence = Evidence(RunStatus("failed", "", ""), ended=read_log(plan.folder(run_id))[-1])
    said = ["torch.AcceleratorError: CUDA error: an illegal memory access was encountered"]
    # A process that was aborted leaves no record, only its words.
    for seen in (evidence, Evidence(RunStatus("failed", "", ""), lines=said)):
        assert classify(seen) == "device error"
        assert seen.node_failed
