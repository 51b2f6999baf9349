"""Annealed importance sampling against an evidence that is known, and the stage around it."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hvae_hpc.config.loader import dump
from hvae_hpc.config.model import HVAEConfig, LSGANConfig, NetworkConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import LikelihoodConfig, SplitConfig, TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.evaluation import likelihood
from hvae_hpc.evaluation.hamiltonian import Gaussians, anneal, evaluate
from hvae_hpc.evaluation.likelihood import estimate_likelihood, measure_likelihood
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.runs.folder import write_config
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.checkpoint import find_checkpoints, load_checkpoint
from hvae_hpc.training.train import read_split, train_generator
from tests.models.test_hvae import evidence, linear_model, observed
from tests.tiny import make_data_set

SPLIT = SplitConfig(train=6, test=5)
NETWORK = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=3)


def config(**changes: object) -> LikelihoodConfig:
    common = {"data": "tiny", "generator": "hvae", "split": SPLIT, "image_px": 0, "step_size": 0.3}
    return LikelihoodConfig(**{**common, **changes})


def narrow_well(z: Tensor) -> Tensor:
    """Minus the log of 3 times a Gaussian density at (1, -1) with deviations 0.2 and 0.5."""
    centre, deviation = torch.tensor([1.0, -1.0]).to(z), torch.tensor([0.2, 0.5]).to(z)
    return (
        0.5 * ((z - centre) / deviation) ** 2 + deviation.log() + 0.5 * math.log(2 * math.pi)
    ).sum(1) - math.log(3.0)


def run_annealing(n: int, seed: int, step_sizes: tuple[float, ...], **changes: float):
    start = Gaussians(
        mean=torch.zeros(n, 2, dtype=torch.float64), scale=torch.ones(n, 2, dtype=torch.float64)
    )
    settings = {"temperatures": 20, "leaps": 2, **changes}
    return anneal(
        partial(evaluate, narrow_well),
        start,
        torch.Generator().manual_seed(seed),
        step_sizes=step_sizes,
        **settings,
    )


@pytest.mark.parametrize("temperatures", [1, 5, 40])
def test_the_mean_annealed_weight_is_the_integral_however_few_the_temperatures(
    temperatures: int,
) -> None:
    steps = tuple(0.3 for _ in range(temperatures - 1)) or (0.3,)
    weights = run_annealing(40_000, 1, steps, temperatures=temperatures).log_weights.exp()
    error = float(weights.std() / math.sqrt(len(weights)))
    assert float(weights.mean()) == pytest.approx(3.0, abs=4 * error)
    assert error < 0.1


def test_the_way_back_from_exact_draws_is_unbiased_for_the_reciprocal() -> None:
    generator = torch.Generator().manual_seed(5)
    centre, deviation = torch.tensor([[1.0, -1.0], [0.2, 0.5]], dtype=torch.float64)
    exact = centre + deviation * torch.randn(40_000, 2, generator=generator, dtype=torch.float64)
    pilot = run_annealing(500, 3, (0.5,))
    back = run_annealing(40_000, 6, pilot.step_sizes, end=exact)
    weights = back.log_weights.exp()
    error = float(weights.std() / math.sqrt(len(weights)))
    assert float(weights.mean()) == pytest.approx(1 / 3, abs=4 * error)
    assert error < 0.015
    # And so the two bounds enclose the truth.
    there = run_annealing(40_000, 7, pilot.step_sizes)
    assert float(there.log_weights.mean()) < math.log(3) < float(-back.log_weights.mean())


def test_more_temperatures_make_the_weights_more_alike() -> None:
    spreads = [
        float(run_annealing(4_000, 2, (0.3,), temperatures=n).log_weights.std())
        for n in (5, 20, 80)
    ]
    assert spreads[0] > spreads[1] > spreads[2]


def test_a_first_run_finds_step_sizes_that_a_second_one_keeps() -> None:
    pilot = run_annealing(500, 3, (4.0,))
    assert pilot.step_sizes[0] == 4.0
    assert pilot.step_sizes[-1] < 1.0
    again = run_annealing(500, 4, pilot.step_sizes)
    assert again.step_sizes == pilot.step_sizes
    assert again.acceptance > 0.5


@pytest.mark.parametrize("start", ["encoder", "prior"])
def test_the_estimate_is_the_known_evidence_and_the_bounds_lie_below(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "FLOW_SAMPLES", 1000)
    monkeypatch.setattr(likelihood, "ROWS_AT_ONCE", 399)  # one pair at a time, in few passes
    model = linear_model(n_leapfrog=3, step_size=0.3, tempering="free", sqrt_beta_0=0.8)
    data = PairTensors(
        images=observed().expand(2, -1, -1, -1), masks=torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    )
    asked = config(start=start, chains=200, temperatures=80, importance_samples=2_000)

    def estimate(asked: LikelihoodConfig, first: int) -> dict[str, Tensor]:
        with torch.no_grad():
            numbers = estimate_likelihood(model, data, asked, first)
        assert numbers is not None
        return numbers

    groups = [estimate(asked, first) for first in range(2)]
    found = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    again, other = estimate(asked, 0), estimate(replace(asked, seed=1), 0)
    truth = evidence(model.decoder)
    assert found["log_likelihood"].tolist() == pytest.approx([truth] * 2, abs=0.1)
    assert found["importance_bound"].tolist() == pytest.approx([truth] * 2, abs=0.1)
    # Two estimates in turn agree, so there is no third one.
    assert found["temperatures"].tolist() == [160, 160]
    assert float((found["log_likelihood"] - found["log_likelihood_before"]).abs().max()) < 0.2
    assert (found["effective_samples"] > 100).all()
    assert (found["elbo"] < truth).all()
    assert (found["elbo_flow"] < truth).all()
    assert torch.equal(found["log_likelihood"][:1], again["log_likelihood"])
    assert (
        len(
            {
                float(found["log_likelihood"][0]),
                float(found["log_likelihood"][1]),
                float(other["log_likelihood"]),
            }
        )
        == 3
    )


def test_temperatures_are_doubled_until_two_bounds_agree_or_the_budget_ends() -> None:
    model = linear_model(n_leapfrog=0)
    data = PairTensors(
        images=3 + observed().expand(4, -1, -1, -1), masks=torch.zeros(4, 1, 2, 2).double()
    )
    asked = config(start="prior", chains=3, temperatures=3, leaps=1, importance_samples=1)

    def estimate(estimates: int, agree_nats: float) -> dict[str, Tensor]:
        limits = {"estimates": estimates, "agree_nats": agree_nats}
        with torch.no_grad():
            numbers = estimate_likelihood(model, data, replace(asked, **limits), 0)
        assert numbers is not None
        return numbers

    assert estimate(5, 1e6)["temperatures"].tolist() == [6] * 4
    assert estimate(3, 0)["temperatures"].tolist() == [12] * 4
    third, fourth = estimate(3, 0), estimate(4, 0)
    assert torch.equal(fourth["log_likelihood_before"], third["log_likelihood"])
    assert fourth["log_likelihood"].mean() > estimate(2, 0)["log_likelihood_before"].mean()


def test_the_gap_is_small_where_the_bounds_are_tight_and_large_where_they_are_not() -> None:
    model = linear_model(n_leapfrog=0)
    gaps = []
    for temperatures in (2, 60):
        asked = config(start="prior", chains=8, temperatures=temperatures, estimates=2)
        with torch.no_grad():
            like = observed().expand(8, -1, -1, -1)
            z, pairs = likelihood._make_pairs(model, like, seed=0)
            numbers = estimate_likelihood(model, pairs, asked, 0, made_from=z)
        assert numbers is not None
        assert list(numbers) == ["gap"]
        gaps.append(float(numbers["gap"].mean()))
    assert gaps[0] > 5 * gaps[1] > 0


def test_each_row_is_encoded_once_and_parts_of_them_give_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = linear_model(n_leapfrog=3, step_size=0.3, tempering="free", sqrt_beta_0=0.8)
    data = PairTensors(
        images=observed().expand(3, -1, -1, -1), masks=torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    )
    asked = config(chains=5, temperatures=6, estimates=3, importance_samples=7)
    rows: dict[str, list[int]] = {"encode": [], "log_likelihood": []}

    def count(name: str) -> None:
        method = getattr(HVAE, name)

        def counted(self: HVAE, *given):
            rows[name].append(len(given[-1]["image"]))
            return method(self, *given)

        monkeypatch.setattr(HVAE, name, counted)

    def estimate(micro_batch: int) -> dict[str, Tensor]:
        with torch.no_grad():
            numbers = estimate_likelihood(model, data, asked, 0, micro_batch=micro_batch)
        assert numbers is not None
        return numbers

    count("encode")
    count("log_likelihood")
    whole = estimate(0)
    assert rows["encode"] == [3]  # each pair once, for all chains, estimates and bounds
    assert max(rows["log_likelihood"]) > 4

    rows["encode"], rows["log_likelihood"] = [], []
    cut = estimate(2)
    assert rows["encode"] == [2, 1]
    assert max(rows["log_likelihood"]) == 2
    assert cut.keys() == whole.keys()
    for name, values in whole.items():
        assert torch.allclose(cut[name], values, rtol=1e-9, atol=1e-9), name


def train(folder: Path, model: HVAEConfig | LSGANConfig, split: SplitConfig = SPLIT) -> Workplace:
    """Train a tiny generator; return the workplace of a likelihood run on it."""
    data = make_data_set(folder / "shards")
    place = Workplace(folder=folder / "train", data=data, parents={}, resources=Resources())
    place.folder.mkdir()
    optim = OptimConfig(images=16, batch_size=4, precision="fp32")
    asked = TrainConfig(
        data="tiny", generator="hvae", split=split, image_px=0, model=model, optim=optim
    )
    write_config(place.folder, dump(asked))
    train_generator(asked, place)
    return replace(place, folder=folder / "likelihood", parents={"generator": folder / "train"})


def test_the_stage_measures_held_out_cases_at_the_joint_s_own_weight(tmp_path: Path) -> None:
    place = train(tmp_path, HVAEConfig(network=NETWORK, n_leapfrog=1, mask_weight=20.0))
    asked = config(chains=4, temperatures=10, importance_samples=20, cases=3)
    outcome = measure_likelihood(asked, place)
    assert outcome is not None
    assert list(outcome.per_case) == list(read_split(place.data, SPLIT).test[:3])
    per_case = [numbers["log_likelihood"] for numbers in outcome.per_case.values()]
    assert outcome.metrics["log_likelihood"] == pytest.approx(sum(per_case) / 3)
    bits = -outcome.metrics["log_likelihood"] / (16 * 16 * math.log(2))
    assert outcome.metrics["gap"] > -1
    assert outcome.metrics["bits_per_pixel"] == pytest.approx(bits)
    # A mask of 256 undecided pixels is worth 177 nats; at weight 20 it would be 3,500.
    assert outcome.metrics["log_likelihood"] > outcome.metrics["elbo"] - 1
    assert outcome.metrics["elbo"] > -1500


def test_a_stage_that_was_asked_to_leave_goes_on_with_the_next_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "ROWS_AT_ONCE", 8)
    place = train(tmp_path, HVAEConfig(network=NETWORK, n_leapfrog=1))
    asked = config(chains=4, temperatures=4, importance_samples=8)
    whole = measure_likelihood(asked, place)
    assert whole is not None
    elsewhere = replace(place, folder=tmp_path / "again")
    steps = iter(range(100))
    assert measure_likelihood(asked, replace(elsewhere, stopped=lambda: next(steps) >= 3)) is None
    (checkpoint,) = find_checkpoints(elsewhere.folder)
    assert load_checkpoint(elsewhere.folder)["images_seen"] == 2
    assert checkpoint.name.startswith("checkpoint-000000000002-")
    rest = measure_likelihood(asked, elsewhere)
    assert rest is not None
    assert rest.metrics == whole.metrics
    assert rest.per_case == whole.per_case


def test_a_generator_without_density_and_cases_that_it_saw_are_refused(tmp_path: Path) -> None:
    lsgan = LSGANConfig(network=NETWORK, discriminator_channels=(4, 8))
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no encoder or no density of images"):
        measure_likelihood(config(), train(tmp_path / "a", lsgan))
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="no encoder or no density of images"):
        measure_likelihood(
            config(),
            train(tmp_path / "c", HVAEConfig(network=NETWORK, image_likelihood="bernoulli")),
        )
    (tmp_path / "b").mkdir()
    place = train(tmp_path / "b", HVAEConfig(network=NETWORK, n_leapfrog=0))
    with pytest.raises(UserError, match="was made from test cases"):
        measure_likelihood(config(split=replace(SPLIT, seed=1)), place)
