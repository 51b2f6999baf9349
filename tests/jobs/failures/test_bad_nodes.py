"""A node on which runs fail that are made elsewhere is left out, though nothing by its own evidence blames it."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.loader import read_json
from hvae_hpc.jobs.failures.classify import RunOnNode, find_bad_nodes
from hvae_hpc.jobs.failures.retry import RetryHistory
from hvae_hpc.jobs.state.submissions import ENDS_FILE
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.plan import Plan
from tests.jobs.failures.test_retry import NO_MEMORY, choose_once
from tests.jobs.queues import log, make_plan, submit
from tests.results.made_up import SMALL_ARMS, finish, make_runs

BUG = {"event": "failed", "reason": "RuntimeError: no kernel image", "errors": ["RuntimeError"]}


def seen(*runs: tuple[bool, str, str, str, float]) -> set[str]:
    return find_bad_nodes([RunOnNode(*run) for run in runs])


def test_which_nodes_look_bad() -> None:
    failed = [(False, "like", "n1", f"12_{i}", 10.0 + i) for i in range(3)]
    elsewhere = (True, "like", "n2", "", 5.0)
    assert seen(*failed, elsewhere) == {"n1"}
    assert seen(*failed[:2], elsewhere) == set()
    assert (
        seen(*failed) == seen(*failed, (True, "other", "n2", "", 5.0)) == set()
    )  # it may be their own fault
    assert (
        seen(*failed, elsewhere, (True, "other", "n1", "", 11.0)) == set()
    )  # others are made there
    assert seen(*failed, elsewhere, (True, "other", "n1", "", 9.0)) == {"n1"}  # but not since
    assert (
        seen(*((made, like, node, "12_0", at) for made, like, node, _, at in failed), elsewhere)
        == set()
    )


@pytest.fixture
def arms(tmp_path: Path) -> Plan:
    """Six networks, an element each, on a cluster of one partition."""
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=6, sources=()))
    plan = replace(
        plan, resources={stage: replace(r, partition="gpu") for stage, r in plan.resources.items()}
    )
    submit(plan, [[run_id] for run_id in plan.runs])
    return plan


def fail(plan: Plan, places: range, host: str, record: dict[str, object] = BUG) -> None:
    for place in places:
        started = {"event": "started", "job_id": f"12_{place}", "host": host, "time": -60.0}
        log(plan, list(plan.runs)[place], started, {**record, "job_id": f"12_{place}"})


def test_errors_on_a_bad_node_are_the_node_s_and_retried_elsewhere(arms: Plan) -> None:
    fail(arms, range(3), "n1")
    assert not choose_once(arms, RetryHistory()).run_ids & set(list(arms.runs)[:3])
    finish(arms.runs_folder, list(arms.runs.values())[3], {"dice": 0.5})  # on another node
    choice = choose_once(arms, RetryHistory())
    assert choice.run_ids >= set(list(arms.runs)[:3])
    assert "retry: 3 runs after node failure (as it was, not on n1 for 24 h)" in choice.summary
    assert round((choice.history.nodes["one"]["n1"] - time.time()) / 3600) == 24


@pytest.mark.parametrize("by", ["accounting", "nobody"])
def test_a_node_on_which_no_process_of_ours_ever_began_is_named_by_slurm(
    arms: Plan, by: str
) -> None:
    elements = [f"12_{place}" for place in range(3)]
    word = "FAILED, exit code 1" + " on n1" * (by == "accounting")
    ends = {"asked_at": time.time(), "ends": dict.fromkeys(elements, word)}
    write_json(arms.runs_folder / "submissions" / ENDS_FILE, ends)
    finish(arms.runs_folder, list(arms.runs.values())[3], {"dice": 0.5})  # on another node
    choice = choose_once(arms, RetryHistory())
    assert choice.run_ids >= set(list(arms.runs)[:3])
    assert choice.history.nodes.get("one", {}).keys() == ({"n1"} if by != "nobody" else set())


def hold(plan: Plan) -> None:
    """Let the first two elements be canaries, for which the others are held."""
    path = plan.runs_folder / "submissions/small-abc/plan.json"
    content = read_json(path)
    content["arrays"][0]["canaries"] = 2
    write_json(path, content)
    for place, run_id in list(enumerate(plan.runs))[2:]:
        first = next(iter(plan.runs))
        record = {"event": "blocked", "reason": f"held: the first 2 of 6 ... ({first}): x"}
        log(plan, run_id, {**record, "job_id": f"12_{place}"})


def test_what_was_held_follows_its_canaries_with_what_they_have_otherwise(arms: Plan) -> None:
    fail(arms, range(2), "n1", NO_MEMORY)
    hold(arms)
    choice = choose_once(arms, RetryHistory())
    assert choice.run_ids == arms.runs.keys()
    assert [retries.changes["memory_gb"] for retries in choice.history.runs.values()] == [24.0] * 6
    held = choice.history.runs[list(arms.runs)[4]]
    assert (held.counts, held.answered) == ({}, "")
    assert (
        choose_once(arms, choice.history).history == choice.history
    )  # who kept this did not live to submit


def test_what_was_held_after_errors_that_nothing_mends_waits_for_a_person(arms: Plan) -> None:
    fail(arms, range(2), "n1")
    hold(arms)
    assert not choose_once(arms, RetryHistory()).run_ids
