"""A sweep file becomes runs with parents.

A sweep names data sets, generators, doses and seeds; :func:`expand` multiplies them out and resolves every default and
every "80 epochs", so that a run's config says all that its numbers depend on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvae_hpc.config import dump, load
from hvae_hpc.errors import UserError
from hvae_hpc.identity import code_sha
from hvae_hpc.model_configs import (
    HVAEConfig,
    LSGANConfig,
    MovesConfig,
    OptimConfig,
    UNetConfig,
    require_halvings,
)
from hvae_hpc.plan import Plan
from hvae_hpc.preprocess.manifest import Manifest
from hvae_hpc.preprocess.splits import draw_split
from hvae_hpc.resources import Resources
from hvae_hpc.stages import (
    CONFIGS,
    ArmConfig,
    GenerateConfig,
    Run,
    Sampler,
    SplitConfig,
    Stage,
    source_name,
)

SMALLEST_PX = 11
TAKEN_NAMES = ("real", "mean", "standard", "reference")
SET_BY_THE_PLANNER = {
    "generate": ("data", "split", "image_px", "generator", "sampler", "seed"),
    "augment": ("data", "split", "image_px", "n_pairs", "seed"),
    "quality": ("data", "split", "image_px", "source", "seed"),
}


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """One generator of a sweep: its network and its training."""

    model: HVAEConfig | LSGANConfig
    optim: OptimConfig
    moves: MovesConfig = field(default_factory=MovesConfig)


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """How every arm's U-Net is trained.

    Attributes:
        epochs: passes over the arm's pairs; turned into images and rounded up to whole batches.
        optim: fields of OptimConfig but ``images``.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    epochs: int = 80
    optim: dict[str, Any] = field(default_factory=dict)
    loss: str = "dice+ce"
    threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
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
        splits, generator_seeds: draws of cases, and trainings of each generator; both multiply the generators.
        split: how many cases train and test; its seed is the first split's.
        factors: standard arms; xF is F times the real pairs in total.
        doses: synthetic arms of every generator; +n adds the first n accepted pairs.
        generators: name to settings.
        samplers: each makes pairs of every generator with an encoder, and arms of their own; an LSGAN has its prior.
        generate, augment, quality: fields of those stages' configs that differ from the defaults.
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
    split: SplitConfig = field(default_factory=SplitConfig)
    factors: tuple[int, ...] = (2, 3, 5)
    doses: tuple[int, ...] = (100, 200, 300, 500)
    generators: dict[str, GeneratorSettings] = field(default_factory=dict)
    samplers: tuple[Sampler, ...] = ("prior",)
    generate: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    segment: SegmentSettings = field(default_factory=SegmentSettings)

    def __post_init__(self) -> None:
        for name in (self.name, *self.data, *self.generators):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"{name!r} cannot be a name; use letters, digits, '.', '_' and '-'")
        for name in self.generators:
            if name in TAKEN_NAMES:
                raise ValueError(f"a generator cannot be called {name!r}, which the tables use; give it another name")
        names = [source_name(name, sampler) for name in self.generators for sampler in self.samplers]
        if not self.samplers or len(set(names)) < len(names):
            raise ValueError(f"samplers is {list(self.samplers)}, expected one or more, each once, and no name twice")
        if not self.data or len(set(self.data)) < len(self.data):
            raise ValueError(f"data is {list(self.data)}, expected one or more names, each once")
        if self.image_px < 0 or self.phantoms < 0:
            raise ValueError(f"image_px is {self.image_px}, phantoms {self.phantoms}; expected 0 or more")
        for table, set_here in SET_BY_THE_PLANNER.items():
            for key in getattr(self, table):
                if key in set_here:
                    raise ValueError(f"{table}.{key} follows from the rest of the sweep; remove it")
        for name in ("seeds", "splits", "generator_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("factors", "doses"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} is {list(getattr(self, name))}, expected each number once")
        if any(factor < 2 for factor in self.factors):
            raise ValueError(f"factors is {self.factors}, expected numbers of 2 or more (x2 doubles the real pairs)")
        if any(dose < 1 for dose in self.doses):
            raise ValueError(f"doses is {self.doses}, expected numbers of 1 or more")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A packed data set as the planner sees it."""

    name: str
    folder: Path
    manifest: Manifest


def expand(sweep: SweepConfig, data_sets: list[DataSet]) -> list[Run]:
    """Return all runs of a sweep, parents before children.

    Raises:
        UserError: too few cases, images that do not suit a network, a refused value.
    """
    runs: dict[str, Run] = {}
    for data in data_sets:
        _check_sizes(sweep, data)
        for draw in range(sweep.splits):
            split = SplitConfig(train=sweep.split.train, test=sweep.split.test, seed=sweep.split.seed + draw)
            for run in _expand_split(sweep, data, split):
                runs.setdefault(run.run_id, run)
    return list(runs.values())


def _expand_split(sweep: SweepConfig, data: DataSet, split: SplitConfig) -> Iterator[Run]:
    pairs_of = {case.case_id: case.pairs for case in data.manifest.cases}
    try:
        drawn = draw_split(list(pairs_of), split.train, split.test, split.seed)
    except UserError as error:
        raise UserError(f"{data.folder}: {error}") from error
    n_real = sum(pairs_of[case] for case in drawn.train)
    common = {"data": data.name, "split": dump(split), "image_px": sweep.image_px}
    root = {"data": data.manifest.content_hash}

    def make(stage: Stage, parents: dict[str, str], **fields: Any) -> Run:
        where = f"sweep {sweep.name}: {stage}"
        return Run(stage=stage, config=load(CONFIGS[stage], {**common, **fields}, where), parents={**root, **parents})

    generated: dict[tuple[str, int], Run] = {}
    asked = load(GenerateConfig, {**common, **sweep.generate, "generator": ""}, f"sweep {sweep.name}: generate")
    n_pairs = asked.n_pairs
    if sweep.generators and max(sweep.doses, default=0) > n_pairs:
        raise UserError(f"sweep {sweep.name}: doses go to +{max(sweep.doses)}, generate.n_pairs is {n_pairs}; raise it")
    for name, settings in sweep.generators.items():
        for seed in range(sweep.generator_seeds):
            train = make("train", {}, generator=name, seed=seed, **dump(settings))
            yield train
            for sampler in sweep.samplers if isinstance(settings.model, HVAEConfig) else ("prior",):
                asked_of = {**sweep.generate, "generator": name, "sampler": sampler, "seed": seed}
                pairs, source = make("generate", {"generator": train.run_id}, **asked_of), source_name(name, sampler)
                generated[source, seed] = pairs
                yield pairs
                yield make("quality", {"pairs": pairs.run_id}, **{**sweep.quality, "source": source, "seed": seed})
    if sweep.generators:
        for source in ("real", "mean"):
            yield make("quality", {}, **{**sweep.quality, "source": source})

    for seed in range(sweep.seeds):
        yield make("segment", {}, **_segment_fields(sweep, ArmConfig(name="reference"), n_real, seed))
        if sweep.factors:
            copies = (max(sweep.factors) - 1) * n_real
            standard = make("augment", {}, **{**sweep.augment, "n_pairs": copies, "seed": seed})
            yield standard
            for factor in sweep.factors:
                arm = ArmConfig(name=f"standard-x{factor}", n_standard=(factor - 1) * n_real)
                yield make("segment", {"standard": standard.run_id}, **_segment_fields(sweep, arm, n_real, seed))
        for (name, generator_seed), pairs in generated.items():
            for dose in sweep.doses:
                arm = ArmConfig(name=f"{name}+{dose}", generator=name, n_synthetic=dose, generator_seed=generator_seed)
                yield make("segment", {"pairs": pairs.run_id}, **_segment_fields(sweep, arm, n_real, seed))


def _segment_fields(sweep: SweepConfig, arm: ArmConfig, n_real: int, seed: int) -> dict[str, Any]:
    settings = sweep.segment
    if "images" in settings.optim:
        raise UserError(f"sweep {sweep.name}: segment.optim.images follows from segment.epochs; remove it")
    batch = settings.optim.get("batch_size", OptimConfig.batch_size)
    if not isinstance(batch, int) or batch < 1:
        raise UserError(f"sweep {sweep.name}: segment.optim.batch_size: got {batch!r}, expected a whole number above 0")
    images = settings.epochs * (n_real + arm.n_standard + arm.n_synthetic)
    whole = -(-images // batch) * batch  # rounded up to whole batches, nothing dropped
    return {
        "arm": dump(arm),
        "unet": dump(settings.unet),
        "optim": {**settings.optim, "images": whole},
        "loss": settings.loss,
        "threshold": settings.threshold,
        "seed": seed,
    }


def _check_sizes(sweep: SweepConfig, data: DataSet) -> None:
    height, width = data.manifest.size_px
    size = (sweep.image_px, sweep.image_px) if sweep.image_px else (height, width)
    try:
        require_halvings(f"segment.unet.depth = {sweep.segment.unet.depth}", size, sweep.segment.unet.depth)
        if sweep.generators and min(size) < SMALLEST_PX:
            raise ValueError(
                f"images of {size[0]}x{size[1]} px, expected {SMALLEST_PX} or more: SSIM's window; raise image_px"
            )
        for name, settings in sweep.generators.items():
            levels = len(settings.model.network.channels)
            require_halvings(f"generators.{name}.model.network.channels of {levels} levels", size, levels - 1)
            halvings = len(getattr(settings.model, "discriminator_channels", ()))
            if min(size) < 2**halvings:
                raise ValueError(
                    f"images of {size[0]}x{size[1]} px, expected at least {2**halvings} for the {halvings} levels of "
                    f"generators.{name}.model.discriminator_channels; have fewer levels"
                )
    except ValueError as error:
        raise UserError(f"sweep {sweep.name}, data set {data.name}: {error}") from error


def make_plan(
    sweep: SweepConfig, data_sets: list[DataSet], runs_folder: Path, resources: Mapping[str, Resources]
) -> Plan:
    """Expand a sweep into its plan."""
    return Plan(
        sweep=sweep.name,
        runs_folder=runs_folder.resolve(),
        code_sha=code_sha(),
        data={
            data.name: {"folder": str(data.folder.resolve()), "content_hash": data.manifest.content_hash}
            for data in data_sets
        },
        resources=resources,
        runs={run.run_id: run for run in expand(sweep, data_sets)},
    )
