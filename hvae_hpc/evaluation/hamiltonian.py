"""Hamiltonian Monte Carlo on latent variables: a Metropolis step, walks of many, and annealing.

All take a function that evaluates a potential at z, and know nothing of generators. The mass matrix
is diag(1 / scale^2), so a step size is meant in units of ``scale``. A path that leaves the numbers
is not taken: Metropolis' rule is false for a NaN.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from hvae_hpc.models.blocks import Batch
from hvae_hpc.training.batches import split_batch

Energy = Callable[[Tensor], Tensor]
"""z (n, d) -> potential (n,), nats."""
WANTED_ACCEPTANCE = (0.65, 0.9)
"""Between these a step size is left alone; about 0.65 to 0.8 is the most efficient (Neal 2011)."""


class Point(NamedTuple):
    """Where chains are: z and the potential's gradient (n, d), and the potential (n,)."""

    z: Tensor
    gradient: Tensor
    value: Tensor


Evaluate = Callable[[Tensor], Point]
"""z (n, d) -> the potential there."""


def evaluate(energy: Energy, z: Tensor) -> Point:
    """Evaluate a potential and its gradient."""

    def summed(z: Tensor) -> tuple[Tensor, Tensor]:
        value = energy(z)
        return value.sum(), value

    gradient, value = torch.func.grad(summed, has_aux=True)(z)
    return Point(z, gradient, value)


def evaluate_in_parts(
    energy: Callable[[Batch, Tensor], Tensor], pairs: Batch, rows: int, z: Tensor
) -> Point:
    """Evaluate a potential part by part: only one part's activations are in memory.

    Args:
        energy: of some of the pairs and their z.
        pairs: n of them, one for each z.
        rows: of each part; the last one may have fewer; 0 for all at once.
        z: (n, d).
    """
    parts = split_batch({**pairs, "z": z}, rows)
    points = [evaluate(partial(energy, part), part["z"]) for part in parts]
    return Point(*map(torch.cat, zip(*points, strict=True)))


def metropolis_step(
    evaluate_at: Evaluate,
    point: Point,
    scale: Tensor,
    generator: Generator,
    *,
    leaps: int,
    step_size: float,
    temper: Callable[[Point], Point] = lambda point: point,
) -> tuple[Point, float]:
    """Propose by leapfrog with a fresh momentum, and accept or stay, in log space (Neal 2011).

    Args:
        evaluate_at: evaluates the potential.
        point: where the chains are.
        scale: (n, d) lengths in which a step of 1 is meant.
        generator: of momenta and choices, on the CPU.
        leaps: of the proposal.
        step_size: of a leap.
        temper: turns the potential and its gradient at a point into those that are followed.

    Returns:
        Where the chains are then, and the share that moved.
    """
    momentum = torch.randn(point.z.shape, generator=generator).to(point.z)
    uniform = torch.rand(len(point.z), generator=generator).to(point.z)
    before = temper(point).value + 0.5 * momentum.square().sum(1)

    end = point
    for _ in range(leaps):
        momentum = momentum - 0.5 * step_size * scale * temper(end).gradient
        end = evaluate_at(end.z + step_size * scale * momentum)
        momentum = momentum - 0.5 * step_size * scale * temper(end).gradient

    accepted = torch.log(uniform) < before - temper(end).value - 0.5 * momentum.square().sum(1)
    rows = accepted[:, None]
    after = Point(
        torch.where(rows, end.z, point.z),
        torch.where(rows, end.gradient, point.gradient),
        torch.where(accepted, end.value, point.value),
    )
    return after, float(accepted.float().mean())


def adapt(step_size: float, rate: float) -> float:
    """Return a better step size after an acceptance rate."""
    low, high = WANTED_ACCEPTANCE
    return step_size * (0.7 if rate < low else 1.2 if rate > high else 1.0)


class Walk(NamedTuple):
    """Where chains ended, z (n, d), and the second half's acceptance and step size."""

    z: Tensor
    acceptance: float
    step_size: float


def hamiltonian_walk(
    evaluate_at: Evaluate,
    z: Tensor,
    scale: Tensor,
    generator: Generator,
    *,
    proposals: int,
    leaps: int,
    step_size: float,
) -> Walk:
    """Walk by Hamiltonian Monte Carlo.

    The first half of the proposals adapts the step size to the acceptance, for all chains alike;
    the second half keeps it, so that the distribution exp(-energy) is left as it is.

    Args:
        evaluate_at: evaluates the potential.
        z: (n, d) where the chains start.
        scale: (n, d) lengths in which a step of 1 is meant.
        generator: of momenta and choices, on the CPU.
        proposals, leaps, step_size: see :class:`GenerateConfig`.
    """
    kept: list[float] = []
    point = evaluate_at(z)
    for proposal in range(proposals):
        point, rate = metropolis_step(
            evaluate_at, point, scale, generator, leaps=leaps, step_size=step_size
        )
        if proposal >= proposals // 2:
            kept.append(rate)
        else:
            step_size = adapt(step_size, rate)
    return Walk(point.z, sum(kept) / len(kept), step_size)


class Gaussians(NamedTuple):
    """One Gaussian for each row, such as an encoding q(z|y): mean, standard deviation, (n, d)."""

    mean: Tensor
    scale: Tensor

    def draw(self, generator: Generator) -> Tensor:
        """Draw z, one for each row."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + self.scale * noise

    def energy(self, z: Tensor) -> Tensor:
        """Return minus the log density, constants included, (n,) nats."""
        squares = 0.5 * ((z - self.mean) / self.scale).square()
        return (squares + self.scale.log() + 0.5 * math.log(2 * math.pi)).sum(1)

    def temper(self, point: Point, share: float) -> Point:
        """Return the point's energy, mixed with this Gaussian's: share 0 is the Gaussian alone."""
        pull = (point.z - self.mean) / self.scale.square()
        gradient = torch.lerp(pull, point.gradient, share)
        return Point(point.z, gradient, torch.lerp(self.energy(point.z), point.value, share))


class Annealing(NamedTuple):
    """Log weights (n,) of annealed importance sampling, mean acceptance, step sizes in turn."""

    log_weights: Tensor
    acceptance: float
    step_sizes: tuple[float, ...]


def anneal(
    evaluate_at: Evaluate,
    start: Gaussians,
    generator: Generator,
    *,
    temperatures: int,
    leaps: int,
    step_sizes: Sequence[float],
    end: Tensor | None = None,
) -> Annealing:
    """Estimate the integral of exp(-energy) by annealed importance sampling.

    The mean weight is unbiased, so its logarithm is a stochastic lower bound. Going back from exact
    draws of the target estimates the reciprocal, and so an upper bound.

    The densities are f_0^(1 - b) exp(-b energy) with b = (t / T)^4, as most of the way lies near
    the start. One Metropolis step is taken at each.

        log w = sum_t (b_t - b_(t-1)) (-energy(z_(t-1)) - log f_0(z_(t-1)))

    Args:
        evaluate_at: evaluates minus the log of what is integrated, constants included.
        start: f_0; its scale is the chains' length scale.
        generator: on the CPU.
        temperatures: T.
        leaps: of each proposal.
        step_sizes: one per temperature; or the first alone: the others are then adapted, and the
            estimate is biased.
        end: exact draws (n, d) to go back from; None to set out from the Gaussian.

    Source: Neal (2001); Grosse et al. (2015), bidirectional Monte Carlo.
    """
    shares = [(t / temperatures) ** 4 for t in range(temperatures + 1)]
    if end is not None:
        shares, step_sizes = shares[::-1], step_sizes[::-1]
    step_size = 0.0
    step = partial(
        metropolis_step, evaluate_at, scale=start.scale, generator=generator, leaps=leaps
    )
    used: list[float] = []
    rates: list[float] = []
    point = evaluate_at(start.draw(generator) if end is None else end)
    log_weights = torch.zeros(len(point.z), dtype=torch.float64, device=point.z.device)

    for t, (before, share) in enumerate(pairwise(shares), 1):
        # The weight of one temperature more, at where the chains are.
        log_weights += (share - before) * (start.energy(point.z) - point.value).double()
        if t == temperatures:
            break

        # One proposal at the new temperature.
        if t <= len(step_sizes):
            step_size = step_sizes[t - 1]
        point, rate = step(point, step_size=step_size, temper=partial(start.temper, share=share))
        used.append(step_size)
        rates.append(rate)
        step_size = adapt(step_size, rate)
    return Annealing(log_weights, sum(rates) / max(1, len(rates)), tuple(used))
