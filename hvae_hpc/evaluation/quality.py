"""The quality stage: a set of images or pairs against the split's test cases, as the paper does it and as one should.

The paper's Table 2 pairs images at random that have nothing to do with each other. So its PSNR and
SSIM say how far a set is from the test set on average, and a constant mean image scores above real
images. The sources "real" and "mean" are there to show it. The set measures compare what the judge,
a U-Net trained on the real training cases, sees in both sets; for them "real" is what copying the
training set would give.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hvae_hpc.config.stages import QualityConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.features import Judge, load_judge, standardise
from hvae_hpc.metrics.image_sets import (
    MASK_STATISTICS,
    Estimate,
    average,
    compare_features,
    compare_masks,
    describe_masks,
)
from hvae_hpc.metrics.memorisation import find_copies
from hvae_hpc.metrics.segmentation import FLOAT, psnr, ssim
from hvae_hpc.preprocess.store.shards import read_pairs
from hvae_hpc.runs.folder import PAIRS
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import PairTensors, generator_for, require_unseen, to_tensors
from hvae_hpc.training.dataset_cache import read_packed
from hvae_hpc.training.device import choose_device, device_name
from hvae_hpc.training.train import read_split


@dataclass(frozen=True, kw_only=True)
class _Set:
    """Pairs, and the case of each."""

    pairs: PairTensors
    cases: tuple[str, ...]

    def first(self, n: int) -> "_Set":
        return _Set(
            pairs=PairTensors(images=self.pairs.images[:n], masks=self.pairs.masks[:n]),
            cases=self.cases[:n],
        )

    @property
    def images(self) -> FLOAT:
        return self.pairs.images[:, 0].numpy()

    @property
    def masks(self) -> NDArray[np.bool_]:
        return self.pairs.masks[:, 0].numpy() > 0.5


def measure_quality(config: QualityConfig, workplace: Workplace) -> Outcome | None:
    """Compare the source's images with the test images.

    Returns:
        Mean and standard deviation (ddof 1) of PSNR (dB) and SSIM over the draws. Where features
        are asked for, also every measure of :mod:`hvae_hpc.metrics.image_sets` as ``x``, ``x_low``
        and ``x_high``; medians of the mask statistics of both sets; and ``copying``, 1 where the
        generator copies its training set.
    """
    device = choose_device(workplace)
    split = read_split(workplace.data, config.split)
    train, test = (_read(workplace, cases, config.image_px) for cases in (split.train, split.test))
    source = _read_source(config, workplace, train, split.test)
    if source.pairs.image_size != test.pairs.image_size:
        raise UserError(
            f"{config.source}: images of {source.pairs.image_size} px, the test images have {test.pairs.image_size}; "
            "use one image_px"
        )
    n = min(config.n_images, len(test.pairs), len(source.pairs))
    metrics = _compare_unpaired(config, source.images, test.images, n)
    details: dict[str, Any] = {}
    if config.features:
        judge = load_judge(workplace.parents["judge"], device)
        found, medians = _compare_sets(config, judge, source.first(n), train, test.first(n))
        if "pairs" in workplace.parents:
            copies = find_copies(
                source.first(n).images, train.images, test.images, train.cases, test.cases
            )
            found |= average("copies", copies.flagged.astype(np.float64), source.cases[:n])
            medians["copying"] = float(copies.copying)
            details["copies"] = {
                source.cases[i]: train.cases[copies.nearest[i]]
                for i in np.flatnonzero(copies.flagged).tolist()
            }
        for name, estimate in found.items():
            metrics |= {
                name: estimate.value,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        metrics |= medians
    return Outcome(metrics=metrics, details=details, device=device_name(device))


def _read(workplace: Workplace, cases: tuple[str, ...], image_px: int) -> _Set:
    pairs = read_packed(workplace.data, cases)
    return _Set(pairs=to_tensors(pairs, image_px), cases=pairs.case_ids)


def _read_source(
    config: QualityConfig, workplace: Workplace, train: _Set, test_cases: tuple[str, ...]
) -> _Set:
    if "pairs" in workplace.parents:
        path = workplace.parents["pairs"] / PAIRS
        pairs, attributes = read_pairs(path)
        require_unseen(path, attributes, test_cases)
        return _Set(pairs=to_tensors(pairs, 0), cases=pairs.case_ids)
    if config.source == "mean":
        n = min(config.n_images, len(train.pairs))
        mean = torch.from_numpy(np.repeat(train.images.mean(0, keepdims=True), n, axis=0))[:, None]
        return _Set(
            pairs=PairTensors(images=mean, masks=torch.zeros_like(mean)),
            cases=tuple(map(str, range(n))),
        )
    return train


def _compare_unpaired(
    config: QualityConfig, source: FLOAT, test: FLOAT, n: int
) -> dict[str, float]:
    values = []
    for draw in range(config.draws):
        generator = generator_for(config.seed, "quality", draw)
        ours = source[torch.randperm(len(source), generator=generator)[:n].numpy()]
        theirs = test[torch.randperm(len(test), generator=generator)[:n].numpy()]
        values.append((psnr(ours, theirs).mean(), ssim(ours, theirs).mean()))
    means, deviations = (
        np.mean(values, axis=0),
        np.std(values, axis=0, ddof=1 if config.draws > 1 else 0),
    )
    return {
        "psnr_mean": float(means[0]),
        "psnr_sd": float(deviations[0]),
        "ssim_mean": float(means[1]),
        "ssim_sd": float(deviations[1]),
        "n": float(config.draws),
        "images": float(n),
    }


def _compare_sets(
    config: QualityConfig, judge: Judge, ours: _Set, train: _Set, test: _Set
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """Return the measures of features, masks and agreement, and the medians of the mask statistics."""
    seen = judge.encode(train.pairs.images)
    features = [standardise(judge.encode(part.pairs.images), seen) for part in (ours, test)]
    found = compare_features(features[0], features[1], config.nearest, ours.cases, test.cases)
    if config.source == "mean":  # which has no masks
        return found, {}
    our_masks, test_masks = describe_masks(ours.masks), describe_masks(test.masks)
    found |= compare_masks(our_masks, test_masks, ours.cases, test.cases)
    # The judge has seen the training pairs: what it says of real ones, it says of the test pairs.
    judged = test if config.source == "real" else ours
    found |= average("agreement", judge.agree(judged.pairs), judged.cases)
    return found, {
        f"{name}_median{of}": float(np.median(statistics[name]))
        for of, statistics in (("", our_masks), ("_test", test_masks))
        for name in MASK_STATISTICS
    }
