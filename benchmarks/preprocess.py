"""Packing NIfTI volumes to shards against torchio and unzipping alone, and reading them back.

    python benchmarks/preprocess.py [--quick] [--raw DIR --recipe NAME] [--repeats 5]
    python benchmarks/preprocess.py --cohort 1000 [--workers 8] [--raw DIR --recipe NAME]

Without --raw the cases are phantoms of BraTS's size. First, both sides must give the same slices of
all cases. Each side has a process of its own on the same one core. The sides take turns within each
repeat; starting and importing do not count. Every figure is the median over the repeats, and every
file is in the page cache. A peer that is not installed has no figure. --cohort packs many links to
few cases, by the command as users type it, and measures its memory.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from preprocess_cohort import pack_cohort
from preprocess_reading import measure_reading, measure_storage
from preprocess_sides import (
    GZIP,
    LAMBDA,
    LIBDEFLATE,
    OURS,
    SIDES,
    TORCHIO,
    Side,
    Work,
    check_same_slices,
    find_work,
    link_cases,
)
from preprocess_tables import median, rate, ratio, round_all, show, take_turns

# Modules that bring h5py or nibabel are imported where they are used: torchio's process must not
# carry them.
from hvae_hpc.errors import UserError


def measure_cases(work: Work, repeats: int) -> dict[str, Any]:
    """Measure cases per second and peak memory of one process."""
    count = len(work.cases)
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(contextlib.closing(Side(name, work))) for name in SIDES}
        installed = {name: side for name, side in sides.items() if side.is_installed}
        print(
            "".join(
                f"{name}: not installed, no figure\n" for name in sides if name not in installed
            ),
            end="",
        )

        # The same slices from all; only then is their speed compared.
        peers = [installed[name] for name in (TORCHIO, LAMBDA) if name in installed]
        apart = check_same_slices(work, installed[OURS], peers)
        if peers:
            print(
                f"ours and torchio: the same {count} slices and masks, "
                f"pixels at most {apart:g} apart",
                flush=True,
            )

        for side in installed.values():
            side.pass_over()
        times = take_turns(
            {name: side.pass_over if side.is_installed else None for name, side in sides.items()},
            repeats,
        )
        memory = {name: side.memory() for name, side in installed.items()}

    versus = {name: ratio(taken, times[OURS]) for name, taken in times.items()}
    show(
        f"one process, one core: {count} cases, image and label",
        ("", "cases/s", "ms/case", "ours is x times as fast", "MiB peak", "of that imports"),
        [
            (
                name,
                rate(taken, count),
                median(taken, 1000 / count),
                versus[name],
                *memory.get(name, (None, None)),
            )
            for name, taken in times.items()
        ],
    )
    return {
        "cases_per_s_vs_torchio": versus[TORCHIO],
        "cases_per_s_vs_torchio_lambda": versus[LAMBDA],
        "cases_per_s_vs_gzip_alone": versus[GZIP],
        "cases_per_s_vs_libdeflate_alone": versus[LIBDEFLATE],
        "cases_per_s": rate(times[OURS], count),
        "cases_per_s_torchio": rate(times[TORCHIO], count),
        "largest_difference": apart if peers else None,
        "peak_mib_per_worker": memory[OURS][0],
        "peak_mib_torchio": memory[TORCHIO][0] if TORCHIO in memory else None,
    }


def measure_workers(work: Work, scratch: Path, n: int, repeats: int) -> tuple[dict[str, Any], Path]:
    """Time whole packings of n linked cases by number of workers; return the last folder too."""
    from hvae_hpc.preprocess.pack import pack

    cores = len(os.sched_getaffinity(0))
    counts = sorted(
        {2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores}
    )
    raw, out = scratch / "linked", scratch / "packed"
    link_cases(work, raw, n)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            pack(work.recipe, raw, out, count)
            times[count].append(time.perf_counter() - started)
    show(
        f"pack() of {n} cases, links to {len(work.cases)}; "
        "workers' start and writing to disk included",
        ("workers", "cases/s", "s", "x times as fast as 1"),
        [
            (count, rate(taken, n), median(taken), ratio(times[1], taken))
            for count, taken in times.items()
        ],
    )
    return {
        "cases_per_s_by_workers": {str(count): rate(taken, n) for count, taken in times.items()}
    }, out


def describe() -> str:
    """Name versions and hardware."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("numpy", "h5py", "torch", "torchio", "SimpleITK", "nibabel", "deflate", "pillow"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    import h5py

    versions.insert(3, f"HDF5 {h5py.version.hdf5_version}")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{', '.join(versions)}\n{model}, {cores} cores, {memory:.0f} GiB of memory"


def parse() -> argparse.Namespace:
    """Parse the command line; what --quick changes is set here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--raw",
        type=Path,
        metavar="DIR",
        help="real data; default: phantoms, in a temporary folder",
    )
    parser.add_argument("--recipe", default="brats2021", help="how --raw is packed (brats2021)")
    parser.add_argument(
        "--cases", type=int, metavar="N", help="take the first N of --raw, or make N phantoms (12)"
    )
    parser.add_argument(
        "--linked",
        type=int,
        metavar="N",
        help="cases, by links, of whole packings and reading (256)",
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="of every measurement (5)")
    parser.add_argument("--quick", action="store_true", help="3 cases, 64 linked, 2 repeats")
    parser.add_argument(
        "--cohort", type=int, metavar="N", help="instead: pack N linked cases and watch the memory"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="of --cohort (as many as cores)")

    options = parser.parse_args()
    few, linked, repeats = (3, 64, 2) if options.quick else (12, 256, 5)
    if options.cases is None:
        options.cases = 4 if options.cohort and not options.raw else few
    options.linked, options.repeats = options.linked or linked, options.repeats or repeats
    options.workers = options.workers or len(os.sched_getaffinity(0))
    for name in ("cases", "linked", "repeats", "workers", "cohort"):
        if (getattr(options, name) or 1) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected 1 or more")
    return options


def main() -> None:
    """Measure, print tables, and end with one line of JSON."""
    options = parse()
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        raw = options.raw
        if raw is None:
            from hvae_hpc.preprocess.phantoms.make import write_phantoms

            raw = scratch / "phantoms"
            write_phantoms(options.recipe, raw, options.cases, 0, len(os.sched_getaffinity(0)))
        work = find_work(options.recipe, raw, options.cases)
        data = {"data": "phantoms" if options.raw is None else "real", "cases": len(work.cases)}
        if options.cohort:
            print(f"{options.cohort} links to {len(work.cases)} cases ({data['data']})", flush=True)
            figures = pack_cohort(work, scratch, options.cohort, options.workers)
        else:
            figures = measure_cases(work, options.repeats)
            by_workers, packed = measure_workers(work, scratch, options.linked, options.repeats)
            figures |= by_workers | measure_reading(packed, scratch, options.repeats)
            figures |= measure_storage(packed, scratch, 2 * len(work.cases), options.repeats)
            data |= {"linked": options.linked, "repeats": options.repeats}
    print(json.dumps(round_all(figures | data)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from error
