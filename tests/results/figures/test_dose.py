"""Dose and response: means and intervals of every dose, and the levels beside them."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import Collected, collect
from hvae_hpc.results.figures.dose import draw_dose
from hvae_hpc.results.scores import score_arms
from hvae_hpc.results.statistics import Block, bootstrap_mean
from hvae_hpc.runs.plan import read_plan
from tests.results.made_up import PAPER_ARMS, SMALL_ARMS, write_sweep


def draw(folder: Path, **choices: Any) -> tuple[Figure, list[str], Collected]:
    write_sweep(folder, **choices)
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    figure, remarks = draw_dose(plan, score_arms(plan, collected), "brats2021")
    return figure, remarks, collected


def matrix(collected: Collected, arm: str) -> NDArray[np.float64]:
    """Return an arm's Dice (seeds, cases)."""
    rows = collected.segment[collected.segment["arm"] == arm].sort_values("seed")
    return np.array([list(collected.case_dice[run_id].values()) for run_id in rows["run_id"]])


def named(scores: NDArray[np.float64]) -> Block:
    return Block(scores, [str(case) for case in range(scores.shape[1])])


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
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LSGAN", "VAE", "HVAE"]
    estimates = [bootstrap_mean([named(matrix(collected, f"hvae+{n}"))]) for n in (100, 300)]
    means, ends = lines_of(figure, 0)[2]
    np.testing.assert_allclose(means, [estimate.mean for estimate in estimates])
    np.testing.assert_allclose(ends, [(estimate.low, estimate.high) for estimate in estimates])
    assert figure.axes[-1].get_xlabel().endswith("95 % interval over seeds and cases")


def test_below_is_the_paired_difference_to_the_reference(tmp_path: Path) -> None:
    figure, _, collected = draw(tmp_path)
    less = matrix(collected, "vae+300") - matrix(collected, "reference")
    means, ends = lines_of(figure, 1)[1]
    estimate = bootstrap_mean([named(less)])
    np.testing.assert_allclose([means[1], *ends[1]], [estimate.mean, estimate.low, estimate.high])


def test_the_reference_and_the_largest_standard_arm_are_bands_and_all_levels_are_named(
    tmp_path: Path,
) -> None:
    figure, _, collected = draw(tmp_path, arms=PAPER_ARMS)
    upper, lower = figure.axes
    labels = ["Reference", "Standard aug. ×2", "Standard aug. ×3", "Standard aug. ×5"]
    assert (
        [text.get_text() for text in upper.texts]
        == [text.get_text() for text in lower.texts]
        == labels
    )
    spans = [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in upper.patches]
    bands = [
        bootstrap_mean([named(matrix(collected, arm))]) for arm in ("reference", "standard-x5")
    ]
    np.testing.assert_allclose(spans, [(band.low, band.high) for band in bands])
    assert [bool(patch.get_hatch()) for patch in upper.patches] == [
        False,
        True,
    ]  # told apart in grey


def test_with_one_seed_the_interval_is_over_cases_and_the_axis_says_so(tmp_path: Path) -> None:
    figure, _, collected = draw(tmp_path, arms=(SMALL_ARMS[0], SMALL_ARMS[2]), seeds=1)
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["+100"]
    assert figure.axes[-1].get_xlabel().endswith("95 % interval over cases (one seed)")
    _, ends = lines_of(figure, 0)[0]
    assert np.ptp(ends) > 0
    estimate = bootstrap_mean([named(matrix(collected, SMALL_ARMS[2].name))])
    np.testing.assert_allclose(ends[0], (estimate.low, estimate.high))


def test_lines_stand_side_by_side_and_every_dose_on_its_own_place(tmp_path: Path) -> None:
    figure, _, _ = draw(tmp_path)
    x = [container.lines[0].get_xdata().astype(float) for container in figure.axes[0].containers]
    assert (np.diff([places[0] for places in x]) > 0).all()
    assert x[-1][0] < x[0][1]
    np.testing.assert_allclose(x[1], (100, 300))


def test_doses_of_many_sizes_stand_by_their_logarithm_with_labels_apart(tmp_path: Path) -> None:
    doses = (10, 1000, 1010, 20000)
    arms = [ArmConfig(name=f"hvae+{n}", generator="hvae", n_synthetic=n) for n in doses]
    figure, _, _ = draw(tmp_path, arms=(SMALL_ARMS[0], *arms), seeds=1)
    axes = figure.axes[-1]
    np.testing.assert_allclose(axes.get_xticks(), np.log10(doses))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["+10", "+1000", "", "+20000"]
