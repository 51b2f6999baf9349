"""What a submission will be, before it is one: its costs, its texts, and whether there is room for it."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites.site import fit_cluster, read_site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.state.submissions import SUBMISSIONS, submitting
from hvae_hpc.jobs.submit import prepare
from hvae_hpc.jobs.submit.apply import Application, describe, sbatch_texts
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.runs.plan import plan_path, write_plan
from hvae_hpc.sweep import read_sweep
from tests.jobs.sites.test_site import CLUSTER
from tests.jobs.sweeps.test_expand import PAPER


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> prepare.Prepared:
    """The paper's sweep, as it would be submitted to an empty queue."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")  # submitit looks for it
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "read_queue", lambda **_: slurm.Queue(time.time(), ()))
    site = fit_cluster(read_site(None), "gpu", CLUSTER)
    plan = expand.make_plan(read_sweep("table1"), PAPER, tmp_path / "runs", site.resources)
    return prepare.prepare(plan, site, ["hvae_hpc.sweep", "--finish"])


def test_the_costs_are_those_of_the_arrays(prepared: prepare.Prepared) -> None:
    totals, arrays = prepared.totals, prepared.plan.arrays
    assert len(prepared.plan.runs) == len(prepared.run_ids) == 366
    assert totals["elements"] == sum(len(array.elements) for array in arrays)
    gates = sum(array.canaries > 0 for array in arrays)
    assert gates > 0
    assert all((len(array.elements) >= 6) == (array.canaries == 3) for array in arrays)
    gpu_s = sum(array.seconds for array in arrays if array.stage not in ("augment", "quality"))
    assert totals["gpu_hours"] == pytest.approx(gpu_s / 3600)
    assert (
        totals["bytes_peak"] > totals["bytes"] > 500 * 240 * 240 * 5 * 6
    )  # six sets of 500 pairs at least
    lines = "\n".join(describe(prepared, 1e12))
    assert f"{totals['gpu_hours']:.1f} GPU-hours" in lines
    assert f"3 elements of {gates} arrays go ahead" in lines
    assert f"{len(arrays) + gates} sbatch calls" in lines
    assert "none yet" in lines
    assert "1000.0 GB are free" in lines


def test_it_says_how_many_files_it_writes(
    prepared: prepare.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\n".join(describe(prepared, 1e12))
    ids = iter(range(1, 1000))
    monkeypatch.setattr(slurm, "sbatch", lambda *_: str(next(ids)))
    runs = prepared.plan.runs_folder
    with submitting(runs / SUBMISSIONS):
        Application(prepared).run()
    write_plan(prepared.plan, plan_path(runs, "table1"))
    written = [path for path in runs.rglob("*") if path.is_file() and ".lease" not in path.name]
    assert f"to write:   {len(written)} files now" in lines


def test_it_says_that_the_disk_may_fill_and_what_is_requeued(prepared: prepare.Prepared) -> None:
    kept, peak = prepared.totals["bytes"], prepared.totals["bytes_peak"]
    assert "--array-parallelism N" in "\n".join(describe(prepared, (kept + peak) / 2))
    assert not any(
        "--array-parallelism" in line or "requeue" in line for line in describe(prepared, peak)
    )
    work_s = 5 * 60 - 30 - 90
    arrays = [
        replace(array, minutes=5, seconds=len(array.elements) * 12.5 * work_s)
        for array in prepared.plan.arrays
    ]
    plan = replace(prepared.plan, arrays=tuple(arrays))
    lines = list(describe(replace(prepared, plan=plan), peak))
    (line,) = [line for line in lines if "requeue" in line]
    assert "train: about 12 requeues at 5 min each" in line


def test_a_refusal_after_some_jobs_says_how_many_are_queued(
    prepared: prepare.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sbatch(arguments: Sequence[str], text: str) -> str:
        if len(application.jobs) == 2:
            raise UserError("sbatch --parsable: sbatch: error: Invalid qos")
        return str(len(application.jobs) + 1)

    monkeypatch.setattr(slurm, "sbatch", sbatch)
    application = Application(prepared)
    with (
        submitting(prepared.plan.runs_folder / SUBMISSIONS),
        pytest.raises(
            UserError, match=r"^sbatch took 2 jobs and refused table1-\S+: Invalid qos; "
        ),
    ):
        application.run()


def test_every_stage_shows_its_text_and_what_it_waits_for(prepared: prepare.Prepared) -> None:
    text = "\n".join(sbatch_texts(prepared.plan.arrays))
    assert text.count("#!/bin/bash") == 7  # six stages and the last job
    assert "table1-generate-brats2021-lsgan, after table1-train-brats2021-lsgan" in text
    assert "sbatch text of the last job, after" in text
    assert not (prepared.plan.runs_folder).exists()


def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(
    prepared: prepare.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e8))
    with pytest.raises(
        UserError, match=r"runs: 0\.1 GB are free, about \d+\.\d GB will be kept; make room"
    ):
        prepare.check_space(prepared)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e13))
    assert prepare.check_space(prepared) == 1e13
