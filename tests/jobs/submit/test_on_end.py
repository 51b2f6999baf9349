"""A site's command at the end of a sweep: what it is told, and that it is run once."""

from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.jobs.state.submissions import Job, note_job
from hvae_hpc.jobs.submit.on_end import run_on_end
from hvae_hpc.runs.plan import Array, Plan, plan_path, write_plan
from tests.jobs.submit.test_apply import make_project, plan_of

TELL = 'on_end = ["sh", "-c", "env | grep ^HVAE_HPC_ | sort; echo x >> {}; exit {}"]'


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A sweep of two runs, with submissions "a" and "b", whose last jobs are 7 and 8."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr("hvae_hpc.jobs.slurm.client.is_available", lambda: False)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    plan = plan_of(make_project(tmp_path, seeds=2))
    write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    (tmp_path / "site.toml").write_text("[tables]\n" + TELL.format(tmp_path / "count", 0))
    submit(plan, "a", "7")
    return plan


def submit(plan: Plan, name: str, job: str) -> Path:
    """Write what a submission of a last job alone leaves."""
    folder = plan.runs_folder / "submissions" / name
    last_job = Array(name=f"{plan.sweep}-tables", stage="tables")
    write_plan(replace(plan, arrays=(last_job,)), folder / "plan.json")
    note_job(plan.runs_folder, Job(name, 0, job, (), 1.0))
    return folder


def end(plan: Plan, name: str, job: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Be a last job that is over; returns how often the command was run by now."""
    monkeypatch.setenv("SLURM_JOB_ID", job)
    project = plan.runs_folder.parent
    run_on_end(plan.runs_folder / "submissions" / name, project / "site.toml")
    count = project / "count"
    return len(count.read_text().split()) if count.exists() else 0


def test_it_is_told_how_the_sweep_ended_and_not_run_again_when_slurm_starts_the_job_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(plan, "a", "7", monkeypatch) == 1
    assert capsys.readouterr().err == ""
    told = (plan.runs_folder / "submissions/on_end-7.log").read_text().splitlines()
    report = plan.runs_folder / "results/tiny/report.html"
    assert {"HVAE_HPC_SWEEP=tiny", f"HVAE_HPC_REPORT={report}", "HVAE_HPC_RUNS=2"} <= {*told}
    assert {"HVAE_HPC_DONE=0", "HVAE_HPC_OPEN=2", "HVAE_HPC_FAILED=0"} <= {*told}
    assert end(plan, "a", "7", monkeypatch) == 1


def test_of_several_last_jobs_the_latest_runs_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(plan, "b", "8")
    assert end(plan, "a", "7", monkeypatch) == 0
    submit(plan, "a", "9")  # the same submission, made again
    assert end(plan, "b", "8", monkeypatch) == 0
    assert end(plan, "a", "9", monkeypatch) == 1


def test_a_sweep_of_another_name_in_the_folder_is_told_of_by_itself(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(replace(plan, sweep="other"), "o", "8")
    assert end(plan, "a", "7", monkeypatch) == 1


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("[tables]\n" + TELL.format("/dev/null", 3), "on_end: Command '('sh', "),
        ('[tables]\non_end = ["/nowhere/notify"]', "on_end: [Errno 2] No such file or directory"),
        ("[tables]\nend = 1", "on_end: "),
        ("", ""),
    ],
)
def test_what_goes_wrong_with_it_is_one_line(
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    site: str,
    said: str,
) -> None:
    (plan.runs_folder.parent / "site.toml").write_text(site)
    assert end(plan, "a", "7", monkeypatch) == 0
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == bool(said)
