"""Figures of images: which runs and cases they show, and what is left out and said."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected, collect
from hvae_hpc.results.figures import images
from hvae_hpc.results.figures.images import (
    CASES,
    N_COLUMNS,
    PAIRS,
    draw_cases,
    draw_figure2,
    first_folder,
    read_samples,
)
from hvae_hpc.results.figures.write import _SETTINGS, write_figures
from hvae_hpc.results.scores import ArmScores, score_arms
from hvae_hpc.runs.folder import SAMPLES
from hvae_hpc.runs.plan import Plan, read_plan
from hvae_hpc.runs.run import Run
from tests.results.made_up import fake_dice, folder_of, segments, write_samples, write_sweep

PX = 32


def read_all(folder: Path) -> tuple[Plan, Collected, str]:
    plan = read_plan(folder / "plans/small.json")
    return plan, collect(plan), "brats2021"


def read_scores(folder: Path) -> tuple[Plan, Collected, list[ArmScores]]:
    plan, collected, _ = read_all(folder)
    return plan, collected, score_arms(plan, collected)


def generated(runs: list[Run], generator: str) -> Run:
    (run,) = [
        r for r in runs if isinstance(r.config, GenerateConfig) and r.config.generator == generator
    ]
    return run


def row_labels(figure: Any) -> list[str]:
    return [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, list[Run]]:
    runs = write_sweep(tmp_path)
    write_samples(tmp_path, runs, PX)
    return tmp_path, runs


def test_figure_2_shows_real_lsgan_vae_hvae_each_above_its_masks(
    sweep: tuple[Path, list[Run]],
) -> None:
    folder, runs = sweep
    figure, left_out = draw_figure2(*read_all(folder))
    assert left_out == []
    names = ("Real", "LSGAN", "VAE", "HVAE")
    assert row_labels(figure) == [label for name in names for label in (name, "mask")]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    hvae = read_samples(folder, folder_of(generated(runs, "hvae")), PAIRS)
    np.testing.assert_array_equal(shown[6 * N_COLUMNS], hvae["images"][0])
    np.testing.assert_array_equal(shown[7 * N_COLUMNS], hvae["masks"][0] > 0)
    real = read_samples(folder, folder_of(segments(runs, "reference")[0]), PAIRS)
    np.testing.assert_array_equal(shown[0], real["images"][0])


def test_a_generator_without_samples_is_left_out_with_a_line(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    (folder / folder_of(generated(runs, "vae")) / SAMPLES).unlink()
    figure, (line,) = draw_figure2(*read_all(folder))
    assert "VAE" not in row_labels(figure)
    assert line.startswith("without VAE: ")
    assert "samples.npz cannot be read (" in line


def test_samples_of_a_run_that_is_not_done_are_not_shown(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    (folder / folder_of(generated(runs, "lsgan")) / "metrics.json").unlink()
    figure, (line,) = draw_figure2(*read_all(folder))
    assert "LSGAN" not in row_labels(figure)
    assert line == "without LSGAN: no run is done yet"


def test_each_arm_shows_its_own_worst_and_median_case_then_shared_ones(
    sweep: tuple[Path, list[Run]],
) -> None:
    plan, collected, scores = read_scores(sweep[0])
    figure, _ = draw_cases(plan, collected, scores)
    assert row_labels(figure) == ["Reference", "Standard aug. ×5"]
    titles = [axes.get_title().splitlines() for axes in figure.axes]
    used = set()
    for row, arm in enumerate(("reference", "standard-x5")):
        samples = read_samples(
            plan.runs_folder, first_folder(collected.segment, data="brats2021", arm=arm), CASES
        )
        case_dice = dict(zip(samples["case_ids"], samples["dice"], strict=True))
        worst, median = titles[4 * row : 4 * row + 2]
        assert worst == [
            f"worst: Dice {min(case_dice.values()):.3f}",
            min(case_dice, key=case_dice.__getitem__),
        ]
        middle = fake_dice(segments(sweep[1], arm)[0])
        nearest = min(case_dice, key=lambda case: abs(case_dice[case] - middle))
        assert median == [f"median: Dice {case_dice[nearest]:.3f}", nearest]
        for shown in titles[4 * row + 2 : 4 * row + 4]:
            assert shown[0] == f"Dice {case_dice[shown[1]]:.3f}"
        used |= {worst[1], median[1]}
    assert [title[1] for title in titles[2:4]] == [title[1] for title in titles[6:8]]
    assert not used & {title[1] for title in titles[2:4]}


def test_long_names_of_arms_have_room_beside_their_row(tmp_path: Path) -> None:
    made: dict[str, Any] = {"generator": "hvae-aggregated", "n_synthetic": 300}
    long = ArmConfig(name="standard-x5+hvae-aggregated+300", n_standard=80, **made)
    runs = write_sweep(tmp_path, arms=(ArmConfig(name="reference"), long))
    write_samples(tmp_path, [run for run in runs if run.stage == "segment"], PX)
    with matplotlib.rc_context(_SETTINGS):
        figure, _ = draw_cases(*read_scores(tmp_path))
        figure.draw_without_rendering()
    boxes = [axes.yaxis.label.get_window_extent() for axes in figure.axes if axes.get_ylabel()]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])
    for axes, box in zip([axes for axes in figure.axes if axes.get_ylabel()], boxes, strict=True):
        assert box.x0 > 0
        assert box.x1 < axes.get_window_extent().x0
        assert 0 < box.y0 < box.y1 < figure.bbox.y1


def test_long_names_of_generators_have_room_beside_their_row(
    sweep: tuple[Path, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "name_label", lambda name: f"{name}-of-a-long-name riemannian")
    with matplotlib.rc_context(_SETTINGS):
        figure, _ = draw_figure2(*read_all(sweep[0]))
        figure.draw_without_rendering()
    named = [axes for axes in figure.axes if axes.get_ylabel()]
    assert sum("riemannian" in axes.get_ylabel() for axes in named) == 3
    for axes in named:
        box, panel = axes.yaxis.label.get_window_extent(), axes.get_window_extent()
        assert 0 < box.x0 < box.x1 < panel.x0
        assert panel.y0 - 2 < box.y0 < box.y1 < panel.y1 + 2


def test_arms_without_a_case_in_common_are_drawn_with_their_own(
    sweep: tuple[Path, list[Run]],
) -> None:
    folder, runs = sweep
    path = folder / folder_of(segments(runs, "reference")[0]) / SAMPLES
    np.savez(
        path, **(dict(np.load(path)) | {"case_ids": np.array([f"other{i}" for i in range(12)])})
    )
    figure, _ = draw_cases(*read_scores(folder))
    assert len(figure.axes) == 4


def test_truth_and_prediction_are_outlined_and_an_empty_mask_is_not(
    sweep: tuple[Path, list[Run]],
) -> None:
    folder, runs = sweep
    path = folder / folder_of(segments(runs, "reference")[0]) / SAMPLES
    samples = dict(np.load(path))
    samples["predictions"][:] = 0
    samples["case_ids"] = np.array([f"$a_{i}$" for i in range(12)])  # mathtext must not eat it
    np.savez(path, **samples)
    for run in segments(runs, "standard-x5"):
        if run.config.seed == 0:
            other = dict(np.load(folder / folder_of(run) / SAMPLES)) | {
                "case_ids": samples["case_ids"]
            }
            np.savez(folder / folder_of(run) / SAMPLES, **other)
    figure, _ = draw_cases(*read_scores(folder))
    assert [len(axes.collections) for axes in figure.axes[:4]] == [1] * 4
    assert all(len(axes.collections) == 2 for axes in figure.axes[4:])
    write_figures(*read_scores(folder), folder / "out")
    assert (folder / "out/cases-brats2021.png").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut short", "cannot be read"),
        ({"images": np.zeros((2, 4, 4))}, "masks"),
        ({"images": np.zeros((2, 4, 4)), "masks": np.zeros((3, 4, 4))}, r"\(3, 4, 4\)"),
        ({"images": np.zeros((0, 4, 4)), "masks": np.zeros((0, 4, 4))}, "n > 0"),
        ({"images": np.zeros((2, 4, 4)), "masks": np.zeros((2, 1, 4, 4))}, r"\(2, 1, 4, 4\)"),
        ({"images": np.array([None]), "masks": np.zeros((1, 4, 4))}, "cannot be read"),
    ],
)
def test_samples_that_are_not_as_expected_are_refused(
    tmp_path: Path, content: Any, reason: str
) -> None:
    path = tmp_path / "run" / SAMPLES
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=reason):
        read_samples(tmp_path, "run", PAIRS)
