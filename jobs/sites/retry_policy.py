"""The classes of failure, and the rules of retries: how often a run is retried, and what changes.

``retry_policy.toml`` holds a rule for each class, and site files may lay theirs over it. This
module does not know why a run failed (:mod:`hvae_hpc.jobs.failures.classify`), or what was retried
before (:mod:`hvae_hpc.jobs.failures.retry`).
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from hvae_hpc.config.loader import load, merge, read_toml
from hvae_hpc.config.model import require
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.run import Run

POLICY = Path(__file__).parent / "retry_policy.toml"
Failure = Literal[
    "out of memory (host)",
    "out of memory (device)",
    "time limit with progress",
    "time limit without progress",
    "preempted",
    "node failure",
    "device error",
    "disk full or quota",
    "non-finite loss",
    "bad input",
    "code error",
    "blocked by parent",
    "lost",
]
FAILURES: tuple[Failure, ...] = get_args(Failure)


@frozen
class Rule:
    """The retries after one class of failure.

    Attributes:
        times: that a run may be retried after it; 0 for never.
        memory: factor of the host memory.
        minutes: factor of the time limit that was reached.
        micro_batch: factor of the pairs that go through the network at once.
        exclude_hours: how long no run of ours goes to that node.
    """

    times: int = 0
    memory: float = 1.0
    minutes: float = 1.0
    micro_batch: float = 1.0
    exclude_hours: float = 0.0

    def __post_init__(self) -> None:
        require("0 or more", self, "times", "exclude_hours")
        require("1 or more", self, "memory", "minutes")
        require("a number in (0, 1]", self, "micro_batch")


def check_tables(tables: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse tables that are none, or have no known name; ``where`` says whose they are."""
    for name, table in tables.items():
        if name not in known:
            raise UserError(f"{where}: unknown table {name!r}; expected one of {', '.join(known)}")
        if not isinstance(table, dict):
            raise UserError(f"{where}: {name}: got {table!r}, expected a table [{name}]")


def read_rules(layers: Mapping[str, Any]) -> dict[Failure, Rule]:
    """Return the rule of each class: the library's table, and over it those of site files.

    Args:
        layers: where each came from to its table ``[retry]``, the last one uppermost.

    Raises:
        UserError: an unknown class or key, or a refused value, with its place.
    """
    rules, last = read_toml(POLICY, POLICY.parent), str(POLICY)
    for where, layer in layers.items():
        check_tables(layer, FAILURES, f"{where}: retry")
        rules, last = merge(rules, layer), where
    return {name: load(Rule, rules[name], f'{last}: retry."{name}"') for name in FAILURES}


def change(
    rule: Rule,
    run: Run,
    had: Resources,
    before: Mapping[str, Any],
    fit: Callable[[Resources], tuple[Resources, str]],
) -> dict[str, Any] | None:
    """Return the fields of a run's resources that a retry has otherwise; None for no retry.

    Args:
        rule: of the class of its failure.
        run: that failed.
        had: what it could have had.
        before: the same by name, with the time limit that it had, which may be shorter.
        fit: cuts resources to what may be asked for, and says what it cut.
    """
    asked: dict[str, Any] = {}
    if rule.memory > 1:
        asked["memory_gb"] = round(had.memory_gb * rule.memory, 1)
    if rule.minutes > 1:
        asked["minutes"] = math.ceil(before["minutes"] * rule.minutes)
    pairs = _pairs_at_once(run, had)
    if rule.micro_batch < 1 and pairs > 1:
        asked["micro_batch"] = max(1, math.floor(pairs * rule.micro_batch))

    fitted = vars(fit(replace(had, **asked))[0])
    changes = {name: fitted[name] for name in asked if fitted[name] != before[name]}
    # A rule that changes resources is of no use where nothing can be changed.
    is_change_due = rule.memory > 1 or rule.minutes > 1 or rule.micro_batch < 1
    return changes if rule.times > 0 and (changes or not is_change_due) else None


def _pairs_at_once(run: Run, had: Resources) -> int:
    """Return how many pairs go through the network at once; 1 where fewer change its numbers."""
    config = run.config
    if not (isinstance(config, TrainConfig) and config.model.pairs_apart):
        return 1
    share = config.optim.batch_size // had.tasks
    return min(share, had.micro_batch or share)


def in_words(changes: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Return what a retry has otherwise than a run had: "memory_gb 16 -> 24", or "as it was"."""
    words = [
        f"{name} {before[name]:g} -> {value:g}" if before[name] else f"{name} {value:g}"
        for name, value in changes.items()
    ]
    return ", ".join(words) or "as it was"
