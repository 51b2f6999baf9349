"""Where a generator's latent variables come from: its prior, its encodings, or a Markov chain.

At about 100 cases a tight decoder leaves the prior full of holes, while its encodings of real pairs
lie where it knows what to draw. So the sampler is a choice of its own, made in the sweep and
recorded with the pairs.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hvae_hpc.config.kinds import GeneratorConfig
from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.hamiltonian import Energy, hamiltonian_walk
from hvae_hpc.models.blocks import Batch
from hvae_hpc.training.batches import PairTensors, generator_for


class LatentSampler(Protocol):
    """Draws latent variables; a draw is a function of the seed and of how many came before.

    Attributes:
        facts: what is to be recorded with the pairs.
    """

    facts: dict[str, float]

    def draw(self, n: int, first: int) -> Tensor:
        """Return draws first to first + n - 1, (n, d)."""


def make_sampler(
    config: GenerateConfig,
    model_config: GeneratorConfig,
    model: Any,
    pairs: PairTensors | None,
    device: torch.device,
) -> LatentSampler:
    """Make the sampler that a config names.

    Args:
        config: see there.
        model_config: the generator's, which says what samplers it has.
        model: the generator's network, on the device.
        pairs: the generator's training pairs, on the device; not needed by "prior".
        device: of the draws.

    Raises:
        UserError: the generator does not have this sampler.
    """
    if config.sampler not in model_config.samplers:
        raise UserError(
            f"{config.generator} has no encoder that {config.sampler} could start from, "
            f"so its sampler must be {' or '.join(model_config.samplers)}, not {config.sampler}"
        )
    if config.sampler == "prior":
        return _Prior(config, model.latent_size, device)

    assert pairs is not None
    encodings = encode_pairs(model, pairs)
    if config.sampler == "aggregated":
        return _Aggregated(config, encodings)
    if config.sampler == "mixture":
        return _Mixture(config, encodings)
    return _Chain(config, model, pairs, encodings)


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """q(z|y) of N pairs: mean and standard deviation, (N, d) each."""

    mean: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.mean)


def encode_pairs(model: Any, pairs: PairTensors, at_once: int = 64) -> Encodings:
    """Encode all pairs."""
    batches = zip(pairs.images.split(at_once), pairs.masks.split(at_once), strict=True)
    parts = [model.encode({"image": images, "mask": masks}) for images, masks in batches]
    means, scales = zip(*parts, strict=True)
    return Encodings(mean=torch.cat(means), scale=torch.cat(scales))


class _Prior:
    """Draws from N(0, I)."""

    def __init__(self, config: GenerateConfig, latent_size: int, device: torch.device) -> None:
        self.seed, self.latent_size, self.device = config.seed, latent_size, device
        self.facts: dict[str, float] = {}

    def draw(self, n: int, first: int) -> Tensor:
        generator = generator_for(self.seed, "draws", first)
        return torch.randn(n, self.latent_size, generator=generator).to(self.device)


class _Aggregated:
    """Draws points between two pairs' encodings, with noise as wide as between theirs."""

    def __init__(self, config: GenerateConfig, encodings: Encodings) -> None:
        self.seed, self.encodings = config.seed, encodings
        self.facts = {"posterior_noise": config.posterior_noise}

    def draw(self, n: int, first: int) -> Tensor:
        generator = generator_for(self.seed, "between", first)
        mean, scale, pairs = self.encodings.mean, self.encodings.scale, len(self.encodings)
        one = torch.randint(pairs, (n,), generator=generator)
        # Never twice the same pair, where there are two.
        further = torch.randint(1, max(2, pairs), (n,), generator=generator)
        other = (one + further) % pairs

        share = torch.rand(n, 1, generator=generator).to(mean)
        noise = torch.randn(n, mean.shape[1], generator=generator).to(share)
        centre = torch.lerp(mean[one], mean[other], share)
        spread = torch.lerp(scale[one], scale[other], share)
        return centre + self.facts["posterior_noise"] * spread * noise


class _Mixture:
    """Draws from a Gaussian mixture that was fitted to the encodings."""

    def __init__(self, config: GenerateConfig, encodings: Encodings) -> None:
        self.seed = config.seed
        components = min(config.components, len(encodings))
        self.mixture = fit_mixture(encodings, components, self.seed)
        self.facts = {"components": float(components)}

    def draw(self, n: int, first: int) -> Tensor:
        generator, mixture = generator_for(self.seed, "mixture", first), self.mixture
        which = torch.multinomial(mixture.weight.cpu(), n, replacement=True, generator=generator)
        noise = torch.randn(n, mixture.mean.shape[1], generator=generator).to(mixture.mean)
        return mixture.mean[which] + mixture.variance[which].sqrt() * noise


@dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """weight (C,), mean and variance (C, d) of diagonal Gaussians."""

    weight: Tensor
    mean: Tensor
    variance: Tensor


def fit_mixture(
    encodings: Encodings, components: int, seed: int, rounds: int = 100
) -> GaussianMixture:
    """Fit a mixture of diagonal Gaussians to the aggregated posterior, by expectation maximisation.

    Not points but the encodings' own Gaussians are fitted. A component's variance is that of its
    means plus the mean of their variances, so none can collapse onto one pair.

    Args:
        encodings: of N pairs.
        components: at most N.
        seed: of the pair at which the first component starts.
        rounds: of expectation and maximisation.
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

    for _ in range(rounds):
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
    return GaussianMixture(weight=weight, mean=mean, variance=variance)


class _Chain:
    """Walks a Markov chain for each draw, from the encoding of a training pair."""

    def __init__(
        self, config: GenerateConfig, model: Any, pairs: PairTensors, encodings: Encodings
    ) -> None:
        self.config, self.model = config, model
        self.pairs, self.encodings = pairs, encodings
        self.facts = {"acceptance": 0.0, "step_size": 0.0, "chains": 0.0}

    def draw(self, n: int, first: int) -> Tensor:
        # Training pairs in turn.
        index = torch.arange(first, first + n) % len(self.encodings)
        batch = {"image": self.pairs.images[index], "mask": self.pairs.masks[index]}
        mean, scale = self.encodings.mean[index], self.encodings.scale[index]

        generator = generator_for(self.config.seed, "chain", first)
        start = mean + scale * torch.randn(mean.shape, generator=generator).to(mean)
        walk = hamiltonian_walk(
            self._energy(batch),
            start,
            scale,
            generator,
            proposals=self.config.hmc_proposals,
            leaps=self.config.hmc_leaps,
            step_size=self.config.hmc_step_size,
        )

        # Means over all chains so far.
        chains = self.facts["chains"] + n
        for name, value in (("acceptance", walk.acceptance), ("step_size", walk.step_size)):
            self.facts[name] += (value - self.facts[name]) * n / chains
        self.facts["chains"] = chains
        return walk.z

    def _energy(self, batch: Batch) -> Energy:
        def energy(z: Tensor) -> Tensor:
            image, mask = self.model.log_likelihood(z, batch)
            return 0.5 * z.square().sum(1) - mask - (image if self.config.sampler == "hmc" else 0.0)

        return energy
