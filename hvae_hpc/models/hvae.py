"""The joint Hamiltonian VAE of image and mask; with no leapfrog steps it is the VAE.

A pair y = (x, m) is encoded to q(z0|y) = N(mu, diag s^2). K leapfrog steps with tempering move z0
and a momentum rho along the potential U = -log p(x, m|z) + |z|^2 / 2, each with determinant
alpha_k^d, and the bound is taken at the end of the path (Caterini et al. 2018, Algorithm 1; Kebaili
et al. 2023, equations 3 and 4):

    ELBO(y) = E[log p(x, m|z_K) - |z_K|^2 / 2 - |rho_K|^2 / 2] + sum_i log s_i + d

Leaps by any force that depends on the place alone keep volumes and can be reversed. So the force,
minus the gradient of U, is bounded in length: energy is then not conserved, and the bound stays
exact. With mass "posterior" the leaps are made in whitened
coordinates u, z = mu + s u: the same as a mass matrix diag(1 / s^2) in z, and the only form in
which one step size suits every direction.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.model import HVAEConfig, ImageSize
from hvae_hpc.models.blocks import Batch, Decoder, Encoder, Loss, Phase, Tensors
from hvae_hpc.models.texture import Texture
from hvae_hpc.models.vjp import keep_inputs

LOG_2PI = math.log(2 * math.pi)


class FlowPath(NamedTuple):
    """Where the flow went, all float32.

    Attributes:
        q_0, q_k: (B, d) position at the start and the end, in the coordinates of the leaps.
        z_0, z_k: (B, d) latent variables at the start and the end.
        momentum: (B, d) rho_K.
        image_0, mask_0: (B,) log p(x|z_0) and lambda_m log p(m|z_0), nats.
        image_k, mask_k: (B,) the same at z_K.
        energy_change: (B,) change of U + |rho|^2 / 2 over the leaps, tempering left out, nats.
    """

    q_0: Tensor
    q_k: Tensor
    z_0: Tensor
    z_k: Tensor
    momentum: Tensor
    image_0: Tensor
    mask_0: Tensor
    image_k: Tensor
    mask_k: Tensor
    energy_change: Tensor


class HVAE(nn.Module):
    """The model with its bound; ``encoder`` and ``decoder`` are attributes that tests may replace.

    Args:
        config: see there; ``n_leapfrog = 0`` is the VAE.
        image_size: height and width, px.

    Attributes:
        compiled_parts: the methods that cost time.
        has_bound: the objective is a bound, except with Metropolis.
        activation_memory_budget: share of its activations that a compiled step keeps. By a trace,
            0.5 computes no product again and needs a third of the memory.
        recompute: decode again in the backward pass: a flow of K leaps then needs about the memory
            of one decoding, not of K + 1.
    """

    has_bound = True
    step_share: Tensor
    activation_memory_budget = 0.5
    recompute = False
    compiled_parts: tuple[str, ...] = ("encode", "log_likelihood", "linearised_likelihood")

    def __init__(self, config: HVAEConfig, image_size: ImageSize) -> None:
        super().__init__()
        self.config = config
        self.latent_size = config.network.latent_size
        self.image_size = image_size
        link = "logits" if config.image_likelihood == "bernoulli" else "mean"
        is_textured = config.image_likelihood == "textured"
        self.encoder = Encoder(config.network, image_size)
        self.decoder = Decoder(config.network, image_size, link, 1 + is_textured)
        self.texture = Texture(image_size) if is_textured else None
        # softplus(raw) + floor = sigma_x and step_size_max * sigmoid(raw) = eps, at the
        # start as configured.
        if config.learn_sigma_x:
            self.raw_sigma_x = nn.Parameter(
                torch.tensor(math.log(math.expm1(config.sigma_x - config.sigma_x_floor)))
            )
        if not config.n_leapfrog:
            return
        self.register_buffer("step_share", torch.tensor(1.0))
        if config.learn_step_size:
            share = config.step_size / config.step_size_max
            self.raw_step_size = nn.Parameter(torch.tensor(math.log(share / (1 - share))))
        if config.tempering == "free":
            alpha = config.sqrt_beta_0 ** (1 / config.n_leapfrog)
            self.raw_alphas = nn.Parameter(
                torch.full((config.n_leapfrog,), math.log(alpha / (1 - alpha)))
            )

    def phases(self) -> tuple[Phase, ...]:
        """One phase: the bound."""
        return (Phase("elbo", self),)

    def draw(self, n: int, share: float, generator: Generator) -> Tensors:
        """Draw what a forward of n pairs needs beside the pairs.

        Args:
            n: pairs.
            share: of the training that is done, in [0, 1]; it sets the KL weight and switches the
                flow on.
            generator: on the CPU.

        Returns:
            noise (n, d), kl_weight (), and, where the flow is on, momentum (n, d) and, for
            Metropolis, uniform (n,).
        """
        config = self.config
        weight = min(1.0, share / config.kl_warm_up) if config.kl_warm_up > 0 else 1.0
        drawn = {
            "noise": torch.randn(n, self.latent_size, generator=generator),
            "kl_weight": torch.tensor(weight),
        }
        if config.n_leapfrog and share >= config.flow_from:
            drawn["momentum"] = torch.randn(n, self.latent_size, generator=generator)
            if config.metropolis:
                drawn["uniform"] = torch.rand(n, generator=generator)
        return drawn

    def sigma_x(self) -> Tensor | float:
        """Standard deviation of the image's Gaussian, in units of the image range."""
        if self.config.learn_sigma_x:
            return self.config.sigma_x_floor + F.softplus(self.raw_sigma_x)
        return self.config.sigma_x

    def step_size(self) -> Tensor | float:
        """The leapfrog's eps."""
        if self.config.learn_step_size:
            return self.step_share * self.config.step_size_max * torch.sigmoid(self.raw_step_size)
        return self.step_share * self.config.step_size

    def shrink_step(self, share: float) -> None:
        """Leave this much of the leapfrog's eps, for a training that went back to a good state."""
        if self.config.n_leapfrog:
            self.step_share.fill_(share)

    def alphas(self) -> list[Tensor | float]:
        """The factor alpha_k on the momentum after each step; their product is sqrt(beta_0)."""
        config, k_max = self.config, self.config.n_leapfrog
        if config.tempering == "none":
            return [1.0] * k_max
        if config.tempering == "free":
            return list(torch.sigmoid(self.raw_alphas).unbind())
        inverse = 1 / config.sqrt_beta_0
        # sqrt(beta_k), from k = 0 to K.
        roots = [1 / (inverse + (1 - inverse) * (k / k_max) ** 2) for k in range(k_max + 1)]
        return [before / after for before, after in pairwise(roots)]

    def sqrt_beta_0(self) -> Tensor | float:
        """Square root of the inverse temperature that the momentum starts at."""
        return math.prod(self.alphas())

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return q(z0|y)'s mean and standard deviation, (B, d) each."""
        mean, log_var = self.encoder(torch.cat([batch["image"], batch["mask"]], dim=1))
        return mean, torch.exp(0.5 * log_var)

    def _spare(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Call a function; with ``recompute`` keep only its argument for the backward pass."""
        return keep_inputs(function, x) if self.recompute else function(x)

    def log_likelihood(self, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and lambda_m log p(m|z), (B,) each, nats, constants included."""
        parameter, mask_logits = self.decoder(z)
        return self._nats(parameter, mask_logits, batch)

    def _nats(self, parameter: Tensor, mask_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the nats of image and mask, (B,) each, from what the decoder put out."""
        image = batch["image"]
        if self.config.image_likelihood != "bernoulli":
            spread = self._spread(parameter)
            white, log_spread = (image - parameter[:, :1]) / spread, torch.log(spread)
            if self.texture:
                deviation = self.texture.deviation()
                white = self.texture.transform(white) / deviation
                log_spread = log_spread + torch.log(deviation)
            image_nats = -0.5 * white**2 - log_spread - 0.5 * LOG_2PI
        else:
            image_nats = -F.binary_cross_entropy_with_logits(parameter, image, reduction="none")
        mask_nats = -F.binary_cross_entropy_with_logits(
            mask_logits, batch["mask"], reduction="none"
        )
        return image_nats.flatten(1).sum(1), self.config.mask_weight * mask_nats.flatten(1).sum(1)

    def linearised_likelihood(
        self, z: Tensor, batch: Batch
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return what :meth:`log_likelihood` does, and its sum's gradient by z (B, d)."""
        decoded, pull = self.decoder.linearise(z)
        return self._nats(*decoded, batch), pull(*self.slopes(*decoded, batch))

    def slopes(self, parameter: Tensor, mask_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the gradients of the nats by what the decoder put out."""
        if self.texture:
            spread, residual = self._spread(parameter), batch["image"] - parameter[:, :1]
            precision = self.texture.deviation() ** -2
            white = self.texture.transform(residual / spread)
            by_mean = self.texture.restore(precision * white) / spread
            by_spread = (by_mean * residual - 1) / spread
            by_parameter = torch.cat([by_mean, 2 * self.sigma_x() * by_spread], 1)
        elif self.config.image_likelihood == "gaussian":
            by_parameter = (batch["image"] - parameter) / self.sigma_x() ** 2
        else:
            by_parameter = batch["image"] - torch.sigmoid(parameter)
        return by_parameter, self.config.mask_weight * (batch["mask"] - torch.sigmoid(mask_logits))

    def leap(self, batch: Batch, mean: Tensor, scale: Tensor) -> FlowPath:
        """Follow the flow from z0 = mean + scale * noise.

        K leaps take K + 1 gradients: the force at a step's end is the force at the next one's
        start, and the last evaluation also gives log p(x, m|z_K).
        """
        # The coordinates of the leaps: z = shift + unit * q.
        whitened = self.config.mass == "posterior"
        shift, unit = (mean, scale) if whitened else (0, 1)

        def slope(q: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            """Return the bounded gradient by q, and the potential with its parts."""
            z = shift + unit * q
            (image_nats, mask_nats), by_z = self.linearised_likelihood(z, batch)
            gradient = unit * (z - by_z)
            # By any force the leaps are reversible and of determinant 1.
            share = _square(gradient) / self.latent_size / self.config.force_max**2
            gradient = gradient * torch.rsqrt(1 + share)[:, None]
            if self.config.inner_gradient == "detached":
                gradient = gradient.detach()
            return gradient, (0.5 * _square(z) - image_nats - mask_nats, image_nats, mask_nats)

        # Start, with the momentum of the initial temperature.
        eps = self.step_size()
        z_0 = mean + scale * batch["noise"]
        q = q_0 = batch["noise"] if whitened else z_0
        momentum = batch["momentum"] / self.sqrt_beta_0()
        gradient, (energy, image_nats, mask_nats) = self._spare(slope, q)
        at_start = image_nats, mask_nats

        # K leaps, each with tempering after it.
        energy_change = torch.zeros_like(energy)
        for alpha in self.alphas():
            before = energy + 0.5 * _square(momentum)
            half_way = momentum - 0.5 * eps * gradient
            q = q + eps * half_way
            gradient, (energy, image_nats, mask_nats) = self._spare(slope, q)
            momentum = half_way - 0.5 * eps * gradient
            energy_change = energy_change + energy + 0.5 * _square(momentum) - before
            momentum = alpha * momentum

        path = FlowPath(
            q_0, q, z_0, shift + unit * q, momentum, *at_start, image_nats, mask_nats, energy_change
        )
        return self._accept_or_stay(path, batch) if self.config.metropolis else path

    def _accept_or_stay(self, path: FlowPath, batch: Batch) -> FlowPath:
        """Choose for each pair between (u_K, rho_K) and (u_0, -rho_0), by Metropolis' rule."""
        accepted = torch.log(batch["uniform"]) < -path.energy_change

        def choose(end: Tensor, start: Tensor) -> Tensor:
            return torch.where(accepted[:, None] if end.ndim > 1 else accepted, end, start)

        return path._replace(
            q_k=choose(path.q_k, path.q_0),
            z_k=choose(path.z_k, path.z_0),
            momentum=choose(path.momentum, -batch["momentum"]),
            image_k=choose(path.image_k, path.image_0),
            mask_k=choose(path.mask_k, path.mask_0),
        )

    def forward(self, batch: Batch, phase: str = "elbo") -> Loss:
        """Return minus the bound per pixel, and its parts in nats per pair.

        Args:
            batch: ``image`` and ``mask`` (B, 1, H, W) and what :meth:`draw` made; with a momentum
                the flow is on.
            phase: "elbo", the only one.
        """
        return self.bound(batch, *self.encode(batch))

    def bound(self, batch: Batch, mean: Tensor, scale: Tensor) -> Loss:
        """Return what :meth:`forward` does, of pairs that are encoded."""
        log_scale = torch.log(scale).sum(1)
        analytic_kl = 0.5 * (mean * mean + scale * scale - 1).sum(1) - log_scale
        # Metropolis' choice has no density to write down.
        is_bound = self.has_bound and "uniform" not in batch
        terms: Tensors = {}
        if "momentum" in batch:
            path = self.leap(batch, mean, scale)
            image_nats, mask_nats = path.image_k, path.mask_k
            kl = 0.5 * _square(path.z_k) + 0.5 * _square(path.momentum) - log_scale - mean.shape[1]
            drawn = _square(batch["noise"]) + _square(batch["momentum"])
            sampled_kl = kl + mean.shape[1] - 0.5 * drawn
            terms = {
                "moved": ((path.z_k - path.z_0) / scale).square().mean(1).sqrt(),
                "energy_change": path.energy_change,
                "acceptance": torch.exp(-path.energy_change.clamp(min=0.0)),
                "step_size": torch.as_tensor(self.step_size()),
                "sqrt_beta_0": torch.as_tensor(self.sqrt_beta_0()),
            }
            if is_bound:
                gained = image_nats - path.image_0 + mask_nats - path.mask_0
                terms["elbo_gain"] = gained + analytic_kl - kl
        else:  # the VAE, whose KL is analytic
            z = mean + scale * batch["noise"]
            image_nats, mask_nats = self._spare(lambda z: self.log_likelihood(z, batch), z)
            kl = analytic_kl
            sampled_kl = 0.5 * _square(z) - 0.5 * _square(batch["noise"]) - log_scale

        pixels = batch["image"][0].numel()
        objective = image_nats + mask_nats - batch["kl_weight"] * kl
        elbo = image_nats + mask_nats - kl
        if is_bound:
            log_weight = image_nats + mask_nats - sampled_kl
            bits = -elbo / (pixels * math.log(2))
            terms |= {"elbo": elbo, "log_weight": log_weight, "bits_per_pixel": bits}
        else:
            terms |= {"objective": elbo}
        terms |= {
            "image": image_nats,
            "mask": mask_nats,
            "kl": kl,
            "kl_weight": batch["kl_weight"],
            "sigma_x": torch.as_tensor(self.sigma_x()),
        }
        return Loss(
            -objective.mean() / pixels, {name: term.detach() for name, term in terms.items()}
        )

    def decode(self, z: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Turn z (B, d) into the image's mean and the mask's probability, (B, 1, H, W) each.

        With a generator, on the CPU, textured images are drawn in place of their mean.
        """
        parameter, mask_logits = self.decoder(z)
        noise = None
        if generator:
            noise = torch.randn(len(z), 1, *self.image_size, generator=generator).to(z)
        return self.draw_image(parameter, noise), torch.sigmoid(mask_logits)

    def draw_image(self, parameter: Tensor, noise: Tensor | None) -> Tensor:
        """Return the mean image, of what the decoder put out; noise (B, 1, H, W) textures it."""
        if self.config.image_likelihood == "bernoulli":
            return torch.sigmoid(parameter)
        image = parameter[:, :1]
        if self.texture is None or noise is None:
            return image
        return image + self._spread(parameter) * self.texture.restore(
            noise * self.texture.deviation()
        )

    def _spread(self, parameter: Tensor) -> Tensor:
        """Return the Gaussian's deviation; of textured images one per pixel, (B, 1, H, W)."""
        sigma = self.sigma_x()
        if not isinstance(sigma, Tensor):
            # Filled in on the device: the host would wait for a number that is copied.
            sigma = parameter.new_full((), sigma)
        sigma = sigma.to(parameter.dtype)
        return self.config.sigma_x_floor + 2 * sigma * parameter[:, 1:] if self.texture else sigma


def _square(x: Tensor) -> Tensor:
    return (x * x).sum(1)
