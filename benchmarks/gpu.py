"""All that is to be known of a GPU, in at most 25 minutes, in order of worth.

Each part runs in a process of its own. After each one the results so far are written, as
measured/gpu/NAME.json and NAME.md (NAME is the GPU's). A part that cannot run says why, and a part
that the time does not suffice for keeps what it had.

1. tests: those in tests/gpu.
2. steps: each network eager and compiled (small ones by CUDA graphs too), in bfloat16 and float32:
   seconds, share of the peak, memory against benchmarks/traces.py.
3. peers: our U-Net against MONAI's and nnU-Net's.
4. naive: the HVAE's step against the bound as one writes it down.
5. at_once: five U-Nets in a row and at once.
6. resume: a training that is killed and resumed, against the spread of two undisturbed ones; the
   price of ``deterministic``, and whether two such trainings are equal.
7. table1: a small Table 1 at 240 px, from shards to tables, without the arms of standard
   augmentation, which need torchio.
8. projection: the GPU-hours of the whole Table 1, from the steps.

It needs Python 3.11 or newer, torch 2.10 or newer, numpy and h5py; some parts need pytest, scipy,
pandas, pyarrow, matplotlib, tqdm and MONAI as well.

    python benchmarks/gpu.py [--minutes 25] [--only PART ...] [--device cpu --small]
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("gpu_parts.py")
ROOT = Path(__file__).resolve().parent.parent
MEASURED = Path(__file__).parent / "measured" / "gpu"
MINUTES = {
    "tests": 3,
    "steps": 7,
    "peers": 3,
    "naive": 3,
    "at_once": 2,
    "resume": 2,
    "table1": 4,
    "projection": 1,
}
"""The longest that each part may take of 25; they grow and shrink with --minutes."""


def run_part(name: str, words: list[str], seconds: float) -> dict[str, Any]:
    """Run a part; return its figures, and what kept it from its end."""
    command = [sys.executable, str(SCRIPT), name, *words]
    started = time.perf_counter()
    # The package need not be installed: what a part starts finds it in this checkout.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            out, err = process.communicate(timeout=max(1.0, seconds))
            reason = last_line(err) if process.returncode else ""
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            kill_all(process)
            out, err = process.communicate()
            reason = f"stopped after {time.perf_counter() - started:.0f} s"
            if isinstance(error, KeyboardInterrupt):
                reason += " by a signal"
    figures = dict(
        (line["name"], line["value"])
        for line in (json.loads(text) for text in out.splitlines() if text.startswith('{"name"'))
    )
    part: dict[str, Any] = {"s": round(time.perf_counter() - started, 1), "figures": figures}
    return {**part, "not_run": reason} if reason else part


def kill_all(process: subprocess.Popen[str]) -> None:
    """End a part with all that it started, also in sessions of their own, as a sweep's workers."""
    for number in [*children_of(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def children_of(number: int) -> list[int]:
    """Return the processes below one, the lowest first."""
    found = []
    for file in Path(f"/proc/{number}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [*children_of(child), child]
    return found


def last_line(text: str) -> str:
    """Return the last line of an error, shortened."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it failed without a word"


def describe(device: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
    packages = ("torch", "triton", "numpy", "h5py", "scipy", "pandas", "monai", "pytest")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    code = "import torch; print(torch.cuda.get_device_name())"
    name = platform.machine()
    if device == "cuda":
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if asked.returncode:
            raise SystemExit(f"torch sees no GPU ({last_line(asked.stderr)}); try --device cpu")
        name = asked.stdout.strip()
    return {"device": name, "versions": versions}


def to_markdown(result: dict[str, Any]) -> str:
    """Return the results as a table, a line for each figure."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"# {result['device']}",
        "",
        versions,
        "",
        "| part | figure | value |",
        "|---|---|---|",
    ]
    for name, part in result["parts"].items():
        lines.append(f"| {name} | seconds | {part['s']} |")
        if "not_run" in part:
            lines.append(f"| {name} | not run to its end | {part['not_run']} |")
        lines += [
            f"| {name} | {key} | {to_text(value)} |" for key, value in part["figures"].items()
        ]
    return "\n".join(lines) + "\n"


def to_text(value: Any) -> str:
    """Return a figure as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {to_text(number)}" for key, number in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def path_of(result: dict[str, Any], out: Path) -> Path:
    """Return the JSON file of a device."""
    return out / (re.sub(r"\W+", "-", result["device"]).strip("-").lower() + ".json")


def write(result: dict[str, Any], out: Path) -> Path:
    """Write the results so far; returns the JSON file."""
    out.mkdir(parents=True, exist_ok=True)
    path = path_of(result, out)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(to_markdown(result))
    return path


def main() -> None:
    """Run the parts, write their results, and end with one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", nargs="+", choices=tuple(MINUTES), default=list(MINUTES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to try every part")
    parser.add_argument("--out", type=Path, default=MEASURED)
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.monotonic() + 60 * options.minutes
    result: dict[str, Any] = {**describe(options.device), "small": options.small, "parts": {}}
    path = path_of(result, options.out)
    if len(options.only) < len(MINUTES) and path.exists():  # what was measured before stays
        before = json.loads(path.read_text())
        if all(before[key] == result[key] for key in ("versions", "small")):
            result["parts"] = before["parts"]
    write(result, options.out)
    words = ["--device", options.device, *(["--small"] if options.small else [])]
    words += ["--results", str(path)]
    for name in options.only:
        left = end - time.monotonic()
        print(f"{name} ...", flush=True)
        part: dict[str, Any] = {"s": 0.0, "figures": {}, "not_run": "no time was left"}
        longest = 60 * options.minutes * MINUTES[name] / sum(MINUTES.values())
        if left > 10:
            part = run_part(name, words, min(left, longest))
        result["parts"][name] = part
        write(result, options.out)
        if str(part.get("not_run", "")).endswith("by a signal"):
            break
        print(f"  {part['s']} s, {len(part['figures'])} figures {part.get('not_run', '')}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
