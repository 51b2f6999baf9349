"""From what a person types to the one run that is meant."""

from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.state.find_run import find_run
from hvae_hpc.runs.plan import plan_path, read_plan
from tests.jobs.queues import make_plan
from tests.results.made_up import SMALL_ARMS, make_runs


def test_a_run_is_found_by_label_id_stage_or_folder(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:3], seeds=2, sources=("vae",)))
    segment = next(i for i, run in plan.runs.items() if run.label == "brats2021-vae+100-s1")
    train = next(i for i, run in plan.runs.items() if run.stage == "train")
    folder = plan.folder_name(segment)
    for text in (
        "brats2021-vae+100-s1",
        segment,
        segment[:8],
        "segment/brats2021-vae+100-s1",
        folder,
        f"{folder}/",
    ):
        assert find_run(tmp_path, text)[1] == segment
    assert find_run(tmp_path, "train/brats2021-vae-s0")[1] == train
    with pytest.raises(UserError) as error:
        find_run(tmp_path, "brats2021-vae-s0")
    assert str(error.value).splitlines() == [
        "'brats2021-vae-s0' may be any of these; give one of them",
        *(
            f"  {plan.folder_name(i)}"
            for i, run in plan.runs.items()
            if run.label == "brats2021-vae-s0"
        ),
    ]
    with pytest.raises(
        UserError,
        match=r"no run 'brats2021-vae\+100-s9'; give a label, such as brats2021-vae\+100-s",
    ):
        find_run(tmp_path, "brats2021-vae+100-s9")
    with pytest.raises(
        UserError, match="no run 'zzz'; give a label, such as brats2021-vae-s0, brats2021-ref"
    ):
        find_run(tmp_path, "zzz")


def test_a_run_that_an_older_version_named_is_found_by_its_folder(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1))
    named = next(iter(plan.runs))
    older = f"{'0' * 11}1"
    path = plan_path(tmp_path, plan.sweep)
    path.write_text(path.read_text().replace(named, older))
    assert find_run(tmp_path, read_plan(path).folder_name(older))[1] == older


def test_a_run_of_two_sweeps_is_one_run(tmp_path: Path) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=())
    for sweep in ("a", "b"):
        make_plan(tmp_path, runs, sweep)
    assert find_run(tmp_path, "brats2021-reference-s0")[1] == runs[0].run_id
