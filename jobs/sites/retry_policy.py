"""The classes of failure, and what may be done about each: how often a run is tried again, and with what changed.

The table ``policy.toml`` says it, and site files may lay theirs over it; nothing here knows why a
run failed (:mod:`hvae_hpc.jobs.failures.classify`) or whether it was tried before
(:mod:`hvae_hpc.jobs.failures.retry`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hvae_hpc.config.loader import load, merge, read_toml
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.runs.run import Run

POLICY = Path(__file__).parent / "retry_policy.toml"
Failure = Literal[
    "out of memory (host)",
    "out of memory (device)",
    "time limit with progress",
    "time limit without progress",
    "preempted",
    "node failure",
    "disk full or quota",
    "non-finite loss",
    "bad input",
    "code error",
    "blocked by parent",
    "lost",
]
FAILURES: tuple[Failure, ...] = get_args(Failure)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What trying again means after one class of failure.

    Attributes:
        times: that a run may be tried again after it; 0 for never.
        memory: the next try has so many times the host memory.
        minutes: the next try has so many times the time limit that was reached.
        micro_batch: the next try has this share of the pairs at once; 1 for as many.
        exclude_hours: how long no run of ours goes to that node; 0 for no such time.
        unchanged: it pays also where none of that can be changed.
    """

    times: int = 0
    memory: float = 1.0
    minutes: float = 1.0
    micro_batch: float = 1.0
    exclude_hours: float = 0.0
    unchanged: bool = False

    def __post_init__(self) -> None:
        if self.times < 0 or self.exclude_hours < 0:
            raise ValueError(
                f"times is {self.times}, exclude_hours {self.exclude_hours}; expected 0 or more"
            )
        if self.memory < 1 or self.minutes < 1:
            raise ValueError(
                f"memory is {self.memory}, minutes {self.minutes}; expected factors of 1 or more"
            )
        if not 0 < self.micro_batch <= 1:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, expected a share above 0, up to 1"
            )

    @property
    def asks_for_more(self) -> bool:
        """Whether the next try is to differ from the last."""
        return self.memory > 1 or self.minutes > 1 or self.micro_batch < 1


def read_rules(layers: Mapping[str, Any]) -> dict[Failure, Rule]:
    """Return the rule of each class: the library's table, and over it those of site files.

    Args:
        layers: where each came from to its table ``[retry]``, the last one uppermost.

    Raises:
        UserError: an unknown class or key, or a refused value, with its place.
    """
    table, where_from = read_toml(POLICY, POLICY.parent), str(POLICY)
    for where, over in layers.items():
        for name, rule in over.items() if isinstance(over, Mapping) else [("", over)]:
            if name not in FAILURES or not isinstance(rule, Mapping):
                known = ", ".join(f'[retry."{failure}"]' for failure in FAILURES)
                raise UserError(f"{where}: retry: got {name or rule!r}, expected tables {known}")
        table, where_from = merge(table, over), where
    return {
        failure: load(Rule, table[failure], f'{where_from}: retry."{failure}"')
        for failure in FAILURES
    }


def change(
    rule: Rule, run: Run, had: Resources, minutes: int, fit: Callable[[Resources], Resources]
) -> dict[str, Any] | None:
    """Return the fields of a run's resources that the next try has otherwise; None where it is not to be made.

    Args:
        rule: of the class of its failure.
        run: that failed.
        had: what it had.
        minutes: the time limit that it had, which may be less than its stage's longest; 0 for that.
        fit: cuts resources to what may be asked for.
    """
    asked: dict[str, Any] = {}
    minutes = minutes or had.minutes
    if rule.memory > 1:
        asked["memory_gb"] = round(had.memory_gb * rule.memory, 1)
    if rule.minutes > 1:
        asked["minutes"] = math.ceil(minutes * rule.minutes)
    if (
        rule.micro_batch < 1
        and isinstance(run.config, TrainConfig)
        and run.config.model.pairs_apart
    ):
        share = run.config.optim.batch_size // had.tasks
        pairs = min(share, had.micro_batch or share)
        asked["micro_batch"] = max(1, math.floor(pairs * rule.micro_batch))
        if pairs == 1:
            del asked["micro_batch"]
    fitted = fit(replace(had, **asked))
    before = replace(had, minutes=minutes) if "minutes" in asked else had
    changes = {
        name: getattr(fitted, name)
        for name in asked
        if getattr(fitted, name) != getattr(before, name)
    }
    if rule.times == 0 or (rule.asks_for_more and not changes and not rule.unchanged):
        return None
    return changes


def in_words(changes: Mapping[str, Any], had: Resources, minutes: int) -> str:
    """Return what the next try has otherwise than a run had, in a few words: "memory_gb 16 -> 24"."""
    before = {**vars(had), "minutes": minutes or had.minutes}
    shown = {name: f"{name} {before[name]:g} ->" if before[name] else name for name in changes}
    return ", ".join(f"{shown[name]} {value:g}" for name, value in changes.items()) or "as it was"
