"""Plans: read back as written, and refused where they do not hold together."""

import json
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.plan import find_plans, read_plan, read_states
from tests.made_up import fake_metrics, finish, make_runs, write_plan, write_sweep


def test_a_truncated_plan_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_plan(tmp_path, make_runs())
    path.write_text(path.read_text()[:1000])
    with pytest.raises(UserError, match=r"small\.json: not valid JSON"):
        read_plan(path)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "plans/none.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2, expected 1"),
        ({"runs": [{"name": "a"}]}, r"runs\[0\]: unknown key 'name'"),
        ({"runs": [{"stage": "segmnt"}]}, r"runs\[0\]\.stage: got 'segmnt'"),
        ({"data": {}}, "reads 'brats2021', expected one of"),
        ({"data": {"brats2021": {"content_hash": "e" * 64}}}, "reads other data than the plan's brats2021"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_plan(write_plan(tmp_path, make_runs(), changes=changes))
    assert "\n" not in str(error.value)


def test_a_config_that_the_stage_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path, make_runs())
    plan = json.loads(path.read_text())
    plan["runs"][-1]["config"]["lr"] = 1.0
    path.write_text(json.dumps(plan))
    with pytest.raises(UserError, match="unknown key 'lr'"):
        read_plan(path)


def test_a_run_that_stands_twice_in_a_plan_is_refused(tmp_path: Path) -> None:
    runs = make_runs()
    with pytest.raises(UserError, match="stands in it twice"):
        path = write_plan(tmp_path, runs)
        entries = json.loads(path.read_text())["runs"]
        read_plan(write_plan(tmp_path, runs, changes={"runs": [*entries, entries[3]]}))


def test_a_folder_without_plans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plan of a sweep in it"):
        find_plans(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_plans(tmp_path / "nowhere")


def test_what_was_made_from_another_making_of_its_parent_is_not_done(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path)
    plan = read_plan(tmp_path / "plans/small.json")
    assert all(state.done for state in read_states(plan).values())
    train = next(run for run in runs if run.stage == "train")
    finish(tmp_path, train, {"loss": 2.0})
    states = read_states(plan)
    assert states[train.run_id].done
    hanging = {
        run.run_id
        for run in runs
        if run.config.data == train.config.data and f"-{train.config.generator}" in run.label and run is not train
    }
    assert {run_id for run_id, state in states.items() if not state.done} == hanging
    assert fake_metrics(train) == {"loss": 1.0}
