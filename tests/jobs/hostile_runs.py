"""A small runs folder with a file of every kind, for the tests that damage its files."""

from pathlib import Path

from hvae_hpc.jobs.failures.retry import RetryHistory, RunRetries, write_history
from hvae_hpc.runs.folder import append_log, write_json
from tests.jobs.queues import make_plan, submit
from tests.results.made_up import (
    PAPER_ARMS,
    fake_metrics,
    finish,
    folder_of,
    make_runs,
    write_samples,
)

ARMS = (PAPER_ARMS[0], *(arm for arm in PAPER_ARMS if arm.name == "hvae+100"))


def make_hostile_runs(folder: Path) -> None:
    """Make a runs folder: done, failed, running and lost runs, two submissions, retries, samples."""
    runs = make_runs(arms=ARMS, seeds=3, sources=("hvae", "real"))
    plan = make_plan(folder, runs)
    *done, failed, lost = runs
    for run in done:
        finish(folder, run, fake_metrics(run))
    write_samples(folder, runs)
    name = submit(plan, [[failed.run_id], [lost.run_id]])
    (folder / "submissions" / name / "12_0_0_log.out").write_text("element begins\nMemoryError\n")
    started = {"event": "started", "attempt": 1, "at": 0, "host": "n3", "job_id": "12_0"}
    ended = {"event": "failed", "reason": "x", "job_id": "12_0", "errno": 28, "errors": ["OSError"]}
    for run, records in ((failed, [started, ended]), (lost, [{**started, "job_id": "12_1"}])):
        (folder / folder_of(run)).mkdir(parents=True)
        (folder / folder_of(run) / f"checkpoint-{160:012}-{'a' * 16}.pt").touch()
        (folder / folder_of(run) / ".lease-1").write_text(
            '{"token": "x", "pid": 1, "every_s": 20.0}'
        )
        for record in (*records[:1], {"images_seen": 160, "loss": 0.5}, *records[1:]):
            append_log(folder / folder_of(run), record)
    write_history(folder, RetryHistory(runs={failed.run_id: RunRetries(counts={"lost": 1})}))
    ends = {"12_0": "FAILED, exit code 1 on n3", "12_1": "TIMEOUT on n3"}
    write_json(folder / "submissions" / "ends.json", {"asked_at": 1.0, "ends": ends})
