"""The segment stage: a U-Net on one arm's pairs, and how well it segments the split's test cases.

It is trained on real pairs, and on what the arm adds or has in their place. The last weights count:
there is no validation set, and nothing is chosen by test Dice. A run is refused, by case id, where
its added pairs were made from one of its test cases.
"""

import json
from dataclasses import asdict, fields, replace

import numpy as np
import torch

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.samples import write_samples
from hvae_hpc.metrics.segmentation import Mask, MaskScores, dice_by_size, score_masks
from hvae_hpc.models.unet import UNet
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import Shard
from hvae_hpc.preprocess.store.splits import Split
from hvae_hpc.runs.folder import PAIRS, SNAPSHOT
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import (
    CPU,
    PairTensors,
    add,
    generator_for,
    read_cases,
    require_unseen,
    to_tensors,
)
from hvae_hpc.training.checkpoint import save_snapshot
from hvae_hpc.training.device import build, choose_device, device_name
from hvae_hpc.training.loop import train
from hvae_hpc.training.train import read_split

SHOWN = 6
METRICS = tuple(field.name for field in fields(MaskScores))


def segment(config: SegmentConfig, workplace: Workplace) -> Outcome | None:
    """Train a U-Net on an arm's pairs and score its masks per test case.

    Returns:
        Means over the test cases, and the scores per case; None where it was asked to leave. Among
        the means are the Dice by size of the tumour and, where some test cases have none, the Dice
        of the others.
    """
    # Train.
    device = choose_device(workplace)
    split = read_split(workplace.data, config.split)
    data = training_pairs(config, workplace, split, device)
    model = build(lambda: UNet(config.unet, config.loss), config.seed, device)
    report = train(model, data, config.optim, config.seed, config.arm.moves, workplace)
    if report is None:
        return None
    model.load_state_dict(report.weights)
    if config.keep_weights:
        save_snapshot(workplace.folder / SNAPSHOT, {"weights": report.weights})

    # Test.
    test = read_dataset(workplace.data, split.test)
    tensors = to_tensors(test, config.image_px)
    predictions = predict(model, tensors, config, device)
    truths = tensors.masks[:, 0].numpy() > 0.5
    scores, unit = score_cases(predictions, truths, test)
    _keep_samples(workplace, test, tensors, predictions, scores)

    per_case = {
        case: {name: value for name, value in asdict(of_case).items() if value is not None}
        for case, of_case in scores.items()
    }
    means = dice_by_size(scores.values())
    for name in METRICS:
        values = [of_case[name] for of_case in per_case.values() if name in of_case]
        if values:
            means[name] = float(np.mean(values))
    with_tumour = [of_case.dice for of_case in scores.values() if of_case.true_area]
    if 0 < len(with_tumour) < len(per_case):  # where nothing is there, nothing found scores 1
        means["dice_with_tumour"] = float(np.mean(with_tumour))
    return Outcome(
        metrics={
            **means,
            "train_pairs": float(len(data)),
            "test_cases": float(len(per_case)),
            "images_seen": float(config.optim.images),
            **{f"train_{name}": value for name, value in report.terms.items()},
        },
        per_case=per_case,
        details={
            "train_cases": list(split.training_cases(config.arm.n_cases)),
            "hausdorff_95_unit": unit,
        },
        device=device_name(device),
        notes=report.notes,
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
            # Every image has the mask of another one: the next in a random circle.
            generator = generator_for(config.seed, "shuffled masks", 0)
            circle = torch.randperm(len(synthetic), generator=generator)
            masks = torch.empty_like(synthetic.masks)
            masks[circle] = synthetic.masks[circle.roll(1)]
            synthetic = replace(synthetic, masks=masks)
        if arm.nearest:
            distances = torch.cdist(synthetic.images.flatten(1), real.images.flatten(1))
            synthetic = real.take(distances.argmin(1))
        data = synthetic if arm.alone else add(data, synthetic)
        if arm.synthetic_share:
            n = len(synthetic)
            data = replace(data, synthetic=n, synthetic_share=arm.synthetic_share)
    if arm.first_share:
        batches = round(arm.first_share * config.optim.images / config.optim.batch_size)
        data = replace(data, added_first=batches * config.optim.batch_size)
    return data


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


def predict(
    model: torch.nn.Module,
    data: PairTensors,
    config: SegmentConfig,
    device: torch.device,
) -> Mask:
    """Return hard masks (N, H, W) of all images, in float32, the network in evaluation mode."""
    model.eval()
    batches = data.images.split(config.optim.batch_size)
    parts = [model.probability(images.to(device)).cpu() for images in batches]  # type: ignore[operator]
    return torch.cat(parts)[:, 0].numpy() > config.threshold


def score_cases(predictions: Mask, truths: Mask, test: Pairs) -> tuple[dict[str, MaskScores], str]:
    """Return each case's scores, over all its slices, in the order of the cases, and their unit.

    Args:
        predictions, truths: (N, H, W); shrunk pairs have larger pixels than ``test`` says.
        test: whose case ids and spacing count; distances are in px where any case's spacing is
            unknown.
    """
    spacing = test.spacing_mm * (test.images.shape[1] / predictions.shape[1])
    known = bool(np.isfinite(spacing).all())
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(test.case_ids):
        rows.setdefault(case, []).append(row)

    scores = {}
    for case, index in rows.items():
        row_mm, column_mm = spacing[index[0]].tolist() if known else (1.0, 1.0)
        scores[case] = score_masks(predictions[index], truths[index], (row_mm, column_mm))
    return scores, "mm" if known else "px"


def _keep_samples(
    workplace: Workplace,
    test: Pairs,
    tensors: PairTensors,
    predictions: Mask,
    scores: dict[str, MaskScores],
) -> None:
    """Keep test slices with predictions for the figures: worst, median, best, then the first."""
    order = sorted(scores, key=lambda case: scores[case].dice)
    chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1], *test.case_ids])
    rows = [test.case_ids.index(case) for case in list(chosen)[:SHOWN]]
    write_samples(
        workplace.folder,
        images=tensors.images[rows, 0].numpy(),
        masks=tensors.masks[rows, 0].numpy().astype(np.uint8),
        predictions=predictions[rows].astype(np.uint8),
        dice=np.array([scores[test.case_ids[row]].dice for row in rows]),
        case_ids=np.array([test.case_ids[row] for row in rows]),
    )
