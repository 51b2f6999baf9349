"""Figures: which runs and cases they show, what is left out and said, and that they are pictures."""

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex

from hvae_hpc.errors import UserError
from hvae_hpc.plan import Plan, read_plan
from hvae_hpc.results.collect import Collected, collect
from hvae_hpc.results.figures import (
    DPI,
    N_COLUMNS,
    STYLES,
    _apart,
    draw_cases,
    draw_dice,
    draw_figure2,
    write_figures,
)
from hvae_hpc.results.samples import CASES, PAIRS, first_segment, read_samples
from hvae_hpc.rundir import SAMPLES
from hvae_hpc.runs import Run
from hvae_hpc.stages import GenerateConfig, SegmentConfig
from tests.made_up import SMALL_ARMS, fake_dice, segments, write_sweep

PX = 32


def draw_pair(rng: np.random.Generator, px: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a made-up head with a lesion and its mask."""
    y, x = np.mgrid[:px, :px] / px - 0.5
    head = (x / 0.36) ** 2 + (y / 0.44) ** 2 < 1
    cx, cy, r = rng.uniform(-0.18, 0.18), rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.13)
    angle = np.arctan2(y - cy, x - cx)
    mask = np.hypot(x - cx, y - cy) < r * (1 + 0.25 * np.sin(3 * angle + rng.uniform(0, 6)))
    folds = 0.06 * np.sin(28 * x + 5 * np.sin(14 * y + rng.uniform(0, 6)))
    image = head * (0.4 + folds) + 0.4 * mask + rng.normal(0, noise, (px, px)) * head
    return np.clip(image, 0, 1), mask.astype(np.uint8)


def write_samples(folder: Path, runs: list[Run], px: int = 64) -> None:
    """Write the samples.npz of generate and segment runs."""
    noise = {"lsgan": 0.15, "vae": 0.02, "hvae": 0.04}
    for run in runs:
        config = run.config
        if isinstance(config, GenerateConfig):
            rng = np.random.default_rng(len(config.generator))
            images, masks = zip(*(draw_pair(rng, px, noise[config.generator]) for _ in range(8)), strict=True)
            np.savez_compressed(folder / run.folder / SAMPLES, images=np.stack(images), masks=np.stack(masks))
        elif isinstance(config, SegmentConfig) and config.seed == 0:
            rng = np.random.default_rng(7)
            images, masks = map(np.stack, zip(*(draw_pair(rng, px, 0.05) for _ in range(12)), strict=True))
            shifts = np.random.default_rng(len(config.arm.name)).integers(0, 7, (12, 2))
            moved = [np.roll(m, s, (0, 1)) for m, s in zip(masks, shifts, strict=True)]
            predictions = np.stack(moved).astype(np.uint8)
            both = (predictions * masks).sum((1, 2))
            dice = 2 * both / (predictions.sum((1, 2)) + masks.sum((1, 2)))
            ids = np.array([f"BraTS2021_{i:05}" for i in range(12)])
            path = folder / run.folder / SAMPLES
            cases = {"predictions": predictions, "dice": dice, "case_ids": ids}
            np.savez_compressed(path, images=images, masks=masks, **cases)


def read_all(folder: Path, partial: bool = False) -> tuple[Plan, Collected, str]:
    plan = read_plan(folder / "plans/small.json")
    return plan, collect(plan, partial), "brats2021"


def generated(runs: list[Run], generator: str) -> Run:
    (run,) = [r for r in runs if isinstance(r.config, GenerateConfig) and r.config.generator == generator]
    return run


def row_labels(figure: Any) -> list[str]:
    return [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, list[Run]]:
    runs = write_sweep(tmp_path)
    write_samples(tmp_path, runs, PX)
    return tmp_path, runs


def test_three_pictures_of_each_data_set_and_one_of_each_training_are_written_whole(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path, data=("hecktor2022",), seeds=2)
    write_samples(tmp_path, runs, PX)
    plan, collected, _ = read_all(tmp_path)
    out = tmp_path / "out"
    paths, remarks = write_figures(plan, collected, out)
    assert remarks == []
    names = [f"{kind}-hecktor2022.png" for kind in ("figure2", "dice", "cases")]
    names += [f"progress-hecktor2022-{name}-s0.png" for name in ("vae", "hvae", "lsgan")]
    assert [path.name for path in paths] == names
    assert sorted(out.iterdir()) == sorted(paths)  # no temporary file is left
    for path in paths:
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 2 * DPI
        assert image[..., :3].std() > 0.05


def test_figure_2_shows_real_lsgan_vae_hvae_each_above_its_masks(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    figure, left_out = draw_figure2(*read_all(folder))
    assert left_out == []
    names = ("Real", "LSGAN", "VAE", "HVAE")
    assert row_labels(figure) == [label for name in names for label in (name, "mask")]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    hvae = read_samples(folder, generated(runs, "hvae").folder, PAIRS)
    np.testing.assert_array_equal(shown[6 * N_COLUMNS], hvae["images"][0])
    np.testing.assert_array_equal(shown[7 * N_COLUMNS], hvae["masks"][0] > 0)
    real = read_samples(folder, segments(runs, "reference")[0].folder, PAIRS)
    np.testing.assert_array_equal(shown[0], real["images"][0])


def test_a_generator_without_samples_is_left_out_with_a_line(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    (folder / generated(runs, "vae").folder / SAMPLES).unlink()
    figure, (line,) = draw_figure2(*read_all(folder))
    assert "VAE" not in row_labels(figure)
    assert line.startswith("without VAE: ")
    assert "samples.npz cannot be read (No such file" in line


def test_samples_of_a_run_that_is_not_done_are_not_shown(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    (folder / generated(runs, "lsgan").folder / "metrics.json").unlink()
    figure, (line,) = draw_figure2(*read_all(folder, partial=True))
    assert "LSGAN" not in row_labels(figure)
    assert line == "without LSGAN: no run is done yet"


def test_what_has_no_data_is_a_line_and_not_an_empty_picture(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=SMALL_ARMS[:2])
    plan, collected, _ = read_all(tmp_path)
    paths, remarks = write_figures(plan, collected, tmp_path / "out")
    assert paths == []
    assert not (tmp_path / "out").exists()
    figure2, dice, cases = remarks
    assert figure2 == "figure2-brats2021.png is left out: the sweep has no generator for it"
    assert (
        dice == "dice-brats2021.png is left out: no arm that adds nothing but a number of synthetic pairs is done yet"
    )
    assert cases.startswith("cases-brats2021.png is left out: segment/brats2021-reference-s0-")


def test_each_arm_shows_its_own_worst_and_median_case_then_shared_ones(sweep: tuple[Path, list[Run]]) -> None:
    plan, collected, data = read_all(sweep[0])
    figure, _ = draw_cases(plan, collected, data)
    assert row_labels(figure) == ["Reference", "Standard aug. ×5"]
    titles = [axes.get_title().splitlines() for axes in figure.axes]
    used = set()
    for row, arm in enumerate(("reference", "standard-x5")):
        samples = read_samples(plan.runs_folder, first_segment(collected, data, arm), CASES)
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


def test_arms_without_a_case_in_common_are_drawn_with_their_own(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    path = folder / segments(runs, "reference")[0].folder / SAMPLES
    np.savez(path, **(dict(np.load(path)) | {"case_ids": np.array([f"other{i}" for i in range(12)])}))
    figure, _ = draw_cases(*read_all(folder))
    assert len(figure.axes) == 4


def test_truth_and_prediction_are_outlined_and_an_empty_mask_is_not(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    path = folder / segments(runs, "reference")[0].folder / SAMPLES
    samples = dict(np.load(path))
    samples["predictions"][:] = 0
    samples["case_ids"] = np.array([f"$a_{i}$" for i in range(12)])  # mathtext must not eat it
    np.savez(path, **samples)
    for run in segments(runs, "standard-x5"):
        if run.config.seed == 0:
            other = dict(np.load(folder / run.folder / SAMPLES)) | {"case_ids": samples["case_ids"]}
            np.savez(folder / run.folder / SAMPLES, **other)
    figure, _ = draw_cases(*read_all(folder))
    assert [len(axes.collections) for axes in figure.axes[:4]] == [1] * 4
    assert all(len(axes.collections) == 2 for axes in figure.axes[4:])
    write_figures(*read_all(folder)[:2], folder / "out")
    assert (folder / "out/cases-brats2021.png").exists()


def test_the_dice_picture_shows_mean_and_sd_of_every_dose(sweep: tuple[Path, list[Run]]) -> None:
    folder, runs = sweep
    figure, _ = draw_dice(*read_all(folder))
    (axes,) = figure.axes
    lines = {container.get_label(): container for container in axes.containers}
    assert list(lines) == ["LSGAN", "VAE", "HVAE"]
    dice = [[fake_dice(run) for run in segments(runs, f"hvae+{n}")] for n in (100, 300)]
    np.testing.assert_allclose(lines["HVAE"].lines[0].get_ydata().astype(float), np.mean(dice, axis=1))
    (bars,) = lines["HVAE"].lines[2]
    lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, 2 * np.std(dice, axis=1, ddof=1))
    assert [text.get_text() for text in axes.texts] == ["Reference", "Standard aug. ×5"]


def test_a_single_dose_and_a_single_seed_are_drawn(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=(SMALL_ARMS[0], SMALL_ARMS[2]), seeds=1)
    figure, _ = draw_dice(*read_all(tmp_path))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["+100"]


def test_lines_are_told_apart_without_colour() -> None:
    assert len({style["marker"] for style in STYLES}) == len(STYLES)
    assert len({style["linestyle"] for style in STYLES}) == len(STYLES)
    assert len({to_hex(style["color"]) for style in STYLES}) == len(STYLES)


def test_the_papers_generators_keep_their_style_where_others_are_absent(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=(SMALL_ARMS[0], SMALL_ARMS[4]))
    figure, _ = draw_dice(*read_all(tmp_path))
    (line,) = figure.axes[0].containers
    assert line.get_label() == "HVAE"
    assert line.lines[0].get_marker() == STYLES[2]["marker"]


def test_labels_of_near_levels_are_moved_apart_and_keep_their_order() -> None:
    moved = _apart([0.70, 0.60, 0.705, 0.701], 0.05)
    assert moved == pytest.approx([0.70, 0.60, 0.80, 0.75])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not as expected"),
        (b"PK\x03\x04 cut short", "not as expected"),
        ({"images": np.zeros((2, 4, 4))}, "masks"),
        ({"images": np.zeros((2, 4, 4)), "masks": np.zeros((3, 4, 4))}, r"\(3, 4, 4\)"),
        ({"images": np.zeros((0, 4, 4)), "masks": np.zeros((0, 4, 4))}, "n > 0"),
        ({"images": np.zeros((2, 4, 4)), "masks": np.zeros((2, 1, 4, 4))}, r"\(2, 1, 4, 4\)"),
        ({"images": np.array([None]), "masks": np.zeros((1, 4, 4))}, "not as expected"),
    ],
)
def test_samples_that_are_not_as_expected_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "run" / SAMPLES
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=reason):
        read_samples(tmp_path, "run", PAIRS)
