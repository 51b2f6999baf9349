"""Case by case: sorted points, their quartiles, and paired differences."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import Collected, collect
from hvae_hpc.results.figures.per_case import draw_per_case, over_seeds
from hvae_hpc.results.scores import ArmScores, score_arms
from hvae_hpc.runs.plan import read_plan
from tests.results.made_up import PAPER_ARMS, write_sweep


def read(folder: Path, **choices: Any) -> tuple[Any, Collected, list[ArmScores]]:
    write_sweep(folder, **choices)
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    rng = np.random.default_rng(0)
    noisy = {  # every run has other noise
        run_id: replace(
            result,
            case_dice={case: dice + rng.normal(0, 0.05) for case, dice in result.case_dice.items()},
        )
        for run_id, result in collected.results.items()
    }
    collected = replace(collected, results=noisy)
    return plan, collected, score_arms(plan, collected)


def draw(folder: Path, **choices: Any) -> tuple[Figure, Collected]:
    plan, collected, scores = read(folder, **choices)
    return draw_per_case(plan, scores)[0], collected


def case_means(collected: Collected, arm: str) -> np.ndarray:
    rows = collected.segment[collected.segment["arm"] == arm]
    return np.mean(
        [list(collected.results[run_id].case_dice.values()) for run_id in rows["run_id"]], axis=0
    )


def points(axes: Any) -> list[np.ndarray]:
    return [line.get_xdata() for line in axes.lines if line.get_marker() == "."]


def test_a_row_has_every_case_its_median_and_its_quartiles(tmp_path: Path) -> None:
    figure, collected = draw(tmp_path)
    left = figure.axes[0]
    assert [tick.get_text() for tick in left.get_yticklabels()][:2] == [
        "Reference",
        "Standard aug. ×5",
    ]
    expected = np.sort(case_means(collected, "standard-x5"))
    np.testing.assert_allclose(points(left)[1], expected)
    box = left.patches[1]
    np.testing.assert_allclose(
        (box.get_x(), box.get_x() + box.get_width()), np.quantile(expected, (0.25, 0.75))
    )
    medians = [line.get_xdata()[0] for line in left.lines if line.get_marker() != "."]
    assert medians[1] == pytest.approx(np.median(expected))


def test_beside_it_is_the_difference_of_the_same_cases_and_for_how_many_it_is_better(
    tmp_path: Path,
) -> None:
    figure, collected = draw(tmp_path)
    right = figure.axes[1]
    less = case_means(collected, "standard-x5") - case_means(collected, "reference")
    assert len(points(right)) == len(points(figure.axes[0])) - 1  # none for the reference itself
    np.testing.assert_allclose(points(right)[0], np.sort(less))
    assert f"{(less > 0).sum()} of 12" in [text.get_text() for text in right.texts]


def test_no_point_lies_on_the_edge_where_all_cases_are_alike(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    plan = read_plan(tmp_path / "plans/small.json")
    collected = collect(plan)  # of made-up runs all cases differ from the reference's by the same
    figure, _ = draw_per_case(plan, score_arms(plan, collected))
    low, high = figure.axes[1].get_xlim()
    values = np.concatenate(points(figure.axes[1]))
    assert low < min(values.min(), 0) - 0.01 * (high - low)
    assert high > values.max() + 0.01 * (high - low)


def test_an_arm_of_another_budget_is_compared_with_the_reference_of_that_budget(
    tmp_path: Path,
) -> None:
    arms = (
        *PAPER_ARMS[:1],
        ArmConfig(name="reference@epochs"),
        ArmConfig(name="copies-x5@epochs", n_copies=80),
    )
    figure, collected = draw(tmp_path, arms=arms)
    less = case_means(collected, "copies-x5@epochs") - case_means(collected, "reference@epochs")
    np.testing.assert_allclose(points(figure.axes[1])[-1], np.sort(less))
    assert len(points(figure.axes[1])) == 1


def test_a_case_that_two_splits_test_counts_in_each_and_seeds_are_averaged() -> None:
    index = pd.MultiIndex.from_tuples([(0, 0), (0, 1), (1, 0)], names=["split_seed", "seed"])
    dice = pd.DataFrame({"a": [0.2, 0.4, 1.0], "b": [0.8, 0.6, np.nan]}, index)
    np.testing.assert_allclose(over_seeds(dice), (0.3, 0.7, 1.0))
