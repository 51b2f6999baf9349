"""The command ``python -m hvae_hpc.preprocess``: pack a data set here or as a SLURM job."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvae_hpc.errors import UserError, run_command
from hvae_hpc.jobs.sites.site import add_flags, fit_cluster, flags_of, read_site
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.phantoms.make import write_phantoms
from hvae_hpc.preprocess.read.find_cases import find_cases
from hvae_hpc.preprocess.recipes.explain import explain
from hvae_hpc.preprocess.recipes.recipe import LIBRARY, Recipe, load_recipe
from hvae_hpc.preprocess.store.manifest import MANIFEST, Manifest
from hvae_hpc.preprocess.store.reader import DatasetReader
from hvae_hpc.preprocess.summary import read_summary, to_text
from hvae_hpc.preprocess.verify import verify


def main(argv: Sequence[str]) -> int:
    """Run the command; see ``--help``."""
    options = _parse(argv)
    if options.verify:
        verify(options.verify, options.raw, options.workers or _cores(), _say)
        return 0
    recipe = load_recipe(options.recipe)
    if options.explain:
        print(explain(recipe))
        return 0
    raw = options.raw or Path("phantoms") / recipe.name
    out = options.out or Path("shards") / recipe.name
    if options.raw is None and not options.phantom:
        raise UserError(
            "--raw is missing; give the folder with the NIfTI files, or --phantom 8 to try made-up cases"
        )
    if not options.phantom:
        find_cases(recipe, raw)  # a wrong path is better said now than in a job's log
    if options.partition:
        return _submit(options, recipe, raw, out)
    if shutil.which("sbatch") and not options.local:
        raise UserError(
            "this machine has SLURM: give --partition NAME to pack as a job, or --local to pack here"
        )
    if options.phantom:
        made = write_phantoms(
            recipe.name, raw, options.phantom, options.seed, options.workers or _cores(), _say
        )
        _say(f"{made} phantom cases made in {raw}, {options.phantom - made} were there")
    manifest = pack(recipe, raw, out, options.workers or _cores(), options.skip_bad, _say, bar=True)
    print(to_text(read_summary(out)))
    _draw_sheets(manifest, out, options.sheet)
    print(
        f"packed data: {out}\nnext:        python -m hvae_hpc.sweep --data {recipe.name}={out} --plan"
    )
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    names = ", ".join(sorted(path.stem for path in LIBRARY.glob("*.toml")))
    parser = argparse.ArgumentParser(
        prog="python -m hvae_hpc.preprocess",
        description="Pack a folder of NIfTI scans or 2D pictures: image+mask pairs in HDF5 shards, and manifest.json.",
        epilog="example: python -m hvae_hpc.preprocess brats2021 --raw /data/BraTS2021 --workers 8\n"
        "to try:  python -m hvae_hpc.preprocess brats2021 --phantom 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", nargs="?", default="", help=f"{names}, or a TOML file of your own"
    )
    parser.add_argument("--recipe", dest="named", metavar="RECIPE", help="the same, by name")
    parser.add_argument("--raw", type=Path, metavar="DIR", help="folder with the image files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (shards/RECIPE)")
    parser.add_argument(
        "--explain", action="store_true", help="say in words what the recipe does, and do nothing"
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="DIR",
        help="check a packed data set; with --raw its sources too",
    )
    parser.add_argument(
        "--sheet", type=int, metavar="N", help="pairs on the contact sheets (48; 0 for none)"
    )
    parser.add_argument(
        "--phantom", type=int, default=0, metavar="N", help="first make N made-up cases in --raw"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the made-up cases (0)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (as many as cores, up to 16)"
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave cases out that cannot be packed, and list them",
    )
    add_flags(parser, ("account", "qos", "minutes", "exclude", "nice", "container"))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--partition", metavar="P", help="pack as one job on this SLURM partition")
    where.add_argument("--local", action="store_true", help="pack here, also where there is SLURM")
    options = parser.parse_args(argv)
    for name, least in (("workers", 1), ("phantom", 0), ("sheet", 0)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name)}, expected {least} or more")
    if options.recipe and options.named:
        raise UserError(f"got two recipes, {options.recipe} and {options.named}; give one")
    options.recipe = options.recipe or options.named or ""
    if not options.recipe and not options.verify:
        raise UserError(f"no recipe; give one of {names}, or a TOML file of your own")
    if options.recipe and options.verify:
        raise UserError(
            f"--verify checks a packed folder and takes no recipe; leave {options.recipe} out"
        )
    return options


def _say(line: str) -> None:
    print(line, flush=True)


def _cores() -> int:
    """Return the cores this process may use: on a cluster not all of the node's."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, 16)  # beyond this the disk is the limit


def _submit(options: argparse.Namespace, recipe: Recipe, raw: Path, out: Path) -> int:
    from hvae_hpc.jobs.slurm.limits import read_cluster
    from hvae_hpc.jobs.submit.prepare import (
        submit_command,
    )  # brings submitit; packing here does without

    name = (
        options.recipe
        if not options.recipe.endswith(".toml")
        else str(Path(options.recipe).resolve())
    )
    argv = [
        "-m",
        "hvae_hpc.preprocess",
        name,
        "--raw",
        str(raw.resolve()),
        "--out",
        str(out.resolve()),
    ]
    argv += ["--phantom", str(options.phantom), "--seed", str(options.seed)]
    argv += ["--skip-bad"] * options.skip_bad + ["--local"]
    if options.sheet is not None:
        argv += ["--sheet", str(options.sheet)]
    flags = flags_of(options) | ({"cpus": options.workers} if options.workers else {})
    site = fit_cluster(read_site(options.site, flags), options.partition, read_cluster())
    for note in [note for note in site.notes if note.startswith("pack:")]:
        print(note)
    resources = site.resources["pack"]
    argv += ["--workers", str(resources.cpus)]
    logs = out.resolve() / "logs"
    key = str(out.resolve())
    job, was_there = submit_command(
        f"pack-{recipe.name}", argv, resources, options.partition, logs, key=key
    )
    print(
        f"job {job} {'is in the queue already and ' * was_there}packs {raw} into {out}; its log: {logs}"
    )
    print(f"when it is done: python -m hvae_hpc.sweep --data {recipe.name}={out} --plan")
    return 0


def _draw_sheets(manifest: Manifest, out: Path, at_most: int | None) -> None:
    written = (out / MANIFEST).stat().st_mtime_ns
    if at_most is None and any(
        page.stat().st_mtime_ns >= written for page in out.glob("contact*.png")
    ):
        return  # drawn when this manifest was written
    from hvae_hpc.results.figures.contact_sheet import (
        PER_PAGE,
        write_contact_sheets,
    )  # brings matplotlib

    reader = DatasetReader(out, manifest=manifest)
    titles = [
        f"{case.case_id}\nslice {index}, {area} px"
        for case in manifest.cases
        for index, area in zip(case.slices, case.tumour_px, strict=True)
    ]

    def read(rows: Sequence[int]) -> tuple[Any, Any]:
        pairs = reader.read(rows)
        return pairs.images, pairs.masks

    pages = write_contact_sheets(out, titles, read, PER_PAGE if at_most is None else at_most)
    if pages:
        print(f"look at:     {pages[0]}" + (f" to {pages[-1].name}" if len(pages) > 1 else ""))


if __name__ == "__main__":
    sys.exit(run_command(main))
