"""What a sweep file says: data sets, generators, doses, seeds, trainings; checked, with defaults.

It is not yet runs: :mod:`hvae_hpc.jobs.sweeps.expand` multiplies it out.
"""

import re
from dataclasses import field
from typing import Any

from hvae_hpc.config.arms import USES, Budget
from hvae_hpc.config.augmentations import FREE, MixingConfig, MixupConfig
from hvae_hpc.config.kinds import AugmentationConfig, GeneratorConfig, Sampler
from hvae_hpc.config.loader import added_later
from hvae_hpc.config.model import MovesConfig, OptimConfig, UNetConfig, require
from hvae_hpc.config.stages import SplitConfig, source_name
from hvae_hpc.frozen import frozen

MOST_SEEDS = 100_000
TAKEN_NAMES = ("real", "mean", "standard", "copies", "moved", "reference", *FREE)
SET_BY_THE_PLANNER = {
    "likelihood": ("generator",),
    "generate": ("generator", "sampler", "mixing"),
    "augment": ("n_pairs",),
    "quality": ("source",),
}
"""Fields of a stage's config that follow from the rest of the sweep, beside those of all stages."""


@frozen
class GeneratorSettings:
    """One generator of a sweep: its network and its training; see :class:`TrainConfig`."""

    model: GeneratorConfig
    optim: OptimConfig
    moves: AugmentationConfig = MovesConfig()
    n_cases: int = added_later(0)


@frozen
class SegmentSettings:
    """How every arm's U-Net is trained.

    Attributes:
        epochs: passes over the arm's pairs; turned into images and rounded up to whole batches.
        budget: "epochs": every arm has its own pairs that often, so larger arms take more steps, as
            in the paper. "steps": every arm takes the steps of the largest.
        optim: fields of OptimConfig but ``images``.
        synthetic_share: share of every batch that is synthetic, in arms that join real and
            synthetic pairs; 0 shows every pair equally often, as in the paper.
        moves: the augmentation in every step of arms called "moved".
        augmentations: further ones by name; an arm of that name has it in every step.
    """

    unet: UNetConfig = UNetConfig()
    epochs: int = 80
    budget: Budget = "epochs"
    optim: dict[str, Any] = field(default_factory=dict)
    moves: AugmentationConfig = MovesConfig()
    augmentations: dict[str, AugmentationConfig] = field(default_factory=dict)
    loss: str = "dice+ce"
    threshold: float = 0.5
    synthetic_share: float = 0.5

    def __post_init__(self) -> None:
        require("more than 0", self, "epochs")
        require("a number in [0, 1)", self, "synthetic_share")
        if "images" in self.optim:
            raise ValueError("optim.images follows from epochs; remove it")


@frozen
class SweepConfig:
    """What a sweep file says.

    Attributes:
        name: names the plan and the tables.
        about: one line for people.
        data: names of the data sets; each is also the name of its recipe and of its folder.
        shards: folder in which the data sets' folders lie.
        runs: the runs folder where the command names none.
        phantoms: made-up cases to make of each data set where it is missing; 0 for never.
        image_px: side to which images are shrunk; 0 for as packed.
        seeds: U-Net seeds of every arm.
        splits, generator_seeds: draws of cases, and trainings of each generator; both multiply the
            generators.
        split: how many cases train and test; its seed is the first split's.
        factors: standard arms; xF is F times the real pairs in total.
        doses: synthetic arms of every generator; +n adds the first n accepted pairs.
        combined: factors whose moved copies are added to each dose as well, as arms of their own.
        on_top: augmentations in every step; each dose comes on top of each of them as well.
        arms: further ones by name (:mod:`hvae_hpc.config.arms`); where a data set has too few cases
            for a "real-N", it goes without, and the plan says so.
        mixed: augmentations that mix pairs; each is a source of stored pairs, as generators are.
        generators: name to settings.
        samplers: each makes pairs of every generator with an encoder, and arms of their own; an
            LSGAN has its prior.
        smallest_effect: difference in Dice below which arms count as equivalent. Only the tables
            read it: no run changes with it.
        likelihoods: estimate the likelihood of held-out cases under every (H)VAE with a Gaussian
            image.
        likelihood, generate, augment, quality: fields of those stages' configs that differ from the
            defaults.
    """

    name: str
    about: str = ""
    data: tuple[str, ...]
    shards: str = "shards"
    runs: str = "runs"
    phantoms: int = 0
    image_px: int = 0
    seeds: int = 10
    splits: int = 1
    generator_seeds: int = 1
    split: SplitConfig = SplitConfig()
    factors: tuple[int, ...] = (2, 3, 5)
    doses: tuple[int, ...] = (100, 200, 300, 500)
    combined: tuple[int, ...] = ()
    on_top: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    generators: dict[str, GeneratorSettings] = field(default_factory=dict)
    samplers: tuple[Sampler, ...] = ("prior",)
    smallest_effect: float = 0.02
    likelihoods: bool = False
    likelihood: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    segment: SegmentSettings = field(default_factory=SegmentSettings)

    def __post_init__(self) -> None:
        require("0 or more", self, "image_px", "phantoms")
        for table, set_here in SET_BY_THE_PLANNER.items():
            for key in getattr(self, table):
                if key in (*set_here, "data", "split", "image_px", "seed"):
                    raise ValueError(f"{table}.{key} follows from the rest of the sweep; remove it")
        for name in ("seeds", "splits", "generator_seeds"):
            if not 1 <= getattr(self, name) <= MOST_SEEDS:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {MOST_SEEDS}")
        require("one or more names", self, "data", "samplers")
        require("each once", self, "data", "samplers", "factors", "doses", "combined", "arms")
        require("each once", self, "on_top", "mixed")
        require("numbers of 2 or more", self, "factors", "combined")
        require("numbers of 1 or more", self, "doses")
        require("more than 0", self, "smallest_effect")
        self._check_names()

    def _check_names(self) -> None:
        """Refuse names that cannot be folders, or that the tables cannot tell apart."""
        augmentations = self.segment.augmentations
        for name in (self.name, *self.data, *self.generators, *augmentations):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", name):
                raise ValueError(
                    f"{name!r} cannot be a name; use letters, digits, '.', '_' and '-'"
                )
        # Mixup's pairs cannot be stored: their masks are soft.
        mixing = [
            name
            for name, kind in {**FREE, **augmentations}.items()
            if isinstance(kind, MixingConfig) and not isinstance(kind, MixupConfig)
        ]
        if unknown := set(self.mixed) - set(mixing):
            raise ValueError(f"mixed has {min(unknown)!r}, expected some of {', '.join(mixing)}")
        for name, settings in self.generators.items():
            if name in ("vae", "hvae") and getattr(settings.model, "is_hybrid", False):
                raise ValueError(
                    f"generator {name!r} is trained with a discriminator or a perceptual term, "
                    f"so it is another generator; call it {name}-gan"
                )
        for name in (*self.generators, *augmentations):
            if name in TAKEN_NAMES or name.rpartition("-")[2] in USES:
                raise ValueError(
                    f"no generator or augmentation can be called {name!r}, "
                    "as the names of arms need that word; give it another name"
                )
        if both := self.generators.keys() & augmentations.keys():
            raise ValueError(
                f"{min(both)!r} is a generator and an augmentation; rename one of them"
            )

        sources = [source_name(name, s) for name in self.generators for s in self.samplers]
        if len(set(sources)) < len(sources):
            raise ValueError(f"the names of pairs are {sources}, expected each once")
