"""Marks: styles that differ in grey, labels apart, and what an interval is said to be over."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.figures.style import STYLES, describe_interval, move_apart, style_of
from hvae_hpc.results.scores import score_arms
from hvae_hpc.runs.plan import read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import PAPER_ARMS, SMALL_ARMS, segments, write_sweep


def test_lines_are_told_apart_without_colour() -> None:
    assert len({(style["marker"], style["linestyle"]) for style in STYLES}) == len(STYLES)
    assert len({style["marker"] for style in STYLES[:11]}) == 11
    first = STYLES[:6]
    assert (
        len({style["linestyle"] for style in first})
        == len({to_hex(style["color"]) for style in first})
        == 6
    )


def test_arms_of_other_kinds_differ_in_their_markers_and_controls_are_hollow(
    tmp_path: Path,
) -> None:
    write_sweep(tmp_path, arms=PAPER_ARMS, seeds=1)
    plan = read_plan(tmp_path / "plans/small.json")
    plain = [SMALL_ARMS[0], SMALL_ARMS[1], *(arm for arm in SMALL_ARMS if arm.n_synthetic == 100)]
    marks = [style_of(plan, arm) for arm in plain]
    assert len({mark["marker"] for mark in marks}) == len(plain) == 5
    assert not any("markerfacecolor" in mark for mark in marks)
    shuffled = ArmConfig(name="hvae-shuffled+100", generator="hvae", n_synthetic=100, shuffled=True)
    hvae = style_of(plan, next(arm for arm in plain if arm.generator == "hvae"))
    assert style_of(plan, shuffled) == {**hvae, "markerfacecolor": "white"}


def test_the_papers_generators_keep_their_style_where_others_are_absent(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=(SMALL_ARMS[0], SMALL_ARMS[4]))
    plan = read_plan(tmp_path / "plans/small.json")
    assert SMALL_ARMS[4].generator == "hvae"
    assert style_of(plan, SMALL_ARMS[4]) == STYLES[2]


def test_near_heights_are_moved_apart_around_their_mean_in_their_order_and_others_stay() -> None:
    assert move_apart([0.70, 0.20, 0.70, 0.71], 0.05) == pytest.approx(
        [0.65333, 0.20, 0.70333, 0.75333], abs=1e-4
    )
    assert move_apart([0.3, 0.2, 0.1], 0.05) == pytest.approx([0.3, 0.2, 0.1])
    assert move_apart([], 0.05) == []
    heights = np.random.default_rng(0).uniform(0, 1, 40)
    moved = np.array(move_apart(heights.tolist(), 0.02))
    assert np.diff(moved[np.argsort(heights)]).min() > 0.02 - 1e-12
    assert moved.mean() == pytest.approx(heights.mean())


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda run: False, "95 % interval over seeds and cases"),
        (
            lambda run: bool(segments([run], "vae+100")) and run.config.seed,
            ", where one seed: over cases",
        ),
        (
            lambda run: run.stage == "segment" and run.config.seed,
            "95 % interval over cases (one seed)",
        ),
    ],
)
def test_it_is_said_what_intervals_are_over(tmp_path: Path, lost: object, said: str) -> None:
    def skip(run: Run) -> bool:
        return bool(lost(run))

    write_sweep(tmp_path, skip=skip)
    plan = read_plan(tmp_path / "plans/small.json")
    collected = collect(plan, partial=True)
    assert describe_interval(score_arms(plan, collected)).endswith(said)
