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
import time
from typing import NamedTuple

import torch
from torch import nn

from hvae_hpc.config.kinds import AugmentationConfig
from hvae_hpc.config.model import OptimConfig
from hvae_hpc.errors import NonFiniteError, UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase, Tensors
from hvae_hpc.runs.folder import remove_checkpoints
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.averages import MovingAverage, TermReader
from hvae_hpc.training.batches import PairTensors, make_batch, split_batch
from hvae_hpc.training.checkpoint import State, load_checkpoint, loading, save_checkpoint
from hvae_hpc.training.device import CompiledForward, is_out_of_memory, move_only
from hvae_hpc.training.distributed import ALONE, Team, join_team, part_of_batch
from hvae_hpc.training.held_out import BestWeights
from hvae_hpc.training.optimizers import learning_rate, make_optimizer, move_weights
from hvae_hpc.training.rehearsal import MemoryChoice
from hvae_hpc.training.tensorboard_log import open_tensorboard

READ_EVERY = 50
MOST_ROLLBACKS = 3
"""More hardly help: the step is then an eighth, and what is wrong is something else."""
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainReport(NamedTuple):
    """How a training ended.

    Attributes:
        terms: the means of the last terms that were read.
        weights: the state to use: the moving average's, or the last.
        notes: for the provenance.
    """

    terms: dict[str, float]
    weights: Tensors
    notes: tuple[str, ...]


def train(
    model: nn.Module,
    data: PairTensors,
    optim: OptimConfig,
    seed: int,
    moves: AugmentationConfig | None,
    workplace: Workplace,
    best: BestWeights | None = None,
) -> TrainReport | None:
    """Train a network for ``optim.images`` images, from the newest checkpoint if there is one.

    Args:
        model: built by :func:`build`; :class:`hvae_hpc.config.kinds.GeneratorConfig` says what it
            has; a U-Net has no ``decode``.
        data: on the model's device.
        optim: how.
        seed: of order, augmentation and noise.
        moves: augmentation of the pairs in every step; None for none.
        workplace: its folder takes checkpoints and log.jsonl; ``stopped`` is asked between steps.
            With a ``world`` above 1 as many processes call this, and the first of them writes.
        best: measures held-out pairs, and keeps the weights to use; None for the last ones.

    Returns:
        The report, the same in all processes; None where the training was asked to leave. Its
        checkpoint is written then.

    Raises:
        UserError: losses became non-finite again and again; the memory was not enough; processes
            cannot share a batch, meet, or stay together.
    """
    memory = MemoryChoice(model, optim.batch_size, workplace, data.images.device)

    def start(model: nn.Module, best: BestWeights | None) -> _Training:
        return _Training(model, data, optim, seed, moves, memory, best)

    def rehearse(notes: list[str]) -> None:
        good = saved.get("good_images_seen", 0)  # a roll-back may go there, to other steps
        start(copy.deepcopy(model), None).rehearse(good, notes)

    try:
        with join_team(workplace, memory.device) as team:
            saved = load_checkpoint(workplace.folder, team) or {}
            memory.change(**saved.get("memory", {}))
            memory.find_fitting(rehearse, team)
            return start(model, best).run(team, saved)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(memory.explain(data.image_size)) from error


class _Training:
    """A training under way: what it changes, and the steps of its loop."""

    def __init__(
        self,
        model: nn.Module,
        data: PairTensors,
        optim: OptimConfig,
        seed: int,
        moves: AugmentationConfig | None,
        memory: MemoryChoice,
        best: BestWeights | None,
    ) -> None:
        self.model, self.best, self.data, self.optim, self.seed = model, best, data, optim, seed
        self.moves, self.memory, self.workplace = moves, memory, memory.workplace
        self.device = data.images.device
        self.part = part_of_batch(optim.batch_size, self.workplace)

        self.images_seen = 0
        self.phases: tuple[Phase, ...] = model.phases()  # type: ignore[operator]
        self.optimizers = [make_optimizer(phase, optim) for phase in self.phases]
        self.average = MovingAverage(model, optim.ema_decay) if optim.ema_decay > 0 else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=optim.precision == "fp16")
        self.rate = 0.0

        # Where it can go back to, and how often it did so: each time halves the step from then on.
        self.good_images_seen, self.good_state = 0, State()
        self.rollbacks = 0

        # How the network is called.
        resources = memory.resources
        if hasattr(model, "recompute"):
            setattr(model, "recompute", resources.recompute)  # noqa: B010
        shapes = (data.image_size, memory.rows, optim.precision, resources.recompute)
        self.forward = CompiledForward(
            model, memory.compiled, self.workplace, shapes, memory.budget, memory.cuda_graphs
        )
        self.forwards: list[nn.Module] = [self.forward for _ in self.phases]
        self.notes = list(memory.notes)
        if memory.rows < memory.share:
            self.notes.append(f"batches in parts of {memory.rows} pairs")

    def rehearse(self, images_seen: int, notes: list[str]) -> None:
        """Take the steps that cost most, to see what they need; the weights are thrown away.

        These are the training's last step, which has all that comes on late, and the one at
        ``images_seen`` if it is of another kind. The first makes the optimizers' moments and a good
        state. The copied network stands for DDP's buckets. ``notes`` takes failures of compiling.
        """
        notes += self.forward.notes
        self.forward.notes = notes
        self.team, self.reader = ALONE, TermReader(ALONE)
        kinds = set[frozenset[str]]()
        with contextlib.closing(self.forward):
            for at in (self.optim.images - self.optim.batch_size, images_seen):
                self.images_seen, share = at, at / self.optim.images
                kind = frozenset(self.model.draw(1, share, torch.Generator()))  # type: ignore[operator]
                if kind not in kinds:
                    for _ in range(3 if self.memory.cuda_graphs else 2):  # the second records
                        self.take_step()
                        if not self.good_state:
                            self.keep_good(at, self.state())
                    kinds.add(kind)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # what went wrong is told here
        if self.memory.cuda_graphs:
            CompiledForward.graphs_of = None  # those of the copy's addresses go

    def run(self, team: Team, saved: State) -> TrainReport | None:
        """Train to the end, or until one of the processes is asked to leave.

        Args:
            team: the processes of the run.
            saved: the newest checkpoint; empty for none.
        """
        checkpoint_every_s = self.workplace.resources.checkpoint_every_s
        with contextlib.closing(self.forward):
            self.team, self.reader = team, TermReader(team)
            self.saved_at = time.monotonic()
            self.restore(saved)
            self.tensorboard = open_tensorboard(self.workplace, self.images_seen)
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
                        return None

        if self.tensorboard:
            self.tensorboard.close()
        state, terms = self.weights_to_use(), self.reader.means
        if self.best and self.best.weights:
            state, terms = self.best.weights, {**terms, **self.best.terms()}
        weights = {name: value.detach().cpu().clone() for name, value in state.items()}
        return TrainReport(terms, weights, tuple(self.notes + self.forward.notes))

    def weights_to_use(self) -> Tensors:
        """Return the averaged weights, or the live ones where none are averaged."""
        return self.average.state if self.average else self.model.state_dict()

    def check_held_out(self, best: BestWeights) -> None:
        """Measure and log held-out loss and copies; nothing is compiled for so few pairs."""
        stance = torch.compiler.set_stance if self.forward.parts else contextlib.nullcontext
        with stance("force_eager"):
            measured = best.check(self.weights_to_use(), self.images_seen)
        self.workplace.log({"event": "held_out", "images_seen": self.images_seen, **measured})

    def restore(self, saved: State) -> None:
        """Go on from a checkpoint, if there is one, and keep a copy to go back to."""
        if not saved:
            self.keep_good(0, self.state())
            return
        with loading(f"{self.workplace.folder}: its checkpoint"):
            self.images_seen = int(saved["images_seen"])
            self.load(saved)
            self.rollbacks = saved["rollbacks"]
            self.keep_good(saved["good_images_seen"], saved["good"] or self.state())
        self.workplace.log({"event": "resumed", "images_seen": self.images_seen})

    def take_step(self) -> Tensors:
        """Move the weights by one batch, phase by phase; returns terms, on the device."""
        batch = make_batch(
            self.model, self.data, self.optim, self.seed, self.moves, self.images_seen, self.part
        )
        self.rate = 0.5**self.rollbacks * learning_rate(self.optim, self.images_seen)

        terms: Tensors = {}
        for phase, optimizer, forward in zip(
            self.phases, self.optimizers, self.forwards, strict=True
        ):
            if self.images_seen / self.optim.images < phase.starts:
                continue
            move_only(phase, self.phases)
            loss = self.pull_back(forward, phase, batch)

            # From here on the gradients are the same in all processes.
            self.scaler.unscale_(optimizer)
            most = self.optim.clip_norm or math.inf
            norm = nn.utils.clip_grad_norm_(phase.network.parameters(), most)
            move_weights(optimizer, norm, self.scaler, self.rate)

            ending = "" if len(self.phases) == 1 else f"_{phase.name}"
            terms |= {**loss.terms, f"loss{ending}": loss.total}
            if not self.scaler.is_enabled():  # float16 overflows now and then; the scaler copes
                terms[f"gradient_norm{ending}"] = norm

        self.scaler.update()
        if self.average:
            self.average.update()
        return terms

    def pull_back(self, forward: nn.Module, phase: Phase, batch: Batch) -> Loss:
        """Compute the gradients of a batch; returns its loss and terms."""
        try:
            return self.pull_back_parts(forward, phase, batch)
        except Exception as error:
            # Other processes count on this one's gradients: there it cannot begin again.
            if forward is not self.forward or not self.forward.fall_back(error):
                raise
        return self.pull_back_parts(forward, phase, batch)

    def pull_back_parts(self, forward: nn.Module, phase: Phase, batch: Batch) -> Loss:
        """Compute the gradients of a batch, part by part; returns its loss and terms."""
        phase.network.zero_grad(set_to_none=True)
        precision = self.optim.precision
        parts = split_batch(batch, self.memory.rows)
        total, terms = torch.zeros((), device=self.device), Tensors()
        if self.memory.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        for part in parts:
            share = len(part["image"]) / len(batch["image"])
            with torch.autocast(self.device.type, AUTOCAST[precision], enabled=precision != "fp32"):
                loss: Loss = forward(part, phase.name)
            self.scaler.scale(share * loss.total).backward()
            if len(parts) == 1 and not self.memory.cuda_graphs:  # those overwrite it
                return loss
            total = total + share * loss.total.detach()
            for name, term in loss.terms.items():
                terms[name] = share * term.float().mean() + terms.get(name, 0.0)
        return Loss(total, terms)

    def close_window(self, at_end: bool) -> None:
        """Read and log the terms of a window of steps; what is good so far is copied."""
        window = {"lr": self.rate, **self.reader.close_window()}
        self.workplace.log({"images_seen": self.images_seen, **window})
        if self.tensorboard:
            for name, value in window.items():
                self.tensorboard.add_scalar(name, value, self.images_seen)
            self.tensorboard.flush()
        if not at_end:
            self.keep_good(self.images_seen, self.state())

    def keep_good(self, images_seen: int, state: State) -> None:
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
        if self.tensorboard:
            self.tensorboard.close()
            self.tensorboard = open_tensorboard(self.workplace, self.images_seen)
        event = {"event": "rolled_back", "images_seen": self.images_seen, "reason": str(error)}
        self.workplace.log(event)
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
            "memory": self.memory.changes,
        }
        save_checkpoint(self.workplace.folder, self.images_seen, {**self.state(), **good})
        self.saved_at = time.monotonic()

    def state(self) -> State:
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

    def load(self, state: State) -> None:
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
