"""Fills a small disk of its own before any chosen write of a stage: ``unshare -m python -m tests.full_disk WORK``.

The disk is a tmpfs that only this process and its children see. Each command runs once undisturbed, while an audit hook
notes what it opens for writing; then again with the disk filled to the last page just before one of these, for each kind
of file before the first and before the last such; then again with room. What was seen is printed, a line of JSON for each.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py  # noqa: F401 (imported once, not in every child)
import numpy as np
import pandas as pd
import torch
import torchio  # noqa: F401
from PIL import Image

import hvae_hpc.evaluation.augment
import hvae_hpc.evaluation.export
import hvae_hpc.evaluation.quality
import hvae_hpc.results.report
import hvae_hpc.training.train  # noqa: F401
from hvae_hpc import cli, sweep
from hvae_hpc.errors import UserError, run_command
from hvae_hpc.jobs import dag, signals
from hvae_hpc.jobs.tasks import execute
from hvae_hpc.plan import Plan, plan_path, write_plan
from hvae_hpc.preprocess.manifest import read_manifest
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.shards import read_pairs
from hvae_hpc.resources import Resources
from hvae_hpc.results import __main__ as results
from hvae_hpc.results import figures
from hvae_hpc.results.contact import write_contact_sheets
from hvae_hpc.stages import CONFIGS
from tests.scans import save_cases, tiny_recipe
from tests.tiny import SWEEP, make_data_set

PAGE = 4096
DISK_MIB = 24
SLOW = ("results", "export to nnU-Net")
Command = Callable[[], object]


def mount(disk: Path) -> None:
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)], check=True)


class Filler:
    """Notes what is opened for writing on the disk, and fills it before the write of a given number."""

    def __init__(self, disk: Path) -> None:
        self.disk, self.place, self.seen, self.fills_at, self.busy = disk, f"{disk}{os.sep}", list[str](), -1, False
        sys.addaudithook(self.hear)

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in ("open", "os.mkdir") or self.busy or self.fills_at < -1:
            return
        path = os.fsdecode(given[0]) if isinstance(given[0], (str, bytes, os.PathLike)) else ""
        writes = event == "os.mkdir" or (isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and path.startswith(self.place):
            self.seen.append(path)
            if len(self.seen) - 1 == self.fills_at:
                self.fill()

    def fill(self) -> None:
        self.busy = True
        free = os.statvfs(self.disk).f_bavail * PAGE
        with open(self.disk / "filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free)
        self.busy = False


class Stage:
    """A command that writes to the disk, and what there is to be seen of it.

    Args:
        name: for people.
        filler: of the disk.
        command: is run in children.
        slow: it is run again once, after all that went wrong, and its files are of one kind by their ending.
    """

    def __init__(self, name: str, filler: Filler, command: Command, slow: bool) -> None:
        self.name, self.filler, self.command, self.slow = name, filler, command, slow
        self.disk, self.store = filler.disk, filler.disk.parent / "store"

    def run(self, fills_at: int) -> tuple[int, str, list[str]]:
        """Run the command in a process of its own; returns exit code, what it said, and what it opened for writing."""
        out = self.disk.parent / "said"
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                said = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(said, 1)
                os.dup2(said, 2)
                sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
                self.filler.seen, self.filler.fills_at = [], fills_at
                code = run_command(lambda _: int(self.command() or 0))
            except BaseException:
                traceback.print_exc()
            finally:
                self.filler.fills_at = -2
                os.write(writer, json.dumps(self.filler.seen).encode() + b"\n")
                os._exit(code)
        os.close(writer)
        with open(reader) as seen:
            paths = json.loads(seen.read() or "[]")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (self.disk / "filler").unlink(missing_ok=True)
        return code, out.read_text(), paths

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

    def tell(self) -> Iterator[dict[str, Any]]:
        """Yield what was seen: of the undisturbed command, then of each one with a full disk."""
        self.keep()
        before = self.files()
        code, said, paths = self.run(-1)
        whole = {name: meaning(name, content) for name, content in self.files().items()}
        yield {"stage": self.name, "file": "", "code": code, "said": said, "files": sorted(whole)}
        numbers = chosen([Path(path).relative_to(self.disk) for path in paths], self.slow)
        self.restore()
        for number in numbers:
            if not self.slow:
                self.restore()
            code, said, _ = self.run(number)
            after = self.files()
            broken = [name for name, content in after.items() if not is_sound(name, content)]
            lost = [name for name in before if name not in after]
            again, said_again, ended = 0, "", whole
            if not self.slow or number == numbers[-1]:
                again, said_again, _ = self.run(-1)
                ended = {name: meaning(name, content) for name, content in self.files().items()}
            yield {
                "stage": self.name,
                "file": str(Path(paths[number]).relative_to(self.disk)),
                "code": code,
                "said": said,
                "broken": broken,
                "lost": lost,
                "temporary": [name for name in after if name.endswith(".tmp")],
                "again": again,
                "said_again": said_again,
                "differs": sorted(n for n in {*whole, *ended} if whole.get(n) != ended.get(n)),
            }


def chosen(paths: list[Path], by_ending: bool) -> list[int]:
    """Return the first and the last place of each kind of file: names that differ by digits are of one kind."""
    kinds: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        name = re.sub(r"[-.]?\b\d+-[0-9a-f]{8}\.tmp$", "", str(path))
        if by_ending:
            kinds.setdefault(Path(name).suffix, [number])
        elif Path(name).suffix or Path(name).name.startswith(
            "."
        ):  # else it is a folder, before a file of it is written
            kinds.setdefault(re.sub(r"[0-9a-f]{12,}|\d+", "#", name), []).append(number)
    return sorted({place for places in kinds.values() for place in (places[0], places[-1])})


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
    except Exception:
        return False
    return True


def meaning(name: str, content: bytes) -> Any:
    """Return what must be the same however a file came about, in a form that can be compared."""
    path = Path(name)
    if path.name.startswith(".") or path.suffix in (".jsonl", ".log") or path.name in ("inputs.json",):
        return "there"
    if "costs" in path.name or path.name.startswith(("cost", "states", "records", "report", "plan")):
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
    short = replace(sweep.read_sweep(str(folder / "sweep.toml")), data=("tiny",), seeds=1, factors=(2,), doses=(4,))
    vae = short.generators["vae"]
    vae = replace(vae, optim=replace(vae.optim, images=24))
    short = replace(short, generators={"vae": vae}, segment=replace(short.segment, epochs=4))
    there = make_data_set(folder / "shards")
    data = dag.DataSet(name="tiny", folder=there, manifest=read_manifest(there))
    return dag.make_plan(short, [data], disk / "runs", dict.fromkeys(CONFIGS, Resources(checkpoint_every_s=0.0)))


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
    titles, read = list(pairs.case_ids), lambda rows: (pairs.images[list(rows)], pairs.masks[list(rows)])
    yield "contact sheets", lambda: write_contact_sheets(disk / "packed", titles, read) and 0

    plan = make_plan(work, disk)
    write_plan(plan, work / "plan.json")
    wanted = ("train", "generate", "augment", "segment", "quality")
    for stage in wanted:
        ids = [run_id for run_id, run in plan.runs.items() if run.stage == stage]
        ids.sort(key=lambda run_id: "reference" not in plan.runs[run_id].label)
        yield stage, lambda run_id=ids[0]: make_run(plan, run_id)
        for run_id in ids[1:]:
            make_run(plan, run_id)
    figures.PLOT = figures.IMAGES = figures.PROGRESS = ("png", "svg")
    yield "plan", lambda: write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    yield "results", lambda: results.main([str(disk / "runs")])
    (generate,) = [run_id for run_id, run in plan.runs.items() if run.stage == "generate"]
    there = ["export", generate, "--runs", str(disk / "runs")]
    yield "export to nnU-Net", lambda: cli.main([*there, "--nnunet", str(disk / "nnunet")])
    yield "export as PNG", lambda: cli.main([*there, "--png", str(disk / "png")])


def main(work: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ["SCRATCH"] = str(work)
    disk = work / "disk"
    mount(disk)
    filler = Filler(disk)
    for name, command in stages(work, filler):
        stage = Stage(name, filler, command, name in SLOW)
        if only and name not in only:
            code, said, _ = stage.run(-1)
            assert code == 0, said
            continue
        for seen in stage.tell():
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    signals.install()
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
