"""The generate stage: accepted pairs of one trained generator, in a shard.

A draw whose mask is smaller than the config's ``min_mask_px`` is rejected, because a pair without a
tumour teaches segmentation nothing; how many were rejected is recorded with the pairs.
"""

import json

import numpy as np
import torch

from hvae_hpc.config.loader import load, read_json
from hvae_hpc.config.stages import GenerateConfig, TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.samplers import make_sampler
from hvae_hpc.evaluation.samples import write_samples
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.shards import write_pairs
from hvae_hpc.runs.folder import CONFIG, PAIRS
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.dataset_cache import read_cases
from hvae_hpc.training.device import choose_device, device_name
from hvae_hpc.training.train import load_generator

DRAWN_AT_ONCE = 64
SHOWN = 12  # pairs that samples.npz keeps for the figures


@torch.no_grad()
def generate_pairs(config: GenerateConfig, workplace: Workplace) -> Outcome | None:
    """Draw from the parent "generator" until there are enough accepted pairs; they go to ``pairs.h5``.

    Returns:
        Draws and rejections as metrics; None where it was asked to leave.

    Raises:
        UserError: the generator makes hardly any masks.
    """
    device = choose_device(workplace)
    folder = workplace.parents["generator"]
    parent = load(TrainConfig, read_json(folder / CONFIG), str(folder / CONFIG))
    model, train_cases = load_generator(parent.model, folder)
    model = model.to(device)
    real = None
    if config.sampler != "prior":
        real = read_cases(workplace.data, train_cases, parent.image_px, device)
    sampler = make_sampler(config, model, parent.model.network.latent_size, real, device)
    images, masks, draws, accepted = [], [], 0, 0
    numbers: list[int] = []
    limit = config.n_pairs * config.max_draws_per_pair
    while accepted < config.n_pairs:
        if workplace.stopped():
            return None
        if draws >= limit:
            raise UserError(
                f"{config.generator}: {accepted} of {draws} draws had a mask of {config.min_mask_px} px or more, "
                f"{config.n_pairs} were asked for; train it longer, or lower generate.min_mask_px or n_pairs"
            )
        image, probability = model.decode(sampler.draw(DRAWN_AT_ONCE, draws))  # type: ignore[operator]
        mask = probability[:, 0] > config.threshold
        keep = mask.sum((1, 2)) >= config.min_mask_px
        images.append(image[:, 0][keep].clamp(0, 1).cpu().numpy())
        masks.append(mask[keep].to(torch.uint8).cpu().numpy())
        numbers += (draws + keep.nonzero()[:, 0]).tolist()
        draws += DRAWN_AT_ONCE
        accepted += int(keep.sum())
    n = config.n_pairs
    pairs = Pairs(
        images=np.concatenate(images)[:n],
        masks=np.concatenate(masks)[:n],
        case_ids=tuple(f"{config.source}-{i:05d}" for i in range(n)),
        slice_index=np.zeros(n, np.int32),
        spacing_mm=np.full((n, 2), np.nan),
        source_sha256=("",) * n,
    )
    record = {
        "sampler": config.sampler,
        "threshold": config.threshold,
        "min_mask_px": config.min_mask_px,
    }
    areas = pairs.masks.sum((1, 2))
    counts = {
        "draws": draws,
        "accepted": accepted,
        "rejected": draws - accepted,
        "smallest_mask_px": int(areas.min()),
    }
    attributes = {name: str(value) for name, value in {**record, **counts, **sampler.facts}.items()}
    attributes |= {"source_cases": json.dumps(train_cases), "draw_numbers": json.dumps(numbers[:n])}
    write_pairs(workplace.folder / PAIRS, pairs, attributes)
    write_samples(workplace.folder, images=pairs.images[:SHOWN], masks=pairs.masks[:SHOWN])
    return Outcome(
        metrics={
            **{name: float(value) for name, value in {**counts, **sampler.facts}.items()},
            "pairs": float(n),
            "mask_px_mean": float(areas.mean()),
        },
        details={"train_cases": list(train_cases)},
        device=device_name(device),
    )
