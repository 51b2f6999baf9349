"""What was submitted from a runs folder, and which jobs in the queue are its own."""

import shutil
from pathlib import Path

import pytest

from hvae_hpc.jobs.state.run_status import RunStatus, read_statuses
from hvae_hpc.jobs.state.submissions import Submissions, comment_of, parse_comment
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.plan import Plan
from tests.jobs.queues import Queue, Queued, make_plan, queue_of, submit
from tests.results.made_up import SMALL_ARMS, make_runs


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=2, sources=()))


def stand(plan: Plan, queue: Queue | None = None) -> dict[str, RunStatus]:
    submissions = Submissions(plan.runs_folder)
    return dict(read_statuses(plan, read_results(plan), submissions, queue).statuses)


def test_jobs_of_others_and_of_other_runs_folders_are_not_ours(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    submit(plan, [[run_id]])
    foreign = [
        Queued("99", (0,), "PENDING", "None", comment)
        for comment in (
            "",
            "my comment",
            "hvae_hpc:elsewhere:0",
            "hvae_hpc:small-abc:x",
            "other:small-abc:0",
        )
    ]
    assert stand(plan, queue_of(*foreign))[run_id].kind == "lost"
    assert Submissions(plan.runs_folder).find_queued(queue_of(*foreign)) == []


def test_a_job_whose_comment_the_site_replaced_is_known_by_its_id(plan: Plan) -> None:
    run_id = next(iter(plan.runs))
    submit(plan, [[run_id]], job="12")
    queue = queue_of(Queued("12", (0,), "PENDING", "None", "the site's own"))
    assert stand(plan, queue)[run_id].kind == "waiting"


def test_what_was_submitted_from_the_folder_that_this_is_a_copy_of_is_not_ours(
    plan: Plan, tmp_path: Path
) -> None:
    run_id = next(iter(plan.runs))
    name = submit(plan, [[run_id]], job="12")
    queue = queue_of(Queued("12", (0,), "PENDING", "None", comment_of(name, 0)))
    copy = Path(shutil.copytree(plan.runs_folder, tmp_path / "copy"))
    assert len(Submissions(plan.runs_folder).find_queued(queue)) == 1
    assert Submissions(copy).find_queued(queue) == []


@pytest.mark.parametrize("name", ["small-abc", "with:colon-1"])
def test_comments_are_read_as_they_are_written(name: str) -> None:
    assert parse_comment(comment_of(name, 3)) == (name, 3)
