"""The augment stage: augmented copies of the real pairs, made once, on a CPU, into a shard.

A standard copy is flipped with some probability, rotated, and a random crop of it is resized to
full size, with torchio: B-splines for the image, nearest for the mask. Another kind of
copies is a config with a ``copy_function`` of its own.
"""

import json
import pkgutil
from typing import Any

import numpy as np
import torch

from hvae_hpc.config.stages import AugmentConfig, StandardCopiesConfig
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import write_pairs
from hvae_hpc.runs.folder import PAIRS
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import PairTensors, generator_for, to_tensors
from hvae_hpc.training.device import choose_device
from hvae_hpc.training.train import read_split


def augment_pairs(config: AugmentConfig, workplace: Workplace) -> Outcome | None:
    """Make augmented copies of the split's training pairs; they go to ``pairs.h5``.

    Returns:
        Their number as a metric; None where it was asked to leave.
    """
    choose_device(workplace)
    split = read_split(workplace.data, config.split)
    real = read_dataset(workplace.data, split.train)
    data = to_tensors(real, config.image_px)

    make_copy = pkgutil.resolve_name(config.copy_function)
    rows = [copy % len(data) for copy in range(config.n_pairs)]
    copies = []
    for copy, row in enumerate(rows):
        if workplace.stopped():
            return None
        copies.append(make_copy(data, row, config, copy))

    pairs = Pairs(
        images=np.stack([image for image, _ in copies]),
        masks=np.stack([mask for _, mask in copies]),
        case_ids=tuple(real.case_ids[row] for row in rows),
        slice_index=real.slice_index[rows],
        spacing_mm=np.full((len(rows), 2), np.nan),  # a resized crop has no one spacing
        source_sha256=tuple(real.source_sha256[row] for row in rows),
    )
    write_pairs(workplace.folder / PAIRS, pairs, {"source_cases": json.dumps(split.train)})
    return Outcome(metrics={"pairs": float(len(pairs))}, details={"train_cases": list(split.train)})


def move_pair(
    data: PairTensors, row: int, config: StandardCopiesConfig, copy: int
) -> tuple[Any, Any]:
    """Return one moved copy as arrays: image (H, W) float32 in [0, 1], mask (H, W) uint8.

    Args:
        data: the real training pairs.
        row: the pair that is copied.
        config: how far it moves.
        copy: its number, which with the seed decides its moves.
    """
    import torchio  # seconds of import, for this stage alone

    draw = torch.rand(5, generator=generator_for(config.seed, "augment", copy)).tolist()
    height, width = data.image_size
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=data.images[row][..., None]),
        mask=torchio.LabelMap(tensor=data.masks[row][..., None].to(torch.uint8)),
    )

    steps = []
    if draw[0] < config.flip:
        steps.append(torchio.Flip(axes=(1,)))  # axis 1 is the column: left-right
    degrees = (2 * draw[1] - 1) * config.rotate_deg
    steps.append(
        torchio.Affine(
            scales=(1, 1, 1),
            degrees=(0, 0, degrees),
            translation=(0, 0, 0),
            image_interpolation="bspline",
            default_pad_value=0,
        )
    )
    side = config.crop_min + (1 - config.crop_min) * draw[2]
    rows, columns = round(height * side), round(width * side)
    top, left = round(draw[3] * (height - rows)), round(draw[4] * (width - columns))
    steps.append(torchio.Crop((top, height - rows - top, left, width - columns - left, 0, 0)))
    steps.append(torchio.Resize((height, width, 1), image_interpolation="bspline"))

    moved = torchio.Compose(steps)(subject)
    image = moved.image.data[0, :, :, 0].clamp(0, 1).float().numpy()
    mask = (moved.mask.data[0, :, :, 0] > 0).to(torch.uint8).numpy()
    return image, mask
