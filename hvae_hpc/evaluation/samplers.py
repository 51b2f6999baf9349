"""Where a generator's latent variables come from: its prior, its encodings, or a Markov chain.

At about 100 cases a tight decoder leaves the prior full of holes, while its encodings of real pairs
lie where it knows what to draw. So the sampler is a choice of its own, made in the sweep and
recorded with the pairs.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvae_hpc.config.kinds import GeneratorConfig
from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.hamiltonian import Gaussians, evaluate, evaluate_in_parts, hamiltonian_walk
from hvae_hpc.models.blocks import Batch
from hvae_hpc.training.batches import PairTensors, generator_for

RIEMANNIAN_WALK = 100, 15
"""Proposals and leaps, as published; they are cheap, as no network is asked."""

ROUNDS = 100
"""Of expectation and maximisation, for a mixture."""


class GaussianMixture(NamedTuple):
    """weight (C,), mean and variance (C, d) of diagonal Gaussians."""

    weight: Tensor
    mean: Tensor
    variance: Tensor


class Geometry(NamedTuple):
    """The Riemannian geometry that encodings give the latent space, without any training.

    With the encodings' means c_i and variances s_i^2 the inverse metric is diagonal:

        G(z)^-1 = sum_i diag(s_i^2) exp(-|z - c_i|^2 / T^2) + lambda I

    Points have the density sqrt(det G(z)^-1) in the box that holds all encodings, 3
    standard deviations wide.

    Attributes:
        encodings: of N pairs.
        temperature: T, the largest distance of a mean to the one that is nearest to it.
        floor: lambda.

    Source: Chadebec and Allassonniere (2021), Data augmentation with variational autoencoders and
    manifold sampling; (2022), A geometric perspective on variational autoencoders, for T.
    """

    encodings: Gaussians
    temperature: float
    floor: float

    def energy(self, z: Tensor) -> Tensor:
        """Return minus the log density at z (n, d), nats; infinite outside the box."""
        mean, scale = self.encodings
        nearness = torch.exp(-(torch.cdist(z, mean) / self.temperature).square())
        energy = -0.5 * torch.log(nearness @ scale.square() + self.floor).sum(1)
        return torch.where((z == self.into_box(z)).all(1), energy, torch.inf)

    def into_box(self, z: Tensor) -> Tensor:
        """Return the nearest points to z (n, d) in the box that holds all encodings."""
        mean, scale = self.encodings
        return z.clamp((mean - 3 * scale).amin(0), (mean + 3 * scale).amax(0))


class LatentSampler:
    """Draws latent variables; a draw is a function of the seed and of how many came before.

    Args:
        config: names the sampler, and has its settings.
        model_config: the generator's, which says what samplers it has.
        model: the generator's network, on the device.
        pairs: the generator's training pairs, on the device; "prior" needs none.
        device: of the draws.
        micro_batch: chains whose gradients are taken at once; 0 for all.

    Attributes:
        facts: what is to be recorded with the pairs.

    Raises:
        UserError: the generator does not have this sampler.
    """

    def __init__(
        self,
        config: GenerateConfig,
        model_config: GeneratorConfig,
        model: Any,
        pairs: Any,
        device: torch.device,
        micro_batch: int = 0,
    ) -> None:
        if config.sampler not in model_config.samplers:
            raise UserError(
                f"{config.generator} has no encoder that {config.sampler} could start from, "
                f"so its sampler must be {' or '.join(model_config.samplers)}, not {config.sampler}"
            )
        self.config, self.model, self.pairs = config, model, pairs
        self.device, self.micro_batch = device, micro_batch
        self.facts: dict[str, float] = {}
        if config.sampler == "prior":
            return

        self.encodings = encodings = encode_pairs(model, pairs)
        if config.sampler == "aggregated":
            self.facts["posterior_noise"] = config.posterior_noise
        if config.sampler == "mixture":
            components = min(config.components, len(encodings.mean))
            self.mixture = fit_mixture(encodings, components, config.seed)
            self.facts["components"] = float(components)
        if config.sampler == "riemannian":
            distances = torch.cdist(encodings.mean, encodings.mean)
            temperature = float(distances.fill_diagonal_(torch.inf).amin(1).max())
            self.facts["temperature"] = temperature
            self.geometry = Geometry(encodings, temperature, config.metric_floor)

    def draw(self, n: int, first: int) -> Tensor:
        """Return draws first to first + n - 1, (n, d)."""
        ways = {
            "prior": self._draw_prior,
            "aggregated": self._draw_between,
            "mixture": self._draw_mixture,
        }
        return ways.get(self.config.sampler, self._walk)(n, first)

    def _draw_prior(self, n: int, first: int) -> Tensor:
        """Draw from N(0, I), or as the model draws from real pairs."""
        generator = generator_for(self.config.seed, "draws", first)
        if hasattr(self.model, "draw_latent"):  # it may draw images to real masks
            masks = None if self.pairs is None else self.pairs.masks
            z: Tensor = self.model.draw_latent(n, masks, generator)
            return z.to(self.device)
        return torch.randn(n, self.model.latent_size, generator=generator).to(self.device)

    def _draw_between(self, n: int, first: int) -> Tensor:
        """Draw points between two pairs' encodings, with noise as wide as between theirs."""
        generator = generator_for(self.config.seed, "between", first)
        mean, scale = self.encodings
        one = torch.randint(len(mean), (n,), generator=generator)
        # Never twice the same pair, where there are two.
        further = torch.randint(1, max(2, len(mean)), (n,), generator=generator)
        other = (one + further) % len(mean)

        share = torch.rand(n, 1, generator=generator).to(mean)
        centre = torch.lerp(mean[one], mean[other], share)
        spread = torch.lerp(scale[one], scale[other], share)
        return Gaussians(centre, self.config.posterior_noise * spread).draw(generator)

    def _draw_mixture(self, n: int, first: int) -> Tensor:
        """Draw from a Gaussian mixture that was fitted to the encodings."""
        generator = generator_for(self.config.seed, "mixture", first)
        weight, mean, variance = self.mixture
        which = torch.multinomial(weight.cpu(), n, replacement=True, generator=generator)
        return Gaussians(mean[which], variance[which].sqrt()).draw(generator)

    def _walk(self, n: int, first: int) -> Tensor:
        """Walk a Markov chain for each draw, from the encodings of training pairs in turn."""
        config = self.config
        index = torch.arange(first, first + n) % len(self.pairs)
        batch = {"image": self.pairs.images[index], "mask": self.pairs.masks[index]}
        mean, scale = self.encodings.mean[index], self.encodings.scale[index]
        generator = generator_for(config.seed, "chain", first)
        start = Gaussians(mean, scale).draw(generator)

        def energy(part: Batch, z: Tensor) -> Tensor:
            image, mask = self.model.log_likelihood(z, part)
            return 0.5 * z.square().sum(1) - mask - (image if config.sampler == "hmc" else 0.0)

        evaluate_at = partial(evaluate_in_parts, energy, batch, self.micro_batch)
        proposals, leaps = config.hmc_proposals, config.hmc_leaps
        if config.sampler == "riemannian":
            evaluate_at = partial(evaluate, self.geometry.energy)
            start = self.geometry.into_box(start)
            proposals, leaps = RIEMANNIAN_WALK
        walk = hamiltonian_walk(
            evaluate_at,
            start,
            scale if config.hmc_scale == "encoding" else torch.ones_like(scale),
            generator,
            proposals=proposals,
            leaps=leaps,
            step_size=config.hmc_step_size,
        )

        # Means over all chains so far. Independent draws of the prior are apart by sqrt(2 d).
        chains = self.facts["chains"] = self.facts.get("chains", 0.0) + n
        new = {"acceptance": walk.acceptance, "step_size": walk.step_size}
        if config.sampler == "mask":
            new["movement"] = float((0.5 * (walk.z - start).square()).mean().sqrt())
        for name, value in new.items():
            before = self.facts.get(name, 0.0)
            self.facts[name] = before + (value - before) * n / chains
        return walk.z


def encode_pairs(model: Any, pairs: PairTensors, at_once: int = 64) -> Gaussians:
    """Encode all pairs."""
    batches = zip(pairs.images.split(at_once), pairs.masks.split(at_once), strict=True)
    parts = [model.encode({"image": images, "mask": masks}) for images, masks in batches]
    return Gaussians(*map(torch.cat, zip(*parts, strict=True)))


def fit_mixture(encodings: Gaussians, components: int, seed: int) -> GaussianMixture:
    """Fit a mixture of diagonal Gaussians to the aggregated posterior, by expectation maximisation.

    Not points but the encodings' own Gaussians are fitted. A component's variance is that of its
    means plus the mean of their variances, so none can collapse onto one pair.

    Args:
        encodings: of N pairs.
        components: at most N.
        seed: of the pair at which the first component starts.
    """
    points, spread = encodings.mean, encodings.scale.square()

    # Each component starts at the pair that is farthest from the starts before it.
    generator = generator_for(seed, "components", 0)
    start = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(start) < components:
        start.append(int(torch.cdist(points, points[start]).amin(1).argmax()))
    mean = points[start]
    variance = (points.var(0, unbiased=False) + spread.mean(0)).expand(components, -1)
    weight = torch.full((components,), 1 / components).to(points)

    for _ in range(ROUNDS):
        # Expectation of log N(z; mean_c, variance_c) under each encoding, up to a constant.
        squares = (points[:, None] - mean).square() + spread[:, None]  # (N, C, d)
        log = weight.log() - 0.5 * (squares / variance + variance.log()).sum(2)
        share = torch.softmax(log, 1)

        # Maximisation.
        total = share.sum(0).clamp(min=1e-6)
        weight = total / total.sum()
        mean = share.T @ points / total[:, None]
        squares = (points[:, None] - mean).square() + spread[:, None]
        variance = (share[:, :, None] * squares).sum(0) / total[:, None] + 1e-6
    return GaussianMixture(weight, mean, variance)
