"""Back to the last good state with a smaller step, when a training leaves the numbers.

A copy of the whole training is kept in memory at the end of every window of steps that was read and
found finite; the windows lie at fixed numbers of images seen, so going back depends on no clock. A
checkpoint written inside a window carries the copy along.

The flow's step shrinks for all pairs alike. Were it halved for those pairs alone whose energy
explodes, it would depend on where a pair starts. Two starts could then end in one place, but the
bound needs a flow that is one to one.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hvae_hpc.errors import NonFiniteError

MOST_ROLLBACKS = 3
"""More hardly help: the step is then an eighth, and what is wrong is something else."""


@dataclass
class LastGood:
    """Where a training can go back to.

    Attributes:
        images_seen: at the copy.
        state: the copy.
        rollbacks: how often the training went back so far; each halves the step from then on.
    """

    images_seen: int
    state: dict[str, Any]
    rollbacks: int = 0

    @property
    def step_share(self) -> float:
        """What is left of the learning rate, and of a flow's step size."""
        return float(0.5**self.rollbacks)

    def take(self, images_seen: int, state: Mapping[str, Any]) -> None:
        """Copy a state that was found to be good."""
        self.images_seen, self.state = images_seen, copy.deepcopy(dict(state))

    def go_back(
        self, error: NonFiniteError, load: Callable[[dict[str, Any]], None], model: nn.Module
    ) -> None:
        """Load the copy and halve the step.

        Args:
            error: what became not finite, and when.
            load: puts a state into the training.
            model: whose ``shrink_step`` is told what is left of the step, if it has one.

        Raises:
            NonFiniteError: it went back too often; names the term and the images seen.
        """
        if self.rollbacks == MOST_ROLLBACKS:
            raise NonFiniteError(
                f"{error}, also after going back {MOST_ROLLBACKS} times with half the step each; "
                "try a smaller optim.lr (or model.step_size, for an HVAE), or precision fp32"
            ) from error
        self.rollbacks += 1
        load(copy.deepcopy(self.state))
        shrink = getattr(model, "shrink_step", None)
        if shrink:
            shrink(self.step_share)
