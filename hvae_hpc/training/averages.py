"""What a training averages: its weights over the steps, and its terms over windows of steps."""

import math

import torch
from torch import Tensor, nn

from hvae_hpc.errors import NonFiniteError
from hvae_hpc.training.distributed import Team


class MovingAverage:
    """The exponential moving average of a network's weights.

    Early steps count more, or the initial weights would weigh on it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.model = model
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    @torch.no_grad()
    def update(self) -> None:
        """Move a step towards the weights and BatchNorm's statistics; all else is copied."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))

        averages, values = [], []
        for name, value in self.model.state_dict().items():
            if name in self.learned or name.rpartition(".")[2] in ("running_mean", "running_var"):
                averages.append(self.state[name])
                values.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)


class TermReader:
    """Gathers terms on the device, reads them now and then, and averages them over windows.

    The windows lie at fixed numbers of images, whether or not the training was stopped in between:
    what was read of the current one is part of the checkpoint. Each process sees its own pairs, so
    what it reads it averages with the others.
    """

    def __init__(self, team: Team) -> None:
        self.team = team
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.window: dict[str, list[float]] = {}
        self.means: dict[str, float] = {}

    def add(self, images_seen: int, terms: dict[str, Tensor]) -> None:
        """Keep one step's terms, without waiting for them."""
        means = {name: term.detach().float().mean() for name, term in terms.items()}
        self.pending.append((images_seen, means))

    def read(self) -> None:
        """Wait for what was added and put it into the window.

        Raises:
            NonFiniteError: a term was not finite, in all processes if in one; it names the term and
                the images seen.
        """
        scalars = [term for _, terms in self.pending for term in terms.values()]
        # The device is waited for once, however many numbers there are; some are the host's.
        own = [0.0] * len(scalars)
        for device in {term.device for term in scalars}:
            places = [i for i, term in enumerate(scalars) if term.device == device]
            read = torch.stack([scalars[i] for i in places]).tolist()
            for i, number in zip(places, read, strict=True):
                own[i] = number
        numbers = iter(self.team.mean(own))
        for images_seen, terms in self.pending:
            for name in terms:
                number = next(numbers)
                if not math.isfinite(number):
                    raise NonFiniteError(f"{name} became {number} at images_seen = {images_seen}")
                self.window.setdefault(name, []).append(number)
        self.pending.clear()

    def forget(self, window: dict[str, list[float]]) -> None:
        """Drop what was added, and go on from a window as it was."""
        self.pending.clear()
        self.window = window

    def close_window(self) -> dict[str, float]:
        """Return the window's means and start a new one."""
        self.read()
        self.means = {name: sum(numbers) / len(numbers) for name, numbers in self.window.items()}
        self.window = {}
        return self.means
