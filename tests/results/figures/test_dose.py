"""Dose and response: means and intervals of every dose, and of the arms without one."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import Collected, collect
from hvae_hpc.results.figures.dose import draw_dose
from hvae_hpc.results.figures.write import _SETTINGS
from hvae_hpc.results.scores import score_arms
from hvae_hpc.results.statistics import Block, estimate_mean
from hvae_hpc.runs.plan import read_plan
from tests.results.made_up import PAPER_ARMS, SMALL_ARMS, write_sweep


def draw(folder: Path, **choices: Any) -> tuple[Figure, list[str], Collected]:
    write_sweep(folder, **choices)
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    figure, remarks = draw_dose(plan, score_arms(plan, collected))
    return figure, remarks, collected


def matrix(collected: Collected, arm: str) -> NDArray[np.float64]:
    """Return an arm's Dice (seeds, cases)."""
    rows = collected.segment[collected.segment["arm"] == arm].sort_values("seed")
    return np.array(
        [list(collected.results[run_id].case_dice.values()) for run_id in rows["run_id"]]
    )


def named(scores: NDArray[np.float64]) -> Block:
    return Block(scores[None], [str(case) for case in range(scores.shape[1])])


def lines_of(figure: Figure, panel: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return each line's means, and ends of its bars (doses, 2)."""
    found = []
    for container in figure.axes[panel].containers:
        (bars,) = container.lines[2]
        ends = np.array([np.sort(segment[:, 1]) for segment in bars.get_segments()])
        found.append((container.lines[0].get_ydata().astype(float), ends))
    return found


def test_every_dose_has_its_mean_and_its_interval_over_seeds_and_cases(tmp_path: Path) -> None:
    figure, remarks, collected = draw(tmp_path)
    assert remarks == []
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "Reference",
        "Standard aug.",
        "LSGAN",
        "VAE",
        "HVAE",
    ]
    estimates = [estimate_mean([named(matrix(collected, f"hvae+{n}"))]) for n in (100, 300)]
    means, ends = lines_of(figure, 0)[4]
    np.testing.assert_allclose(means, [estimate.mean for estimate in estimates])
    np.testing.assert_allclose(ends, [(estimate.low, estimate.high) for estimate in estimates])
    assert figure.axes[-1].get_xlabel().endswith("95 % interval over seeds, cases")


def test_the_legend_of_many_generators_with_long_names_is_not_cut(tmp_path: Path) -> None:
    names = ("lsgan", *(f"{name}-aggregated" for name in ("vae", "hvae", "hvae-gan", "vae-gan")))
    arms = [ArmConfig(name=f"{name}+300", generator=name, n_synthetic=300) for name in names]
    with matplotlib.rc_context(_SETTINGS):
        figure, _, _ = draw(tmp_path, arms=(ArmConfig(name="reference"), *arms))
        figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_below_is_the_paired_difference_to_the_reference(tmp_path: Path) -> None:
    figure, _, collected = draw(tmp_path)
    plan = read_plan(tmp_path / "plans/small.json")
    (scores,) = [s for s in score_arms(plan, collected) if s.arm.name == "vae+300"]
    estimate = scores.difference
    less = matrix(collected, "vae+300") - matrix(collected, "reference")
    assert estimate.mean == pytest.approx(less.mean())
    means, ends = lines_of(figure, 1)[3]
    np.testing.assert_allclose([means[1], *ends[1]], [estimate.mean, estimate.low, estimate.high])


def test_standard_arms_stand_before_the_doses_and_the_reference_goes_on_as_a_level(
    tmp_path: Path,
) -> None:
    figure, _, collected = draw(tmp_path, arms=PAPER_ARMS)
    upper, lower = figure.axes
    ticks = [tick.get_text() for tick in lower.get_xticklabels()]
    assert ticks[:5] == ["none", "×2", "×3", "×5", "+100"]
    means, ends = lines_of(figure, 0)[1]
    estimate = estimate_mean([named(matrix(collected, "standard-x5"))])
    np.testing.assert_allclose([means[2], *ends[2]], [estimate.mean, estimate.low, estimate.high])
    levels = [list(axes.lines[-1].get_ydata()) for axes in (upper, lower)]
    reference = matrix(collected, "reference").mean()
    np.testing.assert_allclose(levels, [[reference, reference], [0, 0]])


def test_with_one_seed_the_interval_is_over_cases_and_the_axis_says_so(tmp_path: Path) -> None:
    figure, _, collected = draw(tmp_path, arms=(SMALL_ARMS[0], SMALL_ARMS[2]), seeds=1)
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["none", "+100"]
    assert figure.axes[-1].get_xlabel().endswith("95 % interval over cases")
    _, ends = lines_of(figure, 0)[1]
    assert np.ptp(ends) > 0
    estimate = estimate_mean([named(matrix(collected, SMALL_ARMS[2].name))])
    np.testing.assert_allclose(ends[0], (estimate.low, estimate.high))


def test_lines_stand_side_by_side_and_doses_one_step_apart(tmp_path: Path) -> None:
    figure, _, _ = draw(tmp_path)
    x = [container.lines[0].get_xdata().astype(float) for container in figure.axes[0].containers]
    assert (np.diff([places[0] for places in x]) > 0).all()
    assert x[-1][0] < x[2][1]
    np.testing.assert_allclose([places[1] - places[0] for places in x[2:]], 1)
