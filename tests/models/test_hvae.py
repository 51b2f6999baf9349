"""The identities that make the flow a flow and the bound a bound, all through the product's own forward.

The decoder is replaced by a linear-Gaussian one where the evidence p(y) is then known, and nothing
else is.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.generator_sides import naive_loss
from hvae_hpc.config.model import HVAEConfig, NetworkConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.models import blocks, vjp
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.device import CompiledForward

D, SIDE = 2, 2  # latent size and image side of the linear-Gaussian model
SIGMA = 0.4
TINY = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=3)
MAP = replace(TINY, latent_map=True, latent_size=48)  # two numbers at each of 4 x 6 pixels


class LinearDecoder(nn.Module):
    """x = A z + b, or tanh of that; the mask is a fair coin per pixel."""

    def __init__(self, nonlinear: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(SIDE * SIDE, D, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(SIDE * SIDE, generator=generator, dtype=torch.float64))
        self.nonlinear = nonlinear

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = z @ self.a.T + self.b
        x = (torch.tanh(x) if self.nonlinear else x).reshape(-1, 1, SIDE, SIDE)
        return x, torch.zeros_like(x)

    def linearise(
        self, z: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
        x, logits = self(z)
        slope = 1 - x * x if self.nonlinear else torch.ones_like(x)
        return (x, logits), lambda by_image, by_logits: (by_image * slope).flatten(1) @ self.a


class FixedEncoder(nn.Module):
    """The same Gaussian for every pair."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.mean, self.log_var = mean, 2 * deviation.log()

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.expand(len(pair), -1), self.log_var.expand(len(pair), -1)


def linear_model(nonlinear: bool = False, **settings: object) -> HVAE:
    config = HVAEConfig(
        network=NetworkConfig(channels=(4,), attention_levels=(), attention_heads=1, latent_size=D),
        sigma_x=SIGMA,
        learn_sigma_x=False,
        flow_from=0.1,
        **settings,
    )
    model = HVAE(config, (SIDE, SIDE)).double()
    decoder = LinearDecoder(nonlinear)
    precision = (
        torch.eye(D, dtype=torch.float64) + decoder.a.detach().T @ decoder.a.detach() / SIGMA**2
    )
    # Wider than the posterior, so that the weights have a finite variance, and off its mean.
    deviation = 1.5 * torch.linalg.inv(precision).diagonal().sqrt()
    model.decoder = decoder
    model.encoder = FixedEncoder(posterior_mean(decoder) + 0.2 * deviation, deviation)
    return model


def observed() -> Tensor:
    return torch.tensor([0.3, 0.9, -0.2, 0.5], dtype=torch.float64).reshape(1, 1, SIDE, SIDE)


def posterior_mean(decoder: LinearDecoder) -> Tensor:
    a = decoder.a.detach()
    precision = torch.eye(D, dtype=torch.float64) + a.T @ a / SIGMA**2
    return torch.linalg.solve(
        precision, a.T @ (observed().flatten() - decoder.b.detach()) / SIGMA**2
    )


def evidence(decoder: LinearDecoder) -> float:
    a = decoder.a.detach()
    covariance = a @ a.T + SIGMA**2 * torch.eye(SIDE * SIDE, dtype=torch.float64)
    image = torch.distributions.MultivariateNormal(decoder.b.detach(), covariance).log_prob(
        observed().flatten()
    )
    return float(image) + SIDE * SIDE * math.log(0.5)


def batch_of(model: HVAE, n: int, seed: int = 0) -> dict[str, Tensor]:
    drawn = model.draw(n, 1.0, torch.Generator().manual_seed(seed))
    y = observed().expand(n, -1, -1, -1)
    return {
        "image": y,
        "mask": torch.zeros_like(y),
        **{name: value.double() for name, value in drawn.items()},
    }


FLOWS = [
    pytest.param({"n_leapfrog": 0}, id="K=0"),
    pytest.param(
        {
            "n_leapfrog": 1,
            "step_size": 0.3,
            "tempering": "fixed",
            "sqrt_beta_0": 0.7,
            "force_max": 0.5,
        },
        id="K=1,fixed",
    ),
    pytest.param(
        {"n_leapfrog": 3, "step_size": 0.2, "tempering": "none", "force_max": 0.5}, id="K=3,none"
    ),
    pytest.param(
        {"n_leapfrog": 3, "step_size": 0.4, "tempering": "free", "sqrt_beta_0": 0.8}, id="K=3,free"
    ),
    pytest.param(
        {
            "n_leapfrog": 5,
            "step_size": 0.3,
            "tempering": "fixed",
            "sqrt_beta_0": 0.6,
            "force_max": 1e9,
        },
        id="K=5,fixed",
    ),
    pytest.param(
        {
            "n_leapfrog": 3,
            "step_size": 0.05,
            "tempering": "fixed",
            "sqrt_beta_0": 0.8,
            "mass": "identity",
        },
        id="K=3,identity",
    ),
]


@pytest.mark.parametrize("settings", FLOWS)
def test_the_mean_importance_weight_is_the_evidence(settings: dict[str, object]) -> None:
    model = linear_model(**settings)
    with torch.no_grad():
        log_weight = model(batch_of(model, 400_000)).terms["log_weight"]
    ratio = torch.exp(log_weight - evidence(model.decoder))
    error = float(ratio.std() / math.sqrt(len(ratio)))
    assert error < 0.01
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * error)


@pytest.mark.parametrize("settings", FLOWS)
def test_the_elbo_is_the_mean_log_weight_and_lies_below_the_log_evidence(
    settings: dict[str, object],
) -> None:
    model = linear_model(**settings)
    with torch.no_grad():
        loss = model(batch_of(model, 400_000))
    elbo, log_weight = loss.terms["elbo"], loss.terms["log_weight"]
    error = float((elbo - log_weight).std() / math.sqrt(len(elbo)))
    assert float(elbo.mean()) == pytest.approx(float(log_weight.mean()), abs=4 * error + 1e-9)
    assert float(elbo.mean()) < evidence(model.decoder)
    assert float(loss.total) == pytest.approx(-float(elbo.mean()) / SIDE**2)


def leap(model: HVAE, noise: Tensor, momentum: Tensor):
    batch = batch_of(model, len(noise)) | {"noise": noise, "momentum": momentum}
    mean, scale = model.encode(batch)
    return model.leap(batch, mean, scale)


def test_without_tempering_the_flow_runs_back_to_where_it_came_from() -> None:
    model = linear_model(nonlinear=True, n_leapfrog=4, step_size=0.3, tempering="none")
    start = torch.randn(2, 8, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    there = leap(model, start[0], start[1])
    back = leap(model, there.q_k, -there.momentum)
    torch.testing.assert_close(back.q_k, start[0])
    torch.testing.assert_close(back.momentum, -start[1])


@pytest.mark.parametrize("tempering", ["fixed", "free"])
def test_the_jacobian_of_the_flow_is_that_of_the_tempering_alone(tempering: str) -> None:
    model = linear_model(
        nonlinear=True, n_leapfrog=3, step_size=0.3, tempering=tempering, sqrt_beta_0=0.7
    )

    def flow(start: Tensor) -> Tensor:
        # leap divides the drawn momentum by sqrt(beta_0), so rho_0 is what is handed in
        path = leap(model, start[None, :D], start[None, D:] * model.sqrt_beta_0())
        return torch.cat([path.q_k[0], path.momentum[0]])

    start = torch.randn(2 * D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flow, start)
    expected = D * sum(math.log(float(alpha)) for alpha in model.alphas())
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(expected, abs=1e-10)
    assert expected == pytest.approx(D * math.log(0.7))


@pytest.mark.parametrize("n_leapfrog", [1, 4])
def test_k_leaps_take_one_gradient_more_than_there_are_leaps_and_no_other_decoding(
    n_leapfrog: int,
) -> None:
    model = linear_model(nonlinear=True, n_leapfrog=n_leapfrog, step_size=0.3, tempering="none")
    plain, both = [], []
    decode, linearise = model.decoder.forward, model.decoder.linearise
    model.decoder.forward = lambda z: (plain.append(z), decode(z))[1]
    model.decoder.linearise = lambda z: (both.append(z), linearise(z))[1]
    model(batch_of(model, 2))
    assert len(both) == n_leapfrog + 1
    assert len(plain) == len(both)  # linearise of this decoder calls its forward


def steep_leap(force_max: float, times: float) -> tuple[Tensor, Tensor]:
    """Leap once from 64 places, with an encoder so many times too wide.

    Returns:
        The force's length at the start, in sqrt(d), and the change of energy.
    """
    model = linear_model(
        n_leapfrog=1, step_size=0.3, learn_step_size=False, tempering="none", force_max=force_max
    )
    model.encoder.log_var = model.encoder.log_var + 2 * math.log(times)
    start = torch.randn(2, 64, D, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    path = leap(model, start[0], start[1])
    force = 2 / 0.3 * ((path.q_k - path.q_0) / 0.3 - start[1])
    return force.norm(dim=1) / math.sqrt(D), path.energy_change


@pytest.mark.parametrize("force_max", [0.5, 2.0])
def test_a_steep_posterior_pulls_with_the_greatest_force_and_no_more(force_max: float) -> None:
    force, _ = steep_leap(force_max, 1e4)
    torch.testing.assert_close(force, torch.full_like(force, force_max))


def test_a_bounded_force_throws_no_pair_far() -> None:
    free, bounded = (steep_leap(force_max, 10.0)[1].abs() for force_max in (1e9, 1.5))
    assert free.median() > 100 * bounded.median()


def energy_error(n_leapfrog: int, step_size: float) -> float:
    model = linear_model(
        nonlinear=True,
        n_leapfrog=n_leapfrog,
        step_size=step_size,
        tempering="none",
        force_max=1e9,
    )
    start = torch.randn(2, 64, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return float(leap(model, start[0], start[1]).energy_change.abs().mean())


def test_the_energy_error_falls_as_the_step_squared_over_a_fixed_path() -> None:
    errors = [energy_error(4 * factor, 0.2 / factor) for factor in (4, 8, 16)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_the_energy_error_falls_as_the_step_cubed_over_fixed_steps() -> None:
    errors = [energy_error(3, 0.1 / factor) for factor in (4, 8, 16)]
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.1)


def real_batch(model: HVAE, n: int = 4, share: float = 1.0, side: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    image = torch.rand(n, 1, side, side, generator=generator)
    return {"image": image, "mask": (image > 0.7).float(), **model.draw(n, share, generator)}


def real_model(**settings: object) -> HVAE:
    torch.manual_seed(0)
    return HVAE(HVAEConfig(network=TINY, **settings), (8, 8))


def test_no_leapfrog_steps_is_the_vae_exactly() -> None:
    vae, hvae = real_model(n_leapfrog=0), real_model(n_leapfrog=3)
    hvae.load_state_dict(vae.state_dict(), strict=False)
    batch = real_batch(vae)
    assert "momentum" not in batch
    mean, scale = vae.encode(batch)
    z = mean + scale * batch["noise"]
    image, logits = vae.decoder(z)
    likelihood = (
        torch.distributions.Normal(image, vae.sigma_x()).log_prob(batch["image"]).sum((1, 2, 3))
    )
    likelihood += (
        torch.distributions.Bernoulli(logits=logits).log_prob(batch["mask"]).sum((1, 2, 3))
    )
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, scale), torch.distributions.Normal(0, 1)
    )
    expected = likelihood - kl.sum(1)
    torch.testing.assert_close(vae(batch).terms["elbo"], expected, rtol=1e-5, atol=1e-3)
    # The HVAE before its flow is switched on is that same VAE.
    torch.testing.assert_close(hvae(batch).terms["elbo"], vae(batch).terms["elbo"], rtol=0, atol=0)


def test_the_flow_is_switched_on_at_its_share_of_the_training_and_the_kl_rises_before() -> None:
    model = real_model(n_leapfrog=2, kl_warm_up=0.2, flow_from=0.5)
    drawn = [model.draw(2, share, torch.Generator()) for share in (0.0, 0.1, 0.2, 0.49, 0.5)]
    assert [float(d["kl_weight"]) for d in drawn] == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])
    assert ["momentum" in d for d in drawn] == [False, False, False, False, True]


def test_a_pair_knows_nothing_of_the_others_in_its_batch() -> None:
    model = real_model(n_leapfrog=2, sigma_x=0.5).double()
    batch = {name: value.double() for name, value in real_batch(model, n=3).items()}

    def bounds(image: Tensor) -> Tensor:
        mean, scale = model.encode({**batch, "image": image})
        path = model.leap({**batch, "image": image}, mean, scale)
        return path.image_k + path.momentum.sum(1)

    jacobian = torch.autograd.functional.jacobian(bounds, batch["image"])  # (3, 3, 1, 8, 8)
    for i in range(3):
        for j in range(3):
            size = float(jacobian[i, j].abs().max())
            assert (size > 1e-3) if i == j else (size == 0.0)


@pytest.mark.parametrize(
    ("likelihood", "network"),
    [("gaussian", TINY), ("bernoulli", TINY), ("gaussian", MAP)],
    ids=["gaussian", "bernoulli", "latent map"],
)
def test_the_force_is_the_gradient_of_the_likelihood_and_so_are_its_derivatives(
    likelihood: str, network: NetworkConfig
) -> None:
    torch.manual_seed(1)
    config = HVAEConfig(network=network, image_likelihood=likelihood, mask_weight=3.0)
    model = HVAE(config, (8, 12)).double()
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(2, 1, 8, 12, generator=generator, dtype=torch.float64)
    batch = {"image": image, "mask": (image > 0.7).double()}
    z, direction = (
        torch.randn(2, 2, model.latent_size, generator=generator, dtype=torch.float64)
        .requires_grad_()
        .unbind()
    )

    values, force = model.linearised_likelihood(z, batch)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        plain = model.log_likelihood(z, batch)
    for one, other in zip(values, plain, strict=True):
        torch.testing.assert_close(one, other)
    (expected,) = torch.autograd.grad(sum(plain).sum(), z, create_graph=True)
    torch.testing.assert_close(force, expected)
    # What training needs: derivatives of the force by z, the weights and sigma_x.
    wanted = [
        z,
        *(
            weight
            for name, weight in model.named_parameters()
            if name.startswith(("decoder", "raw_sigma"))
        ),
    ]
    seconds = [
        torch.autograd.grad((f * direction.detach()).sum(), wanted, allow_unused=True)
        for f in (force, expected)
    ]
    for one, other in zip(*seconds, strict=True):
        if other is None:
            assert one is None or not one.abs().max()
        else:
            torch.testing.assert_close(one, other)


def test_a_latent_map_has_its_numbers_where_encoder_and_decoder_have_the_pixel() -> None:
    torch.manual_seed(1)
    model = HVAE(HVAEConfig(network=MAP), (8, 12))
    model.encoder.layers = nn.Identity()
    for layer in (model.encoder.out, model.decoder.dense):
        nn.init.zeros_(layer.bias)
    features = torch.zeros(1, blocks.NARROW, 4, 6)
    features[:, :, 1, 2] = torch.randn(blocks.NARROW)

    mean, _ = model.encoder(features)
    assert mean.shape == (1, 48)
    assert mean.nonzero()[:, 1].tolist() == [16, 17]  # row 1, column 2: the ninth pixel
    placed = model.decoder._place(mean)
    assert placed.abs().amax(1).nonzero().tolist() == [[0, 1, 2]]


def test_a_latent_map_needs_as_many_numbers_at_each_pixel() -> None:
    for size, side in ((48, (8, 12)), (24, (8, 12)), (5, (2, 2))):
        replace(MAP, latent_size=size).check_image_size("generators.vae", side)
    message = r"generators.vae.network.latent_size is 50, expected .* multiple of .* 24 pixels"
    with pytest.raises(ValueError, match=message):
        replace(MAP, latent_size=50).check_image_size("generators.vae", (8, 12))


def test_the_force_in_bfloat16_is_as_close_as_autograd_s() -> None:
    torch.manual_seed(1)
    model = HVAE(HVAEConfig(network=TINY, sigma_x=0.5), (16, 16))
    batch = {
        name: x for name, x in real_batch(model, n=4, side=16).items() if name in ("image", "mask")
    }
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    exact = model.linearised_likelihood(z, batch)[1]
    with torch.autocast("cpu", torch.bfloat16):
        (_, force), at = model.linearised_likelihood(z, batch), z.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(sum(model.log_likelihood(at, batch)).sum(), at)
    assert force.dtype == torch.float32
    errors = [float((found - exact).norm() / exact.norm()) for found in (force, wanted)]
    assert errors[0] < 2 * errors[1] + 1e-3
    assert errors[0] < 0.1


def test_the_force_has_the_third_derivatives_that_finite_differences_see() -> None:
    model = real_model(n_leapfrog=1, sigma_x=0.5).double()
    batch = {name: value.double() for name, value in real_batch(model, n=1).items()}
    z = torch.randn(
        1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: model.linearised_likelihood(z, batch)[1], (z,))


def gradients_and_kept(model: HVAE) -> tuple[list[Tensor | None], int]:
    """Return a step's gradients, and how many numbers its backward pass needed of the forward."""
    sizes: list[int] = []

    def note(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    batch = {
        name: value.to(next(model.parameters()).dtype) for name, value in real_batch(model).items()
    }
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = model(batch)
    loss.total.backward()
    return [weight.grad for weight in model.parameters()], sum(sizes)


def test_recomputed_decodings_give_the_same_gradients_and_keep_less() -> None:
    grads, kept = [], []
    for recompute in (False, True):
        model = real_model(n_leapfrog=3, sigma_x=0.5)
        model.recompute = recompute
        of_model, kept_by_model = gradients_and_kept(model)
        grads.append(of_model)
        kept.append(kept_by_model)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert kept[1] < kept[0] / 3


def test_layers_that_keep_their_inputs_alone_as_on_a_gpu_give_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grads, kept = gradients_and_kept(real_model(n_leapfrog=3, sigma_x=0.5).double())
    for module in (vjp, blocks):
        monkeypatch.setattr(module, "keeps_inputs_alone", lambda x: True)
    same_grads, fewer_kept = gradients_and_kept(real_model(n_leapfrog=3, sigma_x=0.5).double())
    for one, other in zip(same_grads, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert fewer_kept < kept / 2


def test_gradients_go_through_the_inner_gradient() -> None:
    model = linear_model(
        nonlinear=True, n_leapfrog=2, step_size=0.3, tempering="free", sqrt_beta_0=0.8
    )
    batch = batch_of(model, 3)

    def total(a: Tensor, raw_step: Tensor, raw_alphas: Tensor) -> Tensor:
        weights = {"decoder.a": a, "raw_step_size": raw_step, "raw_alphas": raw_alphas}
        return torch.func.functional_call(model, weights, (batch,)).total

    decoder: LinearDecoder = model.decoder
    weights = [
        w.detach().clone().requires_grad_()
        for w in (decoder.a, model.raw_step_size, model.raw_alphas)
    ]
    assert torch.autograd.gradcheck(total, weights)


@pytest.mark.parametrize("tempering", ["none", "fixed", "free"])
def test_the_bound_and_all_its_gradients_are_those_of_the_hvae_as_one_writes_it_down(
    tempering: str,
) -> None:
    model = real_model(n_leapfrog=3, sigma_x=0.5, tempering=tempering, mask_weight=2.0).double()
    batch = {name: value.double() for name, value in real_batch(model).items()}
    losses, gradients = [], []
    for loss in (model(batch).total, naive_loss(model, batch)):
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*losses)
    for (name, _), ours, theirs in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-7, atol=1e-12, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize(("share", "recompute"), [(0.5, False), (1.0, False), (1.0, True)])
def test_the_compiled_parts_give_eager_s_loss_and_gradients(
    share: float, recompute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_really = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **how: compile_really(f, backend="aot_eager", **how)
    )
    model = real_model(n_leapfrog=2, sigma_x=0.5)
    model.recompute = recompute
    batch = real_batch(model, share=share)
    results = []
    for compiled in (False, True):
        place = Workplace(folder=tmp_path, data=tmp_path, parents={}, resources=Resources())
        forward = CompiledForward(model, compiled, place)
        model.zero_grad()
        loss = forward(batch, "elbo")
        loss.total.backward()
        results.append(
            [
                loss.total.detach(),
                *(p.grad.clone() for p in model.parameters() if p.grad is not None),
            ]
        )
        assert not forward.notes
        assert ("encode" in vars(model)) == compiled
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_schedules_multiply_to_the_initial_temperature() -> None:
    for tempering in ("fixed", "free"):
        model = real_model(n_leapfrog=4, tempering=tempering, sqrt_beta_0=0.75)
        assert float(model.sqrt_beta_0()) == pytest.approx(0.75)
    assert float(real_model(n_leapfrog=4, tempering="none").sqrt_beta_0()) == 1.0


def test_the_mask_weight_enters_the_potential_as_it_enters_the_loss() -> None:
    heavy = real_model(n_leapfrog=2, mask_weight=20.0, sigma_x=0.5)
    light = real_model(n_leapfrog=2, mask_weight=1.0, sigma_x=0.5)
    light.load_state_dict(heavy.state_dict())
    batch = real_batch(heavy)
    assert torch.allclose(
        heavy.log_likelihood(batch["noise"], batch)[1],
        20 * light.log_likelihood(batch["noise"], batch)[1],
    )
    ends = []
    for model in (heavy, light):
        mean, scale = model.encode(batch)
        ends.append(model.leap(batch, mean, scale).z_k)
    assert not torch.allclose(*ends)


def test_sigma_and_step_start_as_configured() -> None:
    config = HVAEConfig(network=TINY, sigma_x=0.2, step_size=0.25, step_size_max=0.6)
    model = HVAE(config, (8, 8))
    assert float(model.sigma_x()) == pytest.approx(0.2)
    assert float(model.step_size()) == pytest.approx(0.25)


def test_the_detached_force_gives_the_same_bound_and_the_gradient_of_a_given_force() -> None:
    settings: dict[str, object] = {
        "n_leapfrog": 2,
        "step_size": 0.3,
        "tempering": "none",
        "learn_step_size": False,
    }
    full, detached = linear_model(**settings), linear_model(**settings, inner_gradient="detached")
    batch = batch_of(full, 16)
    gradients = []
    for model in (full, detached):
        loss = model(batch)
        loss.total.backward()
        gradients.append((float(loss.total), model.decoder.b.grad.clone()))
    assert gradients[0][0] == gradients[1][0]
    assert not torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-3)
    # With the force given, z_K does not depend on the decoder, and b's gradient is that of
    # log p(x | z_K) alone.
    mean, scale = detached.encode(batch)
    with torch.no_grad():
        path = detached.leap(batch, mean, scale)
    image, _ = detached.decoder(path.z_k)
    residual = (batch["image"] - image).flatten(1) / SIGMA**2
    torch.testing.assert_close(gradients[1][1], -residual.mean(0) / SIDE**2)


def posterior_samples(decoder: LinearDecoder, n: int) -> Tensor:
    a = decoder.a.detach()
    covariance = torch.linalg.inv(torch.eye(D, dtype=torch.float64) + a.T @ a / SIGMA**2)
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return posterior_mean(decoder) + noise @ torch.linalg.cholesky(covariance).T


def test_metropolis_accepts_by_the_energy_and_leaves_the_posterior_as_it_is() -> None:
    # A step so long that the leaps alone would spoil the posterior.
    settings: dict[str, object] = {
        "n_leapfrog": 3,
        "step_size": 1.1,
        "step_size_max": 2.0,
        "tempering": "none",
    }
    model, without = linear_model(metropolis=True, **settings), linear_model(**settings)
    n = 200_000
    batch = batch_of(model, n)
    mean, scale = model.encode(batch)
    exact = posterior_samples(model.decoder, n)
    batch["noise"] = (exact - mean) / scale
    with torch.no_grad():
        path, plain = model.leap(batch, mean, scale), without.leap(batch, mean, scale)
        loss = model(batch)
    stayed = (path.z_k == path.z_0).all(1)
    chance = torch.exp(-plain.energy_change).clamp(max=1.0)
    assert 0.1 < float(stayed.double().mean()) < 0.9
    assert float(stayed.double().mean()) == pytest.approx(1 - float(chance.mean()), abs=0.005)
    torch.testing.assert_close(path.momentum[stayed], -batch["momentum"][stayed])
    torch.testing.assert_close(path.image_k[stayed], path.image_0[stayed])
    torch.testing.assert_close(path.z_k[~stayed], plain.z_k[~stayed])
    torch.testing.assert_close(path.z_k.mean(0), exact.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(torch.cov(path.z_k.T), torch.cov(exact.T), rtol=0.02, atol=2e-3)
    assert not torch.allclose(torch.cov(plain.z_k.T), torch.cov(exact.T), rtol=0.05)
    assert "objective" in loss.terms
    assert not {"elbo", "log_weight", "elbo_gain", "bits_per_pixel"} & set(loss.terms)


def test_bits_per_pixel_are_the_elbo_in_another_unit() -> None:
    model = linear_model(n_leapfrog=3, tempering="free")
    terms = model(batch_of(model, 5)).terms
    torch.testing.assert_close(
        terms["bits_per_pixel"], -terms["elbo"] / (SIDE * SIDE) / math.log(2)
    )


@pytest.mark.parametrize("learned", [True, False])
def test_a_flow_that_is_told_to_shrink_leaps_that_much_less_and_remembers_it(learned: bool) -> None:
    model = linear_model(n_leapfrog=2, step_size=0.3, tempering="none", learn_step_size=learned)
    batch = batch_of(model, 4)
    model.shrink_step(0.25)
    small = linear_model(n_leapfrog=2, step_size=0.075, tempering="none", learn_step_size=learned)
    torch.testing.assert_close(model(batch).total, small(batch).total)
    again = linear_model(n_leapfrog=2, step_size=0.3, tempering="none", learn_step_size=learned)
    again.load_state_dict(model.state_dict())
    assert float(again.step_size()) == pytest.approx(0.075)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"n_leapfrog": -1}, "n_leapfrog is -1"),
        ({"step_size": 0.5, "step_size_max": 0.5}, "expected less than step_size_max"),
        ({"adversarial_weight": 0.1, "image_likelihood": "bernoulli"}, 'or "textured"'),
        ({"sigma_x": 0.03, "sigma_x_floor": 0.03}, "expected more than sigma_x_floor"),
        ({"sqrt_beta_0": 0.0}, r"expected a number in \(0, 1\]"),
        ({"sqrt_beta_0": 1.0}, "nothing to learn from"),
        ({"metropolis": True}, 'expected "none"'),
        ({"kl_warm_up": 0.8}, "expected at least kl_warm_up = 0.8"),
    ],
)
def test_settings_that_make_no_hvae_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        HVAEConfig(**settings)


def test_a_flow_that_is_on_in_no_step_is_refused_and_one_that_is_on_in_the_last_is_not() -> None:
    def config(flow_from: float, **settings: Any) -> TrainConfig:
        return TrainConfig(
            data="d",
            generator="hvae",
            split=SplitConfig(),
            image_px=0,
            model=HVAEConfig(flow_from=flow_from, **settings),
            optim=OptimConfig(images=48, batch_size=4, lr=1e-3),
        )

    shares = [seen / 48 for seen in range(0, 48, 4)]
    model = HVAE(replace(config(shares[-1]).model, network=TINY), (SIDE, SIDE))
    drawn = [model.draw(1, share, torch.Generator()) for share in shares]
    assert ["momentum" in batch for batch in drawn] == [False] * 11 + [True]
    for never in (0.92, 1.0):
        with pytest.raises(
            ValueError, match=r"expected at most 0\.917, where the last step begins"
        ):
            config(never)
    config(1.0, n_leapfrog=0, step_size=0.5)  # a VAE heeds neither
