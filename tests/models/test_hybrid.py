"""The HVAE-GAN: what its two further terms do to the gradients, and that without them it is the HVAE."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hvae_hpc.config.model import HVAEConfig, MovesConfig, NetworkConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.hybrid import HybridHVAE, spectral_distance
from hvae_hpc.models.lsgan import join_hard, see
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import to_tensors
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import train
from tests.tiny import make_pairs

NETWORK = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=3)
FLOW = HVAEConfig(network=NETWORK, n_leapfrog=1, kl_warm_up=0.1, flow_from=0.3)
GAN = replace(FLOW, adversarial_weight=0.7, adversarial_from=0.0)


def batch_of(model: HVAE, n: int = 3, share: float = 0.9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 16, 16, generator=generator)
    drawn = model.draw(n, share, generator)
    batch = {"image": images, "mask": (images > 0.6).float(), **drawn}
    return {name: value.double() for name, value in batch.items()}


def double(config: HVAEConfig) -> HybridHVAE:
    torch.manual_seed(0)
    return HybridHVAE(config, (16, 16)).double()


def gradients(total: Tensor, model: HVAE) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if not n.startswith("discriminator.")}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(named[name]) if of is None else of
        for name, of in zip(named, found, strict=True)
    }


@pytest.mark.parametrize("likelihood", ["gaussian", "textured"])
def test_the_discriminators_gradient_has_its_share_of_the_likelihoods_length(
    likelihood: str,
) -> None:
    model = double(replace(GAN, image_likelihood=likelihood)).eval()  # D's norms stand still
    batch = batch_of(model)
    n, pixels = 3, 256

    # By hand, with autograd alone: each pair's weight is the ratio of two lengths.
    mean, scale = model.encode(batch)
    parameter, logits = model.decoder(mean + scale * batch["noise"])
    nats = sum(model._nats(parameter, logits, batch)) / (n * pixels)
    by_output = torch.autograd.grad(nats.sum(), [parameter, logits], retain_graph=True)
    by_nats = (by_output[0][:, :1], by_output[1])
    image = model.draw_image(parameter, batch["texture"])
    fake = join_hard(image, torch.sigmoid(logits))
    score = model.discriminator(see(fake, batch, "fake"))
    of_pair = 0.5 * (score - 1).square().flatten(1).mean(1) / n
    by_score = torch.autograd.grad(of_pair.sum(), [image, logits], retain_graph=True)

    def length(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(parts, 1).flatten(1).norm(dim=1)

    weights = 0.7 * length(by_nats) / length(by_score)
    bound = model.bound(batch, mean, scale).total
    expected = gradients(bound + (weights * of_pair).sum(), model)
    loss = model(batch, "objective")
    for name, gradient in gradients(loss.total, model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-12)
    assert float(loss.terms["adversarial"]) == pytest.approx(float(of_pair.sum().detach()))
    assert (weights > 0).all()


def test_the_discriminator_judges_patches_of_real_and_of_decoded_pairs() -> None:
    model = double(GAN).eval()
    batch = batch_of(model)
    with torch.no_grad():
        mean, scale = model.encode(batch)
        fake = join_hard(*model.decode(mean + scale * batch["noise"]))
        real = torch.cat([batch["image"], batch["mask"]], 1)
        of_real, of_fake = (
            model.discriminator(see(pair, batch, side))
            for pair, side in ((real, "real"), (fake, "fake"))
        )
    loss = model(batch, "discriminator")
    assert of_real.shape == (3, 1, 4, 4)
    expected = 0.5 * (of_real - 1).square().mean() + 0.5 * of_fake.square().mean()
    assert float(loss.total.detach()) == pytest.approx(float(expected))


def trained(network: type[HVAE], config: HVAEConfig, folder: Path) -> dict[str, Tensor]:
    folder.mkdir()
    optim = OptimConfig(images=32, batch_size=4, lr=1e-2, ema_decay=0.9, precision="fp32")
    place = Workplace(folder=folder, data=folder, parents={}, resources=Resources())
    data = to_tensors(make_pairs(6, 16), 0)
    model = build(lambda: network(config, (16, 16)), 3, torch.device("cpu"))
    return train(model, data, optim, 3, MovesConfig(), place).weights or {}


def test_without_its_terms_it_trains_to_the_hvaes_weights_bit_for_bit(tmp_path: Path) -> None:
    hvae = trained(HVAE, FLOW, tmp_path / "hvae")
    nought = trained(HybridHVAE, FLOW, tmp_path / "nought")
    never = trained(HybridHVAE, replace(GAN, adversarial_from=1.0), tmp_path / "never")
    on = trained(HybridHVAE, replace(GAN, adversarial_from=0.5), tmp_path / "on")
    assert hvae.keys() < nought.keys() == never.keys()  # they have a discriminator
    for name, value in hvae.items():
        assert torch.equal(nought[name], value), name
        assert torch.equal(never[name], value), name
    assert any(not torch.equal(on[name], value) for name, value in hvae.items())


def test_what_it_maximises_is_never_called_a_bound() -> None:
    for share in (0.0, 0.9):
        model = double(GAN)
        terms = model(batch_of(model, share=share), "objective").terms
        assert "objective" in terms
        assert not {"elbo", "elbo_gain", "log_weight", "bits_per_pixel"} & terms.keys()
    assert FLOW.has_density
    assert not GAN.has_density
    assert not replace(FLOW, perceptual_weight=0.1).has_density
    assert (FLOW.pairs_apart, GAN.pairs_apart) == (True, False)


def test_the_spectral_distance_sees_lost_texture_and_not_where_things_are() -> None:
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert spectral_distance(image, image).abs().max() == 0
    moved = image.roll((4, 8), (2, 3))  # by whole pixels of every scale
    assert float(spectral_distance(image, moved).max()) < 1e-5
    smooth = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert float(spectral_distance(image, smooth).min()) > 0.2
