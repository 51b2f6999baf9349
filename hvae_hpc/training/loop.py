"""The only training loop: any model with phases, a draw and a forward; images as the clock.

Precision, compilation, clipping, the moving average, checkpoints and leaving early each appear here, once.
Inside a step nothing waits for the device: a step whose gradient is not finite changes no weight, and the
run ends with a line that names it when the numbers are read, every ``READ_EVERY`` steps and before every
checkpoint. So a checkpoint is always a good one.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hvae_hpc.errors import UserError
from hvae_hpc.model_configs import MovesConfig, OptimConfig
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.models.moves import apply_moves, draw_moves
from hvae_hpc.resources import Workplace
from hvae_hpc.rundir import append_log
from hvae_hpc.training.batches import PairTensors, generator_for, images_of_step
from hvae_hpc.training.checkpoint import load_checkpoint, save_checkpoint
from hvae_hpc.training.device import CompiledForward

READ_EVERY = 50
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
    """Return the learning rate of the step that starts at images_seen: linear warm-up, then cosine to 0 or constant."""
    share = images_seen / optim.images
    if share < optim.warm_up:
        return optim.lr * (images_seen + optim.batch_size) / (optim.warm_up * optim.images + optim.batch_size)
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (share - optim.warm_up) / (1 - optim.warm_up)))


class MovingAverage:
    """The exponential moving average of a network's weights; early steps count more, or the start would weigh on it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.model = model
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move a step towards the network's weights; counters and statistics are copied."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        mine, theirs = [], []
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                mine.append(self.state[name])
                theirs.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(mine, theirs, 1 - decay)


class TermReader:
    """Gathers terms on the device, reads them now and then, and averages them over windows of the training.

    The windows lie where they lie whether or not the training was stopped in between: what was read of the current one
    is part of the checkpoint.
    """

    def __init__(self) -> None:
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.window: dict[str, list[float]] = {}
        self.means: dict[str, float] = {}

    def add(self, images_seen: int, terms: dict[str, Tensor]) -> None:
        """Keep one step's terms, without waiting for them."""
        self.pending.append((images_seen, {name: term.detach().float().mean() for name, term in terms.items()}))

    def read(self) -> None:
        """Wait for what was added and put it into the window.

        Raises:
            UserError: a term was not finite; it names the term and the images seen.
        """
        for images_seen, terms in self.pending:
            for name, term in terms.items():
                number = float(term)
                if not math.isfinite(number):
                    raise UserError(
                        f"{name} became {number} at images_seen = {images_seen}; the last checkpoint is kept; "
                        "try a smaller optim.lr (or model.step_size, for an HVAE), or precision fp32"
                    )
                self.window.setdefault(name, []).append(number)
        self.pending.clear()

    def close_window(self) -> dict[str, float]:
        """Return the window's means and start a new one."""
        self.read()
        self.means = {name: sum(numbers) / len(numbers) for name, numbers in self.window.items()}
        self.window = {}
        return self.means


def train(
    model: nn.Module, data: PairTensors, optim: OptimConfig, seed: int, moves: MovesConfig | None, workplace: Workplace
) -> TrainReport:
    """Train a network for ``optim.images`` images, from the newest checkpoint if there is one.

    Args:
        model: built by :func:`build`; satisfies :class:`Model`.
        data: on the model's device.
        optim: how.
        seed: of order, moves and noise.
        moves: random moves of the pairs; None for none.
        workplace: its folder takes checkpoints and log.jsonl; its ``stopped`` is asked between steps.

    Returns:
        The report; not finished where it was asked to leave.

    Raises:
        UserError: a loss or gradient became non-finite.
    """
    device, folder = data.images.device, workplace.folder
    phases = model.phases()  # type: ignore[operator]
    optimizers = [_optimizer(phase, optim) for phase in phases]
    average = MovingAverage(model, optim.ema_decay) if optim.ema_decay > 0 else None
    scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
    wish = workplace.resources.compile
    forward = CompiledForward(model, wish == "on" or (wish == "auto" and device.type == "cuda"), folder)
    reader, saved_at = TermReader(), time.monotonic()
    images_seen = _restore(folder, model, optimizers, average, scaler, reader)

    while images_seen < optim.images:
        batch = _batch(model, data, optim, seed, moves, images_seen)
        terms: dict[str, Tensor] = {}
        rate = learning_rate(optim, images_seen)
        for phase, optimizer in zip(phases, optimizers, strict=True):
            _only(phase, phases)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
                loss = forward(batch, phase.name)
            scaler.scale(loss.total).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(phase.network.parameters(), optim.clip_norm or math.inf)
            _step(optimizer, norm, scaler, rate)
            terms |= {**loss.terms, "loss" if len(phases) == 1 else f"loss_{phase.name}": loss.total}
            if not scaler.is_enabled():  # float16 overflows now and then, and the scaler deals with it
                terms["gradient_norm" if len(phases) == 1 else f"gradient_norm_{phase.name}"] = norm
        scaler.update()
        if average:
            average.update()
        reader.add(images_seen, terms)
        images_seen += optim.batch_size

        last, leave = images_seen >= optim.images, workplace.stopped()
        if images_seen // optim.batch_size % READ_EVERY == 0 or last:
            append_log(folder, {"images_seen": images_seen, "lr": rate, **reader.close_window()})
        due = time.monotonic() - saved_at > workplace.resources.checkpoint_every_s
        if (leave or due) and not last:
            reader.read()  # so that a checkpoint is never one of a training that went wrong
            save_checkpoint(folder, images_seen, _state(model, optimizers, average, scaler, reader))
            saved_at = time.monotonic()
            if leave:
                return TrainReport(finished=False, terms=reader.means, weights=None, notes=tuple(forward.notes))

    weights = average.state if average else model.state_dict()
    weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
    return TrainReport(finished=True, terms=reader.means, weights=weights, notes=tuple(forward.notes))


def _optimizer(phase: Phase, optim: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        phase.network.parameters(),
        lr=optim.lr,
        betas=(optim.beta_1, optim.beta_2),
        weight_decay=optim.weight_decay,
        fused=True,
    )


def _batch(
    model: nn.Module, data: PairTensors, optim: OptimConfig, seed: int, moves: MovesConfig | None, images_seen: int
) -> dict[str, Tensor]:
    device = data.images.device
    index = images_of_step(len(data), seed, images_seen, optim.batch_size).to(device, non_blocking=True)
    images, masks = data.images[index], data.masks[index]
    if moves is not None:
        height, width = data.image_size
        drawn = draw_moves(len(index), moves, generator_for(seed, "moves", images_seen), height / width)
        drawn = drawn.to(device, non_blocking=True)
        images, masks = apply_moves(images, drawn), apply_moves(masks, drawn, mode="nearest")
    noise = model.draw(len(index), images_seen / optim.images, generator_for(seed, "noise", images_seen))  # type: ignore[operator]
    return {
        "image": images,
        "mask": masks,
        **{name: value.to(device, non_blocking=True) for name, value in noise.items()},
    }


def _only(phase: Phase, phases: tuple[Phase, ...]) -> None:
    """Ask for gradients of this phase's network alone."""
    if len(phases) > 1:
        for other in phases:
            other.network.requires_grad_(other.network is phase.network)


def _step(optimizer: torch.optim.AdamW, norm: Tensor, scaler: torch.amp.GradScaler, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    if scaler.is_enabled():
        scaler.step(optimizer)
        return
    # What GradScaler does too: the fused optimizer itself leaves everything as it was where found_inf is 1.
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    optimizer.step()


def _state(
    model: nn.Module,
    optimizers: list[torch.optim.AdamW],
    average: MovingAverage | None,
    scaler: torch.amp.GradScaler,
    reader: TermReader,
) -> dict[str, Any]:
    return {
        "network": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "average": {"steps": average.steps, "state": average.state} if average else None,
        "scaler": scaler.state_dict(),
        "window": reader.window,
    }


def _restore(
    folder: Path,
    model: nn.Module,
    optimizers: list[torch.optim.AdamW],
    average: MovingAverage | None,
    scaler: torch.amp.GradScaler,
    reader: TermReader,
) -> int:
    """Load the newest checkpoint and return its images seen; 0 where there is none."""
    state = load_checkpoint(folder)
    if state is None:
        return 0
    model.load_state_dict(state["network"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if average:
        average.steps = state["average"]["steps"]
        for name, value in state["average"]["state"].items():
            average.state[name].copy_(value)
    scaler.load_state_dict(state["scaler"])
    reader.window = state["window"]
    append_log(folder, {"event": "resumed", "images_seen": state["images_seen"]})
    return int(state["images_seen"])
