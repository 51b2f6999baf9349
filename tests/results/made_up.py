"""A made-up sweep with made-up results, for the tests of the tables and figures."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.loader import dump
from hvae_hpc.config.model import HVAEConfig, OptimConfig, UNetConfig
from hvae_hpc.config.stages import (
    GenerateConfig,
    LikelihoodConfig,
    QualityConfig,
    SegmentConfig,
    SplitConfig,
    TrainConfig,
)
from hvae_hpc.results.collect import LIKELIHOOD_METRICS, MASK_MEDIANS, SET_MEASURES
from hvae_hpc.runs import plan as plan_module
from hvae_hpc.runs.folder import (
    SAMPLES,
    Provenance,
    RunResult,
    append_log,
    read_result,
    result_stamp,
    write_json,
    write_result,
)
from hvae_hpc.runs.plan import Plan, plan_path
from hvae_hpc.runs.run import Run

SPLIT = SplitConfig(train=20, test=12)
ENDS = {"": 0.0, "_low": -0.1, "_high": 0.1}
HASHES = {"brats2021": "b" * 64, "hecktor2022": "c" * 64, "lgg": "d" * 64}
GENERATORS = ("vae", "hvae", "lsgan")
DOSES = (100, 200, 300, 500)
PAPER_ARMS = (
    ArmConfig(name="reference"),
    *(ArmConfig(name=f"standard-x{f}", n_standard=20 * (f - 1)) for f in (2, 3, 5)),
    *(ArmConfig(name=f"{g}+{n}", generator=g, n_synthetic=n) for g in GENERATORS for n in DOSES),
)
SMALL_ARMS = (
    PAPER_ARMS[0],
    PAPER_ARMS[3],
    *(arm for arm in PAPER_ARMS if arm.n_synthetic in (100, 300)),
)


def folder_of(run: Run) -> str:
    """Return a run's folder below the runs folder."""
    return f"{run.stage}/{run.label}-{run.run_id}"


def fake_dice(run: Run) -> float:
    """Return a made-up Dice that depends on arm and seed."""
    config: Any = run.config
    gain = {"": 0.0, "lsgan": 0.03, "vae": 0.07, "hvae": 0.1}.get(config.arm.generator, 0.0)
    dose = config.arm.n_synthetic
    noise = np.random.default_rng([config.seed, len(config.arm.name), dose]).normal(0, 0.012)
    base = 0.6 if config.data == "brats2021" else 0.45
    standard = 0.11 * (config.arm.n_standard / 80) ** 0.5
    mean = base + gain * (dose / 300) ** 0.5 - 0.05 * max(0, dose - 300) / 200 + standard + noise
    return float(np.clip(mean, 0.1, 0.9))


def make_runs(
    data: tuple[str, ...] = ("brats2021",),
    arms: tuple[ArmConfig, ...] = SMALL_ARMS,
    seeds: int = 3,
    sources: tuple[str, ...] = (*GENERATORS, "real", "mean"),
    likelihoods: bool = False,
) -> list[Run]:
    optim = OptimConfig(images=320)
    runs = []
    for name in data:
        role = {"data": HASHES[name]}
        common: dict[str, Any] = {"data": name, "split": SPLIT, "image_px": 64}
        made = {}
        runs_after = []
        for generator in dict.fromkeys(arm.generator for arm in arms if arm.generator):
            train = Run(
                stage="train",
                config=TrainConfig(**common, generator=generator, model=HVAEConfig(), optim=optim),
                parents=role,
            )
            if likelihoods and generator != "lsgan":
                asked = LikelihoodConfig(**common, generator=generator)
                roles = {**role, "generator": train.run_id}
                runs_after.append(Run(stage="likelihood", config=asked, parents=roles))
            config = GenerateConfig(**common, generator=generator)
            made[generator] = Run(
                stage="generate", config=config, parents={**role, "train": train.run_id}
            )
            runs += [train, made[generator], *runs_after]
            runs_after = []
        for source in sources:
            roles = {**role, "generate": made[source].run_id} if source in made else role
            runs.append(
                Run(stage="quality", config=QualityConfig(**common, source=source), parents=roles)
            )
        for arm in arms:
            roles = {**role, "generate": made[arm.generator].run_id} if arm.generator else role
            for seed in range(seeds):
                segment = SegmentConfig(
                    **common, arm=arm, unet=UNetConfig(), optim=optim, seed=seed
                )
                runs.append(Run(stage="segment", config=segment, parents=roles))
    return runs


def write_plan(
    folder: Path, runs: list[Run], sweep: str = "small", changes: Mapping[str, Any] | None = None
) -> Path:
    """Write the plan of some runs, with some keys of the file changed."""
    plan = Plan(
        sweep=sweep,
        runs_folder=folder,
        code_sha="abc",
        data={r.config.data: {"folder": "", "content_hash": HASHES[r.config.data]} for r in runs},
        resources={},
        runs={run.run_id: run for run in runs},
    )
    path = plan_path(folder, sweep)
    plan_module.write_plan(plan, path)
    if changes:
        write_json(path, {**json.loads(path.read_text()), **changes})
    return path


def finish(
    folder: Path, run: Run, metrics: Mapping[str, float], code_sha: str = "abc", device: str = "cpu"
) -> None:
    """Write a run's metrics.json as its stage would."""
    spread = min(0.05, metrics.get("dice", 0.0))
    offsets = (-spread, *[0.0] * 10, spread) if run.stage == "segment" else ()
    others = {"hausdorff_95": 3.5, "precision": 0.75, "recall": 0.5}
    per_case = {
        f"case{i:02}": {"dice": metrics["dice"] + offset, **others}
        for i, offset in enumerate(offsets)
    }
    result = RunResult(
        schema=1,
        run_id=run.run_id,
        stage=run.stage,
        config=dump(run.config),
        parents=dict(run.parents),
        parent_results=_stamps(folder, run),
        metrics=dict(metrics),
        per_case=per_case,
        provenance=Provenance(
            code_sha=code_sha,
            versions={},
            device=device,
            host="node1",
            job_id="",
            attempt=1,
            started_at=0.0,
            wall_s=12.5,
            peak_memory_mib=100.0,
            threads=1,
        ),
        details={"hausdorff_95_unit": "mm"} if run.stage == "segment" else {},
    )
    write_result(folder / folder_of(run), result)


def _stamps(folder: Path, run: Run) -> dict[str, str]:
    stamps = {}
    for role, parent in run.parents.items():
        if role != "data":
            found = list(folder.glob(f"*/*-{parent}"))
            result = read_result(found[0], parent) if found else None
            stamps[role] = result_stamp(result) if result else ""
    return stamps


def fake_metrics(run: Run) -> dict[str, float]:
    if isinstance(run.config, SegmentConfig):
        dice = fake_dice(run)
        return {
            "dice": dice,
            "precision": dice + 0.1,
            "recall": dice - 0.1,
            "hausdorff_95": 10 * (1 - dice),
            "surface_dice_2": dice / 2,
            "area_error": 1.5 * dice,
            "test_cases": 12.0,
            **{f"dice_{size}": dice for size in ("small", "medium", "large")},
        }
    if isinstance(run.config, QualityConfig):
        k = ("lsgan", "vae", "hvae", "real", "mean").index(run.config.source)
        sds = {"psnr_sd": 0.04, "ssim_sd": 0.02}
        return {
            "psnr_mean": 13 + k / 7,
            "ssim_mean": 0.6 + k / 30,
            **sds,
            "n": 10.0,
            **fake_measures(run.config.source),
        }
    if isinstance(run.config, LikelihoodConfig):
        flow = {"elbo_flow": -95.0} if run.config.generator == "hvae" else {}
        found = {name: float(i) for i, name in enumerate(LIKELIHOOD_METRICS)}
        return {**found, "log_likelihood": -90.0 if flow else -92.25, **flow}
    return {"loss": 1.0}


def fake_measures(source: str) -> dict[str, float]:
    """Return made-up set measures: an LSGAN that repeats itself, a VAE that copies, and what a source does not have."""
    lacking = {
        "real": ("copies",),
        "mean": ("copies", "agreement", "area", "components", "row", "column", *SET_MEASURES[-5:]),
    }
    values = {"kid": 0.25, "distinct": 80.0, "density": 1.0} | {
        "area": 12.5,
        "row": 1.0,
        "column": 2.0,
        "components": 0.5,
    }
    if source == "lsgan":
        values |= {"duplicates": 0.83, "distinct": 6.4}
    measures = {
        name: values.get(name, 0.05) for name in SET_MEASURES if name not in lacking.get(source, ())
    }
    found = {
        f"{name}{end}": value * (1 + by)
        for name, value in measures.items()
        for end, by in ENDS.items()
    }
    if source != "mean":
        found |= {name: 40.0 + 2 * name.endswith("_test") for name in MASK_MEDIANS}
    return found | ({"copying": float(source == "vae")} if "copies" in measures else {})


def write_sweep(
    folder: Path,
    sweep: str = "small",
    skip: Callable[[Run], bool] = lambda run: False,
    **choices: Any,
) -> list[Run]:
    """Write a whole sweep with made-up results, all done but what skip names."""
    runs = make_runs(**choices)
    with mock.patch("os.fsync"):  # most of the time, and what is made up need not survive
        write_plan(folder, runs, sweep)
        for run in runs:
            if not skip(run):
                finish(folder, run, fake_metrics(run))
                if isinstance(run.config, TrainConfig):
                    append_log(folder / folder_of(run), {"images_seen": 1000, "elbo": -1.0})
    return runs


def segments(runs: list[Run], arm: str) -> list[Run]:
    return [
        run for run in runs if isinstance(run.config, SegmentConfig) and run.config.arm.name == arm
    ]


def draw_pair(rng: np.random.Generator, px: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a made-up head with a lesion and its mask."""
    y, x = np.mgrid[:px, :px] / px - 0.5
    head = (x / 0.36) ** 2 + (y / 0.44) ** 2 < 1
    cx, cy, r = rng.uniform(-0.18, 0.18), rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.13)
    angle = np.arctan2(y - cy, x - cx)
    mask = np.hypot(x - cx, y - cy) < r * (1 + 0.25 * np.sin(3 * angle + rng.uniform(0, 6)))
    folds = 0.06 * np.sin(28 * x + 5 * np.sin(14 * y + rng.uniform(0, 6)))
    image = head * (0.4 + folds) + 0.4 * mask + rng.normal(0, noise, (px, px)) * head
    return np.clip(image, 0, 1), mask.astype(np.uint8)


def write_samples(folder: Path, runs: list[Run], px: int = 64) -> None:
    """Write the samples.npz of generate and segment runs."""
    noise = {"lsgan": 0.15, "vae": 0.02, "hvae": 0.04}
    for run in runs:
        config = run.config
        if isinstance(config, GenerateConfig):
            rng = np.random.default_rng(len(config.generator))
            images, masks = zip(
                *(draw_pair(rng, px, noise[config.generator]) for _ in range(8)), strict=True
            )
            np.savez_compressed(
                folder / folder_of(run) / SAMPLES, images=np.stack(images), masks=np.stack(masks)
            )
        elif isinstance(config, SegmentConfig) and config.seed == 0:
            rng = np.random.default_rng(7)
            images, masks = map(
                np.stack, zip(*(draw_pair(rng, px, 0.05) for _ in range(12)), strict=True)
            )
            shifts = np.random.default_rng(len(config.arm.name)).integers(0, 7, (12, 2))
            moved = [np.roll(m, s, (0, 1)) for m, s in zip(masks, shifts, strict=True)]
            predictions = np.stack(moved).astype(np.uint8)
            both = (predictions * masks).sum((1, 2))
            dice = 2 * both / (predictions.sum((1, 2)) + masks.sum((1, 2)))
            ids = np.array([f"BraTS2021_{i:05}" for i in range(12)])
            path = folder / folder_of(run) / SAMPLES
            cases = {"predictions": predictions, "dice": dice, "case_ids": ids}
            np.savez_compressed(path, images=images, masks=masks, **cases)
