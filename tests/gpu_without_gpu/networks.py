"""The networks that are traced, and tested on a GPU: table1's, and small ones of every kind."""

from collections.abc import Callable
from typing import Any

from torch import nn

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.model import HVAEConfig, LSGANConfig, NetworkConfig, UNetConfig
from hvae_hpc.models.blocks import Batch, Loss
from hvae_hpc.models.edm import EDM
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.hybrid import HybridHVAE
from hvae_hpc.models.lsgan import LSGAN
from hvae_hpc.models.unet import UNet

GAN: dict[str, Any] = {
    "image_likelihood": "textured",
    "adversarial_weight": 0.1,
    "adversarial_from": 0.0,
    "perceptual_weight": 0.1,
}
SMALL = NetworkConfig(channels=(8, 16), attention_levels=(1,), latent_size=8)


def _hvae(**fields: Any) -> Callable[[int], nn.Module]:
    return lambda px: HVAE(HVAEConfig(**fields), (px, px))


def _small_hvae(**fields: Any) -> Callable[[int], nn.Module]:
    return _hvae(network=SMALL, n_leapfrog=2, kl_warm_up=0.25, flow_from=0.5, **fields)


class WaitingUNet(UNet):
    """Waits for the device in every step, as no network of the product may."""

    def forward(self, batch: Batch, phase: str = "segmentation") -> Loss:
        """Return a loss that the host has looked at."""
        loss = super().forward(batch, phase)
        float(loss.total)
        return loss


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    # table1's; the flow is on from the first step
    "unet": lambda px: UNet(UNetConfig()),
    "lsgan": lambda px: LSGAN(LSGANConfig(), (px, px)),
    "vae": _hvae(n_leapfrog=0),
    "hvae": _hvae(kl_warm_up=0.0, flow_from=0.0),
    # beyond's, and without its folding
    "edm": lambda px: EDM(EDMConfig(fold=2, noise_mean=-0.4), (px, px)),
    "edm_fold_1": lambda px: EDM(EDMConfig(), (px, px)),
    "resenc_unet": lambda px: UNet(UNetConfig(encoder="residual")),
    "hvae-gan": lambda px: HybridHVAE(HVAEConfig(kl_warm_up=0.0, flow_from=0.0, **GAN), (px, px)),
    # small ones, of every kind; the flow comes on half-way
    "small_unet": lambda px: UNet(UNetConfig(base_channels=8, depth=2)),
    "waiting": lambda px: WaitingUNet(UNetConfig(base_channels=8, depth=2)),
    "small_lsgan": lambda px: LSGAN(
        LSGANConfig(network=SMALL, discriminator_channels=(8, 16)), (px, px)
    ),
    "small_edm": lambda px: EDM(
        EDMConfig(channels=(8, 16), attention_levels=1, held_out=0.1), (px, px)
    ),
    "small_edm_given_mask": lambda px: EDM(
        EDMConfig(channels=(8, 16), attention_levels=1, given_mask=True), (px, px)
    ),
    "small_vae": _hvae(network=SMALL, n_leapfrog=0),
    "small_hvae": _small_hvae(),
    "small_hvae_gan": lambda px: HybridHVAE(
        HVAEConfig(network=SMALL, n_leapfrog=2, kl_warm_up=0.25, flow_from=0.5, **GAN), (px, px)
    ),
    "small_fixed": _small_hvae(
        tempering="fixed", image_likelihood="bernoulli", inner_gradient="detached"
    ),
    "small_metropolis": _small_hvae(
        tempering="none",
        metropolis=True,
        mass="identity",
        learn_step_size=False,
        learn_sigma_x=False,
    ),
}
"""By name: makes the network for images of so many px a side."""

SMALL_NETWORKS = tuple(name for name in NETWORKS if name.startswith("small_"))
