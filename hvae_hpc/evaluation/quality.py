"""The quality stage: a set of images or pairs against the split's test cases.

The paper's Table 2 pairs images at random that have nothing to do with each other. So its PSNR and
SSIM say how far a set is from the test set on average, and a constant mean image scores above real
images. The sources "real" and "mean" are there to show it. The set measures compare what the judge,
a U-Net trained on the real training cases, sees in both sets. For them "real" is what copying the
training set would give.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hvae_hpc.config.stages import QualityConfig
from hvae_hpc.evaluation.features import Judge, load_judge, standardise
from hvae_hpc.metrics.image_sets import (
    MASK_STATISTICS,
    Measurement,
    average,
    compare_features,
    compare_statistics,
    compare_tissue,
    describe_masks,
    describe_tissue,
)
from hvae_hpc.metrics.images import Images, psnr, ssim
from hvae_hpc.metrics.memorisation import Features, find_copies
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import read_pairs
from hvae_hpc.preprocess.store.splits import Split
from hvae_hpc.runs.folder import PAIRS
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import PairTensors, generator_for, require_unseen, to_tensors
from hvae_hpc.training.device import choose_device, device_name
from hvae_hpc.training.train import read_split


class _Set(NamedTuple):
    """Pairs, and the case of each."""

    pairs: PairTensors
    cases: tuple[str, ...]

    def first(self, n: int) -> "_Set":
        return _Set(self.pairs.take(slice(n)), self.cases[:n])

    @property
    def images(self) -> Images:
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
    # Read the three sets.
    device = choose_device(workplace)
    split = read_split(workplace.data, config.split)
    test = _read_cases(workplace, split.test, config.image_px)
    source, train = _read_source(config, workplace, split)

    # As the paper does it.
    n = min(config.n_images, len(test.pairs), len(source.pairs))
    metrics = _compare_unpaired(config, source.images, test.images, n)
    details: dict[str, Any] = {}
    if not config.features:
        return Outcome(metrics=metrics, details=details, device=device_name(device))

    # As one should.
    judge = load_judge(workplace.parents["judge"], device)
    of_train = judge.encode(train.pairs.images)
    of_source, of_test = (
        standardise(judge.encode(part.pairs.images), of_train) for part in (source.first(n), test)
    )
    features = Features(of_source, standardise(of_train, of_train), of_test)
    measures, medians = _compare_sets(config, judge, features, source.first(n), test.first(n))
    if "pairs" in workplace.parents:
        images = source.first(n).images
        copies = find_copies(images, train.images, test.images, train.cases, test.cases, features)
        measures |= average("copies", copies.flagged.astype(np.float64), source.cases[:n])
        medians["copying"] = float(copies.copying)
        details["copies"] = {
            source.cases[i]: train.cases[copies.nearest[i]]
            for i in np.flatnonzero(copies.flagged).tolist()
        }
    for name, measure in measures.items():
        metrics |= {name: measure.value, f"{name}_low": measure.low, f"{name}_high": measure.high}
    return Outcome(metrics=metrics | medians, details=details, device=device_name(device))


def _read_cases(workplace: Workplace, cases: Sequence[str], image_px: int) -> _Set:
    pairs = read_dataset(workplace.data, cases)
    return _Set(pairs=to_tensors(pairs, image_px), cases=pairs.case_ids)


def _read_source(config: QualityConfig, workplace: Workplace, split: Split) -> tuple[_Set, _Set]:
    """Return the set that is measured, and the real pairs that it was made from.

    It is a generator's pairs, the split's training pairs or their mean.
    """
    if "pairs" in workplace.parents:
        path = workplace.parents["pairs"] / PAIRS
        pairs, attributes = read_pairs(path)
        cases = json.loads(attributes["source_cases"])
        require_unseen(path, cases, split.test)
        source = _Set(pairs=to_tensors(pairs, 0), cases=pairs.case_ids)
        return source, _read_cases(workplace, cases, config.image_px)
    train = _read_cases(workplace, split.train, config.image_px)
    if config.source == "mean":
        n = min(config.n_images, len(train.pairs))
        images = torch.from_numpy(train.images.mean(0)).expand(n, 1, -1, -1)
        masks = torch.zeros_like(images)
        mean = PairTensors(images=images, masks=masks)
        return _Set(pairs=mean, cases=tuple(map(str, range(n)))), train
    return train, train


def _compare_unpaired(
    config: QualityConfig, source: Images, test: Images, n: int
) -> dict[str, float]:
    """Return PSNR and SSIM of n images of each set, paired at random, over several draws."""
    values = []
    for draw in range(config.draws):
        generator = generator_for(config.seed, "quality", draw)
        ours, real = (
            images[torch.randperm(len(images), generator=generator)[:n].numpy()]
            for images in (source, test)
        )
        values.append((psnr(ours, real).mean(), ssim(ours, real).mean()))

    means = np.mean(values, axis=0)
    deviations = np.std(values, axis=0, ddof=1 if config.draws > 1 else 0)
    metrics = {"n": float(config.draws), "images": float(n)}
    for measure, mean, deviation in zip(("psnr", "ssim"), means, deviations, strict=True):
        metrics |= {f"{measure}_mean": float(mean), f"{measure}_sd": float(deviation)}
    return metrics


def _compare_sets(
    config: QualityConfig, judge: Judge, features: Features, ours: _Set, test: _Set
) -> tuple[dict[str, Measurement], dict[str, float]]:
    """Return the measures of features, masks, tissue and agreement, and medians of the masks'."""
    of_test = features.held_out[: len(test.pairs)]
    measures = compare_features(features.images, of_test, config.nearest, ours.cases, test.cases)
    if config.source == "mean":  # which has no masks
        return measures, {}

    our_masks, test_masks = describe_masks(ours.masks), describe_masks(test.masks)
    measures |= compare_statistics(our_masks, test_masks, ours.cases, test.cases)
    our_tissue, test_tissue = (
        describe_tissue(part.images, part.masks, part.cases) for part in (ours, test)
    )
    measures |= compare_tissue(*our_tissue, *test_tissue)
    # The judge has seen the training pairs: what it says of real ones, it says of the test pairs.
    judged = test if config.source == "real" else ours
    measures |= average("agreement", judge.agree(judged.pairs), judged.cases)

    medians = {}
    for name in MASK_STATISTICS:
        medians[f"{name}_median"] = float(np.median(our_masks[name]))
        medians[f"{name}_median_test"] = float(np.median(test_masks[name]))
    return measures, medians
