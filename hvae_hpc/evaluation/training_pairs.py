"""What an arm's U-Net is trained on: real pairs, and what the arm adds or has in their place."""

import json
from dataclasses import replace

import torch

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.shards import Shard
from hvae_hpc.preprocess.store.splits import Split
from hvae_hpc.runs.folder import PAIRS
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import (
    CPU,
    PairTensors,
    add,
    generator_for,
    read_cases,
    require_unseen,
    to_tensors,
)


def training_pairs(
    config: SegmentConfig, workplace: Workplace, split: Split, device: torch.device = CPU
) -> PairTensors:
    """Return an arm's pairs on a device.

    The split's real pairs come first, then further real cases, copies and synthetic pairs.

    Raises:
        UserError: a parent has too few pairs, of another size, or made from a test case.
    """
    arm = config.arm
    cases = split.training_cases(arm.n_cases)
    real = read_cases(workplace.data, cases[: len(split.train)], config.image_px, device)
    data = real
    if further := cases[len(split.train) :]:
        data = add(data, read_cases(workplace.data, further, config.image_px, device))
    if arm.n_copies:
        rows = torch.arange(arm.n_copies) % len(real)
        data = add(data, real.take(rows))
    if arm.n_standard:
        data = add(data, _added_pairs(workplace, "standard", arm.n_standard, split.test, real))
    if arm.n_synthetic:
        synthetic = _added_pairs(workplace, "pairs", arm.n_synthetic, split.test, real)
        if arm.shuffled:
            synthetic = _shuffle_masks(synthetic, config.seed)
        if arm.nearest:
            distances = torch.cdist(synthetic.images.flatten(1), real.images.flatten(1))
            synthetic = real.take(distances.argmin(1))
        data = synthetic if arm.alone else add(data, synthetic)
        if arm.synthetic_share:
            share = arm.synthetic_share
            data = replace(data, synthetic=len(synthetic), synthetic_share=share)
    if arm.first_share:
        batches = round(arm.first_share * config.optim.images / config.optim.batch_size)
        data = replace(data, alone=batches * config.optim.batch_size)
    return data


def _shuffle_masks(pairs: PairTensors, seed: int) -> PairTensors:
    """Give every image the mask of another one: the next in a random circle."""
    circle = torch.randperm(len(pairs), generator=generator_for(seed, "shuffled masks", 0))
    masks = torch.empty_like(pairs.masks)
    masks[circle] = pairs.masks[circle.roll(1)]
    return replace(pairs, masks=masks)


def _added_pairs(
    workplace: Workplace, role: str, n: int, test_cases: tuple[str, ...], real: PairTensors
) -> PairTensors:
    """Return the first n pairs of a parent, after making sure that it saw no test case."""
    path, size = workplace.parents[role] / PAIRS, real.image_size
    with Shard(path) as shard:
        require_unseen(path, json.loads(shard.attributes["source_cases"]), test_cases)
        if len(shard) < n:
            raise UserError(
                f"{path}: holds {len(shard)} pairs, the arm asks for {n}; "
                "raise n_pairs in the sweep"
            )
        if shard.image_size != size:
            raise UserError(
                f"{path}: pairs of {shard.image_size} px, the real ones have {size}; "
                "use one image_px"
            )
        return to_tensors(shard.read(range(n)), 0).to(real.images.device)
