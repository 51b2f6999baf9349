"""Where device time went, by what came of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.commands import status
from hvae_hpc.jobs.slurm.client import Queue
from hvae_hpc.jobs.state.run_status import read_statuses
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.jobs.state.sweep_status import StageHours, make_sweep_status, read_device_hours
from hvae_hpc.results.tables.device_hours import build_device_hours
from hvae_hpc.runs.done import ResultSummary, read_results
from hvae_hpc.runs.plan import Plan
from tests.jobs.queues import in_queue, log, make_plan, queue_of, submit
from tests.results.made_up import SMALL_ARMS, finish, make_runs

HOUR = 3600.0
NOTHING = queue_of()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Six networks on a GPU, an element each."""
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=6, sources=()))
    submit(plan, [[run_id] for run_id in plan.runs])
    return plan


def spend(
    plan: Plan, results: dict[str, ResultSummary] | None = None, queue: Queue | None = NOTHING
) -> dict[str, StageHours]:
    submissions, results = Submissions(plan.runs_folder), results or read_results(plan)
    sweep = read_statuses(plan, results, submissions, queue)
    return {spending.stage: spending for spending in read_device_hours(sweep)}


def hours(
    plan: Plan, results: dict[str, ResultSummary] | None = None, queue: Queue | None = NOTHING
) -> dict[str, float]:
    return {
        name: round(n, 2)
        for name, n in spend(plan, results, queue)["segment"].hours.items()
        if n > 0.005
    }


def begin(plan: Plan, run_id: str, at: float, element: str = "12_0", images: int = 0) -> None:
    log(plan, run_id, {"event": "started", "job_id": element, "at": images, "time": at * HOUR})


@pytest.mark.parametrize(
    ("ended", "following", "outcome"),
    [
        ({"event": "failed", "reason": "x"}, "13_0", "failed"),
        ({"event": "died", "reason": "x"}, "12_0", "failed"),
        ({"event": "again", "reason": "x", "oom_kills": 1}, "12_0", "failed"),
        ({"event": "left", "at_limit": True}, "12_0", "time limit"),
        ({"event": "stopped"}, "12_0", "preempted"),
        ({}, "12_0", "preempted"),
        ({}, "13_0", "interrupted"),
        ({"event": "left"}, "13_0", "cancelled"),
    ],
)
def test_what_was_not_saved_is_lost_to_what_ended_the_attempt(
    plan: Plan, ended: dict[str, Any], following: str, outcome: str
) -> None:
    run_id = next(iter(plan.runs))
    begin(plan, run_id, -10)
    log(plan, run_id, {"images_seen": 400, "time": -6 * HOUR}, {**ended, "time": -6 * HOUR})
    begin(plan, run_id, -5, following)  # from the start: nothing was saved of the four hours
    log(
        plan,
        run_id,
        {"images_seen": 500, "time": -3 * HOUR},
        {"event": "failed", "reason": "y", "time": -3 * HOUR},
    )
    if outcome == "cancelled":
        ends = plan.runs_folder / "submissions/ends.json"
        ends.write_text(json.dumps({"asked_at": 0.0, "ends": {"12_0": "CANCELLED by 1000"}}))
    expected = {"failed": 2.0}
    expected[outcome] = expected.get(outcome, 0.0) + 4.0
    assert hours(plan) == expected


@pytest.mark.parametrize("queue", [None, NOTHING])
def test_what_was_killed_without_a_word_counts_until_its_last_record(
    plan: Plan, queue: Queue | None
) -> None:
    run_id = next(iter(plan.runs))
    begin(plan, run_id, -10)
    log(plan, run_id, {"images_seen": 100, "time": -9 * HOUR})
    assert hours(plan, queue=queue) == {"interrupted": 1.0}
    log(
        plan, run_id, {"event": "blocked", "reason": "needs train"}
    )  # of a later element, which never began it
    assert hours(plan, queue=queue) == {"interrupted": 1.0}


def test_what_is_at_work_counts_until_now(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    begin(plan, run_id, -10)
    log(plan, run_id, {"images_seen": 100, "time": -9 * HOUR})
    assert hours(plan, queue=queue_of(in_queue("small-abc", [0], "RUNNING"))) == {"at work": 10.0}
    log(plan, run_id, {"images_seen": 200})
    assert hours(plan, queue=None) == {
        "at work": 10.0
    }  # SLURM was not asked, but it was heard of just now


def test_what_a_run_saved_is_not_useful_until_something_goes_on_from_it(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    begin(plan, run_id, -4)
    log(plan, run_id, {"images_seen": 100}, {"event": "failed", "reason": "loss became nan"})
    (plan.folder(run_id) / "checkpoint-000000000090-aaaaaaaaaaaaaaaa.pt").touch()
    assert hours(plan) == {"failed": 4.0}
    begin(plan, run_id, 0, "13_0", images=90)
    assert hours(plan) == {"useful": 4.0}


def test_a_run_that_is_done_counts_by_its_result_and_its_earlier_attempts_by_its_log(
    plan: Plan,
) -> None:
    first, second, *_ = plan.runs
    begin(plan, first, -10)
    log(plan, first, {"images_seen": 100, "time": -9 * HOUR})
    begin(plan, first, -8)
    results = {
        **read_results(plan),
        first: ResultSummary(stamp="a", attempt=2, wall_s=HOUR),
    }
    results[second] = ResultSummary(stamp="b", attempt=1, wall_s=2 * HOUR)
    begin(plan, second, -1)  # of which no log need be read
    assert hours(plan, results) == {"useful": 3.0, "preempted": 1.0}


def test_devices_are_counted_and_shared_ones_by_their_share(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    began = {"event": "started", "job_id": "12_0", "at": 0, "time": -2 * HOUR, "at_once": 4}
    log(plan, run_id, began, {"event": "failed", "reason": "x", "time": 0.0})
    assert hours(plan) == {"failed": 0.5}
    several = {stage: replace(needs, gpus=2) for stage, needs in plan.resources.items()}
    assert hours(replace(plan, resources=several)) == {"failed": 1.0}
    cores = {stage: replace(needs, gpus=0, cpus=8) for stage, needs in plan.resources.items()}
    assert hours(replace(plan, resources=cores)) == {"failed": 4.0}


def test_what_was_made_on_a_cpu_is_no_gpu_hours(plan: Plan, tmp_path: Path) -> None:
    asked = {stage: replace(needs, gpus=1, cpus=8) for stage, needs in plan.resources.items()}
    plan = replace(plan, resources=asked)
    of_segment = spend(plan, made(plan, 4, minutes=30.0, device="cpu"))["segment"]
    assert of_segment.unit == "cpu"
    assert of_segment.hours["useful"] == 4 * 0.5 * 8  # as many cores as its element has
    assert spend(plan, made(plan, 4, minutes=30.0, device="NVIDIA H200"))["segment"].unit == "gpu"
    here = replace(plan, runs_folder=tmp_path / "elsewhere")
    assert (
        spend(here, made(here, 4, minutes=30.0, device="cpu"))["segment"].hours["useful"] == 4 * 0.5
    )


def made(
    plan: Plan, number: int, minutes: float = 10.0, **numbers: Any
) -> dict[str, ResultSummary]:
    done = ResultSummary(stamp="a", attempt=1, wall_s=60 * minutes, peak_memory_mib=2048, **numbers)
    return {
        run_id: replace(done, job=f"12_{place}") if place < number else ResultSummary()
        for place, run_id in enumerate(plan.runs)
    }


def test_status_and_the_report_s_table_say_it(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, *others = plan.runs
    begin(plan, failed, -1)
    log(plan, failed, {"event": "failed", "reason": "x", "errors": ["KeyError"], "job_id": "12_0"})
    for run_id in others:
        finish(plan.runs_folder, plan.runs[run_id], {"dice": 0.5}, device="NVIDIA H200")
    assert status.main([str(plan.runs_folder), "--costs"]) == 0
    said = capsys.readouterr().out
    assert "GPU-hours (" in said
    assert "1.00 failed" in said
    assert status.main([str(plan.runs_folder), "--json", "--costs"]) == 0
    (sweep,) = json.loads(capsys.readouterr().out)["sweeps"]
    assert [run["failure"] for run in sweep["runs"]] == ["code error", "", "", "", "", ""]
    (spent,) = sweep["costs"]
    assert spent["hours"]["failed"] == pytest.approx(1.0, abs=0.01)
    table = build_device_hours(sweep["costs"])
    assert table
    assert table.columns[:4] == ("stage", "of", "useful", "failed")
    assert table.rows[0][3] == "1.00"
    assert build_device_hours([]) is None


def test_a_stage_of_a_second_has_no_empty_brackets(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    begin(plan, run_id, -1 / HOUR)
    log(plan, run_id, {"event": "failed", "reason": "x"})
    sweep = make_sweep_status(plan, Submissions(plan.runs_folder), NOTHING)
    (line,) = [line for line in status.render(sweep, costs=True) if line.startswith("spent")]
    assert line == "spent: segment: 0.00 GPU-hours"


def test_every_stage_that_took_time_has_a_line(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS, seeds=1))
    for run in plan.runs.values():
        finish(plan.runs_folder, run, {"dice": 0.5})
    assert [*spend(plan)] == [
        stage for stage in CONFIGS if stage in {run.stage for run in plan.runs.values()}
    ]
