"""The quality stage: a set of images or pairs against the split's test cases.

The paper's Table 2 pairs images at random that have nothing to do with each other. So its PSNR and
SSIM say how far a set is from the test set on average, and a constant mean image scores above real
images. The sources "real" and "mean" are there to show it. The set measures compare what the judge,
the reference arm's first U-Net, sees in both sets: it was trained on the real training cases alone.
It knows what matters for finding these tumours in these images, which a network trained on
photographs does not. For these measures "real" is what copying the training set would give.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hvae_hpc.config.loader import load, read_json
from hvae_hpc.config.stages import QualityConfig, SegmentConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.segment import predict
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
from hvae_hpc.metrics.segmentation import dice
from hvae_hpc.models.unet import UNet
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import read_pairs
from hvae_hpc.preprocess.store.splits import Split
from hvae_hpc.runs.folder import CONFIG, PAIRS, SNAPSHOT
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import PairTensors, generator_for, require_unseen, to_tensors
from hvae_hpc.training.checkpoint import load_snapshot, loading
from hvae_hpc.training.device import choose_device, device_name
from hvae_hpc.training.train import read_split

LEVELS = 3
"""The encoder's last levels, whose features count."""
SMALLEST_SPREAD = 0.1
"""Least standard deviation that a feature is divided by, in those of all features on average."""


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


class Judge(NamedTuple):
    """A trained U-Net and how it was asked to predict.

    Attributes:
        model: on ``device``, in evaluation mode.
        config: its threshold and batch size are those of the predictions.
    """

    model: UNet
    config: SegmentConfig
    device: torch.device

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> NDArray[np.float64]:
        """Return features (N, D): mean and standard deviation of the last levels' channels.

        Args:
            images: (N, 1, H, W) in [0, 1].
        """
        parts = []
        for batch in images.split(self.config.optim.batch_size):
            moments = []
            for level in self.model.encode(batch.to(self.device))[-LEVELS:]:
                pixels = level.float().flatten(2)
                moments += [pixels.mean(2), pixels.std(2, correction=0)]
            parts.append(torch.cat(moments, 1).cpu())
        return torch.cat(parts).double().numpy()

    def agree(self, data: _Set) -> NDArray[np.float64]:
        """Return the Dice (N,) of the predicted masks with those of the pairs."""
        predictions = predict(self.model, data.pairs, self.config, self.device)
        return np.array([dice(*pair) for pair in zip(predictions, data.masks, strict=True)])


def load_judge(folder: Path, device: torch.device) -> Judge:
    """Read the judge from the folder of a segment run that kept its weights."""
    config = load(SegmentConfig, read_json(folder / CONFIG), str(folder / CONFIG))
    model = UNet(config.unet, config.loss)
    snapshot = load_snapshot(folder / SNAPSHOT)
    with loading(folder / SNAPSHOT):
        model.load_state_dict(snapshot["weights"])
    return Judge(model.eval().to(device), config, device)


def standardise(features: NDArray[np.float64], real: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale features (N, D) by their mean and standard deviation on real training images (M, D).

    A feature that hardly moves on real images is divided by a share of the average deviation
    instead, so that what it does elsewhere is not all that counts.

    Raises:
        UserError: the features are equal for all real images.
    """
    spread = real.std(0)
    if not spread.any():
        raise UserError(
            "the judge sees no difference between real images; train it longer (segment.epochs)"
        )
    scale = np.maximum(spread, SMALLEST_SPREAD * spread.mean())
    return (features - real.mean(0)) / scale


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
    if config.features:  # as one should
        judge = load_judge(workplace.parents["judge"], device)
        ours = source.first(n)
        of_train = judge.encode(train.pairs.images)
        of_ours, of_test = (
            standardise(judge.encode(part.pairs.images), of_train) for part in (ours, test)
        )
        features = Features(of_ours, standardise(of_train, of_train), of_test)
        measures, medians = _compare_sets(config, judge, features, ours, test.first(n))
        if "pairs" in workplace.parents:
            copies = find_copies(
                ours.images, train.images, test.images, train.cases, test.cases, features
            )
            measures |= average("copies", copies.flagged.astype(np.float64), ours.cases)
            medians["copying"] = float(copies.copying)
            details["copies"] = {
                ours.cases[i]: train.cases[copies.nearest[i]]
                for i in np.flatnonzero(copies.flagged).tolist()
            }
        for name, measure in measures.items():
            metrics[name] = measure.value
            metrics |= {f"{name}_low": measure.low, f"{name}_high": measure.high}
        metrics |= medians
    return Outcome(metrics=metrics, details=details, device=device_name(device))


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
    for place, measure in enumerate(("psnr", "ssim")):
        metrics[f"{measure}_mean"] = float(means[place])
        metrics[f"{measure}_sd"] = float(deviations[place])
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
    measures |= average("agreement", judge.agree(judged), judged.cases)

    medians = {}
    for name in MASK_STATISTICS:
        medians[f"{name}_median"] = float(np.median(our_masks[name]))
        medians[f"{name}_median_test"] = float(np.median(test_masks[name]))
    return measures, medians
