"""The least-squares GAN (Mao et al. 2017) of image and mask; its generator is the HVAE's decoder.

The discriminator sees image and mask together and its score is squared per pair, with targets 0 for
generated and 1 for real, and 1 for the generator:

    L_D = 1/2 E[(D(real) - 1)^2] + 1/2 E[D(G(z))^2],    L_G = 1/2 E[(D(G(z)) - 1)^2]

The generator's mask is thresholded before the discriminator sees it, with the soft mask's gradient
(straight-through), because soft against hard would give it away.
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from hvae_hpc.config.model import ImageSize, LSGANConfig, MovesConfig
from hvae_hpc.models.augmentations import Pair, apply_moves, draw_moves
from hvae_hpc.models.blocks import Batch, Decoder, Loss, Phase, Tensors
from hvae_hpc.models.vjp import widen

AUGMENTATION = MovesConfig(flip=0.5, rotate_deg=10.0, scale=0.1, shift=0.1)
BRIGHTNESS, CONTRAST = 0.2, 0.3  # largest additive and relative change of the image channel


class Discriminator(nn.Module):
    """Scores pairs (B, 2, H, W): each as a whole, (B,), or each of its patches, (B, 1, h, w).

    As a whole it knows where in the image things are.

    Args:
        channels: of its levels; each halves the image.
        image_size: height and width, px.
        normalised: spectral normalisation of all weights.
        patches: score patches.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        image_size: ImageSize,
        normalised: bool = True,
        patches: bool = False,
    ) -> None:
        super().__init__()
        height, width = image_size
        wrap = spectral_norm if normalised else nn.Identity()
        layers: list[nn.Module] = []
        before = 2
        for here in channels:
            layers += [wrap(nn.Conv2d(before, here, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            before, height, width = here, height // 2, width // 2
        self.layers = nn.Sequential(*layers)
        self.patches = patches
        self.score = nn.Conv2d(before, 1, 1) if patches else nn.Linear(before * height * width, 1)
        wrap(self.score)

    def forward(self, pair: Tensor) -> Tensor:
        """Return the scores, float32."""
        convolutions = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        # Autocast would have a GPU, but not a CPU, normalise the weights in bfloat16.
        with torch.autocast(pair.device.type, enabled=False):
            weights = [layer.weight for layer in convolutions]
            by_score = self.score.weight
        h = pair
        for layer, weight in zip(convolutions, weights, strict=True):
            h = F.leaky_relu(F.conv2d(h, weight, layer.bias, stride=2, padding=1), 0.2)
        if self.patches:
            return widen(F.conv2d(h, by_score, self.score.bias))
        return widen(F.linear(h.flatten(1), by_score, self.score.bias))[:, 0]


def draw_sides(n: int, aspect: float, generator: Generator) -> Tensors:
    """Draw moves and tones of n real and n generated pairs, for :func:`see`."""
    drawn = {}
    for side in ("real", "fake"):
        drawn[f"{side}_moves"] = draw_moves(n, AUGMENTATION, generator, aspect)
        drawn[f"{side}_tones"] = torch.rand(n, 2, generator=generator) * 2 - 1
    return drawn


def see(pair: Tensor, batch: Batch, side: str) -> Tensor:
    """Return what the discriminator sees of a side: moved pairs, of images with other tones."""
    if f"{side}_moves" not in batch:
        return pair
    image, mask = apply_moves(pair, batch[f"{side}_moves"]).chunk(2, dim=1)
    brightness, contrast = batch[f"{side}_tones"][:, :, None, None, None].unbind(1)
    average = image.mean((1, 2, 3), keepdim=True)
    image = (image - average) * (1 + CONTRAST * contrast) + average + BRIGHTNESS * brightness
    return torch.cat([image, mask], dim=1)


def join_hard(image: Tensor, probability: Tensor) -> Tensor:
    """Join image and thresholded mask to a pair; the soft mask's gradient goes through."""
    hard = (probability > 0.5).to(probability.dtype)
    return torch.cat([image, probability + (hard - probability).detach()], dim=1)


def tell_apart(discriminator: nn.Module, batch: Batch, fake: Tensor) -> Loss:
    """Return the discriminator's objective of the batch's real pairs and generated ones."""
    real = torch.cat([batch["image"], batch["mask"]], dim=1)
    score_real = discriminator(see(real, batch, "real"))
    score_fake = discriminator(see(fake, batch, "fake"))
    loss = 0.5 * ((score_real - 1) ** 2).mean() + 0.5 * (score_fake**2).mean()
    terms = {"discriminator": loss, "score_real": score_real, "score_fake": score_fake}
    return Loss(loss, {name: term.detach() for name, term in terms.items()})


def deceive(discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
    """Return the generator's objective: generated pairs are to score 1."""
    score: Tensor = discriminator(see(fake, batch, "fake"))
    return 0.5 * ((score - 1) ** 2).mean()


class LSGAN(nn.Module):
    """Generator and discriminator with their two objectives.

    Args:
        config: see there.
        image_size: height and width, px.
    """

    def __init__(self, config: LSGANConfig, image_size: ImageSize) -> None:
        super().__init__()
        self.config = config
        self.latent_size = config.network.latent_size
        self.aspect = image_size[0] / image_size[1]
        self.decoder = Decoder(config.network, image_size)
        self.discriminator = Discriminator(
            config.discriminator_channels, image_size, config.spectral_norm
        )

    def phases(self) -> tuple[Phase, ...]:
        """The discriminator's phase, then the generator's."""
        return (Phase("discriminator", self.discriminator), Phase("generator", self.decoder))

    def draw(self, n: int, share: float, generator: Generator) -> Tensors:
        """Draw z for n pairs and, where pairs are augmented, moves and tones of both sides."""
        drawn = {"noise": torch.randn(n, self.latent_size, generator=generator)}
        if self.config.differentiable_augmentation:
            drawn |= draw_sides(n, self.aspect, generator)
        return drawn

    def forward(self, batch: Batch, phase: str = "discriminator") -> Loss:
        """Return one phase's objective.

        Args:
            batch: ``image`` and ``mask`` (B, 1, H, W) and what :meth:`draw` made.
            phase: "discriminator" or "generator".
        """
        if phase == "generator":
            loss = deceive(self.discriminator, batch, join_hard(*self.decode(batch["noise"])))
            return Loss(loss, {"generator": loss.detach()})
        with torch.no_grad():
            fake = join_hard(*self.decode(batch["noise"]))
        return tell_apart(self.discriminator, batch, fake)

    def decode(self, z: Tensor) -> Pair:
        """Turn latent variables (B, d) into images and mask probabilities, (B, 1, H, W) each."""
        image, mask_logits = self.decoder(z)
        return image, torch.sigmoid(mask_logits)
