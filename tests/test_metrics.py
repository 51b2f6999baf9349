"""Dice, PSNR and SSIM on hand-made cases and against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hvae_hpc.metrics import dice, psnr, ssim

RANDOM = np.random.default_rng(0)


def test_dice_of_hand_made_masks() -> None:
    truth = np.zeros((4, 4), bool)
    truth[0, :2] = True
    guess = np.zeros((4, 4), bool)
    guess[0, 1:4] = True
    assert dice(guess, truth) == pytest.approx(2 * 1 / (2 + 3))
    assert dice(truth, truth) == 1.0
    assert dice(~truth, truth) == 0.0


def test_the_empty_mask_rule() -> None:
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    assert dice(empty, empty) == 1.0
    assert dice(full, empty) == dice(empty, full) == 0.0
    with pytest.raises(ValueError, match="differ in shape"):
        dice(empty, np.zeros((3, 3), bool))


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
