"""Figures: styles that differ in grey, which arms have a row, and what an interval is said to be over."""

from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.figures.style import (
    MOST_ROWS,
    describe_interval,
    list_not_drawn,
    start_rows,
    style_of,
)
from hvae_hpc.results.scores import score_arms
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import (
    PAPER_ARMS,
    SMALL_ARMS,
    SPLIT,
    fake_metrics,
    finish,
    make_runs,
    segments,
    write_plan,
    write_sweep,
)


def test_generators_are_told_apart_without_colour(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=PAPER_ARMS, seeds=1)
    plan = read_plan(tmp_path / "plans/small.json")
    plain = [SMALL_ARMS[0], SMALL_ARMS[1], *(arm for arm in SMALL_ARMS if arm.n_synthetic == 100)]
    marks = [style_of(plan, arm) for arm in plain]
    assert len({mark["marker"] for mark in marks}) == len(plain) == 5
    assert len({mark["linestyle"] for mark in marks[2:]}) == 3


def test_the_papers_generators_keep_their_style_where_others_are_absent(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=(SMALL_ARMS[0], SMALL_ARMS[4]))
    plan = read_plan(tmp_path / "plans/small.json")
    assert SMALL_ARMS[4].generator == "hvae"
    assert style_of(plan, SMALL_ARMS[4]) == {"color": "#000000", "marker": "o", "linestyle": "-"}


def test_of_many_arms_the_first_have_a_row_and_the_others_are_named(tmp_path: Path) -> None:
    doses = range(1, MOST_ROWS + 2)
    arms = [ArmConfig(name=f"hvae+{n}", generator="hvae", n_synthetic=n) for n in doses]
    write_sweep(tmp_path, arms=(SMALL_ARMS[0], *arms), seeds=1)
    plan = read_plan(tmp_path / "plans/small.json")
    scores = score_arms(plan, collect(plan))
    rows = start_rows(scores)[0]
    assert rows == scores[:MOST_ROWS]
    assert list_not_drawn(scores, rows) == [f"not drawn: hvae+{doses[-2]}, hvae+{doses[-1]}"]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda run: False, "95 % interval over seeds, cases"),
        (
            lambda run: bool(segments([run], "vae+100")) and run.config.seed,
            "95 % interval over cases",
        ),
    ],
)
def test_it_is_said_what_intervals_are_over(tmp_path: Path, lost: object, said: str) -> None:
    def skip(run: Run) -> bool:
        return bool(lost(run))

    write_sweep(tmp_path, skip=skip)
    plan = read_plan(tmp_path / "plans/small.json")
    collected = collect(plan)
    assert describe_interval(score_arms(plan, collected)) == said


def test_an_interval_over_splits_and_trainings_is_said_to_be_so(tmp_path: Path) -> None:
    arm = SMALL_ARMS[4]
    runs = make_runs(arms=(SMALL_ARMS[0], arm, replace(arm, generator_seed=1)), seeds=1, sources=())
    others = [
        replace(run, config=replace(run.config, split=replace(SPLIT, seed=1)))
        for run in runs
        if run.stage == "segment"
    ]
    write_plan(tmp_path, [*runs, *others])
    for run in [*runs, *others]:
        finish(tmp_path, run, fake_metrics(run))
    plan = read_plan(tmp_path / "plans/small.json")
    scores = score_arms(plan, collect(plan))
    assert describe_interval(scores) == "95 % interval over splits, trainings, seeds, cases"
