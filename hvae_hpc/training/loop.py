"""The only training loop: any model with phases, a draw and a forward; images as the clock.

Precision, compilation, clipping, the moving average, checkpoints and leaving early each appear
here, once. Inside a step nothing waits for the device: a step whose gradient is not finite changes
no weight. When the numbers are read, every ``READ_EVERY`` steps and before every checkpoint, the
training then goes back to where they were last good, with a smaller step, and in the end gives up
with a line. So a checkpoint is always a good one. Several processes take the same steps, and ask
each other after each whether one has to leave.
"""

import contextlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hvae_hpc.config.model import MovesConfig, OptimConfig
from hvae_hpc.errors import DEVICE_MEMORY, NonFiniteError, UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.averages import MovingAverage, TermReader
from hvae_hpc.training.batches import PairTensors, make_batch, split_batch
from hvae_hpc.training.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from hvae_hpc.training.device import CompiledForward, move_only
from hvae_hpc.training.distributed import Team, join_team, part_of_batch
from hvae_hpc.training.optimizers import make_optimizer, take_step
from hvae_hpc.training.rollback import LastGood
from hvae_hpc.training.save_interval import SaveClock
from hvae_hpc.training.tensorboard_log import Board

READ_EVERY = 50
NO_MEMORY = re.compile(f"can't allocate memory|{DEVICE_MEMORY}")
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Model(Protocol):
    """What the loop asks of a network beside being a torch module."""

    def phases(self) -> tuple[Phase, ...]: ...  # noqa: D102

    def draw(self, n: int, share: float, generator: torch.Generator) -> dict[str, Tensor]: ...  # noqa: D102

    def forward(self, batch: Batch, phase: str) -> Loss: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """How a training ended.

    Attributes:
        finished: False where it was asked to leave; its checkpoint is written.
        terms: the means of the last terms that were read.
        weights: the state to use: the moving average's, or the last; None where not finished.
        notes: for the provenance.
    """

    finished: bool
    terms: dict[str, float]
    weights: dict[str, Tensor] | None
    notes: tuple[str, ...]


def learning_rate(optim: OptimConfig, images_seen: int) -> float:
    """Return the learning rate of the step that starts at images_seen: linear warm-up, then what the schedule says."""
    share = images_seen / optim.images
    if share < optim.warm_up:
        return (
            optim.lr
            * (images_seen + optim.batch_size)
            / (optim.warm_up * optim.images + optim.batch_size)
        )
    if optim.schedule == "constant":
        return optim.lr
    gone = (share - optim.warm_up) / (1 - optim.warm_up)
    return optim.lr * (
        (1 - gone) ** 0.9 if optim.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * gone))
    )


def train(
    model: nn.Module,
    data: PairTensors,
    optim: OptimConfig,
    seed: int,
    moves: MovesConfig | None,
    workplace: Workplace,
) -> TrainReport:
    """Train a network for ``optim.images`` images, from the newest checkpoint if there is one.

    Args:
        model: built by :func:`build`; satisfies :class:`Model`.
        data: on the model's device.
        optim: how.
        seed: of order, moves and noise.
        moves: random moves of the pairs; None for none.
        workplace: its folder takes checkpoints and log.jsonl; its ``stopped`` is asked between
            steps. With a ``world`` above 1, this is called in as many processes, and the first of
            them writes.

    Returns:
        The report, the same in all processes; not finished where one of them was asked to leave.

    Raises:
        UserError: a loss or gradient became non-finite again and again; the memory was not enough;
            the processes cannot share a batch, meet, or stay together.
    """
    try:
        return _train(model, data, optim, seed, moves, workplace)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not NO_MEMORY.search(str(error)):
            raise
        share, (height, width) = optim.batch_size // workplace.resources.tasks, data.image_size
        at_once = min(share, _rows_at_once(model, workplace) or share)
        raise UserError(
            f"out of memory with {at_once} pairs of {height}x{width} px at once on {data.images.device}; lower "
            f"optim.batch_size, set recompute = true or micro_batch = {max(1, at_once // 2)} (for a VAE or HVAE), "
            "share the batch among more processes (gpus, nodes), or ask for more memory (memory_gb)"
        ) from error


def _train(
    model: nn.Module,
    data: PairTensors,
    optim: OptimConfig,
    seed: int,
    moves: MovesConfig | None,
    workplace: Workplace,
) -> TrainReport:
    device, folder = data.images.device, workplace.folder
    mine = part_of_batch(optim.batch_size, workplace)
    phases = model.phases()  # type: ignore[operator]
    optimizers = [make_optimizer(phase, optim) for phase in phases]
    average = MovingAverage(model, optim.ema_decay) if optim.ema_decay > 0 else None
    scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
    wish = workplace.resources.compile
    compiled = wish == "on" or (wish == "auto" and device.type == "cuda")
    forward = CompiledForward(
        model, compiled, workplace, (data.image_size, mine.stop - mine.start, optim.precision)
    )
    rows = _rows_at_once(model, workplace)
    if 0 < rows < mine.stop - mine.start:
        forward.notes.append(f"batches in parts of {rows} pairs")

    with contextlib.closing(forward), join_team(workplace, device) as team:
        reader, clock = TermReader(team), SaveClock(workplace.resources)
        training = _Training(model, optimizers, average, scaler, reader)
        images_seen, good = _restore(workplace, team, training)
        board = Board(workplace, images_seen)
        forwards = team.wrap(forward, phases)
        workplace.log({"event": "training", "images_seen": images_seen})
        while images_seen < optim.images:
            batch = make_batch(model, data, optim, seed, moves, images_seen, mine)
            terms: dict[str, Tensor] = {}
            rate = good.step_share * learning_rate(optim, images_seen)
            for phase, optimizer, of_phase in zip(phases, optimizers, forwards, strict=True):
                move_only(phase, phases)
                optimizer.zero_grad(set_to_none=True)
                loss = _pull_back(
                    of_phase, phase.name, split_batch(batch, rows), optim.precision, scaler
                )
                # From here on the gradients are the same in all processes.
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(
                    phase.network.parameters(), optim.clip_norm or math.inf
                )
                take_step(optimizer, norm, scaler, rate)
                terms |= {
                    **loss.terms,
                    "loss" if len(phases) == 1 else f"loss_{phase.name}": loss.total,
                }
                if (
                    not scaler.is_enabled()
                ):  # float16 overflows now and then, and the scaler deals with it
                    terms[
                        "gradient_norm" if len(phases) == 1 else f"gradient_norm_{phase.name}"
                    ] = norm
            scaler.update()
            if average:
                average.update()
            reader.add(images_seen, terms)
            images_seen += optim.batch_size

            last = images_seen >= optim.images
            leave, due = team.any(workplace.stopped(), team.rank == 0 and clock.is_due())
            closes = images_seen // optim.batch_size % READ_EVERY == 0 or last
            try:
                if closes:
                    window = {"lr": rate, **reader.close_window()}
                    workplace.log({"images_seen": images_seen, **window})
                    board.add(images_seen, window)
                    if not last:
                        good.take(images_seen, training.state())
                elif leave or due:
                    reader.read()  # so that a checkpoint is never one of a training that went wrong
            except NonFiniteError as error:
                good.go_back(error, training.load, model)
                images_seen, last, closes = good.images_seen, False, True
                if team.rank == 0:
                    remove_checkpoints(folder, beyond=images_seen)  # of the path that is left
                board.close()
                board = Board(workplace, images_seen)
                workplace.log(
                    {"event": "rolled_back", "images_seen": images_seen, "reason": str(error)}
                )
                forward.notes.append(f"{error}; went back to {images_seen} with half the step")
            if (leave or due) and not last:
                if team.rank == 0:
                    began = time.monotonic()
                    # Inside a window the copy goes along; where one has just
                    # closed, it is the state itself.
                    back = {
                        "good": None if closes else good.state,
                        "good_images_seen": good.images_seen,
                    }
                    save_checkpoint(
                        folder,
                        images_seen,
                        {**training.state(), **back, "rollbacks": good.rollbacks},
                    )
                    clock.saved(time.monotonic() - began)
                if leave:
                    return TrainReport(
                        finished=False, terms=reader.means, weights=None, notes=tuple(forward.notes)
                    )

    board.close()
    weights = average.state if average else model.state_dict()
    weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
    return TrainReport(
        finished=True, terms=reader.means, weights=weights, notes=tuple(forward.notes)
    )


def _rows_at_once(model: nn.Module, workplace: Workplace) -> int:
    """Return how many pairs go through the network at once; 0 for a process's share of the batch."""
    # A U-Net's BatchNorm and an LSGAN's spectral norm would give other numbers in parts:
    # these ask for more memory.
    return workplace.resources.micro_batch if getattr(model, "pairs_apart", False) else 0


def _pull_back(
    forward: nn.Module,
    phase: str,
    parts: Sequence[tuple[float, Batch]],
    precision: str,
    scaler: torch.amp.GradScaler,
) -> Loss:
    """Add up the gradients of a batch's parts, each by its share of the pairs; returns the batch's loss and terms."""
    total, terms = torch.zeros(()), dict[str, Tensor]()
    for share, part in parts:
        device = part["image"].device.type
        with torch.autocast(device, AUTOCAST[precision], enabled=precision != "fp32"):
            loss: Loss = forward(part, phase)
        scaler.scale(share * loss.total).backward()
        if len(parts) == 1:
            return loss
        total = total.to(loss.total.device) + share * loss.total.detach()
        for name, term in loss.terms.items():
            terms[name] = share * term.float().mean() + terms.get(name, 0.0)
    return Loss(total, terms)


@dataclass(frozen=True)
class _Training:
    """All that a training changes as it goes on."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: MovingAverage | None
    scaler: torch.amp.GradScaler
    reader: TermReader

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on; the tensors are the live ones."""
        average = self.average
        return {
            "network": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": {"steps": average.steps, "state": average.state} if average else None,
            "scaler": self.scaler.state_dict(),
            "window": self.reader.window,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average:
            self.average.steps = state["average"]["steps"]
            for name, value in state["average"]["state"].items():
                self.average.state[name].copy_(value)
        self.scaler.load_state_dict(state["scaler"])
        self.reader.forget(state["window"])


def _restore(workplace: Workplace, team: Team, training: _Training) -> tuple[int, LastGood]:
    """Load the newest checkpoint if there is one; return its images seen, and what can be gone back to."""
    good = LastGood(0, {})
    saved = load_checkpoint(workplace.folder, team)
    if saved is None:
        good.take(0, training.state())
        return 0, good
    images_seen = int(saved["images_seen"])
    training.load(saved)
    good.rollbacks = saved["rollbacks"]
    good.take(saved["good_images_seen"], saved["good"] or training.state())
    workplace.log({"event": "resumed", "images_seen": images_seen})
    return images_seen, good
