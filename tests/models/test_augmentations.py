"""Augmentations in every step: nnU-Net's, and the mixing of pairs."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from hvae_hpc.config.arms import parse_arm
from hvae_hpc.config.augmentations import (
    FREE,
    CarveMixConfig,
    CutMixConfig,
    JoinedConfig,
    MixupConfig,
    NNUNetConfig,
    TumorCPConfig,
    join,
)
from hvae_hpc.config.kinds import AugmentationConfig
from hvae_hpc.config.loader import dump, load
from hvae_hpc.config.model import MovesConfig, OptimConfig, UNetConfig
from hvae_hpc.errors import UserError
from hvae_hpc.models.mixing import CarveMix, CutMix, Mixup, TumorCP
from hvae_hpc.models.nnunet_augmentation import (
    NNUNetAugmentation,
    blur,
    change_gamma,
    lower_resolution,
    make_maps,
    scale_about_mean,
)
from hvae_hpc.models.unet import UNet
from hvae_hpc.training.batches import PairTensors, add, make_batch

SIZE = (20, 24)


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, *SIZE, generator=torch.Generator().manual_seed(seed))


def a_square(n: int = 4, top: int = 5, left: int = 6, side: int = 6) -> Tensor:
    masks = torch.zeros(n, 1, *SIZE)
    masks[:, :, top : top + side, left : left + side] = 1
    return masks


def draw(augmentation: object, n: int, seed: int = 0) -> dict[str, Tensor]:
    return augmentation.draw(n, SIZE, torch.Generator().manual_seed(seed))  # type: ignore[attr-defined,no-any-return]


NNUNET = {
    # of batchgeneratorsv2's transforms, as nnUNetTrainer.get_training_transforms asks for them
    "noise_sd": (0.1, 0.0, 0.1),
    "brightness": (0.15, 0.75, 1.25),
    "contrast": (0.15, 0.75, 1.25),
    "resolution": (0.25 * 0.5, 0.5, 1.0),
    "inverted_gamma": (0.1, 0.7, 1.5),
    "gamma": (0.3, 0.7, 1.5),
    "scale": (0.2, 0.7, 1.4),
    "blur": (0.2 * 0.5, 0.5, 1.0),
    "degrees": (0.2, 0.0, 180.0),
}
"""The chance of each change, and the range of what is drawn where it happens."""


def test_nnunets_chances_and_ranges_are_those_of_its_source() -> None:
    n = 20_000
    drawn = draw(NNUNetAugmentation(NNUNetConfig()), n)
    linear = drawn["maps"][:, :, :2].clone()
    linear[:, 0, 1] *= SIZE[1] / SIZE[0]  # from sides of the image to px
    linear[:, 1, 0] *= SIZE[0] / SIZE[1]
    drawn["scale"] = torch.linalg.det(linear).abs().sqrt()
    upright = torch.atan2(linear[:, 1, 0].abs(), linear[:, 0, 0].abs()).rad2deg()
    drawn["degrees"] = torch.where(upright < 1e-3, torch.nan, 2 * upright)  # mirrors fold it
    drawn["blur"] = torch.where(drawn["blurred"] > 0, drawn["blur_px"][:, 0], torch.nan)
    for name, (chance, low, high) in NNUNET.items():
        values = drawn[name]
        nothing = 0 if name == "noise_sd" else 1
        values = values[~values.isnan() & ((values - nothing).abs() > 1e-5)]
        sd = (chance * (1 - chance) / n) ** 0.5
        assert len(values) / n == pytest.approx(chance, abs=5 * sd), name
        assert low - 1e-4 <= values.min() < low + 0.02 * (high - low), name
        assert high + 1e-4 >= values.max() > high - 0.02 * (high - low), name


def test_what_mixing_draws_has_the_ranges_of_its_sources() -> None:
    n = 20_000
    tumorcp, carvemix = draw(TumorCP(TumorCPConfig()), n), draw(CarveMix(CarveMixConfig()), n)
    ranges = {
        "scale": (tumorcp["scale"], 0.85, 1.25),
        "gamma": (tumorcp["gamma"], 0.7, 1.5),
        "angle": (tumorcp["angle"], 0.0, 2 * math.pi),
        "margin": (carvemix["margin"], -1.0, 1.0),
    }
    for name, (values, low, high) in ranges.items():
        places = ((values - low) / (high - low)).double().sort().values  # uniform: k-th of n at k/n
        assert (places - torch.arange(n) / n).abs().max() < 2 / n**0.5, name
    for drawn in (tumorcp, carvemix):
        assert drawn["used"].mean().item() == pytest.approx(0.5, abs=0.02)


def test_nnunet_changes_nothing_where_nothing_happens() -> None:
    drawn = draw(NNUNetAugmentation(NNUNetConfig()), 4)
    ones = torch.ones(4)
    drawn |= dict.fromkeys(
        ("brightness", "contrast", "gamma", "inverted_gamma", "resolution"), ones
    )
    drawn |= dict.fromkeys(("noise_sd", "blurred"), torch.zeros(4))
    drawn["maps"] = make_maps(torch.zeros(4), ones, torch.ones(4, 2), SIZE[0] / SIZE[1])
    x, masks = NNUNetAugmentation(NNUNetConfig()).apply(images(), a_square(), drawn)
    torch.testing.assert_close(x, images(), atol=2e-6, rtol=0)
    torch.testing.assert_close(masks, a_square())


def test_nnunet_moves_image_and_mask_alike_and_keeps_masks_binary() -> None:
    augmentation = NNUNetAugmentation(NNUNetConfig())
    masks = a_square(200)
    drawn = draw(augmentation, 200)
    x, moved = augmentation.apply(masks.clone(), masks, drawn | {"noise_sd": torch.zeros(200)})
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    # The image is the mask: its bright half is where the mask is, but for the edge.
    middle = (x.amax((2, 3), keepdim=True) + x.amin((2, 3), keepdim=True)) / 2
    assert ((x > middle).float() - moved).abs().sum((1, 2, 3)).median() <= 6
    assert not torch.equal(moved, masks)


def test_long_images_are_turned_by_less() -> None:
    augmentation = NNUNetAugmentation(NNUNetConfig())
    drawn = augmentation.draw(4000, (40, 20), torch.Generator().manual_seed(0))["maps"]
    # Mirroring and scaling leave the ratio of the map's entries of a row alone.
    angles = torch.atan2(drawn[:, 1, 0] * 2, drawn[:, 0, 0]).abs()
    angles = torch.minimum(angles, torch.pi - angles).rad2deg()
    assert 14 < angles.max() <= 15.001


def test_each_of_nnunets_changes_of_intensity_keeps_what_it_promises() -> None:
    x, factors = images(), torch.tensor([0.7, 0.9, 1.1, 1.5])
    mean, sd = x.mean((1, 2, 3)), x.std((2, 3))[:, 0]

    by_gamma = change_gamma(x, factors)
    torch.testing.assert_close(by_gamma.mean((1, 2, 3)), mean)
    torch.testing.assert_close(by_gamma.std((2, 3))[:, 0], sd)
    ranks = [values.flatten(1).argsort(1) for values in (x, by_gamma)]
    assert torch.equal(*ranks)

    scaled = scale_about_mean(x, factors)
    torch.testing.assert_close(scaled.mean((1, 2, 3)), mean)
    torch.testing.assert_close(scaled.std((2, 3))[:, 0], sd * factors)


def test_blur_is_a_gaussian_of_its_own_width_along_each_axis() -> None:
    x, widths = images(), torch.tensor([[0.5, 1.0], [0.7, 0.6], [1.0, 1.0], [0.9, 0.5]])
    for image, blurred, sd in zip(x, blur(x, widths), widths, strict=True):
        expected = gaussian_filter(image[0].numpy(), sd.tolist(), mode="nearest", radius=4)
        np.testing.assert_allclose(blurred[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 0.63, 0.8, 0.97, 1.0])
def test_low_resolution_is_what_nnunet_computes_one_by_one(scale: float) -> None:
    x = images()
    small = [round(side * scale) for side in SIZE]
    expected = F.interpolate(F.interpolate(x, small, mode="nearest-exact"), SIZE, mode="bilinear")
    ours = lower_resolution(x, torch.full((4,), scale))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def pairs_and_donors(**drawn: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Four pairs without a tumour, four donors with one, and what is drawn, the same for all."""
    donors = PairTensors(images=images(seed=1), masks=a_square())
    given = {name: torch.full((4,), float(value)) for name, value in drawn.items()}
    return (
        images(),
        torch.zeros(4, 1, *SIZE),
        {
            **given,
            "donor_images": donors.images,
            "donor_masks": donors.masks,
            "donor_distances": donors.distances,
        },
    )


@pytest.mark.parametrize("name", ["cutmix", "mixup", "carvemix", "tumorcp"])
def test_pairs_that_are_not_mixed_stay_as_they_are(name: str) -> None:
    config = type(FREE[name])(share=0.0)  # type: ignore[call-arg]
    augmentation = {"cutmix": CutMix, "mixup": Mixup, "carvemix": CarveMix, "tumorcp": TumorCP}[
        name
    ]
    x, masks, given = pairs_and_donors()
    made = augmentation(config)  # type: ignore[arg-type]
    mixed, mixed_masks = made.apply(x, masks, draw(made, 4) | given)
    torch.testing.assert_close(mixed, x)
    torch.testing.assert_close(mixed_masks, masks)


def test_cutmix_puts_a_rectangle_of_the_donor_into_image_and_mask() -> None:
    x, masks, drawn = pairs_and_donors(used=1)
    drawn["box"] = torch.tensor([[0.25, 0.25, 0.75, 0.5]] * 4)
    mixed, mixed_masks = CutMix(CutMixConfig()).apply(x, masks, drawn)
    inside = torch.zeros(4, 1, *SIZE, dtype=torch.bool)
    inside[:, :, 5:15, 6:12] = True
    torch.testing.assert_close(mixed, torch.where(inside, drawn["donor_images"], x))
    torch.testing.assert_close(mixed_masks, torch.where(inside, drawn["donor_masks"], masks))

    drawn = draw(CutMix(CutMixConfig()), 5000)
    sides = drawn["box"][:, 2:] - drawn["box"][:, :2]
    torch.testing.assert_close(sides.prod(1).mean(), torch.tensor(0.5), atol=0.02, rtol=0)


def test_mixup_averages_images_and_masks_and_the_pair_counts_more() -> None:
    x, masks, drawn = pairs_and_donors(share=0.3)
    mixed, mixed_masks = Mixup(MixupConfig()).apply(x, masks, drawn)
    torch.testing.assert_close(mixed, 0.7 * x + 0.3 * drawn["donor_images"])
    torch.testing.assert_close(mixed_masks, 0.3 * drawn["donor_masks"])
    assert draw(Mixup(MixupConfig()), 1000)["share"].max() <= 0.5


@pytest.mark.parametrize(
    ("margin", "nearer_than"), [(-1.0, 3.0), (-0.5, 1.5), (0.5, -0.75), (1.0, -1.5)]
)
def test_carvemix_carves_by_the_distance_to_the_lesions_edge(
    margin: float, nearer_than: float
) -> None:
    x, masks, drawn = pairs_and_donors(used=1, margin=margin)  # the square is 3 px deep
    mixed, mixed_masks = CarveMix(CarveMixConfig()).apply(x, masks, drawn)
    region = drawn["donor_distances"] < nearer_than
    torch.testing.assert_close(mixed, torch.where(region, drawn["donor_images"], x))
    torch.testing.assert_close(mixed_masks, torch.where(region, drawn["donor_masks"], masks))
    assert 0 < region.float().mean() < 0.5


def test_a_donor_without_a_tumour_gives_nothing() -> None:
    x, masks, drawn = pairs_and_donors(
        used=1, margin=-1, angle=0, scale=1, gamma=1, place=0.5, elsewhere=1
    )
    empty = PairTensors(images=images(seed=1), masks=torch.zeros(4, 1, *SIZE))
    drawn |= {"donor_masks": empty.masks, "donor_distances": empty.distances}
    for augmentation in (CarveMix(CarveMixConfig()), TumorCP(TumorCPConfig())):
        mixed, mixed_masks = augmentation.apply(x, masks, drawn)
        torch.testing.assert_close(mixed, x)
        torch.testing.assert_close(mixed_masks, masks)


def test_tumorcp_pastes_a_lesion_as_it_was_or_turned_and_larger() -> None:
    plain = {"used": 1, "gamma": 1, "place": 0.5, "elsewhere": 0}
    x, masks, drawn = pairs_and_donors(**plain, angle=0, scale=1)
    mixed, mixed_masks = TumorCP(TumorCPConfig()).apply(x, masks, drawn)
    lesion = drawn["donor_masks"] > 0
    torch.testing.assert_close(mixed_masks, drawn["donor_masks"])
    torch.testing.assert_close(
        mixed, torch.where(lesion, drawn["donor_images"], x), atol=1e-5, rtol=0
    )

    # A quarter turn leaves a square; 1.6 times as large it is 10 px wide, not 6.
    _, _, drawn = pairs_and_donors(**plain, angle=torch.pi / 2, scale=1.6)
    _, larger = TumorCP(TumorCPConfig()).apply(x, masks, drawn)
    assert larger.sum((1, 2, 3)).tolist() == [96.0] * 4  # the corners are less than half covered
    assert larger[:, :, 3:13, 4:14].sum((1, 2, 3)).tolist() == [96.0] * 4

    _, _, drawn = pairs_and_donors(**plain, angle=0, scale=1)
    brighter, _ = TumorCP(TumorCPConfig()).apply(
        x, masks, {**drawn, "gamma": torch.full((4,), 0.5)}
    )
    torch.testing.assert_close(brighter[lesion], drawn["donor_images"][lesion] ** 0.5)


def test_tumorcp_pastes_elsewhere_inside_the_body() -> None:
    x, masks, drawn = pairs_and_donors(used=1, angle=0, scale=1, gamma=1, place=0, elsewhere=1)
    x[:, :, :, :12] = 0  # no body on the left
    drawn["place"] = torch.tensor([0.0, 0.3, 0.6, 0.999])
    _, pasted = TumorCP(TumorCPConfig()).apply(x, masks, drawn)
    columns = torch.arange(SIZE[1])
    for mask in pasted[1:3, 0]:  # the others are cut by the border
        assert (mask.sum(0) * columns).sum() / mask.sum() > 10
    assert (pasted[1] != pasted[2]).any()
    assert pasted[:, :, :, :12].sum() == 0  # nothing of it lies in the air


def data(n: int = 6, added: int = 0) -> PairTensors:
    real = PairTensors(images=images(n), masks=a_square(n))
    more = PairTensors(images=torch.full((added, 1, *SIZE), 9.0), masks=a_square(added))
    return add(real, more) if added else real


def test_distances_are_to_the_nearest_pixel_across_the_edge() -> None:
    pairs = data(1)
    inside = pairs.masks[0, 0] > 0
    place = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"), 2).float()
    to_inside = torch.cdist(place.flatten(0, 1), place[inside]).amin(1).reshape(SIZE)
    to_outside = torch.cdist(place.flatten(0, 1), place[~inside]).amin(1).reshape(SIZE)
    torch.testing.assert_close(pairs.distances[0, 0], to_inside - to_outside)


@pytest.mark.parametrize("name", [*FREE, "nnunet+carvemix+tumorcp"])
def test_a_step_is_a_function_of_its_place_and_its_parts_are_the_wholes(name: str) -> None:
    moves = join([FREE[part] for part in name.split("+")])
    model, optim = UNet(UNetConfig(base_channels=4, depth=2)), OptimConfig(images=64, batch_size=8)

    def batch(images_seen: int, part: slice, seed: int = 3) -> dict[str, Tensor]:
        return make_batch(model, data(), optim, seed, moves, images_seen, part)

    whole, again = batch(16, slice(0, 8)), batch(16, slice(0, 8))
    halves = [batch(16, slice(0, 4)), batch(16, slice(4, 8))]
    for key in ("image", "mask"):
        torch.testing.assert_close(whole[key], again[key], atol=0, rtol=0)
        both = torch.cat([half[key] for half in halves])
        torch.testing.assert_close(whole[key], both, atol=1e-6, rtol=1e-6)
    assert not torch.equal(whole["image"], batch(24, slice(0, 8))["image"])
    assert not torch.equal(whole["image"], batch(16, slice(0, 8), seed=4)["image"])


def test_donors_are_real_pairs_alone() -> None:
    model, optim = UNet(UNetConfig(base_channels=4, depth=2)), OptimConfig(images=64, batch_size=64)
    moves = MixupConfig(share=1.0, alpha=100.0)  # about half of each
    pairs = data(4, added=60)
    mixed = make_batch(model, pairs, optim, 0, moves, 0, slice(0, 64))["image"].mean((1, 2, 3))
    # 9 is the added pairs' value: half of it at most, where the donor is a real one.
    assert ((mixed < 1.2) | ((mixed > 4) & (mixed < 7))).all()


def test_augmentations_are_joined_by_name_and_mix_before_they_move() -> None:
    known: dict[str, AugmentationConfig] = {"moved": MovesConfig(), **FREE}
    arm = parse_arm("nnunet+cutmix", [], 100, known)
    assert isinstance(arm.moves, JoinedConfig)
    assert arm.moves.parts == (CutMixConfig(), NNUNetConfig())
    assert parse_arm("moved", [], 100, known).moves == MovesConfig()
    assert parse_arm("cutmix+hvae+100", ["hvae"], 100, known).moves == CutMixConfig()
    with pytest.raises(UserError, match="nnunet"):
        parse_arm("nnunet+nnunet", [], 100, known)
    assert load(AugmentationConfig, dump(arm.moves), "here") == arm.moves
