"""How a run stands, from its own files, what was submitted, and the queue."""

import json
import time
from pathlib import Path

import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.jobs.state.run_status import RunStatus, read_statuses
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.lease import locked
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run
from tests.jobs.queues import Queue, in_queue, log, make_plan, queue_of, submit
from tests.results.made_up import fake_metrics, finish, make_runs

ARMS = (ArmConfig(name="reference"), ArmConfig(name="vae+100", generator="vae", n_synthetic=100))


@pytest.fixture
def runs() -> list[Run]:
    """A generator's training, its pairs, their quality, and two arms with two seeds."""
    return make_runs(arms=ARMS, seeds=2, sources=("vae",))


@pytest.fixture
def plan(tmp_path: Path, runs: list[Run]) -> Plan:
    return make_plan(tmp_path, runs)


def stand(plan: Plan, queue: Queue | None = None) -> dict[str, RunStatus]:
    submissions = Submissions(plan.runs_folder)
    return dict(read_statuses(plan, read_results(plan), submissions, queue).statuses)


def ids(plan: Plan, stage: str) -> list[str]:
    return [run_id for run_id, run in plan.runs.items() if run.stage == stage]


def test_what_was_never_submitted_is_open_and_what_has_a_result_is_done(
    plan: Plan, runs: list[Run]
) -> None:
    finish(plan.runs_folder, runs[0], fake_metrics(runs[0]))
    statuses = stand(plan)
    assert statuses[runs[0].run_id] == RunStatus("done")
    assert {statuses[run.run_id] for run in runs[1:]} == {RunStatus("open")}


def test_the_queue_says_what_waits_and_why(plan: Plan) -> None:
    first, second = ids(plan, "segment")[:2]
    name = submit(plan, [[first], [second]])
    assert stand(plan, queue_of(in_queue(name, [0, 1], "PENDING", "Priority")))[
        second
    ] == RunStatus("waiting", "12_1", "Priority")


def test_of_an_element_that_runs_only_the_run_at_its_turn_is_running(plan: Plan) -> None:
    first, second, third = ids(plan, "segment")[:3]
    name = submit(plan, [[first, second, third]])
    log(
        plan,
        first,
        {"event": "started", "job_id": "12_0"},
        {"event": "failed", "reason": "bad luck", "job_id": "12_0"},
    )
    log(
        plan,
        second,
        {"event": "started", "job_id": "12_0", "time": -1e6},
        {"images_seen": 32, "time": -1e6},
    )
    statuses = stand(plan, queue_of(in_queue(name, [0], "RUNNING")))
    assert statuses[first] == RunStatus("failed", "12_0", "bad luck")
    assert statuses[second] == RunStatus("running", "12_0")  # however long it has been silent
    assert statuses[third] == RunStatus("waiting", "12_0", "their turn in the element")


def test_a_run_whose_worker_died_waits_for_the_element_to_take_it_alone(plan: Plan) -> None:
    run_id = ids(plan, "segment")[0]
    name = submit(plan, [[run_id]])
    for event in ("started", "died"):
        log(plan, run_id, {"event": event, "job_id": "12_0", "reason": "SIGKILL"})
    assert stand(plan, queue_of(in_queue(name, [0], "RUNNING")))[run_id].kind == "waiting"


def test_a_run_that_failed_before_and_is_queued_again_waits(plan: Plan) -> None:
    run_id = ids(plan, "segment")[0]
    log(
        plan,
        run_id,
        {"event": "started", "job_id": "11_0"},
        {"event": "failed", "reason": "bad luck"},
    )
    name = submit(plan, [[run_id]])
    assert stand(plan, queue_of(in_queue(name, [0], "RUNNING")))[run_id].kind == "waiting"
    assert stand(plan, queue_of())[run_id] == RunStatus("failed", "12_0", "bad luck")


def test_what_left_the_queue_without_a_word_is_lost(plan: Plan) -> None:
    first, second, third = ids(plan, "segment")[:3]
    submit(plan, [[first], [second]])
    log(plan, first, {"event": "started", "job_id": "12_0"})
    log(
        plan, second, {"event": "started", "job_id": "12_1"}, {"event": "stopped", "job_id": "12_1"}
    )
    log(plan, third, {"event": "started", "time": -1e6, "job_id": ""})
    statuses = stand(plan, queue_of())
    assert statuses[first] == RunStatus("lost", "12_0", "ended without a result")
    assert statuses[second] == RunStatus("lost", "12_1", "saved and left")
    assert statuses[third] == RunStatus("lost", "", "ended without a result")


@pytest.mark.parametrize("event", ["failed", "blocked"])
def test_what_a_run_came_to_before_is_no_word_of_the_element_that_had_it_since(
    plan: Plan, event: str
) -> None:
    run_id = ids(plan, "segment")[0]
    submit(plan, [[run_id]], job="12")
    log(
        plan,
        run_id,
        {"event": "started", "job_id": "12_0"},
        {"event": event, "reason": "x", "job_id": "12_0"},
    )
    assert stand(plan, queue_of())[run_id].kind == ("failed" if event == "failed" else "open")
    submit(plan, [[run_id]], job="40")
    assert stand(plan, queue_of())[run_id] == RunStatus(
        "lost", "40_0", "ended before its log began"
    )


def test_the_element_is_the_last_that_was_submitted(plan: Plan) -> None:
    run_id = ids(plan, "segment")[0]
    submit(plan, [[run_id]], job="12")
    submit(plan, [[run_id]], job="40")
    with open(plan.runs_folder / "submissions/small-abc/jobs.jsonl", "a") as file:
        file.write(
            '{"array": 0}\n{"array": 0, "job": "7", "places": 3}\n{"array": 0, "jo'
        )  # cut short by a crash
    assert stand(plan, queue_of())[run_id].element == "40_0"


def test_what_needs_a_failed_run_is_blocked_and_names_it_however_far_away(plan: Plan) -> None:
    (train,), (generate,), (quality,) = (
        ids(plan, "train"),
        ids(plan, "generate"),
        ids(plan, "quality"),
    )
    log(plan, train, {"event": "failed", "reason": "loss became nan"})
    statuses = stand(plan)
    assert statuses[train] == RunStatus("failed", "", "loss became nan")
    reason = f"needs train brats2021-vae-s0 ({train}), failed"
    assert statuses[generate] == statuses[quality] == RunStatus("blocked", "", reason)
    assert [statuses[run_id].kind for run_id in ids(plan, "segment")] == ["open"] * 2 + [
        "blocked"
    ] * 2


def test_what_was_blocked_by_something_that_is_no_longer_so_is_open(plan: Plan) -> None:
    (generate,) = ids(plan, "generate")
    submit(plan, [[generate]])
    log(plan, generate, {"event": "blocked", "reason": "needs train", "job_id": "12_0"})
    assert stand(plan, queue_of())[generate] == RunStatus("open", "12_0", "needs train")


def test_a_result_from_another_making_of_the_parent_is_open_with_that_reason(
    plan: Plan, runs: list[Run]
) -> None:
    for run in runs:
        finish(plan.runs_folder, run, fake_metrics(run))
        log(plan, run.run_id, {"event": "started", "job_id": "12_0"})
    finish(plan.runs_folder, runs[0], {"loss": 2.0})
    statuses = stand(plan, queue_of())
    assert statuses[runs[0].run_id] == RunStatus("done")
    assert statuses[runs[1].run_id] == RunStatus(
        "open", "12_0", "what it was made from was made again, or is gone"
    )


def test_without_a_queue_only_what_began_and_shows_no_life_is_called_lost(plan: Plan) -> None:
    first, second, third = ids(plan, "segment")[:3]
    submit(plan, [[first], [second], [third]])
    log(plan, first, {"event": "started", "job_id": "12_0", "time": -1e6})
    log(
        plan,
        third,
        {"event": "started", "job_id": "12_2"},
        {"event": "failed", "reason": "bad luck"},
    )
    statuses = stand(plan, None)
    kinds = [statuses[run_id].kind for run_id in (first, second, third)]
    assert kinds == ["lost", "waiting", "failed"]
    log(plan, first, {"images_seen": 32})
    assert stand(plan, None)[first].kind == "running"


def test_a_local_run_is_at_work_while_its_process_holds_it_or_its_log_is_fresh(plan: Plan) -> None:
    run_id = ids(plan, "segment")[0]
    log(plan, run_id, {"event": "started", "job_id": "", "time": -1000.0})
    assert stand(plan)[run_id].kind == "lost"
    with locked(plan.folder(run_id)) as mine:
        assert mine
        assert stand(plan)[run_id] == RunStatus("running", "", "local")
    assert stand(plan)[run_id].kind == "lost"
    log(plan, run_id, {"images_seen": 1600, "time": -10.0})
    assert stand(plan)[run_id].kind == "running"


def test_the_start_of_an_attempt_is_found_behind_thousands_of_records(plan: Plan) -> None:
    run_id = ids(plan, "train")[0]
    name = submit(plan, [[run_id]])
    log(plan, run_id, {"event": "started", "job_id": "12_0"})
    with open(plan.folder(run_id) / "log.jsonl", "a") as file:
        file.writelines(
            json.dumps({"time": time.time(), "images_seen": 32 * i}) + "\n" for i in range(2000)
        )
    assert stand(plan, queue_of(in_queue(name, [0], "SUSPENDED")))[run_id] == RunStatus(
        "running", "12_0", "suspended"
    )
