"""Measures of masks and images on hand-made cases, against MONAI and scikit-image."""

import math

import monai.metrics as monai
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hvae_hpc.metrics.images import psnr, ssim
from hvae_hpc.metrics.segmentation import (
    dice,
    dice_by_size,
    score_masks,
)

RANDOM = np.random.default_rng(0)


def blobs(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A smooth random mask and another that overlaps with it, some of both cut by the image's border."""
    random = np.random.default_rng(seed)
    first, second = (gaussian_filter(random.normal(size=(40, 56)), 4) for _ in range(2))
    return first > 0.05, first + 0.5 * second > 0.05


def test_scores_of_hand_made_masks() -> None:
    truth = np.zeros((4, 4), bool)
    truth[0, :2] = True
    guess = np.zeros((4, 4), bool)
    guess[0, 1:4] = True
    scores = score_masks(guess, truth, (1, 1))
    assert scores.dice == dice(guess, truth) == pytest.approx(2 * 1 / (2 + 3))
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.recall == pytest.approx(1 / 2)
    assert (scores.true_area, scores.area_error) == (2, 0.5)
    assert score_masks(guess, truth, (0.5, 3)).true_area == 3.0
    same = score_masks(truth, truth, (1, 1))
    assert (same.dice, same.precision, same.recall, same.surface_dice_2) == (1, 1, 1, 1)
    assert (same.hausdorff_95, same.area_error) == (0, 0)
    assert score_masks(~truth, truth, (1, 1)).dice == 0.0


def test_the_surface_dice_counts_edge_pixels_of_both_masks_within_two_units() -> None:
    one, other = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    one[4, 1:5] = True
    other[4, 5:7] = True  # the distances are 4, 3, 2, 1 and 1, 2
    assert score_masks(one, other, (1, 1)).surface_dice_2 == pytest.approx(4 / 6)
    assert score_masks(one, other, (1, 0.5)).surface_dice_2 == 1.0
    assert score_masks(one, other, (1, 3)).surface_dice_2 == 0.0
    # In another slice, no edge is near.
    stacks = np.stack([one, ~one & False]), np.stack([other & False, other])
    assert score_masks(*stacks, (1, 1)).surface_dice_2 == 0.0


def test_dice_by_size_takes_thirds_of_the_cases_with_a_tumour() -> None:
    truths = [np.arange(100).reshape(10, 10) < size for size in (50, 0, 10, 20, 60, 0, 30, 70)]
    guesses = [truth & (np.arange(10) % 2 == 0) for truth in truths]
    scores = [
        score_masks(truth if truth.sum() < 25 else guess, truth, (1, 1))
        for guess, truth in zip(guesses, truths, strict=True)
    ]
    half = pytest.approx(2 / 3)
    assert dice_by_size(scores) == {"dice_small": 1.0, "dice_medium": half, "dice_large": half}
    assert dice_by_size(scores[:4]) == {"dice_small": 1.0, "dice_medium": 1.0, "dice_large": half}
    assert dice_by_size(scores[:3]) == {}


def test_the_empty_mask_rule() -> None:
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    diagonal = math.hypot(2 * 3, 2 * 4)
    shares = ("dice", "precision", "recall", "surface_dice_2")
    for guess, truth in ((empty, empty), (full, empty), (empty, full)):
        scores = score_masks(guess, truth, (3, 4))
        share, distance = (1, 0) if guess is truth else (0, diagonal)
        assert {getattr(scores, name) for name in shares} == {share}
        assert scores.hausdorff_95 == distance
        assert scores.area_error == (1 if truth.any() else None)
    assert dice(empty, empty) == 1.0
    assert dice(full, empty) == dice(empty, full) == 0.0
    for score in (dice, lambda a, b: score_masks(a, b, (1, 1))):
        with pytest.raises(ValueError, match="differ in shape"):
            score(empty, np.zeros((3, 3), bool))


def test_hausdorff_of_two_pixels_is_their_distance_in_the_unit_of_the_spacing() -> None:
    one, other = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    one[1, 1] = other[4, 5] = True
    assert score_masks(one, other, (1, 1)).hausdorff_95 == pytest.approx(5)
    assert score_masks(one, other, (2, 0.5)).hausdorff_95 == pytest.approx(math.hypot(6, 2))


def test_hausdorff_of_several_slices_takes_the_distances_of_all() -> None:
    one, other = np.zeros((2, 9, 9), bool), np.zeros((2, 9, 9), bool)
    one[:, 1, 1] = other[0, 1, 1] = other[1, 4, 5] = True  # distances 0 and 5
    assert score_masks(one, other, (1, 1)).hausdorff_95 == pytest.approx(4.75)
    # A slice that the prediction misses altogether counts with the image's diagonal.
    truth, _ = blobs(0)
    missed = np.stack([truth, np.zeros((40, 56), bool)])
    assert score_masks(missed, np.stack([truth, truth]), (1, 1)).hausdorff_95 == pytest.approx(
        math.hypot(40, 56)
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.9)])
def test_scores_are_monai_s(seed: int, spacing: tuple[float, float]) -> None:
    guess, truth = blobs(seed)
    ours = score_masks(guess, truth, spacing)
    theirs = [torch.from_numpy(mask)[None, None].float() for mask in (guess, truth)]
    assert ours.dice == pytest.approx(monai.compute_dice(*theirs).item())
    distance = monai.compute_hausdorff_distance(
        *theirs, include_background=True, percentile=95, spacing=spacing
    )
    assert ours.hausdorff_95 == pytest.approx(distance.item(), rel=1e-6)
    surface = monai.compute_surface_dice(*theirs, [2.0], include_background=True, spacing=spacing)
    assert ours.surface_dice_2 == pytest.approx(surface.item(), rel=1e-6)
    counts = monai.get_confusion_matrix(*theirs)
    for name in ("precision", "recall"):
        value = monai.compute_confusion_matrix_metric(name, counts).item()
        assert getattr(ours, name) == pytest.approx(value)


def test_monai_agrees_on_empty_masks_or_has_no_number() -> None:
    empty, some = np.zeros((12, 12), bool), np.eye(12, dtype=bool)
    for guess, truth in ((empty, empty), (some, empty), (empty, some)):
        ours = score_masks(guess, truth, (1, 1))
        theirs = [torch.from_numpy(mask)[None, None].float() for mask in (guess, truth)]
        counts = monai.get_confusion_matrix(*theirs)
        numbers = {
            "dice": monai.compute_dice(*theirs, ignore_empty=False).item(),
            "precision": monai.compute_confusion_matrix_metric("precision", counts).item(),
            "recall": monai.compute_confusion_matrix_metric("recall", counts).item(),
            "hausdorff_95": monai.compute_hausdorff_distance(
                *theirs, include_background=True, percentile=95
            ).item(),
        }
        for name, value in numbers.items():
            if math.isfinite(value):
                assert getattr(ours, name) == value, name
        assert math.isfinite(numbers["dice"])  # and so at least that was compared


@pytest.mark.parametrize("shape", [(11, 11), (24, 40)])
def test_psnr_and_ssim_are_scikit_image_s(shape: tuple[int, int]) -> None:
    one = RANDOM.random((3, *shape)).astype(np.float32)
    other = np.clip(one + RANDOM.normal(0, 0.2, one.shape), 0, 1).astype(np.float32)
    for i in range(3):
        a, b = one[i].astype(np.float64), other[i].astype(np.float64)
        assert psnr(one, other)[i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1))
        expected = structural_similarity(
            a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(one, other)[i] == pytest.approx(expected, abs=1e-7)


def test_equal_images_get_the_convention_s_value() -> None:
    image = RANDOM.random((16, 16))
    assert psnr(image, image) == 100.0
    assert ssim(image, image) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(np.zeros((8, 8)), np.zeros((8, 8)))
