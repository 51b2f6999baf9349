"""What is retried, how often, with what changed: by the last job, by the same command, or here."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import run_command
from hvae_hpc.jobs.failures.retry import (
    Choice,
    RetryHistory,
    RunRetries,
    choose_retries,
    read_history,
    with_retry_changes,
    without_bad_nodes,
)
from hvae_hpc.jobs.failures.retry import write_history as keep
from hvae_hpc.jobs.sites.site import Site, read_site
from hvae_hpc.jobs.slurm.limits import Cluster, Node, Partition
from hvae_hpc.jobs.state.run_status import read_statuses
from hvae_hpc.jobs.state.submissions import ENDS_FILE, Submissions
from hvae_hpc.jobs.submit.prepare import prepare
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import read_log, write_json
from hvae_hpc.runs.plan import Array, Plan, plan_path, write_plan
from hvae_hpc.sweep import main
from tests.jobs.queues import log, make_plan, queue_of, submit
from tests.jobs.submit.test_apply import call, make_project, plan_of
from tests.jobs.submit.test_prepare import wait_until_empty
from tests.jobs.worker.test_local_sweep import makings
from tests.minislurm.minislurm import MiniSlurm
from tests.results.made_up import SMALL_ARMS, finish, folder_of, make_runs

NODES = dict.fromkeys(("n1", "n2", "n3", "n4"), Node(8, 512.0, 64))
CLUSTER = Cluster(partitions={"gpu": Partition(minutes=1000, grace_s=0, nodes=NODES)}, name="one")
NO_MEMORY = {"event": "failed", "reason": "MemoryError", "errors": ["MemoryError"]}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A generator's training, its pairs, and arms without and with them, in one submission."""
    plan = make_plan(tmp_path, make_runs(arms=(SMALL_ARMS[0], SMALL_ARMS[2]), seeds=1, sources=()))
    plan = replace(
        plan, resources={stage: replace(r, partition="gpu") for stage, r in plan.resources.items()}
    )
    submit(plan, [[run_id] for run_id in plan.runs])
    return plan


def fail(plan: Plan, run_id: str, record: dict[str, object] = NO_MEMORY, host: str = "n1") -> None:
    element = f"12_{list(plan.runs).index(run_id)}"
    log(
        plan,
        run_id,
        {"event": "started", "job_id": element, "host": host},
        {**record, "job_id": element},
    )


def choose_once(
    plan: Plan,
    history: RetryHistory,
    most: int = 9,
    site: Site | None = None,
    by_hand: bool = False,
) -> Choice:
    submissions = Submissions(plan.runs_folder)
    sweep = read_statuses(plan, read_results(plan), submissions, queue_of())
    site = replace(site or read_site(None), cluster=CLUSTER)
    plan = with_retry_changes(plan, history, site)
    sweep = replace(sweep, plan=plan)
    return choose_retries(sweep, history, most, site, by_hand=by_hand)


def test_a_failure_is_retried_once_and_the_next_one_with_more(plan: Plan) -> None:
    train = next(iter(plan.runs))
    fail(plan, train)
    first = choose_once(plan, RetryHistory())
    assert first.history.runs[train].changes == {"memory_gb": 48.0}
    again = choose_once(plan, first.history)  # whoever kept this did not live to submit
    assert again.history == first.history
    assert again.run_ids == first.run_ids
    fail(plan, train)
    second = choose_once(plan, first.history)
    assert second.history.runs[train].changes == {"memory_gb": 72.0}
    assert second.history.runs[train].counts == {"out of memory (host)": 2}
    assert "retry: 1 run after out of memory (host) (memory_gb 48 -> 72)" in second.summary


def test_children_of_a_retried_run_are_retried_with_it_and_no_other_run(
    plan: Plan,
) -> None:
    train, generate, reference, arm = plan.runs
    fail(plan, train)
    fail(plan, generate, {"event": "blocked", "reason": "needs train"})
    fail(plan, arm, {"event": "blocked", "reason": "needs generate"})
    fail(
        plan,
        reference,
        {"event": "failed", "reason": "a shard is damaged", "errors": ["UserError"]},
    )
    choice = choose_once(plan, RetryHistory())
    assert choice.run_ids == {train, generate, arm}
    assert choice.summary[1] == "no retry: 1 run after bad input (no rule retries it)"


def test_retries_stay_below_both_limits_and_a_person_s_command_counts_from_zero(
    plan: Plan,
) -> None:
    train = next(iter(plan.runs))
    fail(plan, train)
    tried = RetryHistory(
        runs={
            train: RunRetries(
                counts={"lost": 1, "out of memory (host)": 1}, changes={"memory_gb": 48.0}
            )
        }
    )
    assert train not in choose_once(plan, tried, most=2).run_ids
    assert train in choose_once(plan, tried, most=3).run_ids
    often = RetryHistory(
        runs={train: RunRetries(counts={"out of memory (host)": 3}, changes={"memory_gb": 48.0})}
    )
    stays = choose_once(plan, often)
    assert train not in stays.run_ids
    assert (
        "no retry: 1 run after out of memory (host) (no more: 3 of 3 retries used, 3 of 9 in all)"
        in stays.summary
    )
    by_hand = choose_once(plan, often, by_hand=True).history.runs[train]
    assert by_hand.counts == {"out of memory (host)": 1}
    assert by_hand.changes == {"memory_gb": 72.0}


def test_what_was_taken_out_of_the_queue_is_for_a_person_to_repeat(plan: Plan) -> None:
    train, _, reference, _ = plan.runs
    log(plan, reference, {"event": "started", "job_id": "12_2"})
    (plan.runs_folder / "submissions/small-abc/12_2_0_log.out").write_text(
        "slurmstepd: error: *** JOB 14 ON n1 CANCELLED AT 2026-11-28T10:36:21 ***\n"
    )
    choice = choose_once(plan, RetryHistory())
    assert not choice.run_ids & {train, reference}  # the first never began
    assert Counter(line.partition(" (")[2] for line in choice.summary).total() == 1


@pytest.mark.parametrize("event", ["failed", "blocked"])
def test_a_retry_that_its_node_ended_before_it_began_is_a_node_failure(
    plan: Plan, event: str
) -> None:
    *_, arm = plan.runs
    fail(plan, arm, {"event": event, "reason": "x", "errors": ["MemoryError"]})
    submit(plan, [[run_id] for run_id in plan.runs], job="40")
    ends = {"asked_at": time.time(), "ends": {"40_3": "NODE_FAIL on n3"}}
    write_json(plan.runs_folder / "submissions" / ENDS_FILE, ends)
    for run_id in list(plan.runs)[:-1]:
        finish(plan.runs_folder, plan.runs[run_id], {"dice": 0.5})
    choice = choose_once(plan, RetryHistory())
    assert arm in choice.run_ids
    assert choice.history.runs[arm].counts == {"node failure": 1}
    assert choice.history.nodes["one"].keys() == {"n3"}


XID = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."


@pytest.mark.parametrize(
    "word", [XID, "RuntimeError: CUDA error: uncorrectable ECC error encountered"]
)
def test_a_node_that_failed_is_left_out_for_a_day_on_its_cluster(plan: Plan, word: str) -> None:
    train, _, reference, arm = plan.runs
    for run_id, reason in (
        (train, word),
        (reference, "CUDA error: unspecified launch failure"),
        (arm, "Stale handle"),
    ):
        fail(
            plan,
            run_id,
            {"event": "failed", "reason": reason, "errno": 116 if run_id == arm else 0},
            f"of-{run_id}",
        )
    before = RetryHistory(nodes={"one": {"n2": time.time() + 60}, "two": {"n1": 5.0}})
    choice = choose_once(plan, before)
    assert {train, reference, arm} <= choice.run_ids
    assert choice.history.nodes["two"] == before.nodes["two"]
    until = choice.history.nodes["one"]
    hours = {node: round((until[node] - time.time()) / 3600) for node in until if node != "n2"}
    # A launch may fail by a program's fault: its node is left out for an hour.
    assert hours == {f"of-{train}": 24, f"of-{reference}": 1}


@pytest.mark.parametrize("changes", [{"nodes": 2}, {"constraint": "a100"}])
def test_no_node_is_excluded_after_runs_on_several_nodes_or_with_a_constraint(
    plan: Plan, changes: dict[str, Any]
) -> None:
    train = next(iter(plan.runs))
    fail(plan, train, {"event": "failed", "reason": XID})
    plan = replace(
        plan, resources={**plan.resources, "train": replace(plan.resources["train"], **changes)}
    )
    choice = choose_once(plan, RetryHistory())
    assert train in choice.run_ids
    assert choice.history.nodes == {}


def test_of_a_partition_s_own_nodes_at_most_half_are_left_out_and_never_those_that_a_run_needs() -> (
    None
):
    now, had = time.time(), Resources(partition="gpu")
    bad = {"n1": now + 60, "n2": now + 90, "n3": now + 30, "elsewhere": now + 99, "n4": now - 1}

    def excluded(**changes: Any) -> str:
        return without_bad_nodes(replace(had, **changes), bad, CLUSTER).exclude

    assert excluded() == "n2,n1"
    assert excluded(exclude="n[3-4]") == "n[3-4]"
    assert excluded(nodes=3) == "n2"
    assert excluded(nodes=4) == excluded(constraint="a100") == ""


def test_what_a_person_has_given_more_of_since_stays(plan: Plan) -> None:
    train = next(iter(plan.runs))
    history = RetryHistory(runs={train: RunRetries(changes={"memory_gb": 48.0, "micro_batch": 4})})
    site = read_site(None)
    assert with_retry_changes(plan, history, site).changes == {
        train: {"memory_gb": 48.0, "micro_batch": 4}
    }
    more = replace(
        plan,
        resources={s: replace(r, memory_gb=64.0) for s, r in plan.resources.items()},
    )
    assert with_retry_changes(more, history, site).changes == {train: {"micro_batch": 4}}
    capped = replace(site, caps=replace(site.caps, memory_gb=40.0))
    assert with_retry_changes(plan, history, capped).resources_of(train).memory_gb == 40.0


def test_memory_that_a_partition_does_not_have_is_not_asked_for_also_where_it_was_remembered(
    plan: Plan,
) -> None:
    train = next(iter(plan.runs))
    nodes = {"small": Node(1, 4.0, 64), "large": Node(1, 40.0, 2)}
    small = replace(CLUSTER, partitions={"gpu": Partition(minutes=0, grace_s=0, nodes=nodes)})
    history = RetryHistory(runs={train: RunRetries(changes={"memory_gb": 480.0})})
    site = replace(read_site(None), cluster=small)
    fitted = with_retry_changes(plan, history, site).resources_of(train)
    assert (fitted.memory_gb, fitted.cpus) == (40.0, 2)  # both are of the node with most memory
    by_hand = RetryHistory(runs={train: RunRetries(changes={"minutes": 1})})  # too short to work in
    theirs = RetryHistory(runs={train: RunRetries(changes={"sbatch_args": 5})})
    assert not with_retry_changes(plan, theirs, read_site(None)).changes
    assert with_retry_changes(plan, by_hand, site).changes == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "7",
        '{"tries": {}}',
        '{"runs": {"a": {"changes": {"memory_gb": "much"}}}}',
        '{"runs": {"a": {"changes": {"memory_gb": 1e999}}}}',
    ],
)
def test_a_damaged_file_of_retries_is_an_empty_one_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions/retries.json").write_text(text)
    assert read_history(tmp_path) == RetryHistory()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "retries.json" in line


def test_the_retries_are_kept_in_one_strict_file(tmp_path: Path) -> None:
    assert read_history(tmp_path) == RetryHistory()
    history = RetryHistory(
        runs={"a": RunRetries(counts={"lost": 1}, answered="12_0:1")}, nodes={"one": {"n1": 5.0}}
    )
    keep(tmp_path, history)
    assert read_history(tmp_path) == history


SITE = """
[all]
device = "cpu"
memory_gb = 1
element_minutes = 0.02       # one run each
signal_lead_s = 30
[segment]
gpus = 0
memory_gb = 0.1              # torch alone takes more
[retry."out of memory (host)"]
memory = 10.0
"""


def test_the_last_job_retries_with_more_memory_and_leaves_what_cannot_be_made(
    harsh_slurm: MiniSlurm, tmp_path: Path
) -> None:
    project = make_project(tmp_path, seeds=2, site=SITE)
    impossible = next(iter(plan_of(project).runs.values()))
    (project / "runs/segment").mkdir(parents=True)
    (project / "runs" / folder_of(impossible)).write_text("not a folder")
    (cluster,) = re.findall(
        r"ClusterName\s*= (\S+)", harsh_slurm.client("scontrol", "show", "config")
    )
    keep(
        project / "runs",
        RetryHistory(
            nodes={cluster: {"n1": time.time() + 600}, "other": {"n2": time.time() + 600}}
        ),
    )
    done = call(project, harsh_slurm, "--partition", "gpu", "--retries", "2")
    assert done.returncode == 0, done.stderr
    assert (
        "retries:    the last job retries what failed, each run up to 2 times; where jobs may"
        in done.stdout
    )
    wait_until_empty(harsh_slurm)
    logs = "\n".join(path.read_text() for path in project.glob("runs/submissions/*/*log.out"))
    assert len(makings(project)) == 1, logs
    assert "retry: 1 run after out of memory (host) (memory_gb 0.1 -> 1)" in logs
    assert "no retry: 1 run after bad input (no rule retries it)" in logs
    (log_of_made,) = [read_log(path.parent) for path in project.glob("runs/segment/*/log.jsonl")]
    assert (
        Counter(record.get("event") for record in log_of_made)["started"] <= 2
    )  # it may have been ended before
    changes = [
        json.loads(path.read_text())["changes"]
        for path in project.glob("runs/submissions/*/plan.json")
    ]
    assert sorted(map(len, changes)) == [0, 1]
    assert "--mem=1024" in "".join(
        path.read_text() for path in project.glob("runs/submissions/*/*.sh")
    )
    again = call(project, harsh_slurm, "--partition", "gpu", "--plan", "--retries", "2")
    assert "submitted as before: 1 run after bad input" in again.stdout
    texts = [path.read_text() for path in project.glob("runs/submissions/*/*.sh")]
    assert all("#SBATCH --exclude=n1\n" in text for text in texts)
    assert log_of_made[0]["host"] != "n1"


def test_where_jobs_may_not_submit_the_last_job_says_that_the_same_command_does(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path, seeds=1)
    plan = plan_of(project)
    folder = plan.runs_folder / "submissions" / submit(plan, [list(plan.runs)], name="tiny-1")
    write_plan(plan, plan_path(plan.runs_folder, "tiny"))
    write_plan(
        replace(plan, arrays=(Array(name="a", stage="segment", elements=(tuple(plan.runs),)),)),
        folder / "plan.json",
    )
    fail(plan, next(iter(plan.runs)))
    command = [
        sys.executable,
        "-m",
        "hvae_hpc.sweep",
        "--partition",
        "gpu",
        "--retries",
        "1",
        "--finish",
        str(folder),
    ]
    environment = {**os.environ, "PATH": "/nowhere"}
    ended = subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 2
    assert "what failed is not retried: scontrol is not on the PATH" in ended.stderr
    assert ended.stderr.strip().endswith("give the sweep command again")


def test_a_blocked_run_is_retried_once_its_parent_was_made_by_another_command(plan: Plan) -> None:
    train, generate, *_ = plan.runs
    fail(plan, train, {"event": "failed", "reason": "x", "errors": ["ZeroDivisionError"]})
    fail(plan, generate, {"event": "blocked", "reason": "needs train"})
    assert not choose_once(plan, RetryHistory()).run_ids
    finish(plan.runs_folder, plan.runs[train], {})
    assert generate in choose_once(plan, RetryHistory()).run_ids


def test_a_child_that_slurm_refused_follows_its_parent_later_and_once(plan: Plan) -> None:
    train, generate, *_ = plan.runs
    fail(plan, train, {"event": "failed", "reason": "x", "errors": ["ZeroDivisionError"]})
    fail(plan, generate, {"event": "blocked", "reason": "needs train"})
    tried = RetryHistory(runs={train: RunRetries(counts={"lost": 1})})
    assert generate not in choose_once(plan, tried).run_ids
    submit(
        plan, [[train]], job="13", name="small-later", at=time.time()
    )  # and its pairs were refused
    finish(plan.runs_folder, plan.runs[train], {})
    assert choose_once(plan, tried).run_ids == {generate}
    submit(plan, [[generate]], job="14", name="small-last", at=time.time() + 1)
    assert not choose_once(plan, tried).run_ids


def test_runs_of_a_bundle_whose_turn_had_not_come_are_retried_and_not_counted(
    plan: Plan,
) -> None:
    train, _, reference, _ = plan.runs
    name = submit(plan, [[train, reference]], job="13", name="small-bundle")
    log(plan, train, {"event": "started", "job_id": "13_0", "at": 0})
    (plan.runs_folder / f"submissions/{name}/13_0_0_log.out").write_text(
        "CANCELLED AT x DUE TO TIME LIMIT"
    )
    choice = choose_once(plan, RetryHistory())
    assert {train, reference} <= choice.run_ids
    assert choice.history.runs[train].counts == {"time limit without progress": 1}
    assert reference not in choice.history.runs
    assert "retry: 1 run after lost (as it was: its turn had not come)" in choice.summary


def test_the_rest_of_a_broken_sweep_is_not_submitted_along_with_what_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvae_hpc.jobs.slurm.client.read_queue", lambda **_: queue_of())
    monkeypatch.setattr(
        "hvae_hpc.jobs.submit.prepare.sbatch_text", lambda *_, **__: ""
    )  # submitit asks for srun
    monkeypatch.setenv("PATH", "/nowhere")
    plan = make_plan(tmp_path, make_runs(arms=(SMALL_ARMS[0], SMALL_ARMS[2]), seeds=1, sources=()))
    plan = replace(
        plan, resources={stage: replace(r, partition="gpu") for stage, r in plan.resources.items()}
    )
    train, generate, reference, arm = plan.runs
    submit(plan, [[train]])
    fail(plan, train)
    site = replace(read_site(None), cluster=CLUSTER)
    for scope, expected in (
        ("retries", {train, generate, arm}),
        ("new", {train, generate, arm, reference}),
    ):
        prepared = prepare(plan, site, [], scope=scope, retries=1)
        assert set(prepared.run_ids) == expected
    log(
        plan,
        train,
        {
            "event": "failed",
            "reason": "a shard is damaged",
            "errors": ["UserError"],
            "job_id": "12_0",
        },
    )
    assert prepare(plan, site, [], scope="retries", retries=1).run_ids == []


@pytest.mark.parametrize("got_further", [True, False])
def test_the_last_job_takes_the_rest_only_where_its_submission_got_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, got_further: bool
) -> None:
    plan = make_plan(tmp_path, make_runs(arms=SMALL_ARMS[:1], seeds=2, sources=()))
    first = next(iter(plan.runs))
    folder = plan.runs_folder / "submissions" / submit(plan, [[first]])
    if got_further:
        finish(plan.runs_folder, plan.runs[first], {"dice": 0.5})
    write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    write_plan(
        replace(plan, arrays=(Array(name="a", stage="segment", elements=((first,),)),)),
        folder / "plan.json",
    )
    asked = []
    monkeypatch.setattr(
        "hvae_hpc.sweep._submit", lambda *arguments: asked.append(arguments[-1]) or 0
    )
    monkeypatch.setattr("hvae_hpc.sweep.read_cluster", lambda: CLUSTER)
    assert main(["--partition", "gpu", "--retries", "1", "--finish", str(folder)]) == 0
    assert asked == ["new" if got_further else "retries"]

    # Somebody gave the command again with other code, whose own last job takes the rest.
    write_plan(replace(plan, code_sha="0" * 12), plan_path(plan.runs_folder, plan.sweep))
    assert run_command(main, ["--retries", "1", "--partition", "gpu", "--finish", str(folder)]) == 2
    assert len(asked) == 1
