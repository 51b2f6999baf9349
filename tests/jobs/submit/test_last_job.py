"""The last job of a submission, where it submits the rest."""

import json
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc import sweep
from tests.jobs.queues import make_plan, submit
from tests.results.made_up import SMALL_ARMS, finish, make_runs


def test_how_jobs_run_is_not_read_from_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=2, sources=()))
    done, failed = plan.runs
    finish(tmp_path, plan.runs[done], {"dice": 0.5})
    name = submit(plan, [[done], [failed]])
    written = json.loads((tmp_path / "plans" / f"{plan.sweep}.json").read_text())
    written["arrays"] = json.loads((tmp_path / "submissions" / name / "plan.json").read_text())[
        "arrays"
    ]
    written["resources"]["segment"]["setup"] = ["touch stolen"]
    (tmp_path / "submissions" / name / "plan.json").write_text(json.dumps(written))

    submitted: list[Any] = []
    monkeypatch.setattr(sweep, "_submit", lambda plan, *_: submitted.append(plan) or 0)
    monkeypatch.setattr(sweep, "_write_tables", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "read_cluster", lambda: None)
    monkeypatch.setattr(sweep, "fit_cluster", lambda site, *_: site)
    flags = ["--partition", "gpu", "--retries", "1", "--finish", f"{tmp_path}/submissions/{name}"]
    assert sweep._finish(sweep._make_parser().parse_args(flags), flags) == 0
    [again] = submitted
    assert again.runs == plan.runs
    assert again.resources == plan.resources
    assert again.resources["segment"].setup == ()
