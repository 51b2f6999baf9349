"""The command ``python -m hvae_hpc.preprocess``: pack a data set here or as a SLURM job."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.errors import UserError, run_command, say
from hvae_hpc.jobs.sites.site import (
    add_flags,
    fit_cluster,
    flags_of,
    place_of,
    read_site,
    require_partition,
)
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.phantoms.make import KINDS, write_phantoms
from hvae_hpc.preprocess.read.find_cases import find_cases
from hvae_hpc.preprocess.recipes.explain import explain
from hvae_hpc.preprocess.recipes.recipe import LIBRARY, Recipe, load_recipe
from hvae_hpc.preprocess.store.manifest import Manifest
from hvae_hpc.preprocess.store.reader import DatasetReader
from hvae_hpc.preprocess.summary import to_text
from hvae_hpc.preprocess.verify import verify


def main(argv: Sequence[str]) -> int:
    """Run the command; see ``--help``."""
    options = parse(argv)
    if options.verify:
        verify(options.verify, options.raw, options.workers or _cores(), say)
        return 0
    recipe = load_recipe(options.recipe)
    if options.explain:
        say(explain(recipe))
        return 0

    raw = options.raw or Path("phantoms") / recipe.name
    out = options.out or Path("shards") / recipe.name
    if options.raw is None and not options.phantom:
        raise UserError(
            "--raw is missing; give the folder with the image and label files, "
            f"or with {' or '.join(KINDS)} --phantom 8 to try made-up cases"
        )
    if not options.phantom:
        find_cases(recipe, raw)  # a wrong path is better said now than in a job's log
    if shutil.which("sbatch") and not (options.partition or options.local):
        raise UserError(
            "this machine has SLURM: give --partition NAME to pack as a job, "
            "or --local to pack here"
        )

    sweep = ["python", "-m", "hvae_hpc.sweep", "--data", f"{recipe.name}={out}", "--plan"]
    if options.partition:
        place = _submit(options, f"pack-{recipe.name}", raw, out)
        say(f"when it is done: {shlex.join([*sweep, *place])}")
    else:
        pack_here(options, recipe, raw, out)
        say(f"packed data: {out}\nnext:        {shlex.join([*sweep, *place_of(options)])}")
    return 0


def _make_parser(names: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hvae_hpc.preprocess",
        description="Pack a folder of NIfTI scans or 2D pictures: "
        "image+mask pairs in HDF5 shards, and manifest.json.",
        epilog="example: python -m hvae_hpc.preprocess brats2021 --raw /data/BraTS2021\n"
        "to try:  python -m hvae_hpc.preprocess brats2021 --phantom 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("recipe", nargs="?", default="", help=f"{names}, or a TOML file of your own")
    add("--raw", type=Path, metavar="DIR", help="folder with the image and label files")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to write (default: shards/NAME of the recipe)",
    )
    add("--explain", action="store_true", help="describe the recipe in words, and pack nothing")
    add(
        "--verify",
        type=Path,
        metavar="DIR",
        help="check a packed data set; with --raw also its source files",
    )
    add(
        "--sheet",
        type=int,
        metavar="N",
        help="pairs on the contact sheet (default: 48; 0: no sheet)",
    )
    add(
        "--phantom",
        type=int,
        default=0,
        metavar="N",
        help="make N made-up cases in --raw (default: ./phantoms/NAME), then pack them",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes (default: one per core, at most 16)",
    )
    add(
        "--skip-bad",
        action="store_true",
        help="leave out the cases that cannot be packed, and list them",
    )
    add_flags(parser, ("account", "qos", "minutes", "exclude", "nice", "container"))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--partition", metavar="P", help="pack as one job on this SLURM partition")
    where.add_argument("--local", action="store_true", help="pack here, even on a SLURM machine")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line that holds together."""
    names = ", ".join(sorted(path.stem for path in LIBRARY.glob("*.toml")))
    options = _make_parser(names).parse_args(argv)
    for name, least in (("workers", 1), ("phantom", 0), ("sheet", 0)):
        number = getattr(options, name)
        if number is not None and number < least:
            raise UserError(f"--{name} is {number}, expected {least} or more")
    if not options.recipe and not options.verify:
        raise UserError(f"no recipe; give one of {names}, or a TOML file of your own")
    if options.recipe and options.verify:
        raise UserError(
            f"--verify checks a packed folder and takes no recipe; leave {options.recipe} out"
        )
    require_partition(options)
    return options


def _cores() -> int:
    """Return the cores this process may use: on a cluster not all of the node's."""
    may = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return min(len(may(0)), 16)  # beyond this the disk is the limit


def pack_here(options: argparse.Namespace, recipe: Recipe, raw: Path, out: Path) -> None:
    """Pack here, with the phantoms that are asked for, and tell of the packed data."""
    workers = options.workers or _cores()
    if options.phantom:
        made = write_phantoms(recipe.name, raw, options.phantom, 0, workers)
        say(f"{made} phantom cases made in {raw}, {options.phantom - made} were there")
    manifest = pack(recipe, raw, out, workers, options.skip_bad, say)
    say(to_text(out))
    _draw_sheets(manifest, out, options.sheet)


def _submit(options: argparse.Namespace, name: str, raw: Path, out: Path) -> list[str]:
    """Submit this command as a job that packs on its node; return the place of a sweep."""
    from hvae_hpc.jobs.slurm.limits import read_cluster
    from hvae_hpc.jobs.submit.apply import submit_command

    flags = flags_of(options) | ({"cpus": options.workers} if options.workers else {})
    site = fit_cluster(read_site(options.site, flags), options.partition, read_cluster())
    for note in site.notes:
        if note.startswith("pack:"):
            say(note)
    resources = site.resources["pack"]
    site.cluster.check_suits("pack", resources)

    recipe = options.recipe
    if recipe.endswith(".toml"):
        recipe = str(Path(recipe).resolve())
    command = ["-m", "hvae_hpc.preprocess", recipe, "--local", *["--skip-bad"] * options.skip_bad]
    values = {
        "raw": raw.resolve(),
        "out": out.resolve(),
        "phantom": options.phantom,
        "sheet": options.sheet,
        "workers": resources.cpus,
    }
    for flag, value in values.items():
        command += [f"--{flag}", str(value)] if value is not None else []

    logs = out.resolve() / "logs"
    job, queued = submit_command(name, command, resources, logs)
    already = "is in the queue already and " if queued else ""
    say(f"job {job} {already}packs {raw} into {out}; its log: {logs}")
    # Nodes that pack may have no GPU.
    train = site.resources["train"]
    suited = site.cluster.find_suited(train) or [train.partition]
    return place_of(options, partition=train.partition if train.partition in suited else suited[0])


def _draw_sheets(manifest: Manifest, out: Path, at_most: int | None) -> None:
    """Draw contact sheets."""
    from hvae_hpc.results.figures.contact_sheet import PER_PAGE, write_contact_sheets  # matplotlib

    titles = [
        f"{case.case_id}\nslice {index}, {area} px"
        for case in manifest.cases
        for index, area in zip(case.slices, case.tumour_px, strict=True)
    ]
    read = DatasetReader(out, manifest=manifest).read
    pages = write_contact_sheets(out, titles, read, PER_PAGE if at_most is None else at_most)
    if pages:
        say(f"look at:     {pages[0]}" + (f" to {pages[-1].name}" if len(pages) > 1 else ""))


if __name__ == "__main__":
    sys.exit(run_command(main))
