"""The diffusion model's step and draws beside MONAI's DiffusionModelUNet of equal width.

MONAI's network takes the place of ours in our objective and sampler, so only the networks differ.
Both see the same images, folded if ours are. MONAI's has blocks that ours does not have: a
convolution to halve and to double the image, and a second block on each level's way up. Its
operations are therefore counted too, and a second ratio is per operation.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from generator_sides import Loss, Side, make_step
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.models.edm import EDM
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.device import CompiledForward

STEPS = 3
"""Of the sampler: its time is proportional to them."""


class Peer(nn.Module):
    """MONAI's network with the inputs and outputs of our denoiser.

    Args:
        config: of ours.
        maps: of our denoiser.
    """

    def __init__(self, config: EDMConfig, maps: list[int]) -> None:
        from monai.networks.nets import DiffusionModelUNet

        super().__init__()
        self.fold, self.maps, levels = config.fold, maps, len(config.channels)
        channels = 2 * config.fold**2
        self.network = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=channels,
            out_channels=channels,
            num_res_blocks=1,
            channels=config.channels,
            attention_levels=[level >= levels - config.attention_levels for level in range(levels)],
            norm_num_groups=8,
            num_head_channels=[width // config.attention_heads for width in config.channels],
            use_flash_attention=True,
        )

    def forward(
        self, x: Tensor, noise_label: Tensor, moves: Tensor, kept: Tensor | None = None
    ) -> Tensor:
        """Return the output, (B, 2, H, W); moves and dropout are not known to it."""
        del moves, kept
        folded = self.network(F.pixel_unshuffle(x, self.fold), 1000 * noise_label)
        return F.pixel_shuffle(folded, self.fold)


def make_edm(config: EDMConfig, px: int, device: torch.device) -> EDM:
    """Make ours with random weights, which are no zeros: a first step has gradients everywhere."""
    torch.manual_seed(0)
    model = EDM(config, (px, px))
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return model.to(device).to(memory_format=torch.channels_last)


def edm_sides(
    px: int, n: int, compiled: bool, autocast: torch.dtype | None, device: torch.device
) -> dict[str, Side]:
    """Return training steps and draws of ours, eager and compiled, and of MONAI's network."""
    fold = 2 if px >= 128 else 1
    config = EDMConfig(channels=(32, 64, 96), attention_levels=1, fold=fold)
    ours, peer = make_edm(config, px, device), make_edm(config, px, device)
    peer.denoiser = Peer(config, ours.denoiser.maps).to(device)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, 1, px, px, generator=generator)
    pairs = {"image": image, "mask": (image > 0.8).float(), **ours.draw(n, 1.0, generator)}
    batch = {name: x.to(device) for name, x in pairs.items()}

    ways: list[tuple[str, nn.Module, Loss]] = [
        ("edm_eager", ours, partial(_loss, ours)),
        ("monai", peer, partial(_loss, peer)),
    ]
    if compiled:
        folder = Path(tempfile.gettempdir())
        place = Workplace(folder=folder, data=folder, parents={}, resources=Resources())
        forward = CompiledForward(make_edm(config, px, device), True, place)
        ways.append(("edm_compiled", forward, partial(_loss, forward)))
    sides = {
        name: Side(name=name, step=make_step(loss, model, batch, n, autocast), model=model)
        for name, model, loss in ways
    }
    z = torch.randn(n, ours.latent_size, generator=generator).to(device)
    for name, model in (("edm_draw", ours), ("monai_draw", peer)):
        model.steps = STEPS
        sides[name] = Side(name=name, step=partial(_draw, model, z, autocast), model=model)
    return sides


def _loss(forward: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return forward(batch, "denoising").total


@torch.no_grad()
def _draw(model: EDM, z: Tensor, autocast: torch.dtype | None) -> Tensor:
    with torch.autocast(z.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        return model.decode(z)[0]
