"""How often to save: as often as is cheap against what a preemption would cost."""

import math
import time

from hvae_hpc.config.resources import Resources

_FIRST_S = 60.0
_SHORTEST_S, _LONGEST_S = 30.0, 1800.0


class SaveClock:
    """Says when the next checkpoint is due: sqrt(2 C M) after the last one (Young 1974).

    C is what saving cost the last time, M the mean time between preemptions and failures: together,
        saving and the work
    that is lost then cost least.
    """

    def __init__(self, resources: Resources) -> None:
        self.fixed, self.uptime_s = resources.checkpoint_every_s, resources.mean_uptime_s
        self.interval_s = _FIRST_S if self.fixed is None else self.fixed
        self.saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Say whether it is time."""
        return time.monotonic() - self.saved_at > self.interval_s

    def saved(self, cost_s: float) -> None:
        """Start anew after a checkpoint that took ``cost_s``."""
        self.saved_at = time.monotonic()
        if self.fixed is None:
            self.interval_s = young_interval(cost_s, self.uptime_s)


def young_interval(cost_s: float, uptime_s: float) -> float:
    """Return sqrt(2 C M), between half a minute and half an hour.

    Args:
        cost_s: C, s.
        uptime_s: M, s.

    Source: Young, J. W. (1974): A first order approximation to the optimum checkpoint interval.
    """
    return min(_LONGEST_S, max(_SHORTEST_S, math.sqrt(2 * cost_s * uptime_s)))
