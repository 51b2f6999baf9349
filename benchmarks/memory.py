"""The memory of a process over several thousand training steps of each generator, small networks.

python benchmarks/memory.py [--steps 4000]
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch

from hvae_hpc.config.model import HVAEConfig, LSGANConfig, MovesConfig, NetworkConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.lsgan import LSGAN
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import train

NETWORK = NetworkConfig(channels=(8, 16), attention_levels=(1,), latent_size=8)
MODELS = {
    "vae": lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=0), (24, 24)),
    "hvae": lambda: HVAE(
        HVAEConfig(network=NETWORK, n_leapfrog=3, kl_warm_up=0.0, flow_from=0.0), (24, 24)
    ),
    "lsgan": lambda: LSGAN(LSGANConfig(network=NETWORK, discriminator_channels=(8, 16)), (24, 24)),
}
QUARTERS = 4


def resident_mib() -> float:
    """Return this process's resident memory, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measure at every quarter, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args()

    torch.set_num_threads(1)
    images = torch.rand(20, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    data = PairTensors(images=images, masks=(images > 0.8).float())

    resident = {}
    for name, make in MODELS.items():
        at_quarters: list[float] = []
        steps = 0

        def count(at_quarters: list[float] = at_quarters) -> bool:
            nonlocal steps
            steps += 1
            if steps % (options.steps // QUARTERS) == 0:
                at_quarters.append(resident_mib())
            return False

        with tempfile.TemporaryDirectory() as folder:
            place = Workplace(
                folder=Path(folder),
                data=Path(),
                parents={},
                resources=Resources(checkpoint_every_s=5.0),
                stopped=count,
            )
            optim = OptimConfig(
                images=4 * options.steps, batch_size=4, ema_decay=0.99, precision="fp32"
            )
            train(build(make, 0, torch.device("cpu")), data, optim, 0, MovesConfig(), place)
        resident[name] = [round(mib, 1) for mib in at_quarters]
        print(
            f"{name}: resident MiB after each quarter of {options.steps} steps: {resident[name]}",
            flush=True,
        )
    print(
        json.dumps({"steps": options.steps, "resident_mib": resident, "torch": torch.__version__})
    )


if __name__ == "__main__":
    main()
