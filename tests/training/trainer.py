"""Trains in forked processes that a test can kill: ``python -m tests.training.trainer`` and a line "kind folder" for each.

It answers with the new process's id, and with its exit status when it has ended. Forking spares
each the import of torch.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.model import HVAEConfig, LSGANConfig, MovesConfig, NetworkConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.worker import signals
from hvae_hpc.models.blocks import Batch, Loss
from hvae_hpc.models.edm import EDM
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.hybrid import HybridHVAE
from hvae_hpc.models.lsgan import LSGAN
from hvae_hpc.runs.folder import write_json
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import to_tensors
from hvae_hpc.training.checkpoint import save_snapshot
from hvae_hpc.training.device import build
from hvae_hpc.training.held_out import BestWeights
from hvae_hpc.training.loop import train
from tests.tiny import make_pairs

NETWORK = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=4)
OPTIM = OptimConfig(images=120, batch_size=4, lr=1e-2, ema_decay=0.9, precision="fp32")
FLOW = HVAEConfig(network=NETWORK, n_leapfrog=2, kl_warm_up=0.5, flow_from=0.5)
WEIGHTS, TERMS = "weights.pt", "terms.json"


class Stumbling(HVAE):
    """Leaves the numbers in the middle of the training, until its step was halved."""

    def forward(self, batch: Batch, phase: str = "elbo") -> Loss:
        """Return the loss, or NaN."""
        loss = super().forward(batch, phase)
        bad = (batch["kl_weight"] > 0.8) & (self.step_share == 1)
        return loss._replace(
            total=torch.where(bad, torch.full_like(loss.total, torch.nan), loss.total)
        )


MODELS = {
    "vae": lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=0), (16, 16)),
    "hvae": lambda: HVAE(FLOW, (16, 16)),
    "hvae that goes back": lambda: Stumbling(FLOW, (16, 16)),
    "lsgan": lambda: LSGAN(LSGANConfig(network=NETWORK, discriminator_channels=(4, 8)), (16, 16)),
    "edm": lambda: EDM(EDMConfig(channels=(4, 8), attention_heads=2), (16, 16)),
    "hvae-gan": lambda: HybridHVAE(
        replace(FLOW, image_likelihood="textured", adversarial_weight=0.5, perceptual_weight=0.1),
        (16, 16),
    ),
}


def work(kind: str, folder: Path) -> None:
    """Train, or go on, saving ten times a second; leave the weights when done."""
    signals.install()
    torch.set_num_threads(1)
    sync = os.fsync
    os.fsync = lambda file: (time.sleep(0.05), sync(file))[
        1
    ]  # slow, so that some kills meet a half-written file
    data = to_tensors(make_pairs(6, 16), 0)
    place = Workplace(
        folder=folder,
        data=folder,
        parents={},
        resources=Resources(checkpoint_every_s=0.1),
        stopped=signals.leave_asked,
    )
    model = build(MODELS[kind], 3, torch.device("cpu"))
    best = None
    if kind == "edm":  # its weights are chosen on held-out pairs, and no copies
        held_out, data = data.take(slice(4, 6)), data.take(slice(0, 4))
        best = BestWeights(model, held_out, OPTIM, 6, data, list("abcd"))
    report = train(model, data, OPTIM, 3, MovesConfig(), place, best)
    if report is not None:
        write_json(folder / TERMS, report.terms)
        save_snapshot(folder / WEIGHTS, report.weights)  # last: by these it is known to be done


def warm_up() -> None:
    """Let torch import what it imports at the first step, here and not in every child."""
    data = to_tensors(make_pairs(6, 16), 0)
    for make in MODELS.values():
        with tempfile.TemporaryDirectory() as folder:
            place = Workplace(
                folder=Path(folder),
                data=Path(),
                parents={},
                resources=Resources(checkpoint_every_s=0.0),
            )
            train(
                build(make, 3, torch.device("cpu")),
                data,
                replace(OPTIM, images=12),
                3,
                MovesConfig(),
                place,
            )


def main() -> None:
    """Serve until standard input ends."""
    torch.set_num_threads(1)
    warm_up()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                work(order["kind"], Path(order["folder"]))
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
