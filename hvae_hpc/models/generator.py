"""What the project asks of a generator's network, and how one is made from its config."""

import pkgutil
from typing import Protocol

import torch
from torch import Tensor, nn

from hvae_hpc.config.kinds import GeneratorConfig
from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase


class Generator(Protocol):
    """A torch module that can be trained and drawn from.

    A network with an encoder also has ``encode(batch)``, the mean and standard deviation of z. The
    samplers "hmc" and "mask" also ask for ``log_likelihood(z, batch)``, nats of image and mask.

    Attributes:
        latent_size: d, how many standard normal numbers a pair is made of.
    """

    latent_size: int

    def phases(self) -> tuple[Phase, ...]:
        """Return the optimisations of a step, in their order."""

    def draw(self, n: int, share: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw on the CPU what a forward of n pairs needs; share of the training is done."""

    def forward(self, batch: Batch, phase: str) -> Loss:
        """Return a phase's loss of a batch; it draws nothing."""

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Turn z (B, d) into images and mask probabilities, (B, 1, H, W) each, in [0, 1]."""


def make_generator(config: GeneratorConfig, image_size: tuple[int, int]) -> nn.Module:
    """Make the network that a config describes, for images of (height, width) px.

    Raises:
        UserError: the image's size does not suit the network.
    """
    network_class = pkgutil.resolve_name(config.network_class)
    try:
        network: nn.Module = network_class(config, image_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    return network
