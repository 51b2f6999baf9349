"""The only training loop: any model with phases, a draw and a forward; images as the clock.

Precision, compilation, clipping, the moving average, checkpoints and leaving early each appear here, once.
Inside a step nothing waits for the device: a step whose gradient is not finite changes no weight, and the
run ends with a line that names it when the numbers are read, every ``READ_EVERY`` steps and before every
checkpoint. So a checkpoint is always a good one. Several processes take the same steps, and ask each other after each
whether one has to leave.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hvae_hpc.model_configs import MovesConfig, OptimConfig
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.resources import Workplace
from hvae_hpc.training.averages import MovingAverage, TermReader
from hvae_hpc.training.batches import PairTensors, make_batch
from hvae_hpc.training.checkpoint import load_checkpoint, save_checkpoint
from hvae_hpc.training.device import CompiledForward, move_only
from hvae_hpc.training.distributed import Team, join_team, part_of_batch

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
        workplace: its folder takes checkpoints and log.jsonl; its ``stopped`` is asked between steps. With a ``world``
            above 1, this is called in as many processes, and the first of them writes.

    Returns:
        The report, the same in all processes; not finished where one of them was asked to leave.

    Raises:
        UserError: a loss or gradient became non-finite; the processes cannot share a batch, meet, or stay together.
    """
    device, folder = data.images.device, workplace.folder
    mine = part_of_batch(optim.batch_size, workplace)
    phases = model.phases()  # type: ignore[operator]
    optimizers = [_optimizer(phase, optim) for phase in phases]
    average = MovingAverage(model, optim.ema_decay) if optim.ema_decay > 0 else None
    scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
    wish = workplace.resources.compile
    forward = CompiledForward(model, wish == "on" or (wish == "auto" and device.type == "cuda"), workplace)

    with join_team(workplace, device) as team:
        reader, saved_at = TermReader(team), time.monotonic()
        images_seen = _restore(workplace, team, model, optimizers, average, scaler, reader)
        forwards = team.wrap(forward, phases)
        while images_seen < optim.images:
            batch = make_batch(model, data, optim, seed, moves, images_seen, mine)
            terms: dict[str, Tensor] = {}
            rate = learning_rate(optim, images_seen)
            for phase, optimizer, of_phase in zip(phases, optimizers, forwards, strict=True):
                move_only(phase, phases)
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
                    loss = of_phase(batch, phase.name)
                scaler.scale(loss.total).backward()  # from here on the gradients are the same in all processes
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

            last = images_seen >= optim.images
            late = time.monotonic() - saved_at > workplace.resources.checkpoint_every_s
            leave, due = team.any(workplace.stopped(), late)
            if images_seen // optim.batch_size % READ_EVERY == 0 or last:
                workplace.log({"images_seen": images_seen, "lr": rate, **reader.close_window()})
            if (leave or due) and not last:
                reader.read()  # so that a checkpoint is never one of a training that went wrong
                if team.rank == 0:
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
    workplace: Workplace,
    team: Team,
    model: nn.Module,
    optimizers: list[torch.optim.AdamW],
    average: MovingAverage | None,
    scaler: torch.amp.GradScaler,
    reader: TermReader,
) -> int:
    """Load the newest checkpoint and return its images seen; 0 where there is none."""
    state = load_checkpoint(workplace.folder, team)
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
    workplace.log({"event": "resumed", "images_seen": state["images_seen"]})
    return int(state["images_seen"])
