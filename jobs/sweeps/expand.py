"""A sweep file becomes runs with parents.

A sweep names data sets, generators, doses and seeds; :func:`expand` multiplies them out and
resolves every default and every "80 epochs", so that a run's config says all that its numbers
depend on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvae_hpc.config.arms import ArmConfig, budget_of, parse_arm
from hvae_hpc.config.loader import dump, load
from hvae_hpc.config.model import (
    OptimConfig,
    require_halvings,
)
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import (
    CONFIGS,
    GenerateConfig,
    QualityConfig,
    SplitConfig,
    Stage,
    source_name,
)
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sweeps.config import SweepConfig
from hvae_hpc.preprocess.store.manifest import Manifest
from hvae_hpc.preprocess.store.splits import Split, draw_split
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.plan import Plan
from hvae_hpc.runs.run import Run

SMALLEST_PX = 12
"""SSIM's window asks for 11, finding copies for 12."""


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
            split = SplitConfig(
                train=sweep.split.train, test=sweep.split.test, seed=sweep.split.seed + draw
            )
            for run in _expand_split(sweep, data, split):
                runs.setdefault(run.run_id, run)
    return list(runs.values())


def _expand_split(sweep: SweepConfig, data: DataSet, split: SplitConfig) -> Iterator[Run]:
    pairs_of = {case.case_id: case.pairs for case in data.manifest.cases}
    try:
        drawn = draw_split(list(pairs_of), split.train, split.test, split.seed)
    except UserError as error:
        raise UserError(f"{data.folder}: {error}") from error
    common = {"data": data.name, "split": dump(split), "image_px": sweep.image_px}
    root = {"data": data.manifest.content_hash}

    def make(stage: Stage, parents: dict[str, str], **fields: Any) -> Run:
        where = f"sweep {sweep.name}: {stage}"
        return Run(
            stage=stage,
            config=load(CONFIGS[stage], {**common, **fields}, where),
            parents={**root, **parents},
        )

    generated: dict[tuple[str, int], Run] = {}
    asked = load(
        GenerateConfig,
        {**common, **sweep.generate, "generator": ""},
        f"sweep {sweep.name}: generate",
    )
    for name, settings in sweep.generators.items():
        for seed in range(sweep.generator_seeds):
            train = make("train", {}, generator=name, seed=seed, **dump(settings))
            yield train
            if sweep.likelihoods and settings.model.has_density:
                asked_of = {**sweep.likelihood, "generator": name, "seed": seed}
                yield make("likelihood", {"generator": train.run_id}, **asked_of)
            samplers = [name for name in sweep.samplers if name in settings.model.samplers]
            for sampler in samplers or ["prior"]:
                asked_of = {**sweep.generate, "generator": name, "sampler": sampler, "seed": seed}
                pairs, source = (
                    make("generate", {"generator": train.run_id}, **asked_of),
                    source_name(name, sampler),
                )
                generated[source, seed] = pairs
                yield pairs

    arms = _arms(sweep, drawn, pairs_of, list(generated))
    largest = max(arms, key=lambda arm: arm.n_synthetic)
    if largest.n_synthetic > asked.n_pairs:
        raise UserError(
            f"sweep {sweep.name}: arm {largest.name} asks for {largest.n_synthetic} pairs, generate.n_pairs is "
            f"{asked.n_pairs}; raise it"
        )
    lengths = _lengths(sweep, arms, drawn, pairs_of)
    copies = max(arm.n_standard for arm in arms)
    quality = load(
        QualityConfig, {**common, **sweep.quality, "source": "real"}, f"sweep {sweep.name}: quality"
    )
    judged = bool(sweep.generators) and quality.features
    if judged:
        _check_judged(sweep, quality, min(split.train, split.test))
    judge: dict[str, str] = {}
    for seed in range(sweep.seeds):
        parents = {}
        if copies:
            standard = make("augment", {}, **{**sweep.augment, "n_pairs": copies, "seed": seed})
            parents["standard"] = standard.run_id
            yield standard
        for arm, images in zip(arms, lengths, strict=True):
            own = {"standard": parents["standard"]} if arm.n_standard else {}
            if arm.generator:
                own["pairs"] = generated[arm.generator, arm.generator_seed].run_id
            is_judge = judged and (arm.name, seed) == ("reference", 0)
            run = make(
                "segment", own, **_segment_fields(sweep, arm, images, seed), keep_weights=is_judge
            )
            if is_judge:
                judge["judge"] = run.run_id
            yield run
    for (source, seed), pairs in generated.items():
        asked_of = {**sweep.quality, "source": source, "seed": seed}
        yield make("quality", {"pairs": pairs.run_id, **judge}, **asked_of)
    for source in ("real", "mean") if sweep.generators else ():
        yield make("quality", judge, **{**sweep.quality, "source": source})


def _check_judged(sweep: SweepConfig, quality: QualityConfig, cases: int) -> None:
    """Refuse sets too small for what their quality is measured by, before anything is trained."""
    least = quality.nearest + 2
    if cases < least:
        raise UserError(
            f"sweep {sweep.name}: {cases} training or test cases, expected {least} or more for the quality of pairs; "
            "raise them, lower quality.nearest, or set quality.features = false"
        )


def _arms(
    sweep: SweepConfig, drawn: Split, pairs_of: Mapping[str, int], sources: list[tuple[str, int]]
) -> list[ArmConfig]:
    """Return what U-Nets are trained on: the reference, standard arms, each source's, and those asked for by name."""
    known = dict.fromkeys(source for source, _ in sources)
    names = ["reference", *(f"standard-x{factor}" for factor in sweep.factors)]
    for source in known:
        for dose in sweep.doses:
            names += [
                f"{source}+{dose}",
                *(f"standard-x{factor}+{source}+{dose}" for factor in sweep.combined),
            ]
    n_real = sum(pairs_of[case] for case in drawn.train)
    augmentations = {"moved": sweep.segment.moves, **sweep.segment.augmentations}
    arms: list[ArmConfig] = []
    for name in dict.fromkeys([*names, *sweep.arms]):
        arm = parse_arm(name, known, n_real, augmentations)
        if arm.n_cases > len(drawn.train) + len(drawn.spare):
            continue  # the sweep command says so
        seeds = [seed for source, seed in sources if source == arm.generator] or [0]
        arms += [replace(arm, generator_seed=seed) for seed in seeds]
    _refuse_doubles(sweep, arms, len(drawn.train))
    return arms


def _refuse_doubles(sweep: SweepConfig, arms: list[ArmConfig], n_train: int) -> None:
    """Refuse one training under two names, and an arm of a budget without the reference of that budget."""
    names, seen = {arm.name for arm in arms}, dict[tuple[ArmConfig, str], str]()
    for arm in arms:
        budget = budget_of(arm.name, sweep.segment.budget)
        n_cases = 0 if arm.n_cases == n_train else arm.n_cases
        other = seen.setdefault((replace(arm, name="", n_cases=n_cases), budget), arm.name)
        if other != arm.name:
            raise UserError(
                f"sweep {sweep.name}: arms {other!r} and {arm.name!r} are the same; remove one"
            )
        if arm.name.endswith(
            f"@{sweep.segment.budget}"
        ):  # its reference would be the reference's double
            raise UserError(
                f"sweep {sweep.name}: arm {arm.name!r} names the budget that arms have anyway; "
                f"call it {arm.name.partition('@')[0]!r}"
            )
        if budget != sweep.segment.budget and f"reference@{budget}" not in names:
            raise UserError(
                f"sweep {sweep.name}: arm {arm.name!r} has nothing to be compared with; add 'reference@{budget}'"
            )


def _lengths(
    sweep: SweepConfig, arms: list[ArmConfig], drawn: Split, pairs_of: Mapping[str, int]
) -> list[int]:
    """Return each arm's training in images: its own epochs, or the steps of the largest arm."""
    real = [sum(pairs_of[case] for case in drawn.training_cases(arm.n_cases)) for arm in arms]
    own = [_images(sweep, arm, n_real) for arm, n_real in zip(arms, real, strict=True)]
    budgets = [budget_of(arm.name, sweep.segment.budget) for arm in arms]
    return [
        max(own) if budget == "steps" else images
        for images, budget in zip(own, budgets, strict=True)
    ]


def _images(sweep: SweepConfig, arm: ArmConfig, n_real: int) -> int:
    """Return an arm's epochs over all its pairs as images, rounded up to whole batches, nothing dropped."""
    n_pairs = arm.n_added + (0 if arm.alone else n_real)
    settings = sweep.segment
    if "images" in settings.optim:
        raise UserError(
            f"sweep {sweep.name}: segment.optim.images follows from segment.epochs; remove it"
        )
    batch = settings.optim.get("batch_size", OptimConfig.batch_size)
    if not isinstance(batch, int) or batch < 1:
        raise UserError(
            f"sweep {sweep.name}: segment.optim.batch_size: got {batch!r}, expected a whole number above 0"
        )
    return -(-settings.epochs * n_pairs // batch) * batch


def _segment_fields(sweep: SweepConfig, arm: ArmConfig, images: int, seed: int) -> dict[str, Any]:
    settings = sweep.segment
    return {
        "arm": dump(arm),
        "unet": dump(settings.unet),
        "optim": {**settings.optim, "images": images},
        "loss": settings.loss,
        "threshold": settings.threshold,
        "seed": seed,
    }


def _check_sizes(sweep: SweepConfig, data: DataSet) -> None:
    height, width = data.manifest.size_px
    size = (sweep.image_px, sweep.image_px) if sweep.image_px else (height, width)
    try:
        require_halvings(
            f"segment.unet.depth = {sweep.segment.unet.depth}", size, sweep.segment.unet.depth
        )
        if sweep.generators and min(size) < SMALLEST_PX:
            raise ValueError(
                f"images of {size[0]}x{size[1]} px, expected {SMALLEST_PX} or more to be compared; raise image_px"
            )
        for name, settings in sweep.generators.items():
            settings.model.check_image_size(f"generators.{name}.model", size)
    except ValueError as error:
        raise UserError(f"sweep {sweep.name}, data set {data.name}: {error}") from error


def make_plan(
    sweep: SweepConfig,
    data_sets: list[DataSet],
    runs_folder: Path,
    resources: Mapping[str, Resources],
) -> Plan:
    """Expand a sweep into its plan."""
    return Plan(
        sweep=sweep.name,
        runs_folder=runs_folder.resolve(),
        code_sha=code_sha(),
        data={
            data.name: {
                "folder": str(data.folder.resolve()),
                "content_hash": data.manifest.content_hash,
            }
            for data in data_sets
        },
        resources=dict(resources),
        runs={run.run_id: run for run in expand(sweep, data_sets)},
    )
