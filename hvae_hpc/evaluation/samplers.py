"""Where a generator's latent variables come from: its prior, its encodings of the training pairs, or a Markov chain.

At about 100 cases a tight decoder leaves the prior full of holes, while its encodings of real pairs
lie where it knows what to draw. So the sampler is a choice of its own, made in the sweep and
recorded with the pairs.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.hamiltonian import Energy, hamiltonian_walk
from hvae_hpc.models.blocks import Batch
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.training.batches import PairTensors, generator_for


class Sampler(Protocol):
    """Draws latent variables; a draw is a function of the config's seed and of how many came before."""

    facts: dict[str, float]
    """What is to be recorded with the pairs."""

    def draw(self, n: int, first: int) -> Tensor:
        """Return draws first to first + n - 1, (n, d)."""


def make_sampler(
    config: GenerateConfig,
    model: nn.Module,
    latent_size: int,
    pairs: PairTensors | None,
    device: torch.device,
) -> Sampler:
    """Make the sampler that a config names.

    Args:
        config: see there.
        model: the generator, on the device.
        latent_size: d.
        pairs: the generator's training pairs, on the device; not needed by "prior".
        device: of the draws.

    Raises:
        UserError: the generator has no encoder.
    """
    if config.sampler == "prior":
        return _Prior(config.seed, latent_size, device)
    if not isinstance(model, HVAE):
        raise UserError(
            f"{config.generator} has no encoder, so its sampler must be prior, not {config.sampler}"
        )
    assert pairs is not None
    encodings = encode_pairs(model, pairs)
    if config.sampler == "aggregated":
        return _Between(config.seed, encodings, config.posterior_noise)
    if config.sampler == "mixture":
        return _Mixture(config.seed, encodings, config.components)
    return _Chain(config, model, pairs, encodings)


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """q(z|y) of N pairs: mean and standard deviation, (N, d) each."""

    mean: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.mean)


def encode_pairs(model: HVAE, pairs: PairTensors, at_once: int = 64) -> Encodings:
    """Encode all pairs."""
    parts = [
        model.encode(
            {
                "image": pairs.images[start : start + at_once],
                "mask": pairs.masks[start : start + at_once],
            }
        )
        for start in range(0, len(pairs), at_once)
    ]
    return Encodings(
        mean=torch.cat([mean for mean, _ in parts]), scale=torch.cat([scale for _, scale in parts])
    )


class _Prior:
    def __init__(self, seed: int, latent_size: int, device: torch.device) -> None:
        self.seed, self.latent_size, self.device = seed, latent_size, device
        self.facts: dict[str, float] = {}

    def draw(self, n: int, first: int) -> Tensor:
        """Draw from N(0, I)."""
        return torch.randn(
            n, self.latent_size, generator=generator_for(self.seed, "draws", first)
        ).to(self.device)


class _Between:
    def __init__(self, seed: int, encodings: Encodings, noise: float) -> None:
        self.seed, self.encodings, self.noise = seed, encodings, noise
        self.facts = {"posterior_noise": noise}

    def draw(self, n: int, first: int) -> Tensor:
        """Draw a point between two pairs' encodings, and noise of a standard deviation between theirs."""
        generator = generator_for(self.seed, "between", first)
        one = torch.randint(len(self.encodings), (n,), generator=generator)
        # Never twice the same pair, where there are two.
        other = (
            one + torch.randint(1, max(2, len(self.encodings)), (n,), generator=generator)
        ) % len(self.encodings)
        share = torch.rand(n, 1, generator=generator).to(self.encodings.mean)
        noise = torch.randn(n, self.encodings.mean.shape[1], generator=generator).to(share)
        mean = torch.lerp(self.encodings.mean[one], self.encodings.mean[other], share)
        scale = torch.lerp(self.encodings.scale[one], self.encodings.scale[other], share)
        return mean + self.noise * scale * noise


class _Mixture:
    def __init__(self, seed: int, encodings: Encodings, components: int) -> None:
        self.seed = seed
        self.mixture = fit_mixture(encodings, min(components, len(encodings)), seed)
        self.facts = {"components": float(len(self.mixture.weight))}

    def draw(self, n: int, first: int) -> Tensor:
        """Draw from the mixture."""
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
    """Fit a mixture of diagonal Gaussians to the aggregated posterior, by expectation and maximisation.

    Not points but the encodings' own Gaussians are fitted: a component's variance is that of its
    means plus the mean of their variances, so none can collapse onto one pair.

    Args:
        encodings: of N pairs.
        components: at most N.
        seed: of the pair at which the first component starts.
        rounds: of expectation and maximisation.
    """
    points, spread = encodings.mean, encodings.scale.square()
    start = [int(torch.randint(len(points), (1,), generator=generator_for(seed, "components", 0)))]
    while (
        len(start) < components
    ):  # each the farthest from those before, so that no two begin in one cluster
        start.append(int(torch.cdist(points, points[start]).amin(1).argmax()))
    mean = points[start]
    variance = (points.var(0, unbiased=False) + spread.mean(0)).expand(components, -1)
    weight = torch.full((components,), 1 / components).to(points)
    for _ in range(rounds):
        # E of log N(z; mean_c, variance_c) under each encoding, up to a constant.
        squares = (points[:, None] - mean).square() + spread[:, None]  # (N, C, d)
        log = weight.log() - 0.5 * (squares / variance + variance.log()).sum(2)
        share = torch.softmax(log, 1)
        total = share.sum(0).clamp(min=1e-6)
        weight = total / total.sum()
        mean = share.T @ points / total[:, None]
        squares = (points[:, None] - mean).square() + spread[:, None]
        variance = (share[:, :, None] * squares).sum(0) / total[:, None] + 1e-6
    return GaussianMixture(weight=weight, mean=mean, variance=variance)


@dataclass
class _Chain:
    """A Markov chain per draw, from the encoding of a training pair."""

    config: GenerateConfig
    model: HVAE
    pairs: PairTensors
    encodings: Encodings
    facts: dict[str, float] = field(
        default_factory=lambda: {"acceptance": 0.0, "step_size": 0.0, "chains": 0.0}
    )

    def draw(self, n: int, first: int) -> Tensor:
        """Take pairs in turn, and walk from each one's encoding."""
        index = torch.arange(first, first + n) % len(self.encodings)
        batch = {"image": self.pairs.images[index], "mask": self.pairs.masks[index]}
        mean, scale = self.encodings.mean[index], self.encodings.scale[index]
        generator = generator_for(self.config.seed, "chain", first)
        start = mean + scale * torch.randn(mean.shape, generator=generator).to(mean)
        walk = hamiltonian_walk(
            self._energy(batch), start, scale, generator,
            proposals=self.config.hmc_proposals, leaps=self.config.hmc_leaps, step_size=self.config.hmc_step_size,
        )  # fmt: skip
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
