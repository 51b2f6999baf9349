"""The diffusion model: its sampler against densities that are known, its objective, its secrets."""

import math

import pytest
import torch
from torch import Tensor

from hvae_hpc.config.augmentations import NNUNetConfig
from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.model import MovesConfig, OptimConfig
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.models.augmentations import Moves, apply_moves
from hvae_hpc.models.edm import EDM, SIGMA_MAX, draw_by_heun, noise_levels, warp
from hvae_hpc.training.batches import PairTensors, images_of_step, make_batch

CONFIG = {"channels": (4, 8), "attention_heads": 2}


def noise(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def a_model(**fields: object) -> EDM:
    """A network whose last layers are not silent, as they are at first."""
    torch.manual_seed(0)
    model = EDM(EDMConfig(**{**CONFIG, **fields}), (8, 8))  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.denoiser.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    return model


def pairs(model: EDM, n: int = 4, moved: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, 1, 8, 8, generator=generator)
    batch = {"image": image, "mask": (image > 0.5).float(), **model.draw(n, 0.0, generator)}
    if moved:
        batch |= Moves(MovesConfig()).draw(n, (8, 8), generator)
    return batch


def test_heuns_method_is_of_second_order_on_a_path_that_is_known() -> None:
    """Of N(0, s^2) the denoiser is s^2 / (s^2 + sigma^2) y, and the path z s, where it began at z."""
    s, z = 0.5, noise(0, 50)

    def error(steps: int) -> float:
        levels = noise_levels(steps).double()
        end = draw_by_heun(lambda y, sigma: s**2 / (s**2 + sigma**2) * y, z, levels)
        true = z * SIGMA_MAX * s / math.sqrt(s**2 + SIGMA_MAX**2)
        return float((end - true).abs().max())

    errors = [error(steps) for steps in (16, 32, 64)]
    assert 3.4 < errors[0] / errors[1] < 5
    assert 3.4 < errors[1] / errors[2] < 5


def test_samples_of_the_ideal_denoiser_follow_a_mixture_in_two_dimensions() -> None:
    centres = torch.tensor([[-0.6, 0.2], [0.5, 0.5], [0.3, -0.7]], dtype=torch.float64)
    weights, s = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 0.1

    def denoise(y: Tensor, sigma: Tensor) -> Tensor:
        variance = s**2 + sigma**2
        log = weights.log() - (y[:, None] - centres).square().sum(2) / (2 * variance)
        share = torch.softmax(log, 1)
        return (share @ centres) * sigma**2 / variance + y * s**2 / variance

    samples = draw_by_heun(denoise, noise(1, 20_000, 2), noise_levels(40).double())
    nearest = torch.cdist(samples, centres).argmin(1)
    for number, (centre, weight) in enumerate(zip(centres, weights, strict=True)):
        cluster = samples[nearest == number]
        assert len(cluster) / len(samples) == pytest.approx(float(weight), abs=0.012)
        torch.testing.assert_close(cluster.mean(0), centre, atol=0.01, rtol=0)
        torch.testing.assert_close(cluster.std(0), torch.full((2,), s).double(), atol=0.006, rtol=0)


def test_the_objective_is_the_weighted_error_of_the_denoised_pair() -> None:
    model = a_model().eval()
    batch = pairs(model)
    model.measure(batch["image"], batch["mask"])
    y = 2 * torch.cat([batch["image"], batch["mask"]], 1) - 1
    torch.testing.assert_close(model.centre, y.mean((0, 2, 3))[:, None, None])
    torch.testing.assert_close(model.spread, y.std((0, 2, 3))[:, None, None])

    sigma, spread = batch["sigma"][:, None, None, None], model.spread
    clean = y - model.centre
    denoised = model.denoise(clean + sigma * batch["noise"], batch["sigma"])
    weight = (sigma**2 + spread**2) / (sigma * spread) ** 2
    expected = (weight * (denoised - clean) ** 2).mean()
    torch.testing.assert_close(model(batch).total, expected)


def test_a_silent_network_denoises_as_is_best_for_gaussian_pixels() -> None:
    model = EDM(EDMConfig(**CONFIG), (8, 8))  # type: ignore[arg-type]
    y, sigma = torch.randn(3, 2, 8, 8), torch.tensor([0.1, 0.5, 3.0])
    level = sigma[:, None, None, None]
    torch.testing.assert_close(model.denoise(y, sigma), y * 0.25 / (0.25 + level**2))


def test_noise_levels_and_what_is_left_out_follow_their_laws() -> None:
    n = 20_000
    drawn = a_model(given_mask=True).draw(n, 0.0, torch.Generator().manual_seed(0))
    level = drawn["sigma"].log()
    assert level.mean().item() == pytest.approx(-0.8, abs=0.05)
    assert level.std().item() == pytest.approx(1.2, abs=0.05)
    assert drawn["mask_shown"].mean().item() == pytest.approx(0.85, abs=0.02)
    assert (drawn["kept"] > 0).float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert drawn["kept"].mean().item() == pytest.approx(1.0, abs=0.01)  # what is kept makes up


def test_a_batch_says_how_each_of_its_pairs_was_moved() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    data = PairTensors(images=images, masks=(images > 0.5).float())
    optim = OptimConfig(images=32, batch_size=4)
    moves = MovesConfig(interpolation="bilinear")
    batch = make_batch(a_model(), data, optim, 0, moves, 8, slice(0, 4))
    rows = images_of_step(6, 0, 8, 4)
    torch.testing.assert_close(apply_moves(images[rows], batch["maps"]), batch["image"])
    assert not torch.equal(images[rows], batch["image"])


def test_moves_that_the_network_cannot_be_told_are_refused() -> None:
    asked = {"data": "d", "generator": "edm", "split": SplitConfig(), "image_px": 0}
    fields = {**asked, "model": EDMConfig(), "optim": OptimConfig(images=64)}
    with pytest.raises(ValueError, match="but EDM is told of moves alone"):
        TrainConfig(**fields, moves=NNUNetConfig())
    assert TrainConfig(**fields, moves=MovesConfig()).moves == MovesConfig()


def test_moves_are_told_in_training_and_not_when_pairs_are_drawn() -> None:
    model, told = a_model(), []
    model.denoiser.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]))
    batch = pairs(model, moved=True)
    with torch.no_grad():
        moved = model(batch).total
        unmoved = model({name: value for name, value in batch.items() if name != "maps"}).total
    assert moved != unmoved  # the network hears of them
    torch.testing.assert_close(told[0], (batch["maps"] - torch.eye(2, 3)).flatten(1))

    told.clear()
    with torch.no_grad():
        model.decode(torch.randn(2, model.latent_size))
    assert len(told) == 2 * (model.steps - 1) + 1
    assert all(not moves.any() for moves in told)


def test_feature_maps_are_left_out_in_training_alone_and_pair_by_pair() -> None:
    model = a_model(dropout=0.5)
    batch = pairs(model)
    trained = model(batch)
    parts = [model({name: value[i : i + 1] for name, value in batch.items()}) for i in range(4)]
    torch.testing.assert_close(trained.total, sum(part.total for part in parts) / 4)

    kept = torch.ones_like(batch["kept"])
    assert not torch.isclose(trained.total, model({**batch, "kept": kept}).total)
    torch.testing.assert_close(model.eval()(batch).total, model({**batch, "kept": kept}).total)


def test_images_are_drawn_to_given_masks_which_stay_as_they_are() -> None:
    model = a_model(given_mask=True).eval()
    masks = torch.zeros(5, 1, 8, 8)
    masks[:, :, 2:6, 3:6] = 1
    z = model.draw_latent(7, masks, torch.Generator().manual_seed(0))
    assert z.shape == (7, model.latent_size)
    with torch.no_grad():
        image, mask = model.decode(z)
        other, _ = model.decode(torch.cat([z[:, :64], 1 - z[:, 64:]], 1))
    torch.testing.assert_close(mask.flatten(1), z[:, 64:])
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert image.shape == (7, 1, 8, 8)
    assert not torch.equal(image, other)  # the mask is looked at

    # Its objective is about images alone, and a mask that is not shown is not seen.
    hidden = {**pairs(model), "mask_shown": torch.zeros(4, 1, 1, 1)}
    torch.testing.assert_close(
        model(hidden).total, model({**hidden, "mask": 1 - hidden["mask"]}).total
    )


def test_a_mask_that_is_warped_stays_binary_and_one_that_is_not_stays() -> None:
    mask = (torch.rand(2, 1, 20, 24, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    torch.testing.assert_close(warp(mask, torch.zeros(2, 2, 5, 5)), mask)
    bent = warp(mask, 0.3 * torch.ones(2, 2, 5, 5))
    assert set(bent.unique().tolist()) == {0.0, 1.0}
    # 0.3 of a side of 2 is 3 rows of 20.
    torch.testing.assert_close(bent[:, :, :17, :20], mask[:, :, 3:, 4:][..., :20])


def test_it_learns_what_pairs_look_like_and_that_masks_fit_them() -> None:
    """Two kinds of pairs: a bright square left with its mask, or right with its own."""
    torch.manual_seed(0)
    model = EDM(EDMConfig(channels=(16, 32), dropout=0.0), (8, 8))
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, 2:6, 1:4], masks[1, :, 2:6, 5:8] = 1, 1
    images = 0.2 + 0.6 * masks
    model.measure(images, masks)

    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        rows = torch.randint(2, (16,), generator=generator)
        batch = {"image": images[rows], "mask": masks[rows], **model.draw(16, 0.0, generator)}
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()

    with torch.no_grad():
        image, mask = model.eval().decode(torch.randn(40, model.latent_size, generator=generator))
    hard = (mask > 0.5).float()
    distance = torch.cdist(hard.flatten(1), masks.flatten(1), p=1)
    assert (distance.amin(1) <= 2).float().mean() > 0.9
    assert distance.argmin(1).bincount(minlength=2).min() >= 8  # both kinds are drawn
    assert (image - (0.2 + 0.6 * hard)).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"fold": 3}, (8, 8), "multiples of model.fold = 3"),
        ({"channels": (4, 8, 8)}, (10, 10), "multiples of 4"),
    ],
)
def test_images_that_do_not_suit_are_refused(
    fields: dict[str, object], size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EDM(EDMConfig(**{**CONFIG, **fields}), size)  # type: ignore[arg-type]


def test_folded_squares_are_what_the_network_sees() -> None:
    model = a_model(fold=2)
    assert model.denoiser.first.in_channels == 2 * 4
    with torch.no_grad():
        assert model.decode(torch.randn(2, model.latent_size))[0].shape == (2, 1, 8, 8)
