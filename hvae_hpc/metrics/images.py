"""PSNR and SSIM of images, as functions of numpy arrays."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Images = NDArray[np.floating]
Floats = NDArray[np.float64]
PSNR_OF_EQUAL_IMAGES = 100.0
"""dB; what two equal images get, whose ratio would be infinite."""


def psnr(first: Images, second: Images) -> Floats:
    """Return the peak signal-to-noise ratio 10 log10(1 / MSE), dB, of images in [0, 1].

    Args:
        first, second: (..., H, W).

    Returns:
        (...,) float64; 100 dB for equal images.
    """
    mse = ((first.astype(np.float64) - second) ** 2).mean((-2, -1))
    return 10 * np.log10(1 / np.maximum(mse, 10 ** (-PSNR_OF_EQUAL_IMAGES / 10)))


def ssim(first: Images, second: Images) -> Floats:
    """Return the structural similarity of images in [0, 1] (Wang et al. 2004).

    Gaussian window with sigma 1.5 px cut at 3.5 sigma, K1 = 0.01, K2 = 0.03, population
    covariances, mean over the pixels whose window lies inside: the original's choices.

    Args:
        first, second: (..., H, W), at least 11 px on each side.

    Returns:
        (...,) float64 in [-1, 1].
    """
    if min(first.shape[-2:]) < 11:
        raise ValueError(
            f"images of {first.shape[-2:]} px, expected at least 11 px: the window has no room"
        )
    x, y = first.astype(np.float64), second.astype(np.float64)

    def blur(image: Floats) -> Floats:
        sigma = (0.0,) * (image.ndim - 2) + (1.5, 1.5)
        return gaussian_filter(image, sigma, truncate=3.5)

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return similarity[..., 5:-5, 5:-5].mean((-2, -1))
