"""The quality stage: PSNR and SSIM between a set of images and the test images, as in the paper's Table 2.

The images of the two sets have nothing to do with each other: they are paired at random. So the numbers say
how far a set is from the test set on average, and a constant mean image scores above real images. The
sources "real" and "mean" are there to show it.
"""

import numpy as np
import torch

from hvae_hpc.errors import UserError
from hvae_hpc.metrics import FLOAT, psnr, ssim
from hvae_hpc.preprocess.shards import read_pairs
from hvae_hpc.resources import Outcome, Workplace
from hvae_hpc.rundir import PAIRS
from hvae_hpc.stages import QualityConfig
from hvae_hpc.training.batches import generator_for, require_unseen
from hvae_hpc.training.device import choose_device
from hvae_hpc.training.resident import read_cases
from hvae_hpc.training.train import read_split


def measure_quality(config: QualityConfig, workplace: Workplace) -> Outcome | None:
    """Compare the source's images with the test images in several random pairings.

    Returns:
        Mean and standard deviation (ddof 1) of PSNR (dB) and SSIM over the draws.
    """
    choose_device(workplace)
    split = read_split(workplace.data, config.split)
    test = read_cases(workplace.data, split.test, config.image_px).images[:, 0].numpy()
    source = _source_images(config, workplace, split.train, split.test)
    if source.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{config.source}: images of {source.shape[1:]} px, the test images have {test.shape[1:]}; use one image_px"
        )
    n = min(config.n_images, len(test), len(source))
    values = []
    for draw in range(config.draws):
        generator = generator_for(config.seed, "quality", draw)
        ours = source[torch.randperm(len(source), generator=generator)[:n].numpy()]
        theirs = test[torch.randperm(len(test), generator=generator)[:n].numpy()]
        values.append((psnr(ours, theirs).mean(), ssim(ours, theirs).mean()))
    means, deviations = np.mean(values, axis=0), np.std(values, axis=0, ddof=1 if config.draws > 1 else 0)
    return Outcome(
        metrics={
            "psnr_mean": float(means[0]),
            "psnr_sd": float(deviations[0]),
            "ssim_mean": float(means[1]),
            "ssim_sd": float(deviations[1]),
            "n": float(config.draws),
            "images": float(n),
        }
    )


def _source_images(
    config: QualityConfig, workplace: Workplace, train_cases: tuple[str, ...], test_cases: tuple[str, ...]
) -> FLOAT:
    if "pairs" in workplace.parents:
        path = workplace.parents["pairs"] / PAIRS
        pairs, attributes = read_pairs(path)
        require_unseen(path, attributes, test_cases)
        return pairs.images
    train = read_cases(workplace.data, train_cases, config.image_px).images[:, 0].numpy()
    if config.source == "mean":
        return np.repeat(train.mean(0, keepdims=True), min(config.n_images, len(train)), axis=0)
    return train
