"""A sweep file becomes runs with parents.

A sweep names data sets, generators, doses and seeds; :func:`expand` multiplies them out. It
resolves every default and every "80 epochs", so a run's config says all that its numbers depend on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hvae_hpc.config.arms import ArmConfig, budget_of, parse_arm
from hvae_hpc.config.augmentations import FREE
from hvae_hpc.config.loader import dump, load
from hvae_hpc.config.model import OptimConfig, require_halvings
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS, SplitConfig, Stage
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.jobs.sweeps.config import SweepConfig
from hvae_hpc.preprocess.store.manifest import Manifest
from hvae_hpc.preprocess.store.splits import Split, draw_split
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run

SMALLEST_PX = 12
"""SSIM's window asks for 11 px, finding copies for 12."""
Source = tuple[str, int]
"""Name of a source of synthetic pairs, and the seed of its generator."""


@frozen
class DataSet:
    """A packed data set as the planner sees it."""

    name: str
    folder: Path
    manifest: Manifest


def make_plan(
    sweep: SweepConfig,
    data_sets: list[DataSet],
    runs_folder: Path,
    resources: dict[str, Resources],
) -> Plan:
    """Expand a sweep into its plan."""
    shards = Path(sweep.shards)
    return Plan(
        sweep=sweep.name,
        runs_folder=runs_folder.resolve(),
        code_sha=code_sha(),
        data={
            data.name: {
                "folder": str(data.folder.resolve()),
                "content_hash": data.manifest.content_hash,
                **(
                    {"made_up": "yes"}
                    if sweep.phantoms and data.folder == shards / data.name
                    else {}
                ),
            }
            for data in data_sets
        },
        resources=resources,
        runs={run.run_id: run for run in expand(sweep, data_sets)},
        smallest_effect=sweep.smallest_effect,
    )


def expand(sweep: SweepConfig, data_sets: list[DataSet]) -> list[Run]:
    """Return all runs of a sweep, parents before children.

    Raises:
        UserError: too few cases, images that do not suit a network, a refused value.
    """
    runs: dict[str, Run] = {}
    for data in data_sets:
        _check_sizes(sweep, data)
        for number in range(sweep.splits):
            split = replace(sweep.split, seed=sweep.split.seed + number)
            for run in _expand_draw(_draw_cases(sweep, data, split)):
                runs.setdefault(run.run_id, run)
    return list(runs.values())


@frozen
class _Draw:
    """One draw of a data set's training and test cases, from which runs are made."""

    sweep: SweepConfig
    data: DataSet
    split: SplitConfig
    cases: Split

    def run(self, stage: Stage, parents: Mapping[str, str], **fields: Any) -> Run:
        """Return a run that reads this data set and its parents; its config is checked."""
        fields |= {"data": self.data.name, "split": dump(self.split)}
        fields["image_px"] = self.sweep.image_px
        config = load(CONFIGS[stage], fields, f"sweep {self.sweep.name}: {stage}")
        data = {"data": self.data.manifest.content_hash}
        return Run(stage=stage, config=config, parents={**data, **parents})

    @property
    def n_usable(self) -> int:
        """Cases not tested on."""
        return len(self.cases.train) + len(self.cases.spare)

    def n_real(self, n_cases: int = 0) -> int:
        """Count the real pairs of so many training cases; 0 for the split's."""
        pairs = {case.case_id: case.pairs for case in self.data.manifest.cases}
        return sum(pairs[case] for case in self.cases.training_cases(n_cases))


def _draw_cases(sweep: SweepConfig, data: DataSet, split: SplitConfig) -> _Draw:
    case_ids = [case.case_id for case in data.manifest.cases]
    try:
        cases = draw_split(case_ids, split.train, split.test, split.seed)
    except UserError as error:
        is_in_library = (Path(__file__).parent / f"{sweep.name}.toml").is_file()
        file = f' (a sweep.toml with extends = "{sweep.name}")' if is_in_library else ""
        raise UserError(f"{data.folder}: {error}{file}") from error
    return _Draw(sweep=sweep, data=data, split=split, cases=cases)


def _expand_draw(draw: _Draw) -> list[Run]:
    """Return the runs of one draw: generators and their pairs, U-Nets of every arm, quality."""
    generator_runs = [*_generator_runs(draw), *_mixing_runs(draw)]
    pairs = {
        (run.source, run.config.seed): run.run_id
        for run in generator_runs
        if run.stage == "generate"
    }

    arms = _arms(draw, list(pairs))
    _check_doses(draw, arms)
    is_judged = bool(pairs) and _check_quality(draw)
    segment_runs = list(_segment_runs(draw, arms, pairs, is_judged))
    return [*generator_runs, *segment_runs, *_quality_runs(draw, pairs, segment_runs)]


def _generator_runs(draw: _Draw) -> Iterator[Run]:
    """Yield each generator's training, its likelihood where asked for, and its pairs by sampler."""
    sweep = draw.sweep
    for name, settings in sweep.generators.items():
        if settings.n_cases > draw.n_usable:
            continue
        for seed in range(sweep.generator_seeds):
            fields: dict[str, Any] = {"generator": name, "seed": seed}
            train = draw.run("train", {}, **fields, **dump(settings))
            yield train

            parents = {"generator": train.run_id}
            if sweep.likelihoods and settings.model.has_density:
                yield draw.run("likelihood", parents, **sweep.likelihood, **fields)
            samplers = [name for name in sweep.samplers if name in settings.model.samplers]
            for sampler in samplers or ["prior"]:
                scale = {"hmc_scale": "prior"} if sampler == "mask" else {}
                asked = {**scale, **sweep.generate, **fields, "sampler": sampler}
                yield draw.run("generate", parents, **asked)


def _mixing_runs(draw: _Draw) -> Iterator[Run]:
    """Yield the runs that store mixed pairs; every pair is mixed."""
    sweep = draw.sweep
    known = {**FREE, **sweep.segment.augmentations}
    for name in sweep.mixed:
        mixing = {**dump(known[name]), "share": 1.0}
        for seed in range(sweep.generator_seeds):
            yield draw.run(
                "generate", {}, **sweep.generate, generator=name, seed=seed, mixing=mixing
            )


def _segment_runs(
    draw: _Draw, arms: Sequence[ArmConfig], pairs: Mapping[Source, str], is_judged: bool
) -> Iterator[Run]:
    """Yield each seed's standard augmentation, if an arm has it, and its U-Net of every arm.

    The first U-Net of the reference keeps its weights where it is to judge the pairs' quality.
    """
    sweep, lengths = draw.sweep, _lengths(draw, arms)
    n_standard = max(arm.n_standard for arm in arms)
    for seed in range(sweep.seeds):
        standard: dict[str, str] = {}
        if n_standard:
            augment = draw.run("augment", {}, **sweep.augment, n_pairs=n_standard, seed=seed)
            standard["standard"] = augment.run_id
            yield augment

        for arm, images in zip(arms, lengths, strict=True):
            parents = dict(standard) if arm.n_standard else {}
            if arm.generator:
                parents["pairs"] = pairs[arm.generator, arm.generator_seed]
            yield draw.run(
                "segment",
                parents,
                arm=dump(arm),
                unet=dump(sweep.segment.unet),
                optim={**sweep.segment.optim, "images": images},
                loss=sweep.segment.loss,
                threshold=sweep.segment.threshold,
                seed=seed,
                keep_weights=is_judged and (arm.name, seed) == ("reference", 0),
            )


def _quality_runs(
    draw: _Draw, pairs: Mapping[Source, str], segment_runs: Sequence[Run]
) -> Iterator[Run]:
    """Yield the quality of each source's pairs, of real images and of their mean."""
    quality = draw.sweep.quality
    judges = [run.run_id for run in segment_runs if getattr(run.config, "keep_weights", False)]
    judge = {"judge": judges[0]} if judges else {}
    for (source, seed), run_id in pairs.items():
        yield draw.run("quality", {"pairs": run_id, **judge}, **quality, source=source, seed=seed)
    for source in ("real", "mean") if pairs else ():
        yield draw.run("quality", judge, **quality, source=source)


def _check_quality(draw: _Draw) -> bool:
    """Tell whether a U-Net judges the pairs.

    Raises:
        UserError: the sets are too small for that.
    """
    sweep, split = draw.sweep, draw.split
    quality: Any = draw.run("quality", {}, **sweep.quality, source="real").config
    if not quality.features:
        return False
    cases, least = min(split.train, split.test), quality.nearest + 2
    if cases < least:
        raise UserError(
            f"sweep {sweep.name}: {cases} training or test cases, expected {least} or more for the "
            "quality of pairs; raise them, lower quality.nearest, or set quality.features = false"
        )
    return True


def _check_doses(draw: _Draw, arms: Sequence[ArmConfig]) -> None:
    """Refuse arms that ask for more pairs than are generated."""
    sweep = draw.sweep
    generate: Any = draw.run("generate", {}, **sweep.generate, generator="").config
    largest = max(arms, key=lambda arm: arm.n_synthetic)
    if largest.n_synthetic > generate.n_pairs:
        raise UserError(
            f"sweep {sweep.name}: arm {largest.name} asks for {largest.n_synthetic} pairs, "
            f"generate.n_pairs is {generate.n_pairs}; raise it"
        )


def _arms(draw: _Draw, sources: Sequence[Source]) -> list[ArmConfig]:
    """Return what U-Nets are trained on.

    These are the reference, the standard arms, each source's, and those asked for by name. An arm
    that asks for more cases than the data set has, itself or in its generator, is left out; the
    sweep command says so.
    """
    sweep, cases = draw.sweep, draw.cases
    known = list(dict.fromkeys(source for source, _ in sources))
    names = ["reference", *(f"standard-x{factor}" for factor in sweep.factors)]
    for source in known:
        for dose in sweep.doses:
            names.append(f"{source}+{dose}")
            names += [f"standard-x{factor}+{source}+{dose}" for factor in sweep.combined]
            names += [f"{name}+{source}+{dose}" for name in sweep.on_top]

    augmentations = {"moved": sweep.segment.moves, **FREE, **sweep.segment.augmentations}
    left_out = [name for name, g in sweep.generators.items() if g.n_cases > draw.n_usable]
    arms: list[ArmConfig] = []
    for name in dict.fromkeys([*names, *sweep.arms]):
        arm = parse_arm(name, [*known, *left_out], draw.n_real(), augmentations)
        if arm.n_synthetic and not arm.alone and not arm.first_share:
            arm = replace(arm, synthetic_share=sweep.segment.synthetic_share)
        if arm.n_cases <= draw.n_usable and arm.generator not in left_out:
            seeds = [seed for source, seed in sources if source == arm.generator] or [0]
            arms += [replace(arm, generator_seed=seed) for seed in seeds]
    _refuse_doubles(sweep, arms, len(cases.train))
    return arms


def _refuse_doubles(sweep: SweepConfig, arms: list[ArmConfig], n_train: int) -> None:
    """Refuse one training under two names, and an arm of a budget without its reference."""
    usual, names = sweep.segment.budget, {arm.name for arm in arms}
    first_name: dict[tuple[ArmConfig, str], str] = {}
    for arm in arms:
        where, budget = f"sweep {sweep.name}: ", budget_of(arm.name, usual)
        n_cases = 0 if arm.n_cases == n_train else arm.n_cases
        training = (replace(arm, name="", n_cases=n_cases), budget)
        other = first_name.setdefault(training, arm.name)
        if other != arm.name:
            raise UserError(f"{where}arms {other!r} and {arm.name!r} are the same; remove one")
        if arm.name.endswith(f"@{usual}"):  # its reference would be the reference's double
            raise UserError(
                f"{where}arm {arm.name!r} names the budget that arms have anyway; "
                f"call it {arm.name.partition('@')[0]!r}"
            )
        if budget != usual and f"reference@{budget}" not in names:
            raise UserError(
                f"{where}arm {arm.name!r} has nothing to be compared with; add 'reference@{budget}'"
            )


def _lengths(draw: _Draw, arms: Sequence[ArmConfig]) -> list[int]:
    """Return each arm's training in images: its own epochs, or the steps of the largest arm.

    Epochs over all of an arm's pairs are rounded up to whole batches; nothing is dropped.
    """
    sweep, settings = draw.sweep, draw.sweep.segment
    batch = settings.optim.get("batch_size", OptimConfig.batch_size)
    if not isinstance(batch, int) or batch < 1:
        raise UserError(
            f"sweep {sweep.name}: segment.optim.batch_size: got {batch!r}, "
            "expected a whole number above 0"
        )

    own = []
    for arm in arms:
        n_pairs = arm.n_added + (0 if arm.alone else draw.n_real(arm.n_cases))
        own.append(math.ceil(settings.epochs * n_pairs / batch) * batch)
    return [
        max(own) if budget_of(arm.name, settings.budget) == "steps" else images
        for arm, images in zip(arms, own, strict=True)
    ]


def _check_sizes(sweep: SweepConfig, data: DataSet) -> None:
    """Refuse images that the networks cannot halve as often as they have levels."""
    height, width = data.manifest.size_px
    size = (sweep.image_px, sweep.image_px) if sweep.image_px else (height, width)
    depth = sweep.segment.unet.depth
    try:
        require_halvings(f"segment.unet.depth = {depth}", size, depth)
        if sweep.generators and min(size) < SMALLEST_PX:
            raise ValueError(
                f"images of {size[0]}x{size[1]} px, expected {SMALLEST_PX} or more to be compared; "
                "raise image_px"
            )
        for name, settings in sweep.generators.items():
            settings.model.check_image_size(f"generators.{name}.model", size)
    except ValueError as error:
        raise UserError(f"sweep {sweep.name}, data set {data.name}: {error}") from error
