"""The train stage: one generator on the training cases of one split, kept as a snapshot."""

import json
import pkgutil
from pathlib import Path
from typing import NamedTuple

from torch import nn

from hvae_hpc.config.kinds import GeneratorConfig
from hvae_hpc.config.loader import load, read_json
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.splits import Split, draw_split
from hvae_hpc.runs.folder import CONFIG, SNAPSHOT
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import read_cases
from hvae_hpc.training.checkpoint import load_snapshot, loading, save_snapshot
from hvae_hpc.training.device import build, choose_device, device_name
from hvae_hpc.training.held_out import BestWeights
from hvae_hpc.training.loop import train


class TrainedGenerator(NamedTuple):
    """A train run's result: its config, the network in evaluation mode, the training cases' ids."""

    config: TrainConfig
    model: nn.Module
    train_cases: tuple[str, ...]


def make_network(config: GeneratorConfig, image_size: tuple[int, int]) -> nn.Module:
    """Make the network that a config describes, for images of (height, width) px."""
    return pkgutil.resolve_name(config.network_class)(config, image_size)


def read_split(data: Path, config: SplitConfig) -> Split:
    """Draw the split's cases from a packed data set."""
    cases = [case.case_id for case in read_manifest(data).cases]
    return draw_split(cases, config.train, config.test, config.seed)


def train_generator(config: TrainConfig, workplace: Workplace) -> Outcome | None:
    """Train and leave ``snapshot.pt``.

    Of several processes the first one writes; all return the same.

    Returns:
        The last terms as metrics and the training cases' ids; None where it was asked to leave.
    """
    # Make the network and train it.
    device = choose_device(workplace)
    split = read_split(workplace.data, config.split)
    cases = split.training_cases(config.n_cases)
    learned, held_out = cases[: config.learned_cases], cases[config.learned_cases :]
    data = read_cases(workplace.data, learned, config.image_px, device)
    model = build(lambda: make_network(config.model, data.image_size), config.seed, device)
    if hasattr(model, "measure"):
        model.measure(data.images, data.masks)  # type: ignore[operator]
    best = None
    if held_out:
        pairs = read_cases(workplace.data, held_out, config.image_px, device)
        checks = getattr(config.model, "checks", 10)
        case_ids = read_dataset(workplace.data, learned).case_ids
        best = BestWeights(model, pairs, config.optim, checks, data, case_ids)
    report = train(model, data, config.optim, config.seed, config.moves, workplace, best)
    if report is None:
        return None

    # Keep the weights with what is needed to use them.
    if workplace.rank == 0:
        snapshot = {
            "image_size": list(data.image_size),
            "train_cases": json.dumps(cases),
            "weights": report.weights,
        }
        save_snapshot(workplace.folder / SNAPSHOT, snapshot)

    metrics = {"images_seen": float(config.optim.images), "pairs": float(len(data))}
    processes = (f"trained by {workplace.world} processes",) if workplace.world > 1 else ()
    return Outcome(
        metrics={**metrics, **report.terms},
        details={"train_cases": list(cases)},
        device=device_name(device),
        notes=report.notes + processes,
    )


def load_generator(folder: Path) -> TrainedGenerator:
    """Read a trained generator from its run's folder, onto the CPU."""
    config = load(TrainConfig, read_json(folder / CONFIG), str(folder / CONFIG))
    snapshot = load_snapshot(folder / SNAPSHOT)
    with loading(folder / SNAPSHOT):
        height, width = snapshot["image_size"]
        model = make_network(config.model, (height, width))
        model.load_state_dict(snapshot["weights"])
        return TrainedGenerator(config, model.eval(), tuple(json.loads(snapshot["train_cases"])))
