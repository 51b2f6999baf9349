"""What a flow gains over a trained VAE when only eps and the tempering are learned.

The script takes every VAE that a sweep has trained. An HVAE gets the VAE's weights and learns its
flow on the training cases. On the held-out cases its bound is compared with the VAE's, with the
same draws. log p(x, m) itself does not change, because the decoder is the same.

    python benchmarks/frozen_flow.py RUNS SWEEP [--images 960] [--leaps 3] [--draws 16]
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hvae_hpc.config.model import HVAEConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.runs.plan import Plan, plan_path, read_plan
from hvae_hpc.runs.run import Run
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors, generator_for, read_cases
from hvae_hpc.training.loop import train
from hvae_hpc.training.train import load_generator, make_network, read_split


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("sweep", help="name of the sweep")
    parser.add_argument("--images", type=int, default=960, help="to learn the flow on (960)")
    parser.add_argument("--leaps", type=int, default=3, help="leapfrog steps, K (3)")
    parser.add_argument("--draws", type=int, default=16, help="per held-out case (16)")
    parser.add_argument("--threads", type=int, default=1, help="that torch uses (1)")
    return parser.parse_args()


def find_trained_vaes(plan: Plan) -> Iterator[tuple[str, Run]]:
    """Yield the id and the run of every VAE whose training is done."""
    for run_id, run in plan.runs.items():
        config = run.config
        is_vae = (
            isinstance(config, TrainConfig)
            and isinstance(config.model, HVAEConfig)
            and not config.model.n_leapfrog
        )
        if is_vae and (plan.folder(run_id) / "metrics.json").exists():
            yield run_id, run


def add_flow(vae: HVAE, leaps: int, size: tuple[int, int]) -> HVAE:
    """Return an HVAE with the VAE's weights, of which only those of the flow are learned."""
    config = replace(vae.config, n_leapfrog=leaps, flow_from=0.0, kl_warm_up=0.0)
    model = make_network(config, size)
    assert isinstance(model, HVAE)
    model.load_state_dict(vae.state_dict(), strict=False)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in ("raw_step_size", "raw_alphas"))
    return model


def learn_flow(
    model: HVAE, config: TrainConfig, data: Path, cases: PairTensors, options: argparse.Namespace
) -> None:
    """Train the flow on the VAE's training cases, without decay and in float32."""
    optim = OptimConfig(
        images=options.images,
        batch_size=config.optim.batch_size,
        lr=3e-2,
        weight_decay=0.0,
        precision="fp32",
    )
    resources = Resources(threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        workplace = Workplace(folder=Path(folder), data=data, parents={}, resources=resources)
        train(model, cases, optim, config.seed, config.moves, workplace)


def measure_bound(
    model: HVAE, held_out: PairTensors, seed: int, draws: int
) -> tuple[float, float, dict[str, Any]]:
    """Return the mean bound and the mean gain over K = 0, nats, and the terms of the last draw."""
    rows = {"image": held_out.images, "mask": held_out.masks}
    bounds, gains = [], []
    for draw in range(draws):
        drawn = model.draw(len(held_out), 1.0, generator_for(seed, "held-out", draw))
        with torch.no_grad():
            terms = model({**rows, **drawn}).terms
        bounds.append(float(terms["elbo"].mean()))
        gains.append(float(terms["elbo_gain"].mean()))
    return statistics.mean(bounds), statistics.mean(gains), terms


def measure_gain(plan: Plan, run_id: str, run: Run, options: argparse.Namespace) -> float:
    """Learn a flow over one trained VAE, print a line, and return the gain in nats."""
    config = run.config
    assert isinstance(config, TrainConfig)
    data = Path(plan.data[config.data]["folder"])
    split = read_split(data, config.split)
    held_out = read_cases(data, split.test, config.image_px)

    vae = load_generator(plan.folder(run_id)).model
    assert isinstance(vae, HVAE)
    model = add_flow(vae, options.leaps, held_out.image_size)
    learn_flow(model, config, data, read_cases(data, split.train, config.image_px), options)

    bound, gain, terms = measure_bound(model, held_out, config.seed, options.draws)
    print(
        f"{run.label}: held-out bound {bound:.2f} nats with flow, "
        f"{gain:+.2f} over K = 0; eps {float(model.step_size()):.3f}, "
        f"sqrt(beta_0) {float(model.sqrt_beta_0()):.3f}, "
        f"moved {float(terms['moved'].mean()):.2f}, "
        f"acceptance {float(terms['acceptance'].mean()):.2f}",
        flush=True,
    )
    return gain


def main() -> None:
    """Measure, print a line per VAE, and end with one line of JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    plan = read_plan(plan_path(options.runs, options.sweep))
    plan = replace(plan, runs_folder=options.runs)  # the runs may have been moved since

    gains = [measure_gain(plan, run_id, run, options) for run_id, run in find_trained_vaes(plan)]
    mean = statistics.mean(gains) if gains else None
    print(json.dumps({"trainings": len(gains), "mean_gain_nats": mean}))


if __name__ == "__main__":
    main()
