"""What the judge sees, and what the quality stage makes of honest, copying, collapsed and mismatched pairs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.loader import dump
from hvae_hpc.config.model import OptimConfig, UNetConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import QualityConfig, SegmentConfig, SplitConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.quality import Judge, _Set, load_judge, measure_quality, standardise
from hvae_hpc.evaluation.segment import segment
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import write_pairs
from hvae_hpc.results.collect import SET_COLUMNS
from hvae_hpc.runs.folder import PAIRS, write_config
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training.batches import read_cases, to_tensors
from hvae_hpc.training.train import read_split
from tests.tiny import make_data_set, make_pairs

SPLIT = SplitConfig(train=20, test=19)
SIDE = 24
SEGMENT = SegmentConfig(
    data="tiny",
    split=SPLIT,
    image_px=0,
    arm=ArmConfig(name="reference"),
    unet=UNetConfig(base_channels=4, depth=2),
    optim=OptimConfig(images=800, batch_size=8, lr=1e-2, precision="fp32"),
    keep_weights=True,
)
QUALITY = QualityConfig(
    data="tiny", split=SPLIT, image_px=0, source="gan", n_images=19, draws=2, nearest=3
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data_set(tmp_path_factory.mktemp("shards"), n=39, side=SIDE)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("judge")
    write_config(folder, dump(SEGMENT))
    outcome = segment(
        SEGMENT, Workplace(folder=folder, data=data, parents={}, resources=Resources())
    )
    assert outcome is not None
    return folder, outcome


@pytest.fixture(scope="module")
def judge(trained: tuple[Path, Outcome]) -> Judge:
    return load_judge(trained[0], torch.device("cpu"))


def measure(
    data: Path,
    trained: tuple[Path, Outcome],
    folder: Path,
    pairs: Pairs | None,
    source: str = "gan",
    learned: int = SPLIT.train,
) -> Outcome:
    """Run the stage on these pairs, as if a generator had made them of so many training cases."""
    parents = {"judge": trained[0]}
    if pairs is not None:
        parents["pairs"] = folder / "pairs"
        write_pairs(
            folder / "pairs" / PAIRS,
            pairs,
            {"source_cases": json.dumps(read_split(data, SPLIT).train[:learned])},
        )
    workplace = Workplace(folder=folder, data=data, parents=parents, resources=Resources())
    outcome = measure_quality(replace(QUALITY, source=source), workplace)
    assert outcome is not None
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    return outcome


def real_pairs(data: Path) -> Pairs:
    return read_dataset(data, read_split(data, SPLIT).train)


def test_the_judge_predicts_as_the_unet_that_was_trained(
    data: Path, trained: tuple[Path, Outcome], judge: Judge
) -> None:
    test = read_cases(data, read_split(data, SPLIT).test, 0)
    assert judge.agree(_Set(test, ())).tolist() == [
        case["dice"] for case in trained[1].per_case.values()
    ]
    assert trained[1].metrics["dice"] > 0.8


def test_features_are_moments_of_every_channel_of_the_last_levels_whatever_the_batch(
    judge: Judge,
) -> None:
    images = to_tensors(make_pairs(10, SIDE, seed=3), 0).images
    features = judge.encode(images)
    assert features.shape == (10, 2 * (4 + 8 + 16))
    with torch.no_grad():
        bottleneck = judge.model.encode(images)[-1]
    assert bottleneck.shape == (10, 16, SIDE // 4, SIDE // 4)
    np.testing.assert_allclose(features[:, -32:-16], bottleneck.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(features[:, -16:], bottleneck.std((2, 3), correction=0), atol=1e-6)
    optim = replace(judge.config.optim, batch_size=4)
    in_fours = judge._replace(config=replace(judge.config, optim=optim))
    np.testing.assert_allclose(in_fours.encode(images), features, atol=1e-6)


def test_features_are_in_units_of_real_images() -> None:
    random = np.random.default_rng(0)
    real = random.normal([5, 0, 1], [2, 1, 1e-9], (50, 3))
    ours = standardise(real, real)
    np.testing.assert_allclose(ours.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(ours[:, :2].std(0), 1)
    # A feature that real images hardly move says little, but not nothing, where another image
    # moves it.
    assert standardise(np.array([[5.0, 0.0, 2.0]]), real)[0, 2] == pytest.approx(10, rel=0.1)
    with pytest.raises(UserError, match="sees no difference between real images; train it longer"):
        standardise(real, np.ones((4, 3)))


def test_real_and_mean_images_have_the_measures_that_make_sense_for_them(
    data: Path, trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    real = measure(data, trained, tmp_path, None, "real").metrics
    mean = measure(data, trained, tmp_path, None, "mean").metrics
    assert set(SET_COLUMNS) - set(real) == {"copies", "copies_low", "copies_high", "copying"}
    assert set(mean) < set(real)
    assert "agreement" not in mean
    assert real["agreement"] == pytest.approx(trained[1].metrics["dice"])  # on the test pairs
    assert real["kid_low"] <= real["kid"] <= real["kid_high"]
    assert mean["kid"] > real["kid_high"]
    assert (mean["duplicates"], real["duplicates"]) == (1.0, pytest.approx(0, abs=0.2))
    assert mean["distinct"] == pytest.approx(1)
    assert real["precision"] > 0.6 > mean["coverage"]
    assert real["area_median_test"] > 0


def test_honest_pairs_pass_and_each_fault_shows_in_its_own_measure(
    data: Path, trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    honest = replace(make_pairs(30, SIDE, seed=7), case_ids=tuple(f"gan-{i}" for i in range(30)))
    found = {"honest": measure(data, trained, tmp_path, honest)}
    assert set(SET_COLUMNS) <= set(found["honest"].metrics)
    random = np.random.default_rng(1)
    noise = random.normal(0, 0.02, honest.images.shape).astype(np.float32)
    one = np.clip(np.repeat(honest.images[:1], 30, 0) + noise, 0, 1)
    found["collapsed"] = measure(
        data,
        trained,
        tmp_path,
        replace(honest, images=one, masks=np.repeat(honest.masks[:1], 30, 0)),
    )
    found["shuffled"] = measure(
        data, trained, tmp_path, replace(honest, masks=np.roll(honest.masks, 7, axis=0))
    )
    small = honest.masks.copy()
    small[:, : SIDE // 2] = 0
    found["cut"] = measure(data, trained, tmp_path, replace(honest, masks=small))
    of = {name: outcome.metrics for name, outcome in found.items()}
    assert (of["honest"]["copying"], of["collapsed"]["copying"]) == (0, 0)
    assert of["honest"]["agreement_low"] > 0.7 > of["shuffled"]["agreement_high"]
    assert of["shuffled"]["kid"] == of["honest"]["kid"]  # the images are the same
    assert of["shuffled"]["area"] == pytest.approx(of["honest"]["area"], abs=15)
    assert of["honest"]["duplicates_high"] < 0.5
    assert of["collapsed"]["duplicates"] > 0.9 > of["collapsed"]["coverage"]
    assert of["collapsed"]["distinct"] < 3 < 8 < of["honest"]["distinct"]
    assert of["cut"]["area"] > 2 * of["honest"]["area"]
    assert of["cut"]["row"] > of["honest"]["row"] + 1
    assert of["cut"]["area_median"] < of["cut"]["area_median_test"]


def test_a_generator_that_copies_its_training_set_is_found_and_the_other_measures_do_not_see_it(
    data: Path, trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    real = real_pairs(data)
    copy = replace(
        real, images=np.roll(real.images, 1, axis=2), masks=np.roll(real.masks, 1, axis=2)
    )
    outcome = measure(data, trained, tmp_path, copy)
    assert outcome.metrics["copying"] == 1
    assert outcome.metrics["copies"] > 0.9
    assert all(
        ours == theirs for ours, theirs in outcome.details["copies"].items()
    )  # named by the case it copies
    reference = measure(data, trained, tmp_path / "real", None, "real").metrics
    assert outcome.metrics["kid"] < reference["kid_high"]
    assert outcome.metrics["duplicates"] <= reference["duplicates_high"]


def test_copies_are_of_the_cases_that_the_generator_was_trained_on(
    data: Path, trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    outcome = measure(data, trained, tmp_path, real_pairs(data), learned=12)
    # Those of other cases are new images to it.
    learned = set(read_split(data, SPLIT).train[:12])
    assert learned <= outcome.details["copies"].keys()
    assert all(theirs in learned for theirs in outcome.details["copies"].values())
    assert outcome.metrics["copies"] < 0.8


def test_psnr_and_ssim_are_the_same_with_and_without_features(
    data: Path, trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    with_features = measure(data, trained, tmp_path, None, "real").metrics
    workplace = Workplace(folder=tmp_path, data=data, parents={}, resources=Resources())
    without = measure_quality(replace(QUALITY, source="real", features=False), workplace)
    assert without is not None
    assert set(without.metrics) == {"psnr_mean", "psnr_sd", "ssim_mean", "ssim_sd", "n", "images"}
    assert without.metrics.items() <= with_features.items()


def test_too_few_images_are_refused_when_the_sweep_is_read() -> None:
    with pytest.raises(ValueError, match="n_images is 4, expected at least 5 for nearest = 3"):
        replace(QUALITY, n_images=4)
    assert replace(QUALITY, n_images=4, features=False).n_images == 4


def test_a_judge_whose_weights_were_deleted_is_named(tmp_path: Path) -> None:
    write_config(tmp_path, dump(SEGMENT))
    with pytest.raises(
        UserError, match=r"snapshot.pt: cannot be read \(FileNotFoundError\); delete its folder"
    ):
        load_judge(tmp_path, torch.device("cpu"))
