"""Textured images: the density is that of a known Gaussian, and what is drawn has its covariance."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from hvae_hpc.config.model import HVAEConfig, NetworkConfig
from hvae_hpc.evaluation.likelihood import _make_pairs
from hvae_hpc.models.hvae import HVAE

NETWORK = NetworkConfig(channels=(4,), attention_levels=(), attention_heads=1, latent_size=2)
SIZE, PIXELS = (4, 6), 24


def model() -> HVAE:
    torch.manual_seed(0)
    config = HVAEConfig(
        network=NETWORK, image_likelihood="textured", n_leapfrog=1, flow_from=0.1, sigma_x=0.2
    )
    textured = HVAE(config, SIZE).double()
    assert textured.texture is not None
    textured.texture.log_deviations.data = torch.linspace(0.5, -1.5, 12, dtype=torch.float64)
    for name in ("rows", "columns"):  # made in float32
        exact, _ = torch.linalg.qr(getattr(textured.texture, name).T)
        setattr(textured.texture, name, exact.T)
    return textured


def covariance(textured: HVAE, parameter: Tensor) -> Tensor:
    """Of one image's pixels, by matrices: S C^T diag(deviation^2) C S."""
    texture = textured.texture
    assert texture is not None
    transform = torch.kron(texture.rows, texture.columns)
    deviations = texture.deviation().flatten()
    spread = torch.diag(textured._spread(parameter).flatten())
    return spread @ transform.T @ torch.diag(deviations**2) @ transform @ spread


def test_the_density_is_that_of_a_gaussian_of_known_covariance() -> None:
    textured = model()
    with torch.no_grad():
        z = torch.randn(1, 2, dtype=torch.float64)
        image = torch.rand(1, 1, *SIZE, dtype=torch.float64)
        parameter, _ = textured.decoder(z)
        nats, _ = textured.log_likelihood(z, {"image": image, "mask": (image > 0.5).double()})
        known = MultivariateNormal(parameter[0, 0].flatten(), covariance(textured, parameter))
        assert float(nats) == pytest.approx(float(known.log_prob(image.flatten())))


def test_the_force_is_the_gradient_of_the_density() -> None:
    textured = model()
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    image = torch.rand(3, 1, *SIZE, dtype=torch.float64)
    batch = {"image": image, "mask": (image > 0.5).double()}
    nats, force = textured.linearised_likelihood(z, batch)
    expected = torch.autograd.grad(sum(textured.log_likelihood(z, batch)).sum(), z)
    torch.testing.assert_close(force, expected[0])
    torch.testing.assert_close(nats, textured.log_likelihood(z, batch))


def test_drawn_images_have_that_covariance_and_without_a_generator_there_is_the_mean() -> None:
    textured = model()
    with torch.no_grad():
        z = torch.randn(1, 2, dtype=torch.float64)
        parameter, _ = textured.decoder(z)
        expected = covariance(textured, parameter)
        n = 5000
        images, _ = textured.decode(z.expand(n, -1), torch.Generator().manual_seed(0))
        mean, _ = textured.decode(z)
    assert torch.equal(mean, parameter[:, :1])
    of_draws = torch.cov(images.flatten(1).T)
    error = (of_draws - expected).abs().max() / expected.abs().max()
    assert float(error) < 0.1
    assert float((images.mean(0) - mean[0]).abs().max()) < 0.02


def test_pairs_for_the_upper_bound_are_drawn_from_the_density() -> None:
    textured = model()
    assert textured.texture is not None
    with torch.no_grad():
        z, pairs = _make_pairs(textured, torch.zeros(2000, 1, *SIZE, dtype=torch.float64), seed=0)
        parameter, _ = textured.decoder(z)
        residual = (pairs.images - parameter[:, :1]) / textured._spread(parameter)
        white = textured.texture.transform(residual) / textured.texture.deviation()
        covariances = torch.cov(white.flatten(1).T)
        assert (covariances - torch.eye(PIXELS).double()).abs().max() < 0.15
