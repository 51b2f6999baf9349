"""The segment stage: a U-Net on one arm's pairs, and its Dice on the split's test cases.

The last weights count: there is no validation set, and nothing is chosen by test Dice. A run whose test cases
meet the training cases of what made its added pairs is refused, by case id.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.metrics import dice
from hvae_hpc.model_configs import require_halvings
from hvae_hpc.models.unet import UNet
from hvae_hpc.preprocess.pairs import Pairs
from hvae_hpc.preprocess.reader import read_dataset
from hvae_hpc.preprocess.shards import read_pairs
from hvae_hpc.resources import Outcome, Workplace
from hvae_hpc.rundir import PAIRS, SAMPLES, write_arrays
from hvae_hpc.stages import SegmentConfig
from hvae_hpc.training.batches import PairTensors, join, require_unseen, to_tensors
from hvae_hpc.training.device import build, choose_device, device_name
from hvae_hpc.training.loop import train
from hvae_hpc.training.train import read_split

SHOWN = 6


def segment(config: SegmentConfig, workplace: Workplace) -> Outcome | None:
    """Train a U-Net on real and added pairs and measure hard Dice per test case.

    Returns:
        Mean Dice over the test cases, and Dice per case; None where it was asked to leave.
    """
    device = choose_device(workplace)
    split = read_split(workplace.data, config.split)
    data = to_tensors(read_dataset(workplace.data, split.train), config.image_px)
    for role, n in (("standard", config.arm.n_standard), ("pairs", config.arm.n_synthetic)):
        if n:
            data = join(data, _added_pairs(workplace, role, n, split.test, data.image_size))
    require_halvings(f"a U-Net of depth {config.unet.depth}", data.image_size, config.unet.depth)
    model = build(lambda: UNet(config.unet, config.loss), config.seed, device)
    report = train(model, data.to(device), config.optim, config.seed, None, workplace)
    if report.weights is None:
        return None
    model.load_state_dict(report.weights)
    test = read_dataset(workplace.data, split.test)
    tensors = to_tensors(test, config.image_px)
    predictions = predict(model, tensors, config.threshold, config.optim.batch_size, device)
    per_case = dice_per_case(predictions, tensors.masks[:, 0].numpy() > 0.5, test.case_ids)
    _keep_samples(workplace, test, tensors, predictions, per_case)
    return Outcome(
        metrics={
            "dice": float(np.mean(list(per_case.values()))),
            "train_pairs": float(len(data)),
            "test_cases": float(len(per_case)),
            "images_seen": float(config.optim.images),
            **{f"train_{name}": value for name, value in report.terms.items()},
        },
        per_case={case: {"dice": value} for case, value in per_case.items()},
        details={"train_cases": list(split.train)},
        device=device_name(device),
        notes=report.notes,
    )


def _added_pairs(
    workplace: Workplace, role: str, n: int, test_cases: tuple[str, ...], image_size: tuple[int, int]
) -> PairTensors:
    """Read the first n pairs of a parent, after making sure that it never saw a test case."""
    path = workplace.parents[role] / PAIRS
    pairs, attributes = read_pairs(path)
    require_unseen(path, attributes, test_cases)
    if len(pairs) < n:
        raise UserError(f"{path}: holds {len(pairs)} pairs, the arm asks for {n}; raise n_pairs in the sweep")
    tensors = to_tensors(pairs, 0)
    if tensors.image_size != image_size:
        raise UserError(f"{path}: pairs of {tensors.image_size} px, the real ones have {image_size}; use one image_px")
    return PairTensors(images=tensors.images[:n], masks=tensors.masks[:n])


def predict(
    model: torch.nn.Module, data: PairTensors, threshold: float, batch_size: int, device: torch.device
) -> NDArray[np.bool_]:
    """Return hard masks (N, H, W) of all images, in float32, the network in evaluation mode."""
    model.eval()
    parts = [model.probability(images.to(device)).cpu() for images in data.images.split(batch_size)]  # type: ignore[operator]
    return np.asarray(torch.cat(parts)[:, 0].numpy() > threshold)


def dice_per_case(
    predictions: NDArray[np.bool_], truths: NDArray[np.bool_], case_ids: tuple[str, ...]
) -> dict[str, float]:
    """Return each case's Dice over all its slices together, in the order in which cases first appear."""
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(case_ids):
        rows.setdefault(case, []).append(row)
    return {case: dice(predictions[index], truths[index]) for case, index in rows.items()}


def _keep_samples(
    workplace: Workplace, test: Pairs, tensors: PairTensors, predictions: NDArray[np.bool_], per_case: dict[str, float]
) -> None:
    """Keep a few test slices with predictions for the figures: the worst, the median, the best, the first ones."""
    order = sorted(per_case, key=lambda case: per_case[case])
    chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1], *test.case_ids])
    rows = [test.case_ids.index(case) for case in list(chosen)[:SHOWN]]
    write_arrays(
        workplace.folder / SAMPLES,
        images=tensors.images[rows, 0].numpy(),
        masks=tensors.masks[rows, 0].numpy().astype(np.uint8),
        predictions=predictions[rows].astype(np.uint8),
        dice=np.array([per_case[test.case_ids[row]] for row in rows]),
        case_ids=np.array([test.case_ids[row] for row in rows]),
    )
