"""The generate stage: accepted pairs of one trained generator, or mixed real ones, in a shard.

A draw whose mask is smaller than the config's ``min_mask_px`` is rejected, because a pair without a
tumour teaches segmentation nothing. How many were rejected is recorded with the pairs.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.samplers import LatentSampler
from hvae_hpc.evaluation.samples import write_samples
from hvae_hpc.models.augmentations import Pair
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.shards import write_pairs
from hvae_hpc.runs.folder import PAIRS
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import augment, generator_for, read_cases
from hvae_hpc.training.device import choose_device, device_name
from hvae_hpc.training.train import load_generator, read_split

DRAWN_AT_ONCE = 64
SHOWN = 12  # pairs that samples.npz keeps for the figures


class _Accepted(NamedTuple):
    """Images and masks (N, H, W), the number of each one's draw, and how many draws there were."""

    images: NDArray[np.float32]
    masks: NDArray[np.uint8]
    draw_numbers: list[int]
    draws: int


class _Source(NamedTuple):
    """What pairs come from.

    Attributes:
        draw: of n pairs and the number of the first, images and masks (n, 1, H, W).
        train_cases: the real cases that it knows.
        facts: what is to be recorded with the pairs.
    """

    draw: Callable[[int, int], Pair]
    train_cases: tuple[str, ...]
    facts: dict[str, float]


@torch.no_grad()
def generate_pairs(config: GenerateConfig, workplace: Workplace) -> Outcome | None:
    """Draw until there are enough accepted pairs, for ``pairs.h5``.

    Returns:
        Draws and rejections as metrics; None where it was asked to leave.

    Raises:
        UserError: the generator makes hardly any masks.
    """
    device = choose_device(workplace)
    opener = _open_mixing if config.mixing else _open_generator
    source = opener(config, workplace, device)
    accepted = _draw(config, source, workplace)
    if accepted is None:
        return None

    # Count, and record with the pairs what they came from.
    n = config.n_pairs
    areas = accepted.masks[:n].sum((1, 2))
    total = len(accepted.masks)
    counts = {
        "draws": accepted.draws,
        "accepted": total,
        "rejected": accepted.draws - total,
        "smallest_mask_px": int(areas.min()),
        **source.facts,
    }
    asked = {name: getattr(config, name) for name in ("sampler", "threshold", "min_mask_px")}
    attributes = {name: str(value) for name, value in {**asked, **counts}.items()}
    attributes["source_cases"] = json.dumps(source.train_cases)
    attributes["draw_numbers"] = json.dumps(accepted.draw_numbers[:n])

    pairs = Pairs(
        images=accepted.images[:n],
        masks=accepted.masks[:n],
        case_ids=tuple(f"{config.source}-{i:05d}" for i in range(n)),
        slice_index=np.zeros(n, np.int32),
        spacing_mm=np.full((n, 2), np.nan),
        source_sha256=("",) * n,
    )
    write_pairs(workplace.folder / PAIRS, pairs, attributes)
    write_samples(workplace.folder, images=pairs.images[:SHOWN], masks=pairs.masks[:SHOWN])

    metrics = {name: float(value) for name, value in counts.items()}
    return Outcome(
        metrics={**metrics, "pairs": float(n), "mask_px_mean": float(areas.mean())},
        details={"train_cases": list(source.train_cases)},
        device=device_name(device),
    )


def _open_generator(config: GenerateConfig, workplace: Workplace, device: torch.device) -> _Source:
    """Return what draws from the parent "generator"."""
    generator = load_generator(workplace.parents["generator"])
    model: Any = generator.model.to(device)
    if hasattr(model, "steps"):
        model.steps = config.steps
    real = None
    if config.sampler != "prior" or generator.config.model.needs_pairs:
        image_px = generator.config.image_px
        real = read_cases(workplace.data, generator.train_cases, image_px, device)
    micro_batch = workplace.resources.micro_batch
    sampler = LatentSampler(config, generator.config.model, model, real, device, micro_batch)

    def draw(n: int, first: int) -> Pair:
        # Only textured images are drawn; of others there is the mean.
        is_textured = getattr(model, "texture", None) is not None
        texture = [generator_for(config.seed, "texture", first)] if is_textured else []
        image, probability = model.decode(sampler.draw(n, first), *texture)
        return image, probability > config.threshold

    return _Source(draw, generator.train_cases, sampler.facts)


def _open_mixing(config: GenerateConfig, workplace: Workplace, device: torch.device) -> _Source:
    """Return what mixes the split's real training pairs, each in turn with another one."""
    assert config.mixing is not None
    mixing = config.mixing
    cases = read_split(workplace.data, config.split).train
    real = read_cases(workplace.data, cases, config.image_px, device)

    def draw(n: int, first: int) -> Pair:
        rows = torch.arange(first, first + n, device=device) % len(real)
        images, masks, _ = augment(rows, real, mixing, config.seed, first)
        return images, masks > config.threshold

    return _Source(draw, cases, {})


def _draw(config: GenerateConfig, source: _Source, workplace: Workplace) -> _Accepted | None:
    """Draw until there are enough pairs with a mask; None where it was asked to leave."""
    images, masks, numbers, draws = [], [], list[int](), 0
    while len(numbers) < config.n_pairs:
        if workplace.stopped():
            return None
        if draws >= config.n_pairs * config.max_draws_per_pair:
            raise UserError(
                f"{config.generator}: {len(numbers)} of {draws} draws had a mask of "
                f"{config.min_mask_px} px or more, {config.n_pairs} were asked for; train it "
                "longer, or lower generate.min_mask_px or n_pairs"
            )

        image, drawn_mask = source.draw(DRAWN_AT_ONCE, draws)
        mask = drawn_mask[:, 0]
        keep = mask.sum((1, 2)) >= config.min_mask_px
        images.append(image[:, 0][keep].clamp(0, 1).cpu().numpy())
        masks.append(mask[keep].to(torch.uint8).cpu().numpy())
        numbers += (draws + keep.nonzero()[:, 0]).tolist()
        draws += DRAWN_AT_ONCE
    return _Accepted(np.concatenate(images), np.concatenate(masks), numbers, draws)
