"""Where z comes from: each sampler draws from what it says."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.model import HVAEConfig, LSGANConfig, NetworkConfig
from hvae_hpc.config.stages import GenerateConfig, SplitConfig, source_name
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation import samplers
from hvae_hpc.evaluation.hamiltonian import Gaussians, evaluate, hamiltonian_walk
from hvae_hpc.evaluation.samplers import (
    LatentSampler,
    encode_pairs,
    fit_mixture,
)
from hvae_hpc.models.blocks import Batch
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.lsgan import LSGAN
from hvae_hpc.results.tables.draws import LEAST_MOVEMENT, STUCK
from hvae_hpc.training.batches import PairTensors
from tests.models.test_hvae import (
    SIGMA,
    D,
    FixedEncoder,
    LinearDecoder,
    linear_model,
    observed,
    posterior_mean,
)

CPU = torch.device("cpu")
TINY = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=3)


def config(sampler: str, **changes: object) -> GenerateConfig:
    common = {
        "data": "d",
        "generator": "hvae",
        "split": SplitConfig(),
        "image_px": 0,
        "sampler": sampler,
    }
    return GenerateConfig(**{**common, **changes})


def pairs_of(n: int) -> PairTensors:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 1, 8, 8, generator=generator)
    return PairTensors(images=images, masks=(images > 0.7).float())


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two dimensions this is long enough."""
    monkeypatch.setattr(samplers, "RIEMANNIAN_WALK", (40, 10))


def tiny_vae() -> HVAE:
    torch.manual_seed(0)
    return HVAE(HVAEConfig(network=TINY, n_leapfrog=0), (8, 8)).eval()


@pytest.mark.parametrize("sampler", ["prior", "aggregated", "mixture", "hmc", "mask", "riemannian"])
def test_draws_are_a_function_of_the_seed_and_of_the_place(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "RIEMANNIAN_WALK", (4, 3))
    model, pairs = tiny_vae(), pairs_of(6)

    def draw(seed: int, first: int) -> Tensor:
        with torch.no_grad():
            return LatentSampler(
                config(sampler, seed=seed, hmc_proposals=4), model.config, model, pairs, CPU
            ).draw(5, first)

    assert torch.equal(draw(0, 0), draw(0, 0))
    assert not torch.equal(draw(0, 0), draw(0, 5))
    assert not torch.equal(draw(0, 0), draw(1, 0))
    assert draw(0, 0).shape == (5, 3)
    assert torch.isfinite(draw(0, 0)).all()


@pytest.mark.parametrize("sampler", ["aggregated", "mixture", "hmc", "mask", "riemannian"])
def test_a_generator_without_encoder_has_its_prior_alone(sampler: str) -> None:
    lsgan = LSGAN(LSGANConfig(network=TINY, discriminator_channels=(4,)), (8, 8))
    with pytest.raises(UserError, match="has no encoder"):
        LatentSampler(config(sampler), lsgan.config, lsgan, pairs_of(4), CPU)
    assert LatentSampler(config("prior"), lsgan.config, lsgan, None, CPU).draw(2, 0).shape == (2, 3)


def test_encodings_are_the_encoders_whatever_is_done_at_once() -> None:
    model, pairs = tiny_vae(), pairs_of(7)
    with torch.no_grad():
        once, bits = encode_pairs(model, pairs), encode_pairs(model, pairs, at_once=3)
    torch.testing.assert_close(bits.mean, once.mean)
    torch.testing.assert_close(bits.scale, once.scale)
    assert (once.scale > 0).all()


def encodings_of(n: int = 20, d: int = 5) -> Gaussians:
    generator = torch.Generator().manual_seed(2)
    return Gaussians(
        mean=torch.randn(n, d, generator=generator) * 2,
        scale=torch.rand(n, d, generator=generator) * 0.1,
    )


class Known:
    """A generator whose encodings are known; a pair's image is its number."""

    def __init__(self, encodings: Gaussians) -> None:
        self.encodings = encodings

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        number = batch["image"].flatten().long()
        return self.encodings.mean[number], self.encodings.scale[number]


def knowing(encodings: Gaussians, asked: GenerateConfig) -> LatentSampler:
    images = torch.arange(len(encodings.mean)).float()[:, None, None, None]
    pairs = PairTensors(images=images, masks=torch.zeros_like(images))
    return LatentSampler(asked, HVAEConfig(), Known(encodings), pairs, CPU)


def test_between_two_encodings_lie_the_aggregated_draws_and_noise_is_theirs() -> None:
    encodings = encodings_of()

    def aggregated(noise: float) -> LatentSampler:
        asked = config("aggregated", posterior_noise=noise)
        return knowing(encodings, asked)

    still = aggregated(0.0).draw(200, 0)
    one, other = encodings.mean[:, None], encodings.mean[None]
    # How far each draw lies from each of the segments between two encodings: from one of
    # them, nothing.
    along = other - one
    share = ((still[:, None, None] - one) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)
    nearest = (one + share.clamp(0, 1)[..., None] * along - still[:, None, None]).square().sum(-1)
    assert float(nearest.flatten(1).min(1).values.max()) < 1e-8
    at_an_end = (still[:, None] - encodings.mean).square().sum(-1).min(1).values < 1e-8
    assert float(at_an_end.float().mean()) < 0.05
    noise = aggregated(1.0).draw(200, 0) - still
    assert float(noise.std()) == pytest.approx(float(encodings.scale.mean()), rel=0.25)
    torch.testing.assert_close(
        aggregated(0.5).draw(200, 0) - still, noise / 2, rtol=1e-4, atol=1e-6
    )


def test_the_mixture_finds_clusters_and_their_widths() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[-4.0, 0, 0], [4.0, 1, 0], [0, 5.0, -3]])
    which = torch.arange(300) % 3
    mean = centres[which] + torch.randn(300, 3, generator=generator) * 0.5
    encodings = Gaussians(mean=mean, scale=torch.full((300, 3), 0.3))
    mixture = fit_mixture(encodings, 3, seed=0)
    order = [int((mixture.mean - centre).square().sum(1).argmin()) for centre in centres]
    assert sorted(order) == [0, 1, 2]
    torch.testing.assert_close(mixture.mean[order], centres, rtol=0, atol=0.15)
    torch.testing.assert_close(mixture.weight, torch.full((3,), 1 / 3), rtol=0, atol=0.01)
    # The width of the means and of the encodings themselves.
    torch.testing.assert_close(
        mixture.variance, torch.full((3, 3), 0.5**2 + 0.3**2), rtol=0.3, atol=0
    )
    asked = config("mixture", components=3)
    draws = knowing(encodings, asked).draw(20_000, 0)
    torch.testing.assert_close(draws.mean(0), mean.mean(0), rtol=0, atol=0.1)
    expected = torch.cov(mean.T) + 0.3**2 * torch.eye(3)
    torch.testing.assert_close(torch.cov(draws.T), expected, rtol=0.1, atol=0.3)


def test_one_component_is_the_aggregated_posteriors_mean_and_variance() -> None:
    encodings = encodings_of()
    mixture = fit_mixture(encodings, 1, seed=0)
    torch.testing.assert_close(mixture.mean[0], encodings.mean.mean(0))
    expected = encodings.mean.var(0, unbiased=False) + encodings.scale.square().mean(0)
    torch.testing.assert_close(mixture.variance[0], expected, rtol=1e-4, atol=1e-5)


def geometric(encodings: Gaussians, floor: float) -> LatentSampler:
    return knowing(encodings, config("riemannian", metric_floor=floor))


@pytest.mark.usefixtures("walks")
def test_where_the_encodings_do_not_count_the_riemannian_draws_fill_their_box() -> None:
    encodings = Gaussians(mean=torch.tensor([[0.0, 0], [1, 2], [3, -1]]), scale=torch.ones(3, 2))
    z = geometric(encodings, 1e9).draw(6000, 0)
    low, high = torch.tensor([-3.0, -4]), torch.tensor([6.0, 5])
    share = ((z - low) / (high - low)).sort(0).values
    assert 0 <= float(share.min()) < 0.01
    assert 0.99 < float(share.max()) <= 1
    # Kolmogorov and Smirnov's distance from the uniform law: 0.03 at most with 6000 draws.
    even = torch.linspace(0, 1, len(z))[:, None]
    assert float((share - even).abs().max()) < 0.03
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 0.05


@pytest.mark.usefixtures("walks")
def test_the_riemannian_draws_have_the_density_of_the_inverse_metrics_volume() -> None:
    encodings = Gaussians(
        mean=torch.tensor([[0.0, 0], [3, 1]]), scale=torch.tensor([[1.0, 0.5], [0.6, 1.2]])
    )
    sampler = geometric(encodings, 0.05)
    z = sampler.draw(20_000, 0)
    assert sampler.facts["temperature"] == pytest.approx(10**0.5)  # from one mean to the other
    assert 0.5 < sampler.facts["acceptance"] < 1

    # sqrt(det(sum of weights times diag(s^2) + lambda I)) on a grid, by matrices.
    axes = torch.linspace(-3, 6, 300), torch.linspace(-2.6, 4.6, 240)
    grid = torch.cartesian_prod(*axes)
    squares = (grid[:, None] - encodings.mean).square().sum(2)
    inverse = 0.05 * torch.eye(2) + torch.einsum(
        "gn,nij->gij", torch.exp(-squares / 10), torch.diag_embed(encodings.scale.square())
    )
    inside = ((grid >= torch.tensor([-3.0, -2.6])) & (grid <= torch.tensor([4.8, 4.6]))).all(1)
    density = torch.linalg.det(inverse).sqrt() * inside
    density = density / density.sum()
    mean = density @ grid
    covariance = (grid - mean).T @ (density[:, None] * (grid - mean))
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(z.T), covariance, rtol=0.06, atol=0.05)
    for box in ([-3.0, -2.6, 0.0, 0.0], [0.0, 0.0, 3.0, 1.0], [2.0, 1.0, 4.8, 4.6]):
        low, high = torch.tensor(box[:2]), torch.tensor(box[2:])
        expected = density[((grid > low) & (grid < high)).all(1)].sum()
        share = ((z > low) & (z < high)).all(1).float().mean()
        assert float(share) == pytest.approx(float(expected), abs=0.015)


def chain_of(
    sampler: str, n: int, **changes: object
) -> tuple[Tensor, dict[str, float], LinearDecoder]:
    model = linear_model(n_leapfrog=0)
    image = observed()
    pairs = PairTensors(images=image, masks=torch.zeros_like(image))
    with torch.no_grad():
        chain = LatentSampler(config(sampler, **changes), model.config, model, pairs, CPU)
        z = chain.draw(n, 0)
    return z, chain.facts, model.decoder


def test_around_a_real_pair_the_chain_reaches_the_known_posterior() -> None:
    z, facts, decoder = chain_of("hmc", 20_000, hmc_proposals=40)
    a = decoder.a.detach()
    covariance = torch.linalg.inv(torch.eye(D, dtype=torch.float64) + a.T @ a / SIGMA**2)
    torch.testing.assert_close(z.mean(0), posterior_mean(decoder), rtol=0, atol=0.01)
    torch.testing.assert_close(torch.cov(z.T), covariance, rtol=0.05, atol=2e-3)
    assert 0.5 < facts["acceptance"] < 1
    assert facts["chains"] == 20_000


def test_given_a_mask_that_says_nothing_the_chain_reaches_the_prior() -> None:
    z, facts, _ = chain_of(
        "mask", 20_000, hmc_proposals=80, hmc_leaps=8
    )  # the decoder's mask is a fair coin
    torch.testing.assert_close(z.mean(0), torch.zeros(D, dtype=torch.float64), rtol=0, atol=0.03)
    torch.testing.assert_close(
        torch.cov(z.T), torch.eye(D, dtype=torch.float64), rtol=0.05, atol=0.03
    )
    assert (
        facts["step_size"] > 0.2
    )  # longer than at the start: the prior is wider than the encoding


def test_given_a_mask_the_prior_as_unit_frees_the_image_of_a_tight_encoder() -> None:
    model = linear_model(n_leapfrog=0)
    tight = torch.full((D,), 0.01, dtype=torch.float64)
    model.encoder = FixedEncoder(torch.ones(D, dtype=torch.float64), tight)
    pairs = PairTensors(images=observed(), masks=torch.zeros_like(observed()))
    facts, variances = {}, {}
    for scale in ("encoding", "prior"):
        asked = config("mask", hmc_scale=scale)
        with torch.no_grad():
            chain = LatentSampler(asked, model.config, model, pairs, CPU)
            variances[scale] = chain.draw(2000, 0).var(0)
        facts[scale] = chain.facts
    # What the table of draws warns of, and that nothing is left to warn of.
    assert facts["encoding"]["acceptance"] > STUCK
    assert facts["encoding"]["movement"] < LEAST_MOVEMENT < facts["prior"]["movement"]
    assert facts["prior"]["acceptance"] < STUCK
    assert variances["encoding"].max() < 0.1
    torch.testing.assert_close(variances["prior"], torch.ones_like(tight), rtol=0.1, atol=0)


@pytest.mark.parametrize("sampler", ["hmc", "mask", "riemannian"])
def test_chains_in_parts_are_the_same_and_no_part_is_larger(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = linear_model(n_leapfrog=0)
    images = observed().expand(3, -1, -1, -1)
    pairs = PairTensors(images=images, masks=torch.zeros_like(images))
    rows: list[int] = []
    log_likelihood = HVAE.log_likelihood

    def counted(self: HVAE, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        rows.append(len(batch["image"]))
        return log_likelihood(self, z, batch)

    monkeypatch.setattr(HVAE, "log_likelihood", counted)
    draws = {}
    for micro_batch in (0, 3):
        rows.clear()
        with torch.no_grad():
            chain = LatentSampler(config(sampler), model.config, model, pairs, CPU, micro_batch)
            draws[micro_batch] = chain.draw(7, 0)
    torch.testing.assert_close(draws[3], draws[0], rtol=1e-9, atol=1e-9)
    assert rows[:3] == ([] if sampler == "riemannian" else [3, 3, 1])


class SlopeDecoder(nn.Module):
    """One latent variable: every pixel's image is half of it, and its mask's logit twice of it."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        pixel = z[:, :, None, None].expand(-1, 1, 2, 2)
        return 0.5 * pixel, 2 * pixel


@pytest.mark.parametrize("sampler", ["hmc", "mask"])
def test_the_chain_counts_the_mask_that_it_is_given_and_the_image_where_it_should(
    sampler: str,
) -> None:
    network = NetworkConfig(channels=(4,), attention_levels=(), attention_heads=1, latent_size=1)
    model = HVAE(
        HVAEConfig(network=network, n_leapfrog=0, sigma_x=1.0, learn_sigma_x=False), (2, 2)
    ).double()
    model.decoder = SlopeDecoder()
    model.encoder = FixedEncoder(
        torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    )
    image = torch.full((1, 1, 2, 2), -1.0, dtype=torch.float64)
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    with torch.no_grad():
        asked = config(sampler, hmc_proposals=40)
        z = LatentSampler(
            asked, model.config, model, PairTensors(images=image, masks=mask), CPU
        ).draw(20_000, 0)[:, 0]
    # The posterior of one variable, on a grid.
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log = -0.5 * grid.square() + 3 * F.logsigmoid(2 * grid) + F.logsigmoid(-2 * grid)
    log = log - (0.5 * 4 * (-1 - 0.5 * grid).square() if sampler == "hmc" else 0.0)
    density = torch.softmax(log, 0)
    mean = (density * grid).sum()
    assert float(z.mean()) == pytest.approx(float(mean), abs=0.02)
    assert float(z.var()) == pytest.approx(
        float((density * (grid - mean).square()).sum()), rel=0.05
    )


def test_the_step_adapts_to_a_stiff_energy_and_paths_that_leave_the_numbers_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(500, 2, generator=generator, dtype=torch.float64)

    def energy(z: Tensor) -> Tensor:
        return torch.where(
            z.abs().amax(1) > 6,
            torch.full((len(z),), torch.nan, dtype=z.dtype),
            50 * z.square().sum(1),
        )

    walk = hamiltonian_walk(
        partial(evaluate, energy),
        start,
        torch.ones_like(start),
        generator,
        proposals=200,
        leaps=5,
        step_size=2.0,
    )
    assert walk.step_size < 0.4
    assert torch.isfinite(walk.z).all()
    assert float(walk.z.var()) == pytest.approx(0.01, rel=0.15)


def test_pairs_are_named_after_generator_and_sampler() -> None:
    assert source_name("hvae", "prior") == "hvae"
    assert config("aggregated").source == "hvae-aggregated"
