"""What a flow gains over a trained VAE: only eps and the tempering are learned.

For every VAE that a sweep has trained, an HVAE takes over its weights, learns its flow on the
training cases, and its bound on the held-out cases is compared with the VAE's on the same draws.
log p(x, m) itself does not change, since the decoder is the same.

    python benchmarks/frozen_flow.py RUNS SWEEP [--images 960] [--leaps 3] [--draws 16]
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from hvae_hpc.config.model import HVAEConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.runs.plan import plan_path, read_plan
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import generator_for, read_cases
from hvae_hpc.training.loop import train
from hvae_hpc.training.train import load_generator, make_network, read_split


def main() -> None:
    """Measure, print a line per VAE, and end with one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("sweep")
    parser.add_argument("--images", type=int, default=960, help="that the flow is learned on (960)")
    parser.add_argument("--leaps", type=int, default=3, help="K (3)")
    parser.add_argument("--draws", type=int, default=16, help="per held-out case (16)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan = read_plan(plan_path(options.runs, options.sweep))
    gains = []
    for run_id, run in plan.runs.items():
        config = run.config
        if (
            not (isinstance(config, TrainConfig) and isinstance(config.model, HVAEConfig))
            or config.model.n_leapfrog
        ):
            continue
        folder = options.runs / plan.folder_name(run_id)
        if not (folder / "metrics.json").exists():
            continue
        data = Path(plan.data[config.data]["folder"])
        split = read_split(data, config.split)
        vae = load_generator(folder).model
        held_out = read_cases(data, split.test, config.image_px)
        model_config = replace(
            config.model, n_leapfrog=options.leaps, flow_from=0.0, kl_warm_up=0.0
        )
        model = make_network(model_config, held_out.image_size)
        model.load_state_dict(vae.state_dict(), strict=False)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in ("raw_step_size", "raw_alphas"))
        optim = OptimConfig(
            images=options.images,
            batch_size=config.optim.batch_size,
            lr=3e-2,
            weight_decay=0.0,
            precision="fp32",
        )
        with tempfile.TemporaryDirectory() as place:
            where = Workplace(
                folder=Path(place),
                data=data,
                parents={},
                resources=Resources(threads=options.threads),
            )
            train(
                model,
                read_cases(data, split.train, config.image_px),
                optim,
                config.seed,
                config.moves,
                where,
            )
        rows = {"image": held_out.images, "mask": held_out.masks}
        bounds, gained = [], []
        for draw in range(options.draws):
            drawn = model.draw(len(held_out), 1.0, generator_for(config.seed, "held-out", draw))
            with torch.no_grad():
                terms = model({**rows, **drawn}).terms
            bounds.append(float(terms["elbo"].mean()))
            gained.append(float(terms["elbo_gain"].mean()))
        gains.append(statistics.mean(gained))
        print(
            f"{run.label}: held-out bound {statistics.mean(bounds):.2f} nats with flow, "
            f"{gains[-1]:+.2f} over K = 0; eps {float(model.step_size()):.3f}, "
            f"sqrt(beta_0) {float(model.sqrt_beta_0()):.3f}, "
            f"moved {float(terms['moved'].mean()):.2f}, "
            f"acceptance {float(terms['acceptance'].mean()):.2f}",
            flush=True,
        )
    print(
        json.dumps(
            {"trainings": len(gains), "mean_gain_nats": statistics.mean(gains) if gains else None}
        )
    )


if __name__ == "__main__":
    main()
