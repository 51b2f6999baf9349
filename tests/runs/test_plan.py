"""Plans: read back as written, and refused where they do not hold together."""

import json
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.config.stages import STAGE_VERSIONS
from hvae_hpc.errors import UserError
from hvae_hpc.runs.identity import content_hash
from hvae_hpc.runs.plan import find_plans, read_plan
from tests.results.made_up import make_runs, write_plan


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
        ({"schema": 3}, "schema 3, expected 4; give the sweep command again"),
        ({"runs": 7}, "has no list of runs"),
        ({"runs": [7]}, r"runs\[0\]: got 7, expected a table of run_id, stage"),
        ({"code": "abc"}, "unknown key 'code'"),
        ({"data": {}}, "reads 'brats2021', expected one of"),
        (
            {"data": {"brats2021": {"folder": "", "content_hash": "e" * 64}}},
            "reads other data than the plan's brats2021",
        ),
    ],
)
def test_a_wrong_plan_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_plan(write_plan(tmp_path, make_runs(), changes=changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a"}, r"runs\[0\]: unknown key 'name'"),
        ({"stage": "segmnt"}, r"runs\[0\]\.stage: got 'segmnt'"),
        ({"run_id": "../../0123456"}, "expected 12 hexadecimal digits"),
        ({"run_id": 7}, r"runs\[0\]\.run_id: got 7, expected str"),
        ({"config": {"lr": 1.0}}, "unknown key 'lr'"),
    ],
)
def test_a_wrong_run_in_a_plan_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    runs = read_entries(tmp_path)
    with pytest.raises(UserError, match=message):
        read_plan(write_plan(tmp_path, make_runs(), changes={"runs": [{**runs[0], **changes}]}))


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """Return the runs of a made-up plan, as they stand in its file."""
    entries: list[dict[str, Any]] = json.loads(write_plan(folder, make_runs()).read_text())["runs"]
    return entries


def test_a_run_that_stands_twice_in_a_plan_is_refused(tmp_path: Path) -> None:
    entries = read_entries(tmp_path)
    with pytest.raises(UserError, match="is in the plan twice"):
        read_plan(write_plan(tmp_path, make_runs(), changes={"runs": [*entries, entries[3]]}))


def test_a_folder_without_plans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plan of a sweep in it"):
        find_plans(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_plans(tmp_path / "nowhere")


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    runs = make_runs(seeds=5)
    plan = read_plan(write_plan(tmp_path, runs))
    assert list(plan.runs.values()) == runs
    assert [run.run_id for run in plan.runs.values()] == list(plan.runs)


def test_a_parent_that_does_not_stand_before_its_run_is_refused(tmp_path: Path) -> None:
    entries = read_entries(tmp_path)
    with pytest.raises(UserError, match="that does not stand before it"):
        read_plan(write_plan(tmp_path, make_runs(), changes={"runs": entries[::-1]}))


def test_a_plan_from_before_a_setting_was_added_is_read(tmp_path: Path) -> None:
    entries, new = read_entries(tmp_path), dict[str, str]()
    for entry in entries:
        if entry["stage"] == "train":
            del entry["config"]["model"]["mask_weight"]  # as if it had been added later
        entry["parents"] = {role: new.get(of, of) for role, of in entry["parents"].items()}
        version = STAGE_VERSIONS[entry["stage"]]
        run_id = content_hash([entry["stage"], version, entry["config"], entry["parents"]])[:12]
        new[entry["run_id"]] = entry["run_id"] = run_id
    plan = read_plan(write_plan(tmp_path, make_runs(), changes={"runs": entries}))
    assert list(plan.runs) == list(new.values())
