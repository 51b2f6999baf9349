"""However a sweep's elements end, time after time, its last job goes on until every run is made."""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.jobs.failures.retry import RetryHistory
from hvae_hpc.jobs.sites.retry_policy import Rule
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.state.run_status import ENDS_FILE
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.plan import Plan
from tests.jobs.failures.test_retry import choose_once
from tests.jobs.queues import log, make_plan, submit
from tests.results.made_up import SMALL_ARMS, fake_metrics, finish, make_runs

BAD_ROUNDS, ROUNDS = 8, 30
WORDS = ("FAILED, exit code 9", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")


def end_elements(
    plan: Plan, elements: list[list[str]], job: str, chance: random.Random | None
) -> dict[str, str]:
    """Submit elements and end each somehow, well without ``chance``; returns SLURM's words for those it ended."""
    submission = (
        plan.runs_folder / "submissions" / submit(plan, elements, job, f"small-{job}", time.time())
    )
    words = {}
    for place, ids in enumerate(elements):
        element, node = f"{job}_{place}", f"n{chance.randrange(4) if chance else 9}"
        fate = chance.choice(["well", "before", "at work", "failed"]) if chance else "well"
        if chance and fate in ("before", "at work"):
            words[element] = f"{chance.choice(WORDS)} on {node}"
        said = [f"element {element} begins, after 0 restarts"]
        for run_id in ids if fate != "before" else []:
            results = read_results(plan)
            if not all(results[parent].done for parent in plan.parents(run_id).values()):
                log(plan, run_id, {"event": "blocked", "reason": "needs it", "job_id": element})
                continue
            log(plan, run_id, {"event": "started", "job_id": element, "host": node, "at": 0})
            if fate == "at work":
                break
            if fate == "failed":
                log(
                    plan,
                    run_id,
                    {
                        "event": "failed",
                        "reason": "x",
                        "errors": ["MemoryError"],
                        "job_id": element,
                    },
                )
                continue
            finish(plan.runs_folder, plan.runs[run_id], fake_metrics(plan.runs[run_id]))
            said.append(f"done: x ({run_id}), 0.1 s: ")
        (submission / f"{element}_0_log.out").write_text("\n".join(said) + "\n")
    return words


@pytest.mark.parametrize("seed", range(4))
def test_what_can_be_made_is_made_however_elements_end(seed: int, tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path, make_runs(arms=(SMALL_ARMS[0], SMALL_ARMS[2]), seeds=2, sources=("vae", "real"))
    )
    plan = replace(
        plan, resources={stage: replace(r, partition="gpu") for stage, r in plan.resources.items()}
    )
    site, chance = read_site(None), random.Random(seed)
    # As often as it takes, as it was.
    rules = {
        failure: Rule(times=99) if rule.times else rule for failure, rule in site.rules.items()
    }
    history, ends, todo = RetryHistory(), dict[str, str](), list(plan.runs)
    for number in range(ROUNDS):
        stages = dict.fromkeys(plan.runs[run_id].stage for run_id in todo)
        of_stages = [
            [run_id for run_id in todo if plan.runs[run_id].stage == stage] for stage in stages
        ]
        elements = [ids[i : i + 2] for ids in of_stages for i in range(0, len(ids), 2)]
        ends |= end_elements(
            plan, elements, str(100 + number), chance if number < BAD_ROUNDS else None
        )
        write_json(tmp_path / "submissions" / ENDS_FILE, {"asked_at": time.time(), "ends": ends})
        choice = choose_once(plan, history, 999, replace(site, rules=rules))
        history, todo = choice.history, [run_id for run_id in plan.runs if run_id in choice.run_ids]
        if not todo:
            break
    results = read_results(plan)
    assert [plan.folder_name(run_id) for run_id in plan.runs if not results[run_id].done] == []
