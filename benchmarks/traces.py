"""The memory of table1's training steps on a GPU, traced without one, and what fits on which card.

The product's own training loop takes two steps of 32 pairs in bfloat16 on a CUDA device that is not
there (see tests/gpu_without_gpu). Tensors have sizes and no numbers. A compiled step has the memory
that inductor plans for it. The device is as large as an 80 GB card, and a step that does not fit
falls back as the product does. The figures are bytes of live tensors in a step. The copies of the
weights and moments to go back to come on top (the rehearsal has them, and the table of cards counts
them), as do the CUDA context (about 0.5 GiB), workspaces and fragmentation. These are traces: no
GPU has measured them.

Without --quick the script also prints, for each network and card, whether a step fits, and with
which fallback. It needs torch's build for CPUs, of the version that the device is written for, and
g++.

    python benchmarks/traces.py [--quick] [--keep] [--at-once 2]
"""

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gpu_without_gpu.fake_cuda import reason_to_skip
from tests.gpu_without_gpu.processes import Trace, run_traces

CARDS_GIB = {24: 22.0, 40: 39.0, 48: 44.0, 80: 79.0, 141: 139.5}
"""By the size on the label in GB: what a process can have. The drivers of an A10, A100, L40S, H100
and H200 report 22.5, 39.6, 45.0, 79.6 and 140.4 GiB; the CUDA context takes 0.5."""
QUICK = (("hvae", 256, "on"), ("hvae", 256, "off"), ("unet", 240, "off"))
KEPT = Path(__file__).parent / "measured" / "gpu" / "traces.json"
"""What gpu.py compares its memory with."""
MODES = {"off": "eager", "on": "compiled"}
NETWORKS = ("unet", "resenc_unet", "lsgan", "edm", "edm_fold_1", "vae", "hvae", "hvae-gan")

Step = tuple[str, int, str]
"""Network, side of the images in px, and compile."""


def words_of(step: Step, card_gib: float) -> tuple[str, ...]:
    """Return the command line of a step's trace."""
    network, px, compiled = step
    return (network, "--px", str(px), "--compile", compiled, "--card-gib", str(card_gib))


def name_of(step: Step) -> str:
    """Return a step's name in the JSON line, such as "hvae_256_eager_gib"."""
    network, px, compiled = step
    return f"{network}_{px}_{MODES[compiled]}_gib"


def trace_steps(steps: list[Step], card_gib: float, at_once: int) -> dict[Step, Trace]:
    """Trace steps and print a line for each."""
    traces = {}
    lines = run_traces([words_of(step, card_gib) for step in steps], at_once)
    for step, [line] in zip(steps, lines, strict=True):
        traces[step] = line
        notes = f"  ({'; '.join(line['notes'])})" if line["notes"] else ""
        print(f"{name_of(step):28}{line['peak_gib']:8.2f}{notes}", flush=True)
    return traces


def print_cards(traces: dict[Step, Trace], at_once: int) -> dict[str, dict[int, str]]:
    """Print a Markdown table: which card takes which step, and how; return the sparer ways."""
    spared = {}
    print("\n| network | px | step | " + " | ".join(f"{card} GB" for card in CARDS_GIB) + " |")
    print("|---" * (3 + len(CARDS_GIB)) + "|")
    for step, line in traces.items():
        fits = {card: line["rehearsed_gib"] < gib for card, gib in CARDS_GIB.items()}
        small = [card for card, fit in fits.items() if not fit]
        commands = [words_of(step, CARDS_GIB[card]) for card in small]
        choices = {
            card: "; ".join(fallen["notes"]) or "as it is"
            for card, [fallen] in zip(small, run_traces(commands, at_once), strict=True)
        }
        spared[name_of(step)] = choices
        cells = [choices.get(card, "as it is") for card in CARDS_GIB]
        network, px, compiled = step
        print(f"| {network} | {px} | {MODES[compiled]} | {' | '.join(cells)} |", flush=True)
    return {name: choices for name, choices in spared.items() if choices}


def main() -> None:
    """Trace, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three steps, under two minutes")
    parser.add_argument("--keep", action="store_true", help="write measured/gpu/traces.json")
    parser.add_argument("--at-once", type=int, default=2, help="(default: %(default)s)")
    options = parser.parse_args()
    if reason := reason_to_skip():
        raise SystemExit(reason)

    print(f"Python {platform.python_version()}, torch {version('torch')}; a trace, GiB")
    every = [(name, px, mode) for mode in MODES for name in NETWORKS for px in (240, 256)]
    traces = trace_steps(list(QUICK) if options.quick else every, CARDS_GIB[80], options.at_once)
    figures: dict[str, object] = {name_of(step): line["peak_gib"] for step, line in traces.items()}
    figures["graph_breaks"] = sum(line["graph_breaks"] for line in traces.values())
    figures["step_waits"] = sum(sum(line["step_waits"].values()) for line in traces.values())
    if not options.quick:
        rehearsed = {name_of(step): line["rehearsed_gib"] for step, line in traces.items()}
        kept = {**figures, "rehearsed": rehearsed, "cards": print_cards(traces, options.at_once)}
        if options.keep:
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps({**figures, "torch": version("torch"), "is": "a trace, not a measurement"}))


if __name__ == "__main__":
    main()
