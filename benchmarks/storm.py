"""A sweep through a storm: three bad nodes, 5 % of the runs killed, one command.

It runs on a private SLURM of eight nodes. On n1 every task fails as it starts. On n2 slurmd dies
repeatedly. On n3 every task is killed within seconds. The script gives one command, ``sweep
--retries N``. At the end every run that is possible must be done, and each other run must have a
status with its reason. The script prints a line of JSON; the exit code is 1 if a run is missing.

    python benchmarks/storm.py --runs 500 --folder /tmp/storm
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.client import Queue
from hvae_hpc.jobs.state.run_status import read_statuses
from hvae_hpc.jobs.state.submissions import Submissions
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.plan import Plan, find_plans, read_plan
from tests.drill.drill import SWEEP as DRILL
from tests.drill.drill_slurm import Trouble
from tests.minislurm.minislurm import MiniSlurm, MiniSlurmConfig

NODES, BLACK_HOLE, FLAKY, DEADLY = 8, "n1", "n2", "n3"
CALM = "calm"
PER_SEED, APART = 4, 14  # segment runs of a seed; all other runs
PROLOG = """#!/bin/sh
[ "$SLURMD_NODENAME" = {node} ] && exit 1
exit 0
"""
SWEEP = """
extends = "{extends}"
name = "storm"
seeds = {seeds}
samplers = ["prior"]
likelihoods = false
factors = []
doses = [4]
arms = []
[segment]
epochs = 2
[generators.lsgan.optim]
lr = 1e30                 # cannot be trained, and what is made from it cannot be made
"""
SITE = """
[all]
device = "cpu"
gpus = 0
memory_gb = {memory_gb}
minutes = 5
signal_lead_s = 60
element_minutes = {element_minutes}
[tables]
partition = "calm"          # the last job retries what failed, so it must not die itself
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="A sweep through a storm.")
    parser.add_argument("--runs", type=int, default=500, help="about how many")
    parser.add_argument("--folder", type=Path, default=Path("storm"), help="its own, new")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    parser.add_argument("--retries", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30.0, help="to wait at most")
    options = parser.parse_args()

    # A project folder, and a SLURM on one of whose nodes every task fails as it starts.
    folder, chance = options.folder.absolute(), random.Random(options.seed)
    folder.mkdir(parents=True)
    seeds = max(1, (options.runs - APART) // PER_SEED)
    (folder / "sweep.toml").write_text(SWEEP.format(seeds=seeds, extends=DRILL))
    (folder / "site.toml").write_text(SITE.format(memory_gb=7, element_minutes=0.1))
    (folder / "prolog.sh").write_text(PROLOG.format(node=BLACK_HOLE))
    (folder / "prolog.sh").chmod(0o755)
    extra = f"TaskProlog={folder}/prolog.sh\nPartitionName={CALM} Nodes=n[4-{NODES}]\n"
    config = MiniSlurmConfig(
        folder=folder / "slurm", nodes=NODES, accounting=True, extra_slurm_conf=extra
    )

    with MiniSlurm(config) as slurm:
        command = [
            sys.executable,
            "-m",
            "hvae_hpc.sweep",
            "--site",
            "site.toml",
            "--retries",
            str(options.retries),
        ]
        phantoms = "brats2021 --phantom 14 --raw phantoms/brats2021 --out shards/brats2021 --local"
        pack = [sys.executable, "-m", "hvae_hpc.preprocess", *phantoms.split()]
        subprocess.run(pack, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        began = time.monotonic()
        subprocess.run(
            [*command, "--partition", "gpu"], cwd=folder, check=True, env=slurm.environment()
        )
        plan = read_plan(find_plans(folder / "runs")[0])
        done = blow(slurm, plan, chance, began + 60 * options.minutes)

    result = judge(plan)
    result |= {
        "done_to_it": dict(done),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "seed": options.seed,
    }
    print(json.dumps(result))
    return 0 if result["as_it_must_be"] else 1


def blow(slurm: MiniSlurm, plan: Plan, chance: random.Random, deadline: float) -> Counter[str]:
    """Kill tasks and daemons until the queue stays empty; return how many of each."""
    trouble, sent = Trouble(slurm, plan.runs_folder, chance), Counter[str]()
    kills = len(plan.runs) // 20
    empty = 0
    while empty < 3:
        if time.monotonic() > deadline:
            raise UserError("the queue was not empty in time")
        time.sleep(2)
        empty = 0 if slurm.client("squeue", "-h") else empty + 1
        running = trouble.running()
        for element in running:
            if element.node == DEADLY:
                sent["killed on the deadly node"] += trouble.attempt("KILL", element)
        if any(element.node == FLAKY for element in running) and chance.random() < 0.2:
            sent["slurmd killed"] += trouble.attempt(
                "slurmd killed", next(e for e in running if e.node == FLAKY)
            )
        good = [element for element in running if element.node not in (BLACK_HOLE, FLAKY, DEADLY)]
        if good and sent["killed at random"] < kills and chance.random() < 0.5:
            sent["killed at random"] += trouble.attempt("KILL", chance.choice(good))
    return sent


def judge(plan: Plan) -> dict[str, object]:
    """Return what is done, and why the rest is not.

    Only runs that need the failing generator may be left.
    """
    impossible: set[str] = set()
    for run_id, run in plan.runs.items():
        fails = isinstance(run.config, TrainConfig) and run.config.generator == "lsgan"
        if fails or impossible & set(plan.parents(run_id).values()):
            impossible.add(run_id)
    results = read_results(plan)
    submissions = Submissions(plan.runs_folder)
    statuses = read_statuses(plan, results, submissions, Queue(time.time(), ())).statuses
    undone = [run_id for run_id, result in results.items() if not result.done]
    reasons = Counter(
        f"{statuses[r].kind}: {statuses[r].reason}" for r in undone if r in impossible
    )
    lost = [plan.folder_name(run_id) for run_id in undone if run_id not in impossible]
    named = all(
        statuses[r].kind in ("failed", "blocked") and statuses[r].reason
        for r in undone
        if r in impossible
    )
    return {
        "runs": len(plan.runs),
        "done": len(plan.runs) - len(undone),
        "impossible": dict(reasons),
        "possible_but_not_done": lost,
        "as_it_must_be": not lost and named,
    }


if __name__ == "__main__":
    sys.exit(main())
