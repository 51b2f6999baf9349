"""The train stage: one generator on the training cases of one split; it leaves a snapshot of the weights to use."""

import json
from pathlib import Path

from torch import nn

from hvae_hpc.config.model import HVAEConfig, LSGANConfig
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.lsgan import LSGAN
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.splits import Split, draw_split
from hvae_hpc.runs.folder import SNAPSHOT
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.checkpoint import load_snapshot, save_snapshot
from hvae_hpc.training.dataset_cache import read_cases
from hvae_hpc.training.device import build, choose_device, device_name
from hvae_hpc.training.loop import train


def read_split(data: Path, config: SplitConfig) -> Split:
    """Draw the split's cases from a packed data set."""
    cases = [case.case_id for case in read_manifest(data).cases]
    return draw_split(cases, config.train, config.test, config.seed)


def make_generator(config: HVAEConfig | LSGANConfig, image_size: tuple[int, int]) -> nn.Module:
    """Make the network that a model config describes.

    Raises:
        UserError: the image's size does not suit the network.
    """
    try:
        return (
            HVAE(config, image_size)
            if isinstance(config, HVAEConfig)
            else LSGAN(config, image_size)
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def train_generator(config: TrainConfig, workplace: Workplace) -> Outcome | None:
    """Train and leave ``snapshot.pt``.

    Of several processes the first one writes; all return the same.

    Returns:
        The last terms as metrics and the training cases' ids; None where it was asked to leave.
    """
    device = choose_device(workplace)
    split = read_split(workplace.data, config.split)
    data = read_cases(workplace.data, split.train, config.image_px, device)
    model = build(lambda: make_generator(config.model, data.image_size), config.seed, device)
    if isinstance(model, HVAE):
        model.recompute = workplace.resources.recompute
    report = train(model, data, config.optim, config.seed, config.moves, workplace)
    if report.weights is None:
        return None
    if workplace.rank == 0:
        height, width = data.image_size
        save_snapshot(
            workplace.folder / SNAPSHOT,
            {
                "image_size": [height, width],
                "train_cases": json.dumps(split.train),
                "weights": report.weights,
            },
        )
    together = (f"trained by {workplace.world} processes",) if workplace.world > 1 else ()
    return Outcome(
        metrics={
            "images_seen": float(config.optim.images),
            "pairs": float(len(data)),
            **report.terms,
        },
        details={"train_cases": list(split.train)},
        device=device_name(device),
        notes=report.notes + together,
    )


def load_generator(
    config: HVAEConfig | LSGANConfig, folder: Path
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a trained generator in evaluation mode on the CPU, and the ids of its training cases."""
    snapshot = load_snapshot(folder / SNAPSHOT)
    height, width = snapshot["image_size"]
    model = make_generator(config, (height, width))
    model.load_state_dict(snapshot["weights"])
    return model.eval(), tuple(json.loads(snapshot["train_cases"]))
