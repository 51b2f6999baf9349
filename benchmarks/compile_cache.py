"""A compiled step's cold start against a warm one, side by side: with nothing kept, and with what another process kept.

Each turn is two processes, one after the other, with local folders of their own: two steps of
    training each. The second
finds the file that the first left. Measured is the time to the end of the training: torch's import,
which both pay, is not in it, that of its compiler is; and the processes' CPU seconds, imports and
g++ included. The weights must be equal.

    python benchmarks/compile_cache.py [--quick] [--turns 3]
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from turns import name_device, ratio

from hvae_hpc.config.model import HVAEConfig, OptimConfig, UNetConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.batches import PairTensors
from hvae_hpc.training.device import build
from hvae_hpc.training.loop import train

STEPS = 2


def measure(folder: Path, kind: str, px: int) -> None:
    """Train for two steps in this process; print the seconds, what was noted, and the sum of the weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, px, px, generator=random)
    data = PairTensors(images=images.to(device), masks=(images > 0.5).float().to(device))
    quick = UNetConfig(base_channels=4, depth=1)
    make = {
        "quick": lambda: UNet(quick),
        "unet": lambda: UNet(UNetConfig()),
        "hvae": lambda: HVAE(HVAEConfig(), (px, px)),
    }[kind]
    with tempfile.TemporaryDirectory() as run:
        resources = Resources(compile="on", threads=torch.get_num_threads())
        place = Workplace(
            folder=Path(run), data=folder, parents={}, resources=resources, caches=folder
        )
        optim = OptimConfig(images=4 * STEPS, batch_size=4, lr=1e-3, precision="fp32")
        model = build(make, 0, device)
        began = time.perf_counter()
        report = train(model, data, optim, 0, None, place)
        seconds = time.perf_counter() - began
    assert report.weights is not None
    total = sum(float(weight.double().sum()) for weight in report.weights.values())
    print(json.dumps({"s": seconds, "notes": list(report.notes), "weights": total}))


def start(folder: Path, kind: str, px: int) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--kind", kind, "--px", str(px)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_s": after.ru_utime - before.ru_utime, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a U-Net of 4 channels and one turn: two minutes on an idle core",
    )
    parser.add_argument("--kind", choices=("unet", "hvae", "quick"), default="unet")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # a turn's own process
    options = parser.parse_args()
    if options.folder:
        measure(options.folder, options.kind, options.px)
        return
    kind, turns, px = (
        ("quick", 1, 16) if options.quick else (options.kind, options.turns, options.px)
    )
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    cpu: dict[str, list[float]] = {"cold": [], "warm": []}
    size = 0
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            found = {side: start(Path(folder), kind, px) for side in ("cold", "warm")}
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
        if found["cold"]["weights"] != found["warm"]["weights"] or not found["warm"]["notes"]:
            raise SystemExit(f"not comparable: {found}")
        for side, times in seconds.items():
            times.append(found[side]["s"])
            cpu[side].append(found[side]["cpu_s"])
        print(
            f"turn {turn + 1}: cold {seconds['cold'][-1]:.1f} s, warm {seconds['warm'][-1]:.1f} s",
            flush=True,
        )
    print(
        json.dumps(
            {
                "kind": kind,
                "px": px,
                "turns": turns,
                **{
                    f"{side}_s": round(statistics.median(times), 2)
                    for side, times in seconds.items()
                },
                **{
                    f"{side}_cpu_s": round(statistics.median(times), 2)
                    for side, times in cpu.items()
                },
                "cold_over_warm": round(ratio(seconds, "cold", "warm") or 0, 2),
                "file_kib": round(size / 1024),
                "device": name_device(),
                "torch": torch.__version__,
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
