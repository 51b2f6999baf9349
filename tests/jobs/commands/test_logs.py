"""``hvae-hpc logs``: events in plain words, and the end of the right process's log."""

import os
from pathlib import Path

import pytest

from hvae_hpc.jobs.commands import logs
from hvae_hpc.runs.plan import Plan
from tests.jobs.queues import log, make_plan, submit
from tests.results.made_up import SMALL_ARMS, make_runs


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:2], seeds=4, sources=()))


def show_logs(plan: Plan, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert logs.main([*arguments, "--runs", str(plan.runs_folder)]) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin-without-slurm")


def test_logs_show_events_in_plain_words_and_the_element_s_end(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = list(plan.runs)[:3]
    name = submit(plan, [[first, second, third]])
    log(plan, second, {"event": "started", "attempt": 2, "host": "n3", "job_id": "12_0"})
    log(
        plan,
        second,
        {"event": "resumed", "images_seen": 3200},
        {"images_seen": 4800, "loss": 0.31234, "steps": 3},
    )
    log(
        plan,
        second,
        {"event": "failed", "reason": "loss became nan", "job_id": "12_0"},
        {"event": "new", "a": 1},
    )
    (plan.runs_folder / "submissions" / name / "12_0_0_log.out").write_text(
        f"done: segment x ({first}), 1 s\nold line\nTraceback\nfailed: segment y ({second})\ndone: segment z ({third})\n"
    )
    said = show_logs(plan, second, "--lines", "3", capsys=capsys)
    lines = said.splitlines()
    assert lines[0] == f"segment brats2021-reference-s1 ({second})"
    assert lines[1] == "failed (12_0): loss became nan"
    assert lines[3] == f"{plan.folder(second)}/log.jsonl"
    assert [line[19:] for line in lines[4:7]] == [
        "images_seen 4800, loss 0.3123, steps 3",
        "failed, reason loss became nan, job_id 12_0",
        "new, a 1",
    ]
    assert lines[8].endswith("12_0_0_log.out")
    assert lines[9:] == ["  old line", "  Traceback", f"  failed: segment y ({second})"]
    said = show_logs(plan, second, capsys=capsys)
    assert "started, attempt 2, host n3, job_id 12_0" in said
    assert "resumed, images_seen 3200" in said


def test_logs_of_a_local_run_end_with_its_worker_s(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = next(iter(plan.runs))
    said = show_logs(plan, run_id, capsys=capsys)
    assert said.splitlines()[1:] == ["open", "", f"{plan.folder(run_id)}: nothing yet"]
    log(plan, run_id, {"event": "started", "attempt": 1, "host": "here", "job_id": ""})
    (plan.runs_folder / "local").mkdir()
    names = (f"{plan.sweep}-too-3.log", f"{plan.sweep}-2.log", f"{plan.sweep}-1.log")
    for age, name in enumerate(names):
        (plan.runs_folder / "local" / name).write_text(f"{name}\n")
        os.utime(plan.runs_folder / "local" / name, (1e9 - age, 1e9 - age))
    said = show_logs(plan, run_id, capsys=capsys)
    assert "running: local" in said
    assert said.endswith(f"local/{names[1]}\n  {names[1]}\n")  # not another sweep's
    assert "started, attempt 1, host here" in said
