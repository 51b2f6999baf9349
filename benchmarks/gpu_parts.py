"""The parts of gpu.py, each in a process of its own: ``python gpu_parts.py PART [--device cpu]``.

A part prints a line of JSON for each figure as soon as it is known: {"name": ..., "value": ...}.
What a part printed before it was stopped or failed is kept.
"""

import argparse
import importlib.util
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from gpu_setting import Setting, count_operations, tell
from peak_memory import peak_memory
from turns import name_device, peak_of, ratio
from unet_peers import make_peers
from unet_steps import as_users_do, in_the_loop, make_pairs, take_turns

from hvae_hpc.config.model import MovesConfig, UNetConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import is_gpu_lost
from hvae_hpc.models.unet import UNet
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.device import build, choose_device
from hvae_hpc.training.loop import train
from tests import ROOT
from tests.gpu_without_gpu.networks import NETWORKS

MIB_PER_GIB = 1024
TRACES = Path(__file__).parent / "measured" / "gpu" / "traces.json"


def check(setting: Setting) -> None:
    """Run the tests that need a GPU."""
    if importlib.util.find_spec("pytest") is None:
        raise SystemExit("pytest is not installed; carry its wheel")
    command = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=", "tests/gpu"]
    outcomes: dict[str, int] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if test := re.match(r"tests/gpu/\S+::(\S+) (PASSED|FAILED|SKIPPED|ERROR)", line):
                name, outcome = test.groups()
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                tell(outcome.lower(), outcomes[outcome])
                if outcome in ("FAILED", "ERROR"):
                    tell(name, outcome)


def measure_steps(setting: Setting) -> None:
    """Measure the step of each network in bfloat16 and float32, eager, compiled, by CUDA graphs."""
    traces = json.loads(TRACES.read_text())["rehearsed"]
    further = () if setting.small else ("resenc_unet",)
    names = ("unet", "hvae", "vae", "lsgan", "edm", "hvae-gan", *further)
    for precision, mode in itertools.product(
        ("bf16", "fp32"), ("eager", "compiled", "cuda graphs")
    ):
        for name in names:
            if not is_measured(setting, name, precision, mode):
                continue
            try:
                figures = measure_step(setting, name, precision, mode)
            except Exception as error:
                figures = {"not_run": " ".join(str(error).split())[:300]}
                tell(f"{name} {precision} {mode}", figures)
                if is_gpu_lost():
                    raise SystemExit(f"the GPU was lost in {name} {precision} {mode}") from None
                continue

            operations = count_operations(setting, name)
            figures["tflop"] = operations / 1e12
            peak = peak_of(name_device()) if precision == "bf16" else None
            if peak:
                figures["share_of_peak"] = operations / figures["s"] / peak
            if precision == "bf16":
                figures["traced_gib"] = traces.get(f"{name}_{setting.px}_{mode}_gib")
            tell(f"{name} {precision} {mode}", figures)


def is_measured(setting: Setting, name: str, precision: str, mode: str) -> bool:
    """Tell whether a network's step is taken in this way."""
    if mode == "cuda graphs":  # a launch costs much only where a step is small
        is_small = name in ("unet", "lsgan", "edm")
        return setting.device.type == "cuda" and precision == "bf16" and is_small
    # Compiling for a CPU takes minutes; one network shows that it works.
    return mode == "eager" or not setting.small or name == "unet"


def measure_step(setting: Setting, name: str, precision: str, mode: str) -> dict[str, Any]:
    """Return the seconds of one step in the product's loop, and the most memory, GiB."""
    data = make_pairs(2 * setting.batch, setting.px, setting.device)
    make = NETWORKS[setting.network(name)]
    moves = None if name.endswith("unet") else MovesConfig()
    optim, graphs, notes = setting.optim(precision), mode == "cuda graphs", list[str]()
    turn = in_the_loop(lambda: make(setting.px), data, optim, mode != "eager", moves, graphs, notes)
    started = time.perf_counter()
    turn(1)
    first_s = time.perf_counter() - started
    with peak_memory(setting.device) as peak_mib:
        seconds = statistics.median(turn(setting.steps))
    return {
        "s": seconds,
        "images_per_s": setting.batch / seconds,
        "peak_gib": peak_mib[0] / MIB_PER_GIB,
        "first_s": first_s,
        **({"notes": notes} if notes else {}),
    }


def compare_with_peers(setting: Setting) -> None:
    """Measure our U-Net's step against MONAI's and nnU-Net's, eager and compiled, in turns."""
    size = UNetConfig(base_channels=8 if setting.small else 64)  # the peers need a depth of 4
    optim = setting.optim("fp32" if setting.small else "bf16")
    data = make_pairs(4 * setting.batch, setting.px, setting.device)
    peers = {name: peer for name, peer in make_peers(size).items() if "_" not in name}

    sides = {}
    for compiled in (False,) if setting.small else (False, True):
        ending = "_compiled" if compiled else ""
        sides[f"ours{ending}"] = in_the_loop(lambda: UNet(size), data, optim, compiled)
        for name, peer in peers.items():
            sides[f"{name}{ending}"] = as_users_do(peer, data, optim, compiled)
    for peer in {"monai", "nnunet"} - sides.keys():
        tell(f"unet vs {peer}", {"not_run": f"{peer} is not installed"})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(2 if setting.small else 7):
        for name, [time_s] in take_turns(sides, 1, setting.steps).items():
            seconds[name].append(time_s)
            tell(f"{name} s", statistics.median(seconds[name]))
        for name in sides:
            if not name.startswith("ours"):
                ours = name.replace(name.partition("_")[0], "ours")
                tell(f"unet vs {name}", ratio(seconds, name, ours))


def compare_with_naive(setting: Setting) -> None:
    """Measure the HVAE's step against the bound as one writes it down, by generators.py."""
    script = Path(__file__).with_name("generators.py")
    words = ["--repeats", "5"]
    if setting.small:
        words = ["--quick", "--px", "16", "--batch", "2", "--repeats", "1", "--no-compile"]
    elif torch.cuda.get_device_properties(0).total_memory < 120 * 2**30:
        words += ["--micro-batch", "16"]  # naively, 32 pairs of 240 px take 83 GiB
    command = [sys.executable, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit((done.stderr or done.stdout).strip().splitlines()[-1])
    for name, value in json.loads(done.stdout.strip().splitlines()[-1]).items():
        if isinstance(value, float):
            tell(name, value)


def train_unets(setting: Setting, number: int) -> None:
    """Train so many U-Nets, one after the other, as a segment run's stage does."""
    data = make_pairs(100, setting.px, setting.device)
    steps = 3 if setting.small else 100
    optim = setting.optim("bf16", steps * setting.batch)
    size = UNetConfig(base_channels=8, depth=2) if setting.small else UNetConfig()
    for seed in range(number):
        with tempfile.TemporaryDirectory() as folder:
            place = Workplace(
                folder=Path(folder), data=Path(), parents={}, resources=Resources(compile="off")
            )
            train(build(lambda: UNet(size), seed, setting.device), data, optim, seed, None, place)


def again(setting: Setting, *words: str) -> subprocess.Popen[bytes]:
    """Start this script once more, for another part."""
    small = ["--small"] if setting.small else []
    command = [sys.executable, __file__, *words, "--device", setting.device.type, *small]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def compare_at_once(setting: Setting) -> None:
    """Train five U-Nets in a row in one process, and at once in five."""
    for name, numbers in {"in a row": (5,), "at once": (1, 1, 1, 1, 1)}.items():
        started = time.perf_counter()
        processes = [again(setting, "unets", "--number", str(number)) for number in numbers]
        if any(process.wait() for process in processes):
            raise SystemExit(f"five U-Nets {name}: one failed")
        tell(f"five U-Nets {name} s", time.perf_counter() - started)


def train_to_end(setting: Setting, folder: Path, deterministic: bool) -> None:
    """Train a small HVAE in a folder, or go on there, and leave its weights and seconds."""
    data = make_pairs(40, setting.px, setting.device)
    steps = 16 if setting.small else 240
    optim = replace(setting.optim("fp32", steps * setting.batch), ema_decay=0.9)
    place = Workplace(
        folder=folder,
        data=Path(),
        parents={},
        resources=Resources(
            gpus=int(setting.device.type == "cuda"),
            compile="off",
            checkpoint_every_s=0.2,
            deterministic=deterministic,
        ),
    )
    choose_device(place)  # and the algorithms
    model = build(lambda: NETWORKS["small_hvae"](setting.px), 0, setting.device)
    started = time.perf_counter()
    report = train(model, data, optim, 0, MovesConfig(), place)
    (folder / "seconds").write_text(str(time.perf_counter() - started))
    torch.save(report.weights, folder / "weights.pt")


def compare_resumed(setting: Setting) -> None:
    """Kill a training after a checkpoint, resume it, and compare it with two undisturbed ones.

    Two more are deterministic: what does that cost, and are they equal?
    """
    undisturbed: dict[str, tuple[str, ...]] = {
        "first": (),
        "second": (),
        "ordered": ("--deterministic",),
        "ordered again": ("--deterministic",),
    }
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in (*undisturbed, "killed")}
        for folder in folders.values():
            folder.mkdir()
        for name, words in undisturbed.items():
            if again(setting, "train", "--folder", str(folders[name]), *words).wait():
                raise SystemExit("an undisturbed training failed")
        took = {name: float((folders[name] / "seconds").read_text()) for name in undisturbed}
        tell("deterministic, its time over that without", took["ordered again"] / took["second"])

        killed = again(setting, "train", "--folder", str(folders["killed"]))
        while killed.poll() is None and not list(folders["killed"].glob("checkpoint-*.pt")):
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        tell("killed", killed.wait() == -signal.SIGKILL)
        if again(setting, "train", "--folder", str(folders["killed"])).wait():
            raise SystemExit("the resumed training failed")

        weights = {
            name: torch.load(folder / "weights.pt", weights_only=True)
            for name, folder in folders.items()
        }
        for other in ("second", "killed"):
            tell(f"first against {other}", differ(weights["first"], weights[other]))
        same = differ(weights["ordered"], weights["ordered again"])
        tell("deterministic against itself", same)


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all weights, as a share of their norm."""
    a, b = (torch.cat([w.double().flatten() for w in side.values()]) for side in (one, other))
    return float((a - b).norm() / a.norm())


SMALL_TABLE_1 = """
extends = "table1"
name = "gpu"
seeds = 2
doses = [20, 40]
factors = []
likelihoods = false
[split]
train = 20
test = 20
[generate]
n_pairs = 40
max_draws_per_pair = 1000
min_mask_px = 1
[quality]
n_images = 20
draws = 2
[generators.lsgan.optim]
images = 640
[generators.vae.optim]
images = 640
[generators.hvae.optim]
images = 640
"""


def make_table_1(setting: Setting) -> None:
    """Make a small Table 1 on made-up pairs by the product's command, without torchio's arms."""
    from tests.tiny import SWEEP, make_data_set

    sweep, name, cases, px = SMALL_TABLE_1, "brats2021", 40, setting.px
    if setting.small:
        sweep = SWEEP.replace("factors = [2, 3]", "factors = []")
        name, cases, px = "tiny", 12, 16
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shards = make_data_set(folder, name, cases, px)
        (folder / "gpu.toml").write_text(sweep)
        command = [sys.executable, "-m", "hvae_hpc.sweep", "gpu.toml", "--local"]
        command += ["--data", f"{name}={shards}", "--runs", "runs"]
        started = time.perf_counter()
        with (
            (folder / "said").open("w+") as said,
            subprocess.Popen(command, cwd=folder, stdout=said, stderr=said) as sweep,
        ):
            code = None
            while code is None:
                time.sleep(1)
                code = sweep.poll()
                tell("s", time.perf_counter() - started)
                tell("runs", len(list(folder.glob("runs/*/*/metrics.json"))))
        if code:
            raise SystemExit((folder / "said").read_text().strip().splitlines()[-1])


def project(setting: Setting) -> None:
    """Project the GPU-hours of the whole Table 1 from the steps that were measured before."""
    from table1_cost import plan_table_1, project_table_1  # pandas: not every machine has it

    parts = json.loads(setting.results.read_text())["parts"]
    measured = parts.get("steps", {}).get("figures", {})
    images_per_s: dict[str, float] = {}
    for name in ("unet", "hvae", "vae", "lsgan"):
        modes = ("eager",) if name == "unet" else ("eager", "compiled")  # as default.toml has it
        figures = [measured.get(f"{name} bf16 {mode}", {}) for mode in modes]
        rates = [each["images_per_s"] for each in figures if "images_per_s" in each]
        if not rates:
            raise SystemExit(f"no step of {name} was measured")
        images_per_s[name] = max(rates)

    def seconds(config: Any, px: int) -> float:
        size = (px / setting.px) ** 2
        kind = getattr(config, "generator", "unet")
        if kind != "hvae":
            return size / images_per_s[kind]
        share = config.model.flow_from  # until then its step is the VAE's
        return size * (share / images_per_s["vae"] + (1 - share) / images_per_s["hvae"])

    # A U-Net's run takes seconds beside its steps; segmentation.py measures those.
    for name, value in project_table_1(plan_table_1(), seconds, beside=0.0).items():
        tell(name, value)


PARTS = {
    "tests": check,
    "steps": measure_steps,
    "peers": compare_with_peers,
    "naive": compare_with_naive,
    "at_once": compare_at_once,
    "resume": compare_resumed,
    "table1": make_table_1,
    "projection": project,
}


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "unets", "train"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("gpu.json"))
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()

    gpus = int(options.device == "cuda")
    resources = Resources(gpus=gpus, device="auto" if gpus else "cpu")
    choose_device(Workplace(folder=Path(), data=Path(), parents={}, resources=resources))
    setting = Setting(torch.device(options.device), options.small, options.results)
    if options.part == "unets":
        train_unets(setting, options.number)
    elif options.part == "train":
        train_to_end(setting, options.folder, options.deterministic)
    else:
        PARTS[options.part](setting)


if __name__ == "__main__":
    main()
