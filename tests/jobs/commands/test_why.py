"""``hvae-hpc why``: from the command line, of a run that failed and of one that did not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hvae_hpc.jobs.commands.why import main
from hvae_hpc.jobs.failures.retry import RetryHistory, RunRetries, write_history
from tests.jobs.queues import log, make_plan, queue_of, submit
from tests.results.made_up import SMALL_ARMS, fake_metrics, finish, make_runs


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin-without-slurm")


def ask(capsys: pytest.CaptureFixture[str], runs: Path, *arguments: str) -> list[str]:
    assert main([*arguments, "--runs", str(runs)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_that_failed_is_explained_in_ten_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=2, sources=()))
    run_id = next(iter(plan.runs))
    for attempt in (1, 2):
        log(
            plan,
            run_id,
            {"event": "started", "attempt": attempt, "at": 0, "host": "n3", "job_id": "12_0"},
        )
    log(plan, run_id, {"images_seen": 160, "loss": 0.5})
    (plan.folder(run_id) / "checkpoint-000000000160-aaaaaaaaaaaaaaaa.pt").touch()
    error = {"errors": ["UserError", "OSError"], "errno": 122, "host": "n3", "job_id": "12_0"}
    log(
        plan,
        run_id,
        {
            "event": "failed",
            "reason": f"{plan.folder(run_id)}/x: cannot be written (quota)",
            **error,
        },
    )
    write_history(
        tmp_path, RetryHistory(runs={run_id: RunRetries(counts={"disk full or quota": 1})})
    )
    said = ask(capsys, tmp_path, "segment/brats2021-reference-s0")
    assert said == [
        f"segment brats2021-reference-s0 ({run_id})",
        "class:     disk full or quota",
        "status:    failed: x: cannot be written (quota)",
        "evidence:  element 12_0, on n3, raised UserError from OSError, error number 122",
        "attempts:  2, saved at 160 of 320 images; the last began at 0",
        "retry:     no more: 1 of 1 retries used, 1 of 10 in all",
        "next:      make room, then give the same sweep command again",
    ]
    assert ask(capsys, tmp_path, run_id[:6]) == said
    assert ask(capsys, tmp_path, str(plan.folder(run_id))) == said


def test_of_what_is_no_failure_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=2, sources=())
    make_plan(tmp_path, runs)
    finish(tmp_path, runs[0], fake_metrics(runs[0]))
    said = ask(capsys, tmp_path, runs[0].run_id)
    assert said[1] == "status:    done"
    assert said[-1] == "next:      nothing: this is not a failure"
    assert ask(capsys, tmp_path, runs[1].run_id)[1:] == [
        "status:    open",
        "next:      the same sweep command",
    ]


def test_whatever_stands_in_the_logs_it_says_ten_lines_that_a_terminal_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    (run_id,) = plan.runs
    name = submit(plan, [[run_id]])
    log(plan, run_id, {"event": "started", "job_id": "12_0", "host": "n\x1b[31m1"})
    with open(plan.folder(run_id) / "log.jsonl", "a") as file:
        file.write(
            '7\n[]\n"text"\n'
            + "[" * 100_000
            + '\n{"time": 1, "event": "died", "job_id": "12_0", "signal": "SIGKILL", '
        )
        file.write('"reason": "a\\ud800\\f\\u001b' + "x" * 9000 + '"}\n{"event": "odd\\u0085"}\n')
    text = "1" * 300_000 + "\n" + "Error: \x1b[2J\x0c\x85 again\n" * 9 + "Error: " + "1" * 200_000
    (plan.runs_folder / "submissions" / name / "12_0_0_log.out").write_text(text)
    monkeypatch.setattr(
        "hvae_hpc.jobs.state.find_run.read_our_queue",
        lambda submissions: (queue_of(), "no\nanswer"),
    )
    said = ask(capsys, tmp_path, run_id)
    assert len(said) == 10
    assert said[-1] == "note:      the queue is not known: no\\nanswer"
    assert all(line.isprintable() and len(line) <= 200 for line in said)
    assert "a\\ud800\\x0c\\x1bxxx" in said[2]
    assert "n\\x1b[31m1" in said[3]


def test_the_site_file_s_rules_are_those_it_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    (run_id,) = plan.runs
    died = {
        "event": "died",
        "reason": "its process died (SIGKILL)",
        "signal": "SIGKILL",
        "job_id": "",
    }
    log(plan, run_id, {"event": "started", "job_id": "", "host": "here"}, died)
    (tmp_path / "site.toml").write_text("[retry.lost]\ntimes = 5\n")
    said = ask(capsys, tmp_path, run_id, "--site", str(tmp_path / "site.toml"))
    assert "retry:     as it was; 0 of 5 retries used" in said
    assert said[-1] == "next:      the same sweep command"


def test_it_promises_no_more_than_partition_and_administrator_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()))
    (run_id,) = plan.runs
    submit(plan, [[run_id]])
    error = {
        "event": "failed",
        "reason": "MemoryError",
        "errors": ["MemoryError"],
        "job_id": "12_0",
    }
    log(plan, run_id, {"event": "started", "job_id": "12_0", "host": "n1"}, error)
    said = ask(capsys, tmp_path, run_id)
    assert "retry:     memory_gb 16 -> 24; 0 of 3 retries used" in said
    (tmp_path / "admin.toml").write_text("[caps]\nretries = 0\n")
    monkeypatch.setenv("HVAE_HPC_SITE", str(tmp_path / "admin.toml"))
    said = ask(capsys, tmp_path, run_id)
    assert said[-3:-1] == [  # and then that there is no SLURM
        "retry:     no more: 0 of 3 retries used, 0 of 0 in all",
        "next:      the same sweep command",
    ]


def test_it_starts_without_what_it_does_not_need() -> None:
    heavy = ["torch", "numpy", "pandas", "matplotlib", "submitit", "h5py"]
    check = f"import sys; from hvae_hpc.jobs.commands import why; assert not set({json.dumps(heavy)}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd="/")


def test_where_a_node_looks_bad_by_what_others_came_to_it_says_what_a_retry_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=6, sources=()))
    submit(plan, [[run_id] for run_id in plan.runs])
    bug = {"event": "failed", "reason": "RuntimeError: no kernel image", "errors": ["RuntimeError"]}
    for place, run_id in enumerate([*plan.runs][:3]):
        mine = {"job_id": f"12_{place}", "host": "n1"}
        log(plan, run_id, {"event": "started", "time": -60.0, **mine}, {**bug, **mine})
    first, last = next(iter(plan.runs)), [*plan.runs][5]
    assert "class:     code error" in ask(capsys, tmp_path, first)
    finish(tmp_path, plan.runs[last], fake_metrics(plan.runs[last]))  # on another node
    said = ask(capsys, tmp_path, first)
    assert "class:     node failure" in said
    assert "evidence:  element 12_0, on n1, which looks bad, raised RuntimeError" in said
    assert "retry:     as it was, not on n1 for 24 h; 0 of 3 retries used" in said
