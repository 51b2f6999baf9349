"""The stages after training: what they make of tiny data, and what they refuse."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.augmentations import CarveMixConfig
from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.loader import dump
from hvae_hpc.config.model import HVAEConfig, MovesConfig, NetworkConfig, OptimConfig, UNetConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import (
    GenerateConfig,
    QualityConfig,
    SegmentConfig,
    SplitConfig,
    StandardCopiesConfig,
    TrainConfig,
)
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation.augment import augment_pairs, move_pair
from hvae_hpc.evaluation.generate import generate_pairs
from hvae_hpc.evaluation.quality import load_judge, measure_quality
from hvae_hpc.evaluation.segment import score_cases, segment, training_pairs
from hvae_hpc.metrics.images import psnr
from hvae_hpc.metrics.segmentation import dice as dice_of
from hvae_hpc.models.edm import EDM
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import read_pairs, write_pairs
from hvae_hpc.runs.folder import PAIRS, SNAPSHOT, write_config
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors, read_cases, to_tensors
from hvae_hpc.training.checkpoint import save_snapshot
from hvae_hpc.training.train import load_generator, read_split, train_generator
from tests.tiny import make_data_set, make_pairs

SPLIT = SplitConfig(train=6, test=5)
TRAIN = TrainConfig(
    data="tiny",
    generator="vae",
    split=SPLIT,
    image_px=0,
    model=HVAEConfig(
        n_leapfrog=0,
        network=NetworkConfig(
            channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=4
        ),
    ),
    optim=OptimConfig(images=400, batch_size=4, lr=1e-2, precision="fp32", ema_decay=0.9),
)
GENERATE = GenerateConfig(
    data="tiny", generator="vae", split=SPLIT, image_px=0, n_pairs=70, min_mask_px=4
)
SEGMENT = SegmentConfig(
    data="tiny",
    split=SPLIT,
    image_px=0,
    arm=ArmConfig(name="reference"),
    unet=UNetConfig(base_channels=4, depth=2),
    optim=OptimConfig(images=480, batch_size=4, lr=1e-2, precision="fp32"),
)
STILL = MovesConfig(flip=0, rotate_deg=0, scale=0, shift=0)


def place(folder: Path, data: Path, **parents: Path) -> Workplace:
    folder.mkdir(exist_ok=True)
    return Workplace(folder=folder, data=data, parents=parents, resources=Resources())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data_set(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def generator(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    write_config(folder, dump(TRAIN))
    assert train_generator(TRAIN, place(folder, data)) is not None
    return folder


@pytest.fixture(scope="module")
def generated(data: Path, generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    assert generate_pairs(GENERATE, place(folder, data, generator=generator)) is not None
    return folder


def test_generated_pairs_are_the_decoder_s_on_standard_normal_draws(
    data: Path, generator: Path, generated: Path
) -> None:
    pairs, attributes = read_pairs(generated / PAIRS)
    assert len(pairs) == 70
    assert (pairs.masks.sum((1, 2)) >= 4).all()
    assert json.loads(attributes["source_cases"]) == list(read_split(data, SPLIT).train)
    accepted, draws = int(attributes["accepted"]), int(attributes["draws"])
    assert int(attributes["rejected"]) == draws - accepted
    model = load_generator(generator).model
    from hvae_hpc.training.batches import generator_for

    z = torch.randn(64, 4, generator=generator_for(0, "draws", 0))
    with torch.no_grad():
        image, probability = model.decode(z)
    keep = (probability[:, 0] > 0.5).sum((1, 2)) >= 4
    np.testing.assert_allclose(
        pairs.images[: int(keep.sum())], image[:, 0][keep].numpy(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"weights": {}}, "KeyError"),
        ({"weights": {}, "image_size": [16, 16], "train_cases": "[]"}, "RuntimeError"),
        ({"weights": {}, "image_size": 16}, "TypeError"),
    ],
)
def test_a_snapshot_of_another_network_is_told_of_in_a_line(
    content: dict[str, object], why: str, generator: Path, tmp_path: Path
) -> None:
    write_config(tmp_path, dump(TRAIN))
    save_snapshot(tmp_path / SNAPSHOT, content)
    with pytest.raises(UserError, match=rf"{SNAPSHOT}: cannot be read \({why}\); delete its"):
        load_generator(tmp_path)


def test_a_judge_of_another_network_is_told_of_in_a_line(tmp_path: Path) -> None:
    write_config(tmp_path, dump(SEGMENT))
    save_snapshot(tmp_path / SNAPSHOT, {"weights": {}})
    with pytest.raises(UserError, match=rf"{SNAPSHOT}: cannot be read \(RuntimeError\)"):
        load_judge(tmp_path, torch.device("cpu"))


def test_the_first_n_of_a_longer_list_are_the_shorter_list(
    data: Path, generator: Path, generated: Path, tmp_path: Path
) -> None:
    generate_pairs(replace(GENERATE, n_pairs=10), place(tmp_path, data, generator=generator))
    short, long = read_pairs(tmp_path / PAIRS)[0], read_pairs(generated / PAIRS)[0]
    assert np.array_equal(short.images, long.images[:10])
    assert np.array_equal(short.masks, long.masks[:10])


def test_a_generator_without_masks_is_an_error_and_not_a_short_list(
    data: Path, generator: Path, tmp_path: Path
) -> None:
    config = replace(GENERATE, min_mask_px=257, n_pairs=2, max_draws_per_pair=64)
    with pytest.raises(
        UserError, match=r"vae: 0 of 128 draws had a mask of 257 px or more, 2 were asked for"
    ):
        generate_pairs(config, place(tmp_path, data, generator=generator))
    assert not (tmp_path / PAIRS).exists()


def test_standard_augmentation_keeps_masks_on_their_lesions(data: Path, tmp_path: Path) -> None:
    config = StandardCopiesConfig(data="tiny", split=SPLIT, image_px=0, n_pairs=24)
    assert augment_pairs(config, place(tmp_path, data)) is not None
    pairs, attributes = read_pairs(tmp_path / PAIRS)
    train = read_split(data, SPLIT).train
    assert pairs.case_ids == train * 4
    assert json.loads(attributes["source_cases"]) == list(train)
    for image, mask in zip(pairs.images, pairs.masks, strict=True):
        inside, outside = image[mask == 1].mean(), image[mask == 0].mean()
        assert inside > 0.5 > outside  # the disc is bright, and still under its mask
    real = read_cases(data, train, 0).images[:, 0].numpy()
    assert all(np.abs(pairs.images[i] - real[i % 6]).max() > 0.05 for i in range(24))
    assert all(np.abs(pairs.images[i] - pairs.images[i + 6]).max() > 0.05 for i in range(18))


def test_standard_augmentation_keeps_fine_detail() -> None:
    """Of waves of 4 px; by linear interpolation a third of them is lost."""
    wave = 0.5 + 0.4 * torch.sin(torch.arange(32) * math.pi / 2 + 0.7)
    image = wave.expand(1, 1, 32, 32).contiguous()
    data = PairTensors(images=image, masks=image.round())
    config = StandardCopiesConfig(data="tiny", split=SPLIT, image_px=0)
    inner = [move_pair(data, 0, config, copy)[0][8:24, 8:24].std() for copy in range(8)]
    assert np.mean(inner) > 0.9 * image.std().item()


def test_standard_augmentation_is_a_function_of_its_seed(data: Path, tmp_path: Path) -> None:
    def images(seed: int, name: str) -> np.ndarray:
        config = StandardCopiesConfig(data="tiny", split=SPLIT, image_px=0, n_pairs=3, seed=seed)
        augment_pairs(config, place(tmp_path / name, data))
        return read_pairs(tmp_path / name / PAIRS)[0].images

    assert np.array_equal(images(0, "a"), images(0, "b"))
    assert not np.array_equal(images(0, "c"), images(1, "d"))


def test_quality_of_real_and_mean_images(data: Path, tmp_path: Path) -> None:
    values = {}
    for source in ("real", "mean"):
        config = QualityConfig(
            data="tiny", split=SPLIT, image_px=0, source=source, n_images=5, draws=4, features=False
        )
        outcome = measure_quality(config, place(tmp_path / source, data))
        assert outcome is not None
        values[source] = outcome.metrics
    split = read_split(data, SPLIT)
    mean = read_cases(data, split.train, 0).images[:, 0].mean(0, keepdim=True).numpy()
    test = read_cases(data, split.test, 0).images[:, 0].numpy()
    assert values["mean"]["psnr_mean"] == pytest.approx(psnr(np.repeat(mean, 5, 0), test).mean())
    assert values["mean"]["psnr_sd"] == pytest.approx(
        0, abs=1e-9
    )  # one image against all test images: no draw differs
    assert values["real"]["psnr_sd"] > 0
    assert (
        values["mean"]["psnr_mean"] > values["real"]["psnr_mean"]
    )  # why the paper's measure says little


def test_a_unet_learns_discs_and_reports_dice_per_case(data: Path, tmp_path: Path) -> None:
    outcome = segment(SEGMENT, place(tmp_path, data))
    assert outcome is not None
    assert outcome.metrics["dice"] > 0.85
    assert "dice_with_tumour" not in outcome.metrics
    assert set(outcome.per_case) == set(read_split(data, SPLIT).test)
    assert outcome.metrics["dice"] == pytest.approx(
        np.mean([case["dice"] for case in outcome.per_case.values()])
    )
    with np.load(tmp_path / "samples.npz") as samples:
        ranked = sorted(case["dice"] for case in outcome.per_case.values())
        assert samples["dice"][:3].tolist() == [
            ranked[0],
            ranked[len(ranked) // 2],
            ranked[-1],
        ]  # worst, median, best
        shown = zip(samples["predictions"] > 0, samples["masks"] > 0, samples["dice"], strict=True)
        assert all(
            dice_of(predicted, mask) == pytest.approx(dice) for predicted, mask, dice in shown
        )


def test_the_mean_of_cases_with_a_tumour_stands_beside_the_mean_of_all_where_some_have_none(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_without_two(folder: Path, cases: Sequence[str]) -> Pairs:
        pairs = read_dataset(folder, cases)
        pairs.masks[:2] = 0
        return pairs

    monkeypatch.setattr("hvae_hpc.evaluation.segment.read_dataset", read_without_two)
    outcome = segment(SEGMENT, place(tmp_path, data))
    assert outcome is not None
    dice = [of_case["dice"] for of_case in outcome.per_case.values()]
    assert outcome.metrics["dice_with_tumour"] == pytest.approx(np.mean(dice[2:]))
    assert outcome.metrics["dice"] == pytest.approx(np.mean(dice))
    errors = [of_case.get("area_error") for of_case in outcome.per_case.values()]
    assert errors[:2] == [None, None]
    assert outcome.metrics["area_error"] == pytest.approx(np.mean(errors[2:]))
    # Tests' discs differ in area, and a case has the mean of its third.
    areas = [of_case["true_area"] for of_case in outcome.per_case.values()]
    smallest = np.array_split(np.argsort(areas[2:], kind="stable"), 3)[0]
    assert outcome.metrics["dice_small"] == pytest.approx(np.mean(np.array(dice[2:])[smallest]))


def test_added_pairs_are_trained_on(data: Path, generated: Path, tmp_path: Path) -> None:
    arm = ArmConfig(name="vae+7", generator="vae", n_synthetic=7)
    outcome = segment(replace(SEGMENT, arm=arm), place(tmp_path, data, pairs=generated))
    assert outcome is not None
    assert outcome.metrics["train_pairs"] == 13
    with pytest.raises(UserError, match="holds 70 pairs, the arm asks for 71"):
        segment(
            replace(SEGMENT, arm=replace(arm, n_synthetic=71)),
            place(tmp_path, data, pairs=generated),
        )


def test_pairs_made_from_test_cases_are_refused_by_case_id(data: Path, tmp_path: Path) -> None:
    split = read_split(data, SPLIT)
    parent = tmp_path / "parent"
    cases = [*split.train, split.test[2]]
    write_pairs(parent / PAIRS, make_pairs(4, 16), {"source_cases": json.dumps(cases)})
    arm = ArmConfig(name="vae+4", generator="vae", n_synthetic=4)
    with pytest.raises(UserError, match=rf"was made from test cases \({split.test[2]}, 1 in all\)"):
        segment(replace(SEGMENT, arm=arm), place(tmp_path / "run", data, pairs=parent))


def test_pairs_of_another_size_are_refused(data: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "parent" / PAIRS, make_pairs(4, 32), {"source_cases": "[]"})
    arm = ArmConfig(name="vae+4", generator="vae", n_synthetic=4)
    with pytest.raises(UserError, match=r"pairs of \(32, 32\) px, the real ones have \(16, 16\)"):
        segment(replace(SEGMENT, arm=arm), place(tmp_path / "run", data, pairs=tmp_path / "parent"))


def test_the_slices_of_a_case_are_one_dice() -> None:
    truth = np.zeros((3, 2, 2), bool)
    truth[0], truth[1, 0, 0], truth[2] = True, True, True
    guess = np.zeros((3, 2, 2), bool)
    guess[0, 0], guess[2] = True, True
    test = replace(make_pairs(3, 2), case_ids=("a", "a", "b"))
    scores, _ = score_cases(guess, truth, test)
    # case a: slices 0 and 1 together: 2 hits of 2 + 5
    assert {case: of_case.dice for case, of_case in scores.items()} == {
        "a": pytest.approx(4 / 7),
        "b": 1.0,
    }
    assert (scores["a"].precision, scores["a"].recall) == (1.0, pytest.approx(2 / 5))


def test_distances_are_in_mm_of_the_shrunk_pixels_or_in_px_where_a_spacing_is_unknown() -> None:
    guess, truth = np.zeros((1, 8, 8), bool), np.zeros((1, 8, 8), bool)
    guess[0, 1, 1] = truth[0, 4, 5] = True
    packed = make_pairs(1, 16)  # twice as many pixels a side as the images that were segmented
    scores, unit = score_cases(guess, truth, replace(packed, spacing_mm=np.array([[0.5, 1.5]])))
    assert (scores["case-000"].hausdorff_95, unit) == (
        pytest.approx(np.hypot(3 * 1.0, 4 * 3.0)),
        "mm",
    )
    scores, unit = score_cases(guess, truth, replace(packed, spacing_mm=np.full((1, 2), np.nan)))
    assert (scores["case-000"].hausdorff_95, unit) == (pytest.approx(5), "px")


def rows(data: PairTensors) -> list[bytes]:
    return [image.numpy().tobytes() for image in data.images]


def test_every_arm_is_trained_on_what_its_name_says(
    data: Path, generated: Path, tmp_path: Path
) -> None:
    split = read_split(data, SPLIT)
    real = read_cases(data, split.train, 0)
    synthetic = to_tensors(read_pairs(generated / PAIRS)[0], 0)
    assert len(real) == 6

    def pairs(**asked: Any) -> PairTensors:
        if "n_synthetic" in asked:
            asked["generator"] = "vae"
        config = replace(SEGMENT, arm=ArmConfig(name="a", **asked))
        return training_pairs(config, place(tmp_path, data, pairs=generated), split)

    assert rows(pairs()) == rows(real)
    assert rows(pairs(n_copies=9)) == [*rows(real), *rows(real), *rows(real)[:3]]
    assert rows(pairs(n_synthetic=7)) == [*rows(real), *rows(synthetic)[:7]]
    assert pairs(n_synthetic=7).added == 7
    shared = pairs(n_synthetic=7, n_copies=9, synthetic_share=0.5)
    assert (shared.added, shared.synthetic, shared.synthetic_share) == (16, 7, 0.5)
    nearest = pairs(n_synthetic=7, nearest=True)
    assert set(rows(nearest)) == set(rows(real))
    assert len(nearest) == len(real) + 7
    alone = pairs(n_synthetic=7, alone=True)
    assert (rows(alone), alone.added) == (rows(synthetic)[:7], 0)
    first = pairs(n_synthetic=7, first_share=0.5)
    assert (rows(first), first.added) == ([*rows(real), *rows(synthetic)[:7]], 7)
    assert first.added_first == SEGMENT.optim.images / 2
    further = pairs(n_cases=7)
    assert rows(further) == [*rows(real), *rows(read_cases(data, split.spare[:1], 0))]
    assert further.added == 1  # so that the first 6 keep their order
    with pytest.raises(UserError, match=r"8 real cases asked for, expected 6 .* to 7"):
        pairs(n_cases=8)


def test_synthetic_pairs_under_wrong_masks_harm_at_equal_steps_and_paired_seeds(
    data: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "pairs" / PAIRS, make_pairs(300, 16, seed=9), {"source_cases": "[]"})
    arms = {
        "reference": ArmConfig(name="reference"),
        "more": ArmConfig(name="vae+300", generator="vae", n_synthetic=300),
        "wrong": ArmConfig(
            name="vae-shuffled+300", generator="vae", n_synthetic=300, shuffled=True
        ),
    }
    dice: dict[str, list[float]] = {name: [] for name in arms}
    for name, arm in arms.items():
        for seed in range(2):
            folder = tmp_path / f"{name}-{seed}"
            outcome = segment(
                replace(SEGMENT, arm=arm, seed=seed), place(folder, data, pairs=tmp_path / "pairs")
            )
            assert outcome is not None
            dice[name].append(outcome.metrics["dice"])
    assert all(
        wrong < reference - 0.1
        for wrong, reference in zip(dice["wrong"], dice["reference"], strict=True)
    )
    assert (
        np.mean(dice["more"]) > np.mean(dice["reference"]) - 0.05
    )  # and what harmed were the masks


def test_a_moved_arm_is_moved_in_every_step(data: Path, tmp_path: Path) -> None:
    losses = {}
    for name, moves in (("still", None), ("moved", MovesConfig()), ("moved by nothing", STILL)):
        arm = ArmConfig(name=name, moves=moves)
        config = replace(SEGMENT, arm=arm, optim=replace(SEGMENT.optim, images=40))
        outcome = segment(config, place(tmp_path / name, data))
        assert outcome is not None
        losses[name] = outcome.metrics["train_loss"]
    assert losses["moved by nothing"] == pytest.approx(losses["still"], rel=1e-3)
    assert losses["moved"] != pytest.approx(losses["still"], rel=1e-3)


def test_shuffled_masks_are_the_same_masks_each_under_another_image(
    data: Path, generated: Path, tmp_path: Path
) -> None:
    split = read_split(data, SPLIT)
    for seed in range(5):
        config = replace(
            SEGMENT, seed=seed, arm=ArmConfig(name="a", generator="vae", n_synthetic=7)
        )
        where = place(tmp_path, data, pairs=generated)
        paired = training_pairs(config, where, split)
        shuffled = training_pairs(
            replace(config, arm=replace(config.arm, shuffled=True)), where, split
        )
        assert torch.equal(shuffled.images, paired.images)
        assert torch.equal(shuffled.masks[:6], paired.masks[:6])
        index = [
            [torch.equal(mask, other) for other in paired.masks[6:]].index(True)
            for mask in shuffled.masks[6:]
        ]
        assert sorted(index) == list(range(7))
        assert all(i != j for i, j in enumerate(index))


def test_pairs_type_guards_its_shapes() -> None:
    pairs = make_pairs(2, 16)
    with pytest.raises(ValueError, match="expected 2 each"):
        Pairs(**{**pairs.__dict__, "slice_index": np.zeros(3, np.int32)})


@pytest.mark.parametrize("sampler", ["aggregated", "mixture", "hmc", "mask"])
def test_each_sampler_makes_pairs_and_what_it_did_is_recorded_with_them(
    sampler: str, data: Path, generator: Path, generated: Path, tmp_path: Path
) -> None:
    config = replace(GENERATE, sampler=sampler, n_pairs=20, hmc_proposals=4, components=3)
    outcome = generate_pairs(config, place(tmp_path, data, generator=generator))
    assert outcome is not None
    pairs, attributes = read_pairs(tmp_path / PAIRS)
    assert len(pairs) == 20
    assert pairs.case_ids[0] == f"vae-{sampler}-00000"
    smallest = int(pairs.masks.sum((1, 2)).min())
    assert attributes["sampler"] == sampler
    assert int(attributes["smallest_mask_px"]) == smallest >= config.min_mask_px
    assert int(attributes["rejected"]) == int(attributes["draws"]) - int(attributes["accepted"])
    recorded = {"aggregated": "posterior_noise", "mixture": "components"}.get(sampler, "acceptance")
    assert float(attributes[recorded]) == outcome.metrics[recorded]
    assert set(json.loads(attributes["source_cases"])) == set(read_split(data, SPLIT).train)
    prior, _ = read_pairs(generated / PAIRS)
    assert not np.array_equal(pairs.images, prior.images[:20])


def test_pairs_around_real_ones_are_nearer_to_them_than_pairs_from_the_prior(
    data: Path, generator: Path, generated: Path, tmp_path: Path
) -> None:
    config = replace(GENERATE, sampler="hmc", n_pairs=30)
    assert generate_pairs(config, place(tmp_path, data, generator=generator)) is not None
    real = read_cases(data, read_split(data, SPLIT).train, 0).images[:, 0].numpy()

    def distance(path: Path) -> float:
        images = read_pairs(path)[0].images[:30]
        return float(np.square(images[:, None] - real).mean((2, 3)).min(1).mean())

    assert distance(tmp_path / PAIRS) < distance(generated / PAIRS)


@pytest.mark.parametrize("given_mask", [False, True])
def test_a_diffusion_model_goes_from_training_cases_to_pairs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_mask: bool
) -> None:
    model = EDMConfig(channels=(8, 8), attention_heads=2, given_mask=given_mask)
    config = replace(TRAIN, generator="edm", model=model, optim=replace(TRAIN.optim, images=40))
    folder = tmp_path / "generator"
    folder.mkdir()
    write_config(folder, dump(config))
    assert train_generator(config, place(folder, data)) is not None

    calls = []
    plain = EDM.denoise
    monkeypatch.setattr(EDM, "denoise", lambda *a, **k: calls.append(1) or plain(*a, **k))
    asked = replace(GENERATE, generator="edm", n_pairs=5, steps=3, min_mask_px=1)
    where = place(tmp_path / "pairs", data, generator=folder)
    assert generate_pairs(asked, where) is not None
    draws = int(read_pairs(tmp_path / "pairs" / PAIRS)[1]["draws"])
    assert len(calls) == draws // 64 * 5  # three steps, of which two ask twice
    pairs, _ = read_pairs(tmp_path / "pairs" / PAIRS)
    assert pairs.images.min() >= 0
    assert pairs.images.max() <= 1
    if given_mask:  # masks are as large as real ones, about
        real = read_cases(data, read_split(data, SPLIT).train, 0).masks.sum((1, 2, 3))
        areas = pairs.masks.sum((1, 2))
        assert real.min() / 2 < areas.mean() < 2 * real.max()


def test_mixed_pairs_are_stored_like_a_generators(data: Path, tmp_path: Path) -> None:
    asked = replace(GENERATE, generator="carvemix", n_pairs=9, mixing=CarveMixConfig(share=1.0))
    outcome = generate_pairs(asked, place(tmp_path / "a", data))
    assert outcome is not None
    pairs, attributes = read_pairs(tmp_path / "a" / PAIRS)
    split = read_split(data, SPLIT)
    assert json.loads(attributes["source_cases"]) == list(split.train)

    # Pair i is the real pair i mod 6, but for a part of another one.
    real = read_cases(data, split.train, 0)
    base = real.take(torch.arange(9) % 6)
    changed = torch.from_numpy(pairs.images) != base.images[:, 0]
    assert changed.any((1, 2)).all()  # none is its own donor
    assert changed.float().mean() < 0.5
    kept = ~changed
    assert torch.equal(torch.from_numpy(pairs.masks)[kept].float(), base.masks[:, 0][kept])

    again = replace(asked, n_pairs=5)
    assert generate_pairs(again, place(tmp_path / "b", data)) is not None
    first = read_pairs(tmp_path / "b" / PAIRS)[0]
    np.testing.assert_array_equal(first.images, pairs.images[:5])
