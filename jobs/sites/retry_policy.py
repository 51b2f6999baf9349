"""The classes of failure, and the rules of retries: how often a run is retried, and what changes.

``retry_policy.toml`` holds a rule for each class, and site files may lay theirs over it. This
module does not know why a run failed (:mod:`hvae_hpc.jobs.failures.classify`), or what was retried
before (:mod:`hvae_hpc.jobs.failures.retry`).
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from hvae_hpc.config.loader import load, merge, read_toml
from hvae_hpc.config.model import require
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen

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
