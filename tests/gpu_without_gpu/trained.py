"""Use trained networks on the fake device: samplers, decoding and the likelihood's bounds."""

from functools import partial
from typing import Any, cast

import torch

from hvae_hpc.config.stages import GenerateConfig, LikelihoodConfig, SplitConfig
from hvae_hpc.evaluation import samplers
from hvae_hpc.evaluation.generate import DRAWN_AT_ONCE
from hvae_hpc.evaluation.likelihood import estimate_likelihood
from hvae_hpc.training.batches import PairTensors
from tests.gpu_without_gpu.fake_cuda import move_to_device
from tests.gpu_without_gpu.recorder import Recorder
from tests.gpu_without_gpu.trace import GIB, MODE, PAIRS

ASKED: dict[str, Any] = {"data": "d", "generator": "g", "split": SplitConfig(), "image_px": 0}


@torch.no_grad()
def trace_use(model: Any, px: int, capacity: float, micro_batch: int) -> dict[str, Any]:
    """Draw pairs by every sampler of a network and, where it has a density, bound its likelihood.

    Args:
        model: on the CPU.
        px: side of the images.
        capacity: bytes of the device.
        micro_batch: chains whose gradients are taken at once.

    Returns:
        the most memory of each use, GiB, and how often each line waited.
    """
    samplers.RIEMANNIAN_WALK = 2, 1
    peaks: dict[str, float] = {}
    with MODE, Recorder(capacity) as recorder:
        move_to_device(model.eval())
        images, masks = (torch.empty(PAIRS, 1, px, px, device="cuda") for _ in range(2))
        pairs = PairTensors(images=images, masks=masks)
        if hasattr(model, "measure"):
            model.measure(images, masks)

        uses = {name: partial(draw, name, micro_batch) for name in model.config.samplers}
        if getattr(model.config, "has_density", False):
            uses["likelihood"] = partial(bound, micro_batch)
        for name, use in uses.items():
            recorder.peak = recorder.live
            use(model, pairs)
            peaks[name] = round(recorder.peak / GIB, 2)
    return {"peaks_gib": peaks, "waits": recorder.waits}


def draw(name: str, micro_batch: int, model: Any, pairs: PairTensors) -> None:
    """Draw as many pairs as the generate stage does at once, by short chains."""
    config = GenerateConfig(**ASKED, sampler=cast(Any, name), hmc_proposals=2, hmc_leaps=1)
    knows_pairs = name != "prior" or model.config.needs_pairs
    device = pairs.images.device
    real = pairs if knows_pairs else None
    sampler = samplers.LatentSampler(config, model.config, model, real, device, micro_batch)
    texture = [torch.Generator()] if getattr(model, "texture", None) is not None else []
    image, probability = model.decode(sampler.draw(DRAWN_AT_ONCE, 0), *texture)
    assert image.device == probability.device == device
    assert image.shape == probability.shape == (DRAWN_AT_ONCE, *pairs.images.shape[1:])


def bound(micro_batch: int, model: Any, pairs: PairTensors) -> None:
    """Bound the likelihood of one group of pairs, by few temperatures."""
    config = LikelihoodConfig(**ASKED, temperatures=2, estimates=2, importance_samples=8)
    numbers = estimate_likelihood(model, pairs, config, 0, micro_batch=micro_batch)
    assert numbers is not None
    assert {values.device.type for values in numbers.values()} == {"cpu"}
