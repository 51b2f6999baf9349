"""The HVAE-GAN and the VAE-GAN: the (H)VAE whose drawn pairs a discriminator judges as well.

From ``adversarial_from`` on, the decoder learns from two things more than the bound:

    L = -bound / pixels + 1/2 mean (D(x, m) - 1)^2 + perceptual_weight * spectral distance

(x, m) is decoded from z0, as the samplers decode, and D scores its patches. How much D counts
follows the pair: its gradient by image and mask logits is given ``adversarial_weight`` times the
length of the likelihood's. VQGAN (Esser et al. 2021) compares the two lengths once per batch,
at the last layer's weights; a pair's own lengths do not depend on the other pairs, or on the number
of processes. What is minimised is no bound.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.model import HVAEConfig, ImageSize
from hvae_hpc.models.augmentations import per_pair
from hvae_hpc.models.blocks import Batch, Loss, Phase, Tensors
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.lsgan import Discriminator, deceive, draw_sides, join_hard, tell_apart

SCALES = (1, 2, 4)
"""Images are compared at full size, and shrunk by 2 and 4."""
QUIET = 1e-2
"""Amplitudes far below it count as equal: they are rounding and noise."""


class HybridHVAE(HVAE):
    """An (H)VAE with a discriminator.

    Args:
        config: see there; the discriminator has the channels of the encoder's first levels.
        image_size: height and width, px.
    """

    has_bound = False
    compiled_parts = (*HVAE.compiled_parts, "decode_raw")

    def __init__(self, config: HVAEConfig, image_size: ImageSize) -> None:
        super().__init__(config, image_size)
        channels = config.network.channels[:3]
        self.discriminator = Discriminator(channels, image_size, patches=True)

    def phases(self) -> tuple[Phase, ...]:
        """The discriminator's phase, from ``adversarial_from`` on, then the (H)VAE's."""
        start = self.config.adversarial_from
        own = [p for name, p in self.named_parameters() if not name.startswith("discriminator.")]
        return (
            Phase("discriminator", self.discriminator, start),
            Phase("objective", nn.ParameterList(own)),
        )

    def draw(self, n: int, share: float, generator: torch.Generator) -> Tensors:
        """Draw what the (H)VAE needs; where it is judged, what both sides and the texture need."""
        drawn = super().draw(n, share, generator)
        if share >= self.config.adversarial_from:
            height, width = self.image_size
            drawn |= draw_sides(n, height / width, generator)
            drawn["texture"] = torch.randn(n, 1, height, width, generator=generator)
        return drawn

    def decode_raw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder puts out."""
        parameter, mask_logits = self.decoder(z)
        return parameter, mask_logits

    def forward(self, batch: Batch, phase: str = "objective") -> Loss:
        """Return one phase's objective; ``phase`` is "discriminator" or "objective"."""
        mean, scale = self.encode(batch)
        if phase == "objective" and "texture" not in batch:
            return self.bound(batch, mean, scale)

        parameter, mask_logits = self.decode_raw(mean + scale * batch["noise"])
        image = self.draw_image(parameter, batch["texture"])
        drawn = torch.cat([image, mask_logits], 1)
        fake = join_hard(drawn[:, :1], drawn[:, 1:].sigmoid())
        if phase == "discriminator":
            return tell_apart(self.discriminator, batch, fake)

        with torch.no_grad():
            by_parameter, by_logits = self.slopes(parameter, mask_logits, batch)
            slopes = torch.cat([by_parameter[:, :1], by_logits], 1) / image.numel()
            wanted = self.config.adversarial_weight * _length(slopes)
        drawn.register_hook(lambda g: g * per_pair(wanted / _length(g).clamp(min=1e-30)))
        adversarial = deceive(self.discriminator, batch, fake)
        distance = spectral_distance(image, batch["image"])

        loss = self.bound(batch, mean, scale)
        terms = {"adversarial": adversarial.detach(), "spectral_distance": distance.detach()}
        total = loss.total + adversarial + self.config.perceptual_weight * distance.mean()
        return Loss(total, loss.terms | terms)


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def spectral_distance(ours: Tensor, real: Tensor) -> Tensor:
    """Return how far the amplitude spectra of two images are apart, (B,), at several scales.

    It is the mean difference of the logarithms of the amplitudes, so that fine texture, which
    carries little power, counts as much as form.
    """
    both = torch.stack([ours, real])
    distances = []
    for scale in SCALES:
        shrunk = F.avg_pool2d(both.flatten(0, 1), scale).unflatten(0, both.shape[:2])
        logs = torch.log(torch.fft.rfft2(shrunk, norm="ortho").abs() + QUIET)
        distances.append((logs[0] - logs[1]).abs().flatten(1).mean(1))
    return torch.stack(distances).mean(0)
