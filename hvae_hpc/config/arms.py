"""The arms of a study: what a U-Net is trained on, and the names that a sweep file has for it.

| name | trained on |
|---|---|
| ``reference`` | the real training pairs |
| ``standard-x5``, ``copies-x5`` | these, and moved or plain copies: 5 times as many in all |
| ``moved``, ``nnunet``, ``cutmix``, ``mixup``, ``carvemix``, ``tumorcp`` | these, augmented |
| ``real-300`` | the pairs of 300 real cases: the training cases, and others that nobody tests on |
| ``hvae+100``, ``hvae-aggregated+100`` | with the first 100 synthetic pairs of a source |
| ``hvae-shuffled+100`` | with these, each under another one's mask |
| ``hvae-nearest+100`` | with the real training pairs that are nearest to these |
| ``hvae-only+100`` | on these alone |
| ``hvae-first+100`` | on these alone in the first half of the training, then on the real ones |

Augmentations act in every step; one of the sweep's own is an arm as well. Names are joined by "+"
(``standard-x5+hvae+100``, ``nnunet+cutmix``). They end in ``@steps`` or ``@epochs`` where an
arm's budget is not the sweep's.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, cast, get_args

from hvae_hpc.config.augmentations import join
from hvae_hpc.config.kinds import AugmentationConfig
from hvae_hpc.config.loader import added_later
from hvae_hpc.config.model import require
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen

Budget = Literal["epochs", "steps"]
USES: dict[str, dict[str, Any]] = {
    "shuffled": {"shuffled": True},
    "nearest": {"nearest": True},
    "only": {"alone": True},
    "first": {"first_share": 0.5},
}
"""Endings of a source's name, and what they say of how its pairs are used."""


@frozen
class ArmConfig:
    """One row of Table 1: what the segmentation network is trained on.

    Attributes:
        name: "reference", "standard-x5", "hvae+100".
        generator: source of the synthetic pairs; "" where there are none.
        n_synthetic: synthetic pairs added to the real ones.
        n_standard: moved copies added to the real ones.
        n_copies: plain copies added to the real ones, copy i of real pair i modulo their number.
        n_cases: real cases; 0 for the split's training cases.
        shuffled: every synthetic image has another one's mask.
        nearest: the real training pair with the nearest image stands for every synthetic pair.
        alone: the synthetic pairs are all there is.
        first_share: share of the training, from its start, in which the synthetic pairs are all
            there is, and after which they are gone; 0 for pairs that are there throughout.
        synthetic_share: share of every batch that is synthetic; 0 shows every pair equally often.
        moves: augmentation of all pairs in every step; None for none.
        generator_seed: which training of the generator.
    """

    name: str
    generator: str = ""
    n_synthetic: int = 0
    n_standard: int = 0
    n_copies: int = 0
    n_cases: int = 0
    shuffled: bool = False
    alone: bool = False
    first_share: float = 0.0
    moves: AugmentationConfig | None = None
    generator_seed: int = 0
    synthetic_share: float = added_later(0.0)
    nearest: bool = added_later(False)

    def __post_init__(self) -> None:
        require("a share between 0 and 1", self, "first_share")
        require("a number in [0, 1)", self, "synthetic_share")
        stands_alone = self.alone or self.first_share
        has_copies = self.n_standard or self.n_copies
        if (self.shuffled or self.nearest or stands_alone) and not self.n_synthetic:
            raise ValueError(
                "shuffled, nearest, alone and first_share are about synthetic pairs; add some"
            )
        if stands_alone and has_copies:
            raise ValueError("its synthetic pairs stand alone, so no copies are added to them")
        if self.n_cases and (has_copies or stands_alone):
            raise ValueError(
                "copies, and pairs that stand alone, go with the split's training cases; "
                "leave n_cases at 0"
            )

    @property
    def n_added(self) -> int:
        """Pairs added to the real ones."""
        return self.n_synthetic + self.n_standard + self.n_copies


def parse_arm(
    name: str,
    sources: Collection[str],
    n_real: int,
    augmentations: Mapping[str, AugmentationConfig],
) -> ArmConfig:
    """Read an arm's name.

    Args:
        name: see the table above; a budget at its end is left to :func:`budget_of`.
        sources: of synthetic pairs: generators, and these with a sampler.
        n_real: real training pairs, which factors multiply.
        augmentations: those in every step, by name.

    Raises:
        UserError: the name says nothing, names no source, or what it asks for contradicts itself.
    """
    fields: dict[str, Any] = {}
    in_every_step: list[AugmentationConfig] = []
    parts = name.split("@")[0].split("+")
    while parts:
        part = parts.pop(0)
        source, use = _source_and_use(part, sources)
        if factor := re.fullmatch(r"(standard|copies)-x([1-9]\d*)", part):
            new: dict[str, Any] = {f"n_{factor[1]}": (int(factor[2]) - 1) * n_real}
        elif cases := re.fullmatch(r"real-([1-9]\d*)", part):
            new = {"n_cases": int(cases[1])}
        elif part == "reference" and not parts and not fields and not in_every_step:
            new = {}
        elif source and parts and re.fullmatch(r"[1-9]\d*", parts[0]):
            new = {"generator": source, "n_synthetic": int(parts.pop(0)), **USES.get(use, {})}
        elif part in augmentations and augmentations[part] not in in_every_step:
            in_every_step.append(augmentations[part])
            continue
        else:
            raise UserError(
                f"arm {name!r}: {part!r}: expected reference alone or, each once, "
                f"{', '.join(augmentations)}, "
                "standard-xF, copies-xF, real-N or SOURCE+N, with a SOURCE of "
                f"{', '.join(sources) or 'none'}, or SOURCE-{', SOURCE-'.join(USES)}"
            )

        if set(new) & set(fields) or 0 in new.values():
            raise UserError(
                f"arm {name!r}: {part!r}, expected each kind of pairs once, "
                "and a factor of 2 or more"
            )
        fields |= new

    if in_every_step:
        fields["moves"] = join(in_every_step)
    try:
        return ArmConfig(name=name, **fields)
    except ValueError as error:
        raise UserError(f"arm {name!r}: {error}") from error


def budget_of(name: str, default: Budget) -> Budget:
    """Return the budget at the end of an arm's name, or the sweep's.

    Raises:
        UserError: no such budget.
    """
    _, at, budget = name.partition("@")
    if not at:
        return default
    if budget not in get_args(Budget):
        raise UserError(f"arm {name!r}: ends in {at + budget!r}, expected @epochs or @steps")
    return cast(Budget, budget)


def _source_and_use(part: str, sources: Collection[str]) -> tuple[str, str]:
    """Split "hvae-shuffled" into source and use; two empty strings where it names no source."""
    if part in sources:
        return part, ""
    source, _, use = part.rpartition("-")
    return (source, use) if source in sources and use in USES else ("", "")
