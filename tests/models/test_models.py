"""The LSGAN, the U-Net, the blocks and the moves: what they promise, on small examples."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.model import HVAEConfig, LSGANConfig, MovesConfig, NetworkConfig, UNetConfig
from hvae_hpc.models.augmentations import Moves, apply_moves, draw_moves
from hvae_hpc.models.blocks import Decoder, Encoder, ResidualBlock, SelfAttention, Upsample
from hvae_hpc.models.edm import EDM
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.lsgan import LSGAN, Discriminator, see
from hvae_hpc.models.unet import UNet
from hvae_hpc.training.averages import MovingAverage, TermReader
from hvae_hpc.training.distributed import Team

NETWORK = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=4)


class Score(nn.Module):
    """Scores a pair by the mean of its image."""

    def forward(self, pair: Tensor) -> Tensor:
        self.seen = pair
        return pair[:, 0].mean((1, 2))


def plain_lsgan() -> LSGAN:
    torch.manual_seed(0)
    return LSGAN(
        LSGANConfig(
            network=NETWORK,
            discriminator_channels=(4, 8),
            spectral_norm=False,
            differentiable_augmentation=False,
        ),
        (8, 8),
    )


def pairs(model: LSGAN, n: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, 1, 8, 8, generator=generator)
    return {"image": image, "mask": (image > 0.5).float(), **model.draw(n, 0.0, generator)}


GIVEN: dict[str, object] = {"learn_sigma_x": False, "learn_step_size": False, "tempering": "fixed"}
RAW: dict[str, object] = {"tempering": "none", "mass": "identity", "image_likelihood": "bernoulli"}


class Elsewhere(TorchFunctionMode):
    """Refuses what makes a host wait for its GPU: numbers and tensors that are copied there one by one.

    What is copied back it need not refuse: the device on which nothing is computed, "meta", has
        nothing to give.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, Tensor.to) and made.device.type == "meta":
            assert isinstance(args[0], Tensor), f"{function.__name__} copies {args[0]}"
            assert args[0].device == made.device, f"{function.__name__} copies a tensor"
        return made


@pytest.mark.parametrize(
    "make",
    [
        lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=1), (8, 8)),
        lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=1, **GIVEN), (8, 8)),
        lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=1, metropolis=True, **RAW), (8, 8)),
        lambda: LSGAN(LSGANConfig(network=NETWORK, discriminator_channels=(4, 8)), (8, 8)),
        lambda: UNet(UNetConfig(base_channels=4, depth=2)),
        lambda: EDM(EDMConfig(channels=(4, 8), attention_heads=2), (8, 8)),
    ],
    ids=["hvae", "nothing learned", "metropolis", "lsgan", "unet", "edm"],
)
def test_inside_a_step_nothing_goes_to_another_device_or_comes_back(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch, "autocast", lambda *of, **how: nullcontext()
    )  # it does not know of "meta"
    model = make().to("meta")
    batch = {name: torch.zeros(4, 1, 8, 8, device="meta") for name in ("image", "mask")}
    batch |= {
        name: drawn.to("meta") for name, drawn in model.draw(4, 1.0, torch.Generator()).items()
    }
    average, reader = MovingAverage(model, 0.9), TermReader(Team())
    with Elsewhere():
        for phase in model.phases():
            loss = model(batch, phase.name)
            loss.total.backward()
            nn.utils.clip_grad_norm_(phase.network.parameters(), 1.0)
        average.update()
        reader.add(0, loss.terms)
    assert loss.total.device.type == "meta"


def test_upsampling_is_repeating_pixels_and_convolving() -> None:
    torch.manual_seed(0)
    block = Upsample(3, 5).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(
        block(x), block.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    )


@pytest.mark.parametrize(
    ("block", "channels"),
    [
        (ResidualBlock(8, 8), 8),
        (ResidualBlock(8, 12), 8),
        (SelfAttention(8, 2), 8),
        (Upsample(8, 4), 8),
    ],
    ids=["residual", "residual with a skip", "attention", "upsample"],
)
def test_a_block_s_pullback_is_its_vector_jacobian_product(block: nn.Module, channels: int) -> None:
    block = block.double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, 4, 6, generator=generator, dtype=torch.float64)
    y, vjp = torch.func.vjp(block, x)
    same, pull = block.linearise(x)
    torch.testing.assert_close(same, y)
    gradient = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pull(gradient), vjp(gradient)[0])


def test_the_lsgan_s_objectives_square_each_pair_s_score() -> None:
    model = plain_lsgan()
    model.discriminator = Score()
    batch = pairs(model)
    fake = model.decode(batch["noise"])[0].mean((1, 2, 3))
    real = batch["image"].mean((1, 2, 3))
    expected = 0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean()
    torch.testing.assert_close(model(batch, "discriminator").total, expected)
    torch.testing.assert_close(model(batch, "generator").total, 0.5 * ((fake - 1) ** 2).mean())
    assert not torch.isclose(expected, 0.5 * (real.mean() - 1) ** 2 + 0.5 * fake.mean() ** 2)


def test_the_discriminator_sees_binary_masks_from_both_sides_and_the_generator_still_learns_from_them() -> (
    None
):
    model = plain_lsgan()
    score = Score()
    score.forward = lambda pair: (setattr(score, "seen", pair), pair[:, 1].mean((1, 2)))[1]
    model.discriminator = score
    loss = model(pairs(model), "generator")
    assert set(score.seen[:, 1].detach().round(decimals=6).unique().tolist()) <= {0.0, 1.0}
    loss.total.backward()
    assert model.decoder.layers[-1].weight.grad[1].abs().sum() > 0  # the mask's channel


def test_the_discriminator_s_phase_leaves_the_generator_alone() -> None:
    model = plain_lsgan()
    model(pairs(model), "discriminator").total.backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())


def test_the_augmentation_moves_both_channels_and_tones_the_image_alone() -> None:
    model = LSGAN(LSGANConfig(network=NETWORK, discriminator_channels=(4, 8)), (8, 8))
    batch = pairs(model)
    pair = torch.cat([batch["image"], batch["mask"]], dim=1)
    seen = see(pair, batch, "real")
    moved = apply_moves(pair, batch["real_moves"])
    assert torch.equal(seen[:, 1], moved[:, 1])
    assert not torch.allclose(seen[:, 0], moved[:, 0])
    assert not torch.allclose(moved, pair)


def test_spectral_normalisation_bounds_the_discriminator() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator((4, 8), (8, 8))
    for _ in range(50):
        discriminator(torch.rand(2, 2, 8, 8))
    assert float(torch.linalg.matrix_norm(discriminator.score.weight.detach(), 2)) == pytest.approx(
        1.0, abs=1e-3
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_moves_by_algorithms_that_add_up_in_one_order_are_the_same_moves(mode: str) -> None:
    generator = torch.Generator().manual_seed(3)
    pair = torch.rand(3, 2, 12, 8, generator=generator).requires_grad_()
    moves = draw_moves(3, MovesConfig(), generator, 1.5)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        moved = apply_moves(pair, moves, mode)
    finally:
        torch.use_deterministic_algorithms(False)
    usual = apply_moves(pair, moves, mode)
    torch.testing.assert_close(moved, usual)
    one, other = (torch.autograd.grad(x.square().sum(), pair)[0] for x in (moved, usual))
    torch.testing.assert_close(one, other)


def test_autocast_does_not_reach_spectral_normalisation() -> None:
    discriminator = Discriminator((4, 8), (8, 8))
    reached = list[bool]()
    for layer in (discriminator.layers[0], discriminator.score):
        layer.parametrizations.weight[0].register_forward_hook(
            lambda *of: reached.append(torch.is_autocast_enabled("cpu"))
        )
    with torch.autocast("cpu", torch.bfloat16):
        discriminator(torch.rand(2, 2, 8, 8))
    assert reached == [False, False]


def test_the_same_decoder_serves_hvae_and_lsgan() -> None:
    hvae, lsgan = HVAE(HVAEConfig(network=NETWORK), (8, 8)), plain_lsgan()
    lsgan.decoder.load_state_dict(hvae.decoder.state_dict())
    z = torch.randn(3, 4)
    for one, other in zip(hvae.decode(z), lsgan.decode(z), strict=True):
        assert torch.equal(one, other)


def test_attention_is_the_textbook_s() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 2)
    x = torch.randn(2, 8, 3, 3)
    q, k, v = (
        attention.query_key_value(attention.norm(x))
        .reshape(2, 3, 2, 4, 9)
        .transpose(-1, -2)
        .unbind(1)
    )
    expected = (
        nn.functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(2, 8, 3, 3)
    )
    torch.testing.assert_close(attention(x), x + attention.out(expected))


def test_attention_lies_where_the_config_says_and_in_the_bottleneck() -> None:
    for module in (Encoder(NETWORK, (8, 8)), Decoder(NETWORK, (8, 8))):
        assert sum(isinstance(m, SelfAttention) for m in module.modules()) == 2
    without = NetworkConfig(channels=(4, 8), attention_levels=(), attention_heads=2)
    assert sum(isinstance(m, SelfAttention) for m in Encoder(without, (8, 8)).modules()) == 1


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 9x8 px, expected multiples of 2"):
        Encoder(NETWORK, (9, 8))


def test_the_classic_unet_has_its_31_million_weights() -> None:
    # 31,030,593 with biases in the 3x3 convolutions; here these are 5,888 batch-norm shifts,
    # beside as many scales
    assert sum(p.numel() for p in UNet(UNetConfig()).parameters()) == 31_030_593 + 5_888


def test_the_unet_s_loss_is_cross_entropy_plus_one_minus_soft_dice() -> None:
    torch.manual_seed(0)
    unet = UNet(UNetConfig(base_channels=4, depth=2)).eval()
    image = torch.rand(3, 1, 8, 8)
    mask = (image > 0.6).float()
    p = unet.probability(image)
    entropy = nn.functional.binary_cross_entropy(p, mask)
    dices = [
        (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, mask, strict=True)
    ]
    expected = entropy + 1 - sum(dices) / 3
    batch = {"image": image, "mask": mask}
    torch.testing.assert_close(unet(batch).total, expected)
    unet.loss = "ce"
    torch.testing.assert_close(unet(batch).total, entropy)
    unet.loss = "dice"
    torch.testing.assert_close(unet(batch).total, expected - entropy)


def test_no_moves_change_nothing() -> None:
    moves = draw_moves(2, MovesConfig(flip=0, rotate_deg=0, scale=0, shift=0), torch.Generator())
    x = torch.rand(2, 1, 6, 8)
    torch.testing.assert_close(apply_moves(x, moves), x)


def test_a_flip_is_left_right() -> None:
    moves = draw_moves(2, MovesConfig(flip=1, rotate_deg=0, scale=0, shift=0), torch.Generator())
    x = torch.rand(2, 1, 6, 8)
    torch.testing.assert_close(apply_moves(x, moves), x.flip(3))


def test_a_rotation_turns_by_its_angle_on_wide_images_too() -> None:
    height, width, angle = 33, 65, 30.0
    y, x = torch.meshgrid(torch.arange(height) - 16.0, torch.arange(width) - 32.0, indexing="ij")
    bar = ((y.abs() < 2) & (x.abs() < 14)).float()[None, None]
    generator = torch.Generator().manual_seed(0)
    moves = draw_moves(
        1, MovesConfig(flip=0, rotate_deg=angle, scale=0, shift=0), generator, height / width
    )
    drawn = (torch.rand(1, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1)[0, 1] * angle
    turned = apply_moves(bar, moves)[0, 0]
    covariance = torch.tensor(
        [[(turned * x * x).sum(), (turned * x * y).sum()], [0.0, (turned * y * y).sum()]]
    )
    found = 0.5 * math.degrees(
        math.atan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1])
    )
    assert abs(found) == pytest.approx(abs(float(drawn)), abs=1.0)


def test_moves_are_as_exact_where_a_network_s_matrix_work_is_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(2)
    moves, x = (
        draw_moves(4, MovesConfig(), generator),
        torch.rand(4, 1, 64, 64, generator=generator),
    )
    with torch.autocast("cpu", torch.bfloat16):
        moved = apply_moves(x, moves)
    torch.testing.assert_close(moved, apply_moves(x, moves), rtol=0, atol=0)


def test_moved_masks_stay_binary_and_on_their_image() -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.zeros(8, 1, 32, 32)
    image[:, :, 8:20, 10:24] = 1.0
    moves = draw_moves(8, MovesConfig(), generator)
    mask = apply_moves(image, moves, mode="nearest")
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask - apply_moves(image, moves)).abs().mean() < 0.02


def test_bicubic_moves_keep_the_fine_detail_that_bilinear_ones_blur() -> None:
    """Half a pixel is where the two weigh -3/32, 19/32, 19/32, -3/32 (Keys, a = -0.75) and 1/2."""
    row = torch.tensor([0.2, 0.9, 0.1, 0.6, 0.7, 0.3, 0.8, 0.2])
    images = row.expand(1, 1, 8, 8).contiguous()
    half = torch.eye(2, 3)[None].clone()
    half[0, 0, 2] = 1 / 8  # of a side of 2: half a pixel of 8
    for name, weights in (("bilinear", [0, 16, 16, 0]), ("bicubic", [-3, 19, 19, -3])):
        moves = Moves(MovesConfig(interpolation=name))  # type: ignore[arg-type]
        moved, _ = moves.apply(images, images.round(), {"maps": half})
        expected = row.unfold(0, 4, 1) @ torch.tensor(weights).float() / 32
        torch.testing.assert_close(moved[0, 0, 4, 1:6], expected.clamp(0, 1))

    noise = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(7))
    drawn = Moves(MovesConfig()).draw(16, (32, 32), torch.Generator().manual_seed(8))
    inner = {
        name: Moves(MovesConfig(interpolation=name)).apply(noise, noise, drawn)[0][..., 8:24, 8:24]  # type: ignore[arg-type]
        for name in ("bilinear", "bicubic")
    }
    kept = {name: float(x.std() / noise.std()) for name, x in inner.items()}
    assert kept["bilinear"] + 0.1 < kept["bicubic"] < 1
    assert inner["bicubic"].min() >= 0
    assert inner["bicubic"].max() <= 1

    # What another augmentation took beyond [0, 1] stays there.
    wide, _ = Moves(MovesConfig()).apply(2 * noise - 0.5, noise, drawn)
    assert (noise * 2 - 0.5).min() <= wide.min() < -0.3
    assert (noise * 2 - 0.5).max() >= wide.max() > 1.3
