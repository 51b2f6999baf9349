"""Fills a small disk of its own before any chosen write of a stage: ``unshare -m python -m tests.drill.full_disk WORK``.

The disk is a tmpfs that only this process and its children see. Each command runs once undisturbed,
while it is noted what it writes; then with the disk filled to the last page just before one of
these writes, and again with room. What was seen is printed, a line of JSON for each.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py  # noqa: F401 (imported once, not in every child)
import numpy as np
import pandas as pd
import torch
import torchio  # noqa: F401
from PIL import Image

import hvae_hpc.evaluation.augment
import hvae_hpc.evaluation.likelihood
import hvae_hpc.evaluation.quality
import hvae_hpc.export.pairs
import hvae_hpc.results.report
import hvae_hpc.training.train  # noqa: F401
from hvae_hpc import sweep
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.errors import UserError
from hvae_hpc.export.command import main as export
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.worker import signals
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.pairs import take
from hvae_hpc.preprocess.store.shards import read_pairs
from hvae_hpc.results import __main__ as results
from hvae_hpc.results.figures import write as figures
from hvae_hpc.results.figures.contact_sheet import write_contact_sheets
from hvae_hpc.runs import done
from hvae_hpc.runs.plan import Plan, plan_path, write_plan
from tests.drill.small_disk import Command, Filler, mount
from tests.preprocess.scans import save_cases, tiny_recipe
from tests.tiny import SWEEP, make_data_set

COVERED_ONCE = (
    *(
        ".lease-#.tmp",
        "config.json",
        "inputs.json",
        "log.jsonl",
        "packing.jsonl",
        "summary.json",
    ),
    *("checkpoint-#-#.pt", "table#.md", "table#.csv", "table#.tex"),
)
"""Written by the same lines wherever they are written; everything else fails at each stage that writes it."""
GROWING = ("packing.jsonl", "log.jsonl", "checkpoint-#-#.pt")
"""The last one of these fails as well as the first."""
LIKE_OTHERS = r"(arms|quality|claims)\.|table#\.(csv|tex)|verdict|\.svg|rows/(quality|costs|likelihood|cases)|labelsT|imagesTs|/real-|/missing|splits"
AGAIN_ONCE = ("results", "export to nnU-Net", "export as PNG")
"""These take long; they are run again with room once, after all that went wrong."""


PROGRESS = re.compile(r"^(\s*\d+%\|.*)?[\r\n]+", re.MULTILINE)
"""A bar of tqdm, and the empty line before it."""


class Stage:
    """A command that writes to the disk, and what there is to be seen of it."""

    def __init__(self, name: str, filler: Filler, command: Command) -> None:
        self.name, self.filler, self.command = name, filler, command
        self.disk, self.store = filler.disk, filler.disk.parent / "store"

    def run(self, fills_at: tuple[str, int] = ("", 0)) -> tuple[int, str]:
        """Run the command in a process of its own; returns exit code, and what it said on standard error."""
        code, said = self.filler.run(self.command, fills_at)
        return code, PROGRESS.sub("", said)

    def keep(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.disk, self.store, symlinks=True)

    def restore(self) -> None:
        for path in self.disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.store, self.disk, dirs_exist_ok=True)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.disk)): path.read_bytes()
            for path in sorted(self.disk.rglob("*"))
            if path.is_file()
        }

    def run_here(self) -> list[str]:
        """Run the command in this process, so that the children find all imported; returns what it wrote, by kind."""
        self.filler.seen, self.filler.fills_at, self.filler.silent = [], ("", 0), False
        with contextlib.redirect_stdout(io.StringIO()):
            self.command()
        self.filler.silent = True
        return self.filler.seen

    def tell(self, covered: set[str]) -> Iterator[dict[str, Any]]:
        """Yield what was seen of each command with a full disk."""
        self.keep()
        before = self.files()
        seen = self.run_here()
        whole = {name: meaning(name, content) for name, content in self.files().items()}
        kinds = dict.fromkeys(kind for kind in seen if not re.search(LIKE_OTHERS, kind))
        wanted = [kind for kind in kinds if Path(kind).name not in covered]
        covered |= {Path(kind).name for kind in wanted} & set(COVERED_ONCE)
        for kind in wanted:
            for number in sorted({1, seen.count(kind)} if Path(kind).name in GROWING else {1}):
                if self.name not in AGAIN_ONCE or kind == wanted[0]:
                    self.restore()
                code, said = self.run((kind, number))
                after = self.files()
                again, said_again, ended = 0, "", whole
                if self.name not in AGAIN_ONCE or kind == wanted[-1]:
                    again, said_again = self.run()
                    ended = {name: meaning(name, content) for name, content in self.files().items()}
                yield {
                    "stage": self.name,
                    "file": kind,
                    "number": number,
                    "code": code,
                    "said": said.splitlines(),
                    "broken": [
                        name for name, content in after.items() if not is_sound(name, content)
                    ],
                    "lost": [name for name in before if name not in after],
                    "temporary": [name for name in after if ".tmp" in name],
                    "again": again,
                    "said_again": said_again,
                    "differs": sorted(
                        name for name in {*whole, *ended} if whole.get(name) != ended.get(name)
                    ),
                }


def is_sound(name: str, content: bytes) -> bool:
    """Tell whether a file under a final name can be read to its end."""
    path = Path(name)
    if path.name.startswith("."):
        return True  # locks, leases, temporary files
    try:
        if path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".jsonl":
            return True  # a line that was cut short is left out by all readers
        elif path.suffix == ".pt":
            torch.load(io.BytesIO(content), weights_only=True)
            if path.name.startswith("checkpoint"):
                return hashlib.sha256(content).hexdigest()[:16] == path.stem.rsplit("-", 1)[1]
        elif path.suffix == ".h5":
            scratch = Path(os.environ["SCRATCH"]) / "shard.h5"
            scratch.write_bytes(content)
            read_pairs(scratch)
        elif path.suffix == ".npz":
            with np.load(io.BytesIO(content)) as arrays:
                for key in arrays:
                    arrays[key]
        elif path.suffix == ".png":
            Image.open(io.BytesIO(content)).load()
        elif path.suffix == ".gz":
            gzip.decompress(content)
        elif path.suffix == ".parquet":
            pd.read_parquet(io.BytesIO(content))
        elif path.suffix == ".csv":
            pd.read_csv(io.BytesIO(content))
        elif path.suffix in (".html", ".svg"):
            return content.rstrip().endswith(f"</{path.suffix[1:]}>".encode())
        elif path.suffix == ".pdf":
            return content.rstrip().endswith(b"%%EOF")
        else:
            return bool(content) or path.suffix in (".log", "")
    except Exception:  # whatever its reader says of it: a file is whole, or it is not
        return False
    return True


def meaning(name: str, content: bytes) -> Any:
    """Return what must be the same however a file came about, in a form that can be compared."""
    path = Path(name)
    if path.name.startswith(".") or path.suffix == ".cache":
        return None  # kept for the next time, or not
    if path.suffix == ".jsonl" or path.name == "inputs.json":
        return "there"
    if "costs" in path.name or path.suffix == ".html":
        return "there"  # seconds, stamps, times
    if path.name == "metrics.json":
        result = json.loads(content)
        return {key: result[key] for key in ("run_id", "metrics", "per_case", "details")}
    if path.suffix == ".pt":
        state = torch.load(io.BytesIO(content), weights_only=True)
        return hashlib.sha256(repr(sorted(flatten(state))).encode()).hexdigest()
    return hashlib.sha256(content).hexdigest()


def flatten(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{at}/{key}")
    else:
        yield at, value.tolist() if isinstance(value, torch.Tensor) else value


def make_plan(folder: Path, disk: Path) -> Plan:
    (folder / "sweep.toml").write_text(SWEEP)
    short = replace(
        sweep.read_sweep(str(folder / "sweep.toml")),
        data=("tiny",),
        seeds=1,
        factors=(2,),
        doses=(4,),
    )
    vae = short.generators["vae"]
    vae = replace(vae, optim=replace(vae.optim, images=12))
    short = replace(
        short, generators={"vae": vae}, segment=replace(short.segment, epochs=4), likelihoods=True
    )
    short = replace(
        short, likelihood={"cases": 2, "chains": 2, "temperatures": 4, "importance_samples": 4}
    )
    there = make_data_set(folder / "shards")
    data = expand.DataSet(name="tiny", folder=there, manifest=read_manifest(there))
    return expand.make_plan(
        short, [data], disk / "runs", dict.fromkeys(CONFIGS, Resources(checkpoint_every_s=0.0))
    )


def make_run(plan: Plan, run_id: str) -> None:
    report = execute(plan, run_id)
    if report.state != "done":
        raise UserError(report.message)


def stages(work: Path, filler: Filler) -> Iterator[tuple[str, Command]]:
    """Yield the commands in their order, each on what the ones before have left."""
    disk, raw = filler.disk, work / "raw"
    save_cases(raw, 3)
    recipe = tiny_recipe()
    yield "pack", lambda: pack(recipe, raw, disk / "packed", workers=1) and 0
    save_cases(raw, 2, first=3)
    yield "pack again", lambda: pack(recipe, raw, disk / "packed", workers=1) and 0
    pairs, _ = read_pairs(next((disk / "packed").glob("shard-*.h5")))
    titles, read = list(pairs.case_ids), partial(take, pairs)
    yield "contact sheets", lambda: write_contact_sheets(disk / "packed", titles, read) and 0

    plan = make_plan(work, disk)
    write_plan(plan, work / "plan.json")
    wanted = ("train", "generate", "augment", "segment", "quality", "likelihood")
    for stage in wanted:
        ids = [run_id for run_id, run in plan.runs.items() if run.stage == stage]
        ids.sort(key=lambda run_id: "reference" not in plan.runs[run_id].label)
        yield stage, lambda run_id=ids[0]: make_run(plan, run_id)
    drawn = figures._list_figures

    def last_one(
        *given: Any,
    ) -> dict[str, Any]:  # the others are drawn for long, and written by the same lines
        name, (_, draw) = list(drawn(*given).items())[-1]
        return {name: (("png", "svg", "pdf"), draw)}

    figures._list_figures = last_one
    del os.environ[figures.FORMATS]
    yield "plan", lambda: write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    yield "results", lambda: results.main([str(disk / "runs"), "--partial"])
    (generate,) = [run_id for run_id, run in plan.runs.items() if run.stage == "generate"]
    there = [generate, "--runs", str(disk / "runs")]
    yield "export to nnU-Net", lambda: export([*there, "--nnunet", str(disk / "nnunet")])
    yield "export as PNG", lambda: export([*there, "--png", str(disk / "png")])


def main(work: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ["SCRATCH"] = str(work)
    disk = work / "disk"
    mount(disk)
    done.SETTLED_NS = -(10**18)  # what is young is kept for the next time as well
    filler = Filler(disk)
    covered = set[str]()
    for name, command in stages(work, filler):
        stage = Stage(name, filler, command)
        if only and name not in only:
            stage.run_here()
            continue
        for seen in stage.tell(covered):
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    signals.install()
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
