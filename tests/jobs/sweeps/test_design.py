"""What a plan says of its power, and the default design of the sweep beyond."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.jobs.sweeps import design
from hvae_hpc.jobs.sweeps.expand import make_plan
from hvae_hpc.results.power import ASSUMED_SD, Design, find_power
from hvae_hpc.runs.plan import Plan, read_plan
from hvae_hpc.sweep import read_sweep
from tests.jobs.sweeps.test_expand import paper_data, segments
from tests.results.made_up import write_sweep


@cache
def describe(splits: int, trainings: int, seeds: int) -> list[str]:
    plan = plan_of(splits, trainings, seeds)
    return list(design.describe_power(plan, {"brats2021": 400}))


def plan_of(splits: int, trainings: int, seeds: int) -> Plan:
    sweep = replace(
        read_sweep("table1"),
        data=("brats2021",),
        splits=splits,
        generator_seeds=trainings,
        seeds=seeds,
    )
    data = [paper_data("brats2021", 240, 400)]
    return make_plan(sweep, data, Path("runs"), {stage: Resources() for stage in CONFIGS})


def test_beyond_has_24_u_nets_of_an_arm_and_a_design_with_more_power_than_few_splits() -> None:
    plan = make_plan(read_sweep("beyond"), [paper_data("lgg", 240, 700)], Path("runs"), {})
    runs = defaultdict(set)
    for config in segments(list(plan.runs.values()), "lgg"):
        runs[config.arm.name].add((config.split.seed, config.arm.generator_seed, config.seed))
    assert runs["edm+300"] == {(split, 0, seed) for split in range(12) for seed in range(2)}
    assert all(runs[name] == runs["edm+300"] for name in ("reference", "nnunet", "nnunet+edm+300"))
    trainings = Counter(run.config.generator for run in plan.runs.values() if run.stage == "train")
    assert set(trainings.values()) == {12}

    few, many = (
        find_power(0.04, {name: sd**2 for name, sd in ASSUMED_SD.items()}, design, n_arms=15)
        for design in (Design(3, 2, 4, 100, 250), Design(12, 1, 2, 100, 250))
    )
    assert many > 0.75 > 3 * few


def test_a_plan_says_its_design_its_power_and_what_is_assumed() -> None:
    lines = describe(3, 2, 4)
    assert lines[0] == (
        "  design of brats2021: splits 3, generator trainings 2, U-Net seeds 4"
        " (24 U-Nets of an arm with a generator, as 24 seeds of one split)"
    )
    assert "one of 15 arms: " in lines[1]
    assert lines[-1].endswith("(assumed: split, training, seed, case, rest)")
    assert ", on this split alone: " in describe(1, 1, 10)[1]


def test_variances_are_those_of_the_runs_that_are_done(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=4)
    plan = read_plan(tmp_path / "plans/small.json")
    lines = list(design.describe_power(plan, {"brats2021": 100}))
    assert lines[-1].endswith("(assumed: split, training)")
