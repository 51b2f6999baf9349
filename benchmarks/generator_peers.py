"""What generators.py compares with: a naive HVAE step, and pythae's models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.model import HVAEConfig, NetworkConfig
from hvae_hpc.models.blocks import Upsample
from hvae_hpc.models.hvae import HVAE


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to take a step: ``step`` leaves gradients and returns the loss."""

    name: str
    step: Callable[[], Tensor]
    model: nn.Module


def make_model(n_leapfrog: int, px: int, device: torch.device) -> HVAE:
    """Make table1's network with random weights; the same ones for every number of leaps."""
    torch.manual_seed(0)
    config = HVAEConfig(
        network=NetworkConfig(), n_leapfrog=n_leapfrog, kl_warm_up=0.0, flow_from=0.0
    )
    return HVAE(config, (px, px)).to(device).to(memory_format=torch.channels_last)


def naive_loss(model: HVAE, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of an HVAE in whitened coordinates as one writes it down."""
    mean, scale = model.encode(batch)
    eps = model.step_size()
    u, rho = batch["noise"].clone().requires_grad_(), batch["momentum"] / model.sqrt_beta_0()

    def force(u: Tensor) -> Tensor:
        z = mean + scale * u
        image_nats, mask_nats = model.log_likelihood(z, batch)
        potential = (0.5 * z.square().sum(1) - image_nats - mask_nats).sum()
        (gradient,) = torch.autograd.grad(potential, u, create_graph=True)
        return gradient

    for alpha in model.alphas():
        rho = rho - 0.5 * eps * force(u)
        u = u + eps * rho
        rho = alpha * (rho - 0.5 * eps * force(u))
    z = mean + scale * u
    image_nats, mask_nats = model.log_likelihood(z, batch)
    elbo = (
        image_nats
        + mask_nats
        - 0.5 * (z.square() + rho.square()).sum(1)
        + scale.log().sum(1)
        + z.shape[1]
    )
    return -elbo.mean() / batch["image"][0].numel()


def repeat_and_convolve(block: Upsample, x: Tensor) -> Tensor:
    """Upsample as one writes it down."""
    return block.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def make_step(
    loss: Callable[[dict[str, Tensor]], Tensor],
    model: nn.Module,
    batch: dict[str, Tensor],
    micro_batch: int,
    autocast: torch.dtype | None,
) -> Callable[[], Tensor]:
    """Return a step: gradients of the batch's mean loss, ``micro_batch`` pairs at a time."""
    n = len(batch["image"])
    parts = [
        {name: x[first : first + micro_batch] if x.ndim else x for name, x in batch.items()}
        for first in range(0, n, micro_batch)
    ]
    device = batch["image"].device.type

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part in parts:
            with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
                value = loss(part) * (len(part["image"]) / n)
            value.backward()
            total += value.detach()
        return total

    return step


def pythae_sides(
    px: int, batch: dict[str, Tensor], micro_batch: int, autocast: torch.dtype | None
) -> list[Side]:
    """Return pythae's VAE and HVAE on our encoder and decoder; none where it is not installed."""
    try:
        from pythae.models import HVAE as TheirHVAE
        from pythae.models import VAE as TheirVAE
        from pythae.models import HVAEConfig as TheirHVAEConfig
        from pythae.models import VAEConfig as TheirVAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
    except ImportError as error:
        print(f"pythae is not installed ({error}); its figures are null: pip install '.[bench]'")
        return []
    device = batch["image"].device

    class TheirEncoder(BaseEncoder):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor) -> Any:
            mean, log_var = self.encoder(x)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class TheirDecoder(BaseDecoder):
        def __init__(self, decoder: nn.Module) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, z: Tensor) -> Any:
            image, logits = self.decoder(z)
            return ModelOutput(reconstruction=torch.cat([image, torch.sigmoid(logits)], 1))

    sides = []
    common = {
        "input_dim": (2, px, px),
        "latent_dim": NetworkConfig().latent_size,
        "reconstruction_loss": "mse",
    }
    for name, kind, config in (
        ("pythae_vae", TheirVAE, TheirVAEConfig(**common)),
        (
            "pythae_hvae",
            TheirHVAE,
            TheirHVAEConfig(**common, n_lf=3, learn_eps_lf=True, learn_beta_zero=True),
        ),
    ):
        ours = make_model(0, px, device)
        model = kind(
            config, encoder=TheirEncoder(ours.encoder), decoder=TheirDecoder(ours.decoder)
        ).to(device)

        def loss(part: dict[str, Tensor], model: nn.Module = model) -> Tensor:
            return (
                model({"data": torch.cat([part["image"], part["mask"]], 1)}).loss
                / part["image"][0].numel()
            )

        sides.append(
            Side(name=name, step=make_step(loss, model, batch, micro_batch, autocast), model=model)
        )
    return sides
