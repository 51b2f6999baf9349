"""The only training loop: any model with phases, a draw and a forward; images as the clock.

Inside a step nothing waits for the device. A step whose gradient is not finite changes no weight.
The numbers are read every ``READ_EVERY`` steps and before every checkpoint. Where they are not
finite, the training goes back to where they were last good, with a smaller step, and in the end
gives up with a line. A copy to go back to is kept in memory at the end of every window of steps
that was read and found finite. Windows lie at fixed numbers of images seen, so going back depends
on no clock. A checkpoint inside a window carries the copy along, and is always a good one.

Several processes take the same steps, and ask each other after each whether one has to leave.
"""

import contextlib
import copy
import math
import re
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hvae_hpc.config.kinds import AugmentationConfig
from hvae_hpc.config.model import OptimConfig
from hvae_hpc.errors import DEVICE_MEMORY, NonFiniteError, UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.averages import MovingAverage, TermReader
from hvae_hpc.training.batches import PairTensors, make_batch, split_batch
from hvae_hpc.training.checkpoint import (
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from hvae_hpc.training.device import CompiledForward, move_only
from hvae_hpc.training.distributed import join_team, part_of_batch
from hvae_hpc.training.held_out import BestWeights
from hvae_hpc.training.optimizers import make_optimizer, take_step
from hvae_hpc.training.tensorboard_log import TensorBoardLog

READ_EVERY = 50
MOST_ROLLBACKS = 3
"""More hardly help: the step is then an eighth, and what is wrong is something else."""
NO_MEMORY = re.compile(f"can't allocate memory|{DEVICE_MEMORY}")
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainReport(NamedTuple):
    """How a training ended.

    Attributes:
        terms: the means of the last terms that were read.
        weights: the state to use: the moving average's, or the last. None where the training was
            asked to leave; its checkpoint is written then.
        notes: for the provenance.
    """

    terms: dict[str, float]
    weights: dict[str, Tensor] | None
    notes: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """False where the training was asked to leave."""
        return self.weights is not None


def learning_rate(optim: OptimConfig, images_seen: int) -> float:
    """Return the learning rate of the step that starts at images_seen.

    It rises linearly during the warm-up, and then does what the schedule says.
    """
    if images_seen / optim.images < optim.warm_up:
        warm_up_images = optim.warm_up * optim.images
        # Written so that the first step's rate is not 0.
        return optim.lr * (images_seen + optim.batch_size) / (warm_up_images + optim.batch_size)
    if optim.schedule == "constant":
        return optim.lr
    gone = (images_seen / optim.images - optim.warm_up) / (1 - optim.warm_up)
    if optim.schedule == "poly":
        return optim.lr * (1 - gone) ** 0.9
    return optim.lr * (0.5 * (1 + math.cos(math.pi * gone)))


def train(
    model: nn.Module,
    data: PairTensors,
    optim: OptimConfig,
    seed: int,
    moves: AugmentationConfig | None,
    workplace: Workplace,
    best: BestWeights | None = None,
) -> TrainReport:
    """Train a network for ``optim.images`` images, from the newest checkpoint if there is one.

    Args:
        model: built by :func:`build`; :class:`hvae_hpc.config.kinds.GeneratorConfig` says what it
            has. A U-Net has no ``decode``.
        data: on the model's device.
        optim: how.
        seed: of order, augmentation and noise.
        moves: augmentation of the pairs in every step; None for none.
        workplace: its folder takes checkpoints and log.jsonl; its ``stopped`` is asked between
            steps. With a ``world`` above 1, this is called in as many processes, and the first of
            them writes.
        best: measures held-out pairs now and then, and keeps the weights to use; None for the last
            weights.

    Returns:
        The report, the same in all processes.

    Raises:
        UserError: a loss or gradient became non-finite again and again; the memory was not enough;
            the processes cannot share a batch, meet, or stay together.
    """
    try:
        return _Training(model, data, optim, seed, moves, workplace, best).run()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not NO_MEMORY.search(str(error)):
            raise
        share, (height, width) = optim.batch_size // workplace.resources.tasks, data.image_size
        at_once = min(share, rows_at_once(model, workplace) or share)
        raise UserError(
            f"out of memory with {at_once} pairs of {height}x{width} px at once "
            f"on {data.images.device}; lower optim.batch_size, set recompute = true or "
            f"micro_batch = {max(1, at_once // 2)} (for a VAE or HVAE), share the batch among more "
            "processes (gpus, nodes), or ask for more memory (memory_gb)"
        ) from error


class _Training:
    """A training under way: what it changes, and the steps of its loop."""

    def __init__(
        self,
        model: nn.Module,
        data: PairTensors,
        optim: OptimConfig,
        seed: int,
        moves: AugmentationConfig | None,
        workplace: Workplace,
        best: BestWeights | None,
    ) -> None:
        self.best = best
        self.model, self.data, self.optim, self.seed = model, data, optim, seed
        self.moves, self.workplace = moves, workplace
        device = data.images.device
        self.part = part_of_batch(optim.batch_size, workplace)
        share = self.part.stop - self.part.start

        # What a step moves.
        self.images_seen = 0
        self.phases: tuple[Phase, ...] = model.phases()  # type: ignore[operator]
        self.optimizers = [make_optimizer(phase, optim) for phase in self.phases]
        self.average = MovingAverage(model, optim.ema_decay) if optim.ema_decay > 0 else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        self.rate = 0.0

        # Where it can go back to, and how often it did so: each time halves the step from then on.
        self.good_images_seen, self.good_state = 0, dict[str, Any]()
        self.rollbacks = 0

        # How the network is called.
        wish = workplace.resources.compile
        compiled = wish == "on" or (wish == "auto" and device.type == "cuda")
        shapes = (data.image_size, share, optim.precision)
        self.forward = CompiledForward(model, compiled, workplace, shapes)
        self.rows = rows_at_once(model, workplace)
        self.notes = self.forward.notes
        if 0 < self.rows < share:
            self.notes.append(f"batches in parts of {self.rows} pairs")

    def run(self) -> TrainReport:
        """Train to the end, or until one of the processes is asked to leave."""
        checkpoint_every_s = self.workplace.resources.checkpoint_every_s
        with contextlib.closing(self.forward), join_team(self.workplace, self.device) as team:
            self.team, self.reader = team, TermReader(team)
            self.saved_at = time.monotonic()
            self.restore()
            self.tensorboard = TensorBoardLog(self.workplace, self.images_seen)
            self.forwards = team.wrap(self.forward, self.phases)
            self.workplace.log({"event": "training", "images_seen": self.images_seen})

            while self.images_seen < self.optim.images:
                self.reader.add(self.images_seen, self.take_step())
                self.images_seen += self.optim.batch_size
                at_end = self.images_seen >= self.optim.images
                if self.best and self.best.is_due(self.images_seen):
                    self.check_held_out(self.best)

                # All processes leave, and save, after the same step.
                save_is_due = time.monotonic() - self.saved_at > checkpoint_every_s
                leave, save = team.any(self.workplace.stopped(), team.rank == 0 and save_is_due)
                steps = self.images_seen // self.optim.batch_size
                window_ends = steps % READ_EVERY == 0 or at_end

                try:
                    if window_ends:
                        self.close_window(at_end)
                    elif leave or save:
                        self.reader.read()  # a checkpoint is never one of a training gone wrong
                except NonFiniteError as error:
                    self.go_back(error)
                    at_end, window_ends = False, True

                if (leave or save) and not at_end:
                    self.save(in_window=not window_ends)
                    if leave:
                        return TrainReport(self.reader.means, None, tuple(self.notes))

        self.tensorboard.close()
        state, terms = self.weights_to_use(), self.reader.means
        if self.best and self.best.weights:
            state = self.best.weights
            terms = {
                **terms,
                "held_out_loss": self.best.loss,
                "best_images_seen": float(self.best.images_seen),
            }
        weights = {name: value.detach().cpu().clone() for name, value in state.items()}
        return TrainReport(terms, weights, tuple(self.notes))

    def weights_to_use(self) -> dict[str, Tensor]:
        """Return the averaged weights, or the live ones where none are averaged."""
        return self.average.state if self.average else self.model.state_dict()

    def check_held_out(self, best: BestWeights) -> None:
        """Measure and log the loss of held-out pairs."""
        loss = best.check(self.weights_to_use(), self.images_seen)
        self.workplace.log({"event": "held_out", "images_seen": self.images_seen, "loss": loss})

    @property
    def device(self) -> torch.device:
        """Where the data and the network are."""
        return self.data.images.device

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one, and keep a copy to go back to."""
        saved = load_checkpoint(self.workplace.folder, self.team)
        if saved is None:
            self.keep_good(0, self.state())
            return
        self.images_seen = int(saved["images_seen"])
        self.load(saved)
        self.rollbacks = saved["rollbacks"]
        self.keep_good(saved["good_images_seen"], saved["good"] or self.state())
        self.workplace.log({"event": "resumed", "images_seen": self.images_seen})

    def take_step(self) -> dict[str, Tensor]:
        """Move the weights by one batch, phase by phase; returns terms, on the device."""
        batch = make_batch(
            self.model, self.data, self.optim, self.seed, self.moves, self.images_seen, self.part
        )
        self.rate = 0.5**self.rollbacks * learning_rate(self.optim, self.images_seen)

        terms: dict[str, Tensor] = {}
        for phase, optimizer, forward in zip(
            self.phases, self.optimizers, self.forwards, strict=True
        ):
            move_only(phase, self.phases)
            optimizer.zero_grad(set_to_none=True)
            loss = self.pull_back(forward, phase.name, batch)

            # From here on the gradients are the same in all processes.
            self.scaler.unscale_(optimizer)
            most = self.optim.clip_norm or math.inf
            norm = nn.utils.clip_grad_norm_(phase.network.parameters(), most)
            take_step(optimizer, norm, self.scaler, self.rate)

            ending = "" if len(self.phases) == 1 else f"_{phase.name}"
            terms |= {**loss.terms, f"loss{ending}": loss.total}
            if not self.scaler.is_enabled():  # float16 overflows now and then; the scaler copes
                terms[f"gradient_norm{ending}"] = norm

        self.scaler.update()
        if self.average:
            self.average.update()
        return terms

    def pull_back(self, forward: nn.Module, phase: str, batch: Batch) -> Loss:
        """Compute the gradients of a batch, part by part; returns its loss and terms."""
        precision = self.optim.precision
        parts = split_batch(batch, self.rows)
        total, terms = torch.zeros(()), dict[str, Tensor]()
        for share, part in parts:
            with torch.autocast(self.device.type, AUTOCAST[precision], enabled=precision != "fp32"):
                loss: Loss = forward(part, phase)
            self.scaler.scale(share * loss.total).backward()
            if len(parts) == 1:
                return loss

            total = total.to(loss.total.device) + share * loss.total.detach()
            for name, term in loss.terms.items():
                terms[name] = share * term.float().mean() + terms.get(name, 0.0)
        return Loss(total, terms)

    def close_window(self, at_end: bool) -> None:
        """Read and log the terms of a window of steps; what is good so far is copied."""
        window = {"lr": self.rate, **self.reader.close_window()}
        self.workplace.log({"images_seen": self.images_seen, **window})
        self.tensorboard.add(self.images_seen, window)
        if not at_end:
            self.keep_good(self.images_seen, self.state())

    def keep_good(self, images_seen: int, state: dict[str, Any]) -> None:
        """Copy a state that was found to be good."""
        self.good_images_seen, self.good_state = images_seen, copy.deepcopy(state)

    def go_back(self, error: NonFiniteError) -> None:
        """Go back to the last good state with half the step; what was saved since goes.

        The flow's step shrinks for all pairs alike. Were it halved for those pairs alone whose
        energy explodes, two starts could end in one place, but the bound needs a flow that is one
        to one.

        Raises:
            NonFiniteError: it went back too often; names the term and the images seen.
        """
        if self.rollbacks == MOST_ROLLBACKS:
            raise NonFiniteError(
                f"{error}, also after going back {MOST_ROLLBACKS} times with half the step each; "
                "try a smaller optim.lr (or model.step_size, for an HVAE), or precision fp32"
            ) from error
        self.rollbacks += 1
        self.load(copy.deepcopy(self.good_state))
        if hasattr(self.model, "shrink_step"):
            self.model.shrink_step(0.5**self.rollbacks)  # type: ignore[operator]

        self.images_seen = self.good_images_seen
        if self.team.rank == 0:
            remove_checkpoints(self.workplace.folder, beyond=self.images_seen)
        self.tensorboard.close()
        self.tensorboard = TensorBoardLog(self.workplace, self.images_seen)
        self.workplace.log(
            {"event": "rolled_back", "images_seen": self.images_seen, "reason": str(error)}
        )
        self.notes.append(f"{error}; went back to {self.images_seen} with half the step")

    def save(self, in_window: bool) -> None:
        """Write a checkpoint, as the first process.

        Inside a window the last good copy goes along. At a window's end it is the state itself.
        """
        if self.team.rank != 0:
            return
        good = {
            "good": self.good_state if in_window else None,
            "good_images_seen": self.good_images_seen,
            "rollbacks": self.rollbacks,
        }
        save_checkpoint(self.workplace.folder, self.images_seen, {**self.state(), **good})
        self.saved_at = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on; the tensors are the live ones."""
        average = self.average
        return {
            "network": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": {"steps": average.steps, "state": average.state} if average else None,
            "scaler": self.scaler.state_dict(),
            "window": self.reader.window,
            "best": self.best.state() if self.best else None,
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
        if self.best:
            self.best.load(state["best"])


def rows_at_once(model: nn.Module, workplace: Workplace) -> int:
    """Return how many pairs go through the network at once; 0 for a process's whole share."""
    # A U-Net's BatchNorm and an LSGAN's spectral norm would give other numbers in parts:
    # these ask for more memory.
    return workplace.resources.micro_batch if getattr(model, "pairs_apart", False) else 0
