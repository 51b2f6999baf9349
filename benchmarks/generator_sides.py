"""The sides of generators.py: our networks, a naive HVAE step, and pythae's models."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hvae_hpc.config.model import HVAEConfig, NetworkConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.models.blocks import Upsample
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.device import CompiledForward

Loss = Callable[[dict[str, Tensor]], Tensor]
twice_differentiable = partial(sdpa_kernel, SDPBackend.MATH)
"""Attention without the fused kernel, which has no second derivative."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to take a step: ``step`` leaves gradients and returns the loss."""

    name: str
    step: Callable[[], Tensor]
    model: nn.Module


def make_model(n_leapfrog: int, px: int, device: torch.device) -> HVAE:
    """Make table1's network with random weights, equal for every number of leaps."""
    torch.manual_seed(0)
    config = HVAEConfig(
        network=NetworkConfig(), n_leapfrog=n_leapfrog, kl_warm_up=0.0, flow_from=0.0
    )
    return HVAE(config, (px, px)).to(device).to(memory_format=torch.channels_last)


@twice_differentiable()
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
        longest = model.config.force_max * math.sqrt(u.shape[1])
        return gradient / (1 + (gradient.norm(dim=1, keepdim=True) / longest) ** 2).sqrt()

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


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks that are compared, and the batches they take.

    Attributes:
        hvae: ours with K = 3, eager.
        vae: ours with K = 0, eager.
        plain_hvae: as ``hvae``, with an upsampling that repeats pixels and convolves.
        compiled: ours by K, compiled; empty with --no-compile.
        batch: pairs, and what an HVAE draws.
        vae_batch: the same pairs, and what a VAE draws.
    """

    hvae: HVAE
    vae: HVAE
    plain_hvae: HVAE
    compiled: dict[int, CompiledForward]
    batch: dict[str, Tensor]
    vae_batch: dict[str, Tensor]


def make_networks(px: int, n: int, compiled: bool, device: torch.device) -> Networks:
    """Make all networks, and batches of n pairs of px x px."""
    hvae, vae = make_model(3, px, device), make_model(0, px, device)
    plain_hvae = make_model(3, px, device)
    for block in plain_hvae.modules():
        if isinstance(block, Upsample):
            block.forward = partial(repeat_and_convolve, block)

    place = Workplace(
        folder=Path(tempfile.gettempdir()), data=Path(), parents={}, resources=Resources()
    )
    leaps = (3, 0) if compiled else ()
    return Networks(
        hvae=hvae,
        vae=vae,
        plain_hvae=plain_hvae,
        compiled={k: CompiledForward(make_model(k, px, device), True, place) for k in leaps},
        batch=make_batch(hvae, n, px, device),
        vae_batch=make_batch(vae, n, px, device),
    )


def make_batch(model: HVAE, n: int, px: int, device: torch.device) -> dict[str, Tensor]:
    """Make up a batch of pairs, and draw what the model needs for it."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, 1, px, px, generator=generator)
    drawn = model.draw(n, 1.0, generator)
    return {
        name: x.to(device)
        for name, x in {"image": image, "mask": (image > 0.8).float(), **drawn}.items()
    }


def eager_loss(model: HVAE, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of an eager forward."""
    return model(batch).total


def compiled_loss(forward: CompiledForward, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of a compiled forward."""
    return forward(batch, "elbo").total


def make_sides(
    networks: Networks, micro_batch: int, autocast: torch.dtype | None
) -> dict[str, Side]:
    """Return the naive sides and ours by name, in one precision (None: float32)."""
    hvae, vae, plain = networks.hvae, networks.vae, networks.plain_hvae
    batch, vae_batch = networks.batch, networks.vae_batch
    ways: list[tuple[str, nn.Module, Loss, dict[str, Tensor]]] = [
        ("naive", plain, partial(naive_loss, plain), batch),
        ("naive_blocks", hvae, partial(naive_loss, hvae), batch),
        ("hvae_eager", hvae, partial(eager_loss, hvae), batch),
        ("vae_eager", vae, partial(eager_loss, vae), vae_batch),
    ]
    for k, forward in networks.compiled.items():
        name, pairs = ("hvae_compiled", batch) if k else ("vae_compiled", vae_batch)
        ways.append((name, forward.model, partial(compiled_loss, forward), pairs))
    return {
        name: Side(
            name=name, step=make_step(loss, model, pairs, micro_batch, autocast), model=model
        )
        for name, model, loss, pairs in ways
    }


def pythae_sides(
    px: int, batch: dict[str, Tensor], micro_batch: int, autocast: torch.dtype | None
) -> list[Side]:
    """Return pythae's VAE and HVAE on our encoder and decoder; none if it is not installed."""
    try:
        from pythae.models import HVAE as PythaeHVAE
        from pythae.models import VAE as PythaeVAE
        from pythae.models import HVAEConfig as PythaeHVAEConfig
        from pythae.models import VAEConfig as PythaeVAEConfig
    except ImportError as error:
        print(f"pythae is not installed ({error}); its figures are null: pip install '.[bench]'")
        return []

    device = batch["image"].device
    common = {
        "input_dim": (2, px, px),
        "latent_dim": NetworkConfig().latent_size,
        "reconstruction_loss": "mse",
    }
    flow = {"n_lf": 3, "learn_eps_lf": True, "learn_beta_zero": True}
    sides = []
    for name, kind, config in (
        ("pythae_vae", PythaeVAE, PythaeVAEConfig(**common)),
        ("pythae_hvae", PythaeHVAE, PythaeHVAEConfig(**common, **flow)),
    ):
        encoder, decoder = pythae_networks(make_model(0, px, device))
        model = kind(config, encoder=encoder, decoder=decoder).to(device)
        step = make_step(partial(pythae_loss, model), model, batch, micro_batch, autocast)
        sides.append(Side(name=name, step=step, model=model))
    return sides


@twice_differentiable()
def pythae_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of one of pythae's models, per pixel as ours is."""
    pair = torch.cat([batch["image"], batch["mask"]], 1)
    return model({"data": pair}).loss / batch["image"][0].numel()


def pythae_networks(model: HVAE) -> tuple[nn.Module, nn.Module]:
    """Return our model's encoder and decoder with the interfaces that pythae asks for."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor) -> Any:
            mean, log_var = self.encoder(x)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self, decoder: nn.Module) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, z: Tensor) -> Any:
            image, logits = self.decoder(z)
            return ModelOutput(reconstruction=torch.cat([image, torch.sigmoid(logits)], 1))

    return Encoder(model.encoder), Decoder(model.decoder)
