"""The likelihood stage: how likely a generator with an encoder finds pairs that it never saw.

The bound of a training rewards a good encoder and a good flow as well as a good model. What
compares models is log p(x, m) itself. Annealed importance sampling, which uses no flow, is unbiased
for p(x, m), so its logarithm is a stochastic lower bound of log p(x, m): on average too low. More
temperatures make it tighter. On pairs that the model made itself there is an upper bound as well.
What lies between the two is the gap, below which models are not told apart.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from hvae_hpc.config.stages import LikelihoodConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.hamiltonian import Gaussians, anneal, evaluate_in_parts
from hvae_hpc.models.blocks import Batch, Tensors
from hvae_hpc.models.hvae import HVAE, LOG_2PI
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import (
    PairTensors,
    generator_for,
    require_unseen,
    split_batch,
    to_tensors,
)
from hvae_hpc.training.checkpoint import load_checkpoint, save_checkpoint
from hvae_hpc.training.device import choose_device, device_name
from hvae_hpc.training.train import load_generator, read_split

ROWS_AT_ONCE = 64
"""Latent variables that are decoded together."""
FLOW_SAMPLES = 16
"""Paths per pair behind the bound with the flow."""


@torch.no_grad()
def measure_likelihood(config: LikelihoodConfig, workplace: Workplace) -> Outcome | None:
    """Bound log p(x, m) of held-out pairs under the parent "generator" from below, in groups.

    Returns:
        Means over cases as metrics, numbers per case; None where it was asked to leave.

    Raises:
        UserError: the generator has no encoder or no density of images, or saw one of the cases.
    """
    device = choose_device(workplace)
    generator = load_generator(workplace.parents["generator"])
    if not generator.config.model.has_density:
        raise UserError(
            f"{config.generator} has no encoder or no density of images; the likelihood stage "
            "is for (H)VAEs with a Gaussian image and no discriminator"
        )
    cases = read_split(workplace.data, config.split).test[: config.cases or None]
    require_unseen(config.generator, generator.train_cases, cases)
    packed = read_dataset(workplace.data, cases)
    first_slices = [packed.case_ids.index(case) for case in cases]
    data = to_tensors(packed, config.image_px).take(first_slices).to(device)

    # The joint is compared: the mask counts at its own weight, whatever it was trained at.
    model: Any = generator.model.to(device)
    model.config = replace(model.config, mask_weight=1.0)

    # Group by group, from the last checkpoint on.
    micro = workplace.resources.micro_batch
    saved = load_checkpoint(workplace.folder) or {"images_seen": 0, "found": {}}
    numbers: Tensors = saved["found"]
    for first in range(saved["images_seen"], len(data), group_size(config)):
        of_group = estimate_likelihood(model, data, config, first, workplace.stopped, micro)
        if of_group is None:
            return None
        numbers = {
            name: torch.cat([numbers[name], new]) if numbers else new
            for name, new in of_group.items()
        }
        done = len(numbers["log_likelihood"])
        save_checkpoint(workplace.folder, done, {"found": numbers})
        workplace.log({"images_seen": done, **_means(numbers)})

    # How far below the truth such bounds lie: known of pairs that the model makes.
    z, made = _make_pairs(model, data.images[: group_size(config)], config.seed)
    gap = estimate_likelihood(model, made, config, 0, workplace.stopped, micro, z)
    if gap is None:
        return None
    means = _means(numbers | gap)
    bits_per_pixel = -means["log_likelihood"] / (data.images[0].numel() * math.log(2))
    per_case = {
        case: {name: float(values[row]) for name, values in numbers.items()}
        for row, case in enumerate(cases)
    }
    return Outcome(
        metrics={**means, "bits_per_pixel": bits_per_pixel, "cases": float(len(cases))},
        per_case=per_case,
        details={"train_cases": list(generator.train_cases)},
        device=device_name(device),
    )


def _means(numbers: Tensors) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in numbers.items()}


def _make_pairs(model: Any, like: Tensor, seed: int) -> tuple[Tensor, PairTensors]:
    """Draw z (n, d) from the prior, and as many pairs as there are images from p(x, m|z)."""
    generator = generator_for(seed, "likelihood-made", 0)
    z = torch.randn(len(like), model.latent_size, generator=generator).to(like)
    if model.texture is None:
        images, probability = model.decode(z)
        images = images + model.sigma_x() * torch.randn(like.shape, generator=generator).to(like)
    else:
        images, probability = model.decode(z, generator)
    masks = torch.rand(like.shape, generator=generator).to(like) < probability
    return z, PairTensors(images=images, masks=masks.to(like))


def group_size(config: LikelihoodConfig) -> int:
    """Return how many pairs are estimated together."""
    return max(1, ROWS_AT_ONCE // config.chains)


def estimate_likelihood(
    model: HVAE,
    data: PairTensors,
    config: LikelihoodConfig,
    first: int,
    stopped: Callable[[], bool] = lambda: False,
    micro_batch: int = 0,
    made_from: Tensor | None = None,
) -> Tensors | None:
    """Bound the log likelihood of one group of pairs (n,) from below.

    Args:
        data: all pairs, on the model's device.
        first: the group's first pair, of which the draws are a function.
        stopped: asked between estimates.
        micro_batch: rows that go through the model at once; 0 for all. The draws are the same.
        made_from: latent variables (n, d) of pairs that the model made.

    Returns:
        Numbers per pair, float64 on the CPU; None where it was asked to leave. ``log_likelihood``:
        log of the mean weight of all chains; ``log_likelihood_before``: with half of its
        ``temperatures``; ``effective_samples``, ``acceptance``; ``importance_bound``, under the
        encoder; ``elbo``, ``elbo_flow``. Of pairs that the model made: ``gap``, upper less lower.
    """
    group = slice(first, first + group_size(config))
    batch = {"image": data.images[group], "mask": data.masks[group]}
    kind = "likelihood" if made_from is None else "gap"
    tuning, *independent, for_others = (
        generator_for(config.seed, f"{kind}-{i}", first) for i in range(config.estimates + 2)
    )

    # Each pair is encoded once, for all chains, estimates and bounds.
    encoded = zip(*map(model.encode, split_batch(batch, micro_batch)), strict=True)
    batch["mean"], batch["scale"] = map(torch.cat, encoded)
    rows = _repeat(batch, config.chains)
    start = Gaussians(rows["mean"], rows["scale"])
    if config.start == "prior":
        start = Gaussians(torch.zeros_like(start.mean), torch.ones_like(start.scale))

    # The first run finds the step sizes, and does not count: a chain must not adapt to itself.
    anneal_rows = partial(_anneal, model, rows, micro_batch, start, config)
    _, step_sizes = anneal_rows(tuning, config.temperatures, (config.step_size,))
    numbers, _ = anneal_rows(independent[0], config.temperatures, step_sizes)
    for generator in independent[1:]:
        if stopped():
            return None
        before = numbers["log_likelihood"]
        step_sizes = (*(size for size in step_sizes for _ in range(2)), step_sizes[-1])
        numbers, _ = anneal_rows(generator, len(step_sizes) + 1, step_sizes)
        numbers["log_likelihood_before"] = before
        if (numbers["log_likelihood"] - before).abs().mean() <= config.agree_nats:
            break

    if made_from is not None:
        end = made_from.repeat_interleave(config.chains, 0)
        back, _ = anneal_rows(for_others, len(step_sizes) + 1, step_sizes, end)
        return {"gap": (-back["log_likelihood"] - numbers["log_likelihood"]).cpu()}
    numbers |= _bounds(model, batch, config, for_others, micro_batch)
    return {name: values.double().cpu() for name, values in numbers.items()}


def _anneal(
    model: HVAE,
    rows: Batch,
    micro_batch: int,
    start: Gaussians,
    config: LikelihoodConfig,
    generator: Generator,
    temperatures: int,
    step_sizes: tuple[float, ...],
    end: Tensor | None = None,
) -> tuple[Tensors, tuple[float, ...]]:
    """Return one estimate's numbers per pair, and the step sizes used."""

    def energy(part: Batch, z: Tensor) -> Tensor:
        image_nats, mask_nats = model.log_likelihood(z, part)
        return 0.5 * z.square().sum(1) + 0.5 * z.shape[1] * LOG_2PI - image_nats - mask_nats

    annealed = anneal(
        partial(evaluate_in_parts, energy, rows, micro_batch),
        start,
        generator,
        temperatures=temperatures,
        leaps=config.leaps,
        step_sizes=step_sizes,
        end=end,
    )
    log_weights = annealed.log_weights.unflatten(0, (-1, config.chains))
    share = torch.softmax(log_weights, 1)
    numbers = {
        "log_likelihood": torch.logsumexp(log_weights, 1) - math.log(config.chains),
        "effective_samples": 1 / share.square().sum(1),
        "acceptance": torch.full((len(log_weights),), annealed.acceptance),
        "temperatures": torch.full((len(log_weights),), float(temperatures)),
    }
    return numbers, annealed.step_sizes


def _bounds(
    model: HVAE,
    batch: Tensors,
    config: LikelihoodConfig,
    generator: Generator,
    micro_batch: int,
) -> Tensors:
    """Return the importance-weighted bound and the ELBO without and with the flow.

    All come from the model's own bound. The batch has ``mean`` and ``scale``, of the encodings.
    """
    n = len(batch["image"])

    def draw_bounds(samples: int, *names: str) -> Tensor:
        """Return ELBOs and log weights (2, n, samples), by draws of the named noises per pair."""
        drawn = []
        at_once = max(1, ROWS_AT_ONCE // n)
        for first in range(0, samples, at_once):
            size = min(at_once, samples - first)
            noisy = {**_repeat(batch, size), "kl_weight": torch.ones(())}
            for name in names:
                noise = torch.randn(n * size, model.latent_size, generator=generator)
                noisy[name] = noise.to(batch["image"])
            parts = []
            for part in split_batch(noisy, micro_batch):
                terms = model.bound(part, part["mean"], part["scale"]).terms
                parts.append(torch.stack([terms["elbo"], terms["log_weight"]]))
            drawn.append(torch.cat(parts, 1).view(2, n, size))
        return torch.cat(drawn, 2).double()

    elbos, log_weights = draw_bounds(config.importance_samples, "noise")
    log_mean_weight = torch.logsumexp(log_weights, 1) - math.log(config.importance_samples)
    bounds = {"importance_bound": log_mean_weight, "elbo": elbos.mean(1)}
    if model.config.n_leapfrog and not model.config.metropolis:
        bounds["elbo_flow"] = draw_bounds(FLOW_SAMPLES, "noise", "momentum")[0].mean(1)
    return bounds


def _repeat(batch: Tensors, times: int) -> Tensors:
    return {name: value.repeat_interleave(times, 0) for name, value in batch.items()}
