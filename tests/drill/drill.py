"""``make drill``: every stage, small, through random faults, and then a comparison with undisturbed runs.

First a sweep of tiny runs is made undisturbed. Then *trials*: a run is made again in a folder of its
own, from the undisturbed parents, and each attempt at it meets a fault until it has had enough of
them; then it must end by itself, and in the same weights and numbers bit for bit. One seed draws
all trials and their faults. Only processes that the drill itself started are struck, and only files
of its trials damaged.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO, Any

from hvae_hpc.config.loader import find_toml, load, read_toml
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.sweeps.config import SweepConfig
from hvae_hpc.jobs.worker.pool import run_locally
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.plan import Plan, write_plan
from tests import ROOT
from tests.drill.compare import compare
from tests.drill.drill_slurm import drill_slurm, find_own_slurm
from tests.drill.faults import KINDS
from tests.drill.fork_server import Forking, Lane
from tests.drill.trials import Fresh, Tally, Trial, link_parents, row_of

SWEEP = Path(__file__).with_name("drill.toml")
SITE = """# what make drill gives its runs
[all]
device = "cpu"
gpus = 0
memory_gb = 2
minutes = 3
signal_lead_s = 60
element_minutes = 0.3
checkpoint_every_s = 0.2
"""
MOST = 6
"""Faults that one run meets at most."""
COUNTED = {"runs": "runs", "resumed": "resumed", "half_written": "mid-write", "outside": "outside"}
"""What is counted beside the faults: attempts that went on from a checkpoint, faults that met a file
being written, attempts that were told to go by a signal that the drill did not send."""
CELL = 10


def main(argv: Sequence[str]) -> int:
    """Drill: disturb small runs of every stage at random, and compare them with undisturbed ones."""
    options = _parse(argv)
    began = time.monotonic()
    folder: Path = options.folder.absolute()
    _say(
        f"drill in {folder}: {options.faults} faults, seed {options.seed}, {options.workers} runs at a time"
    )
    if options.slurm:
        find_own_slurm()
    plan = make_undisturbed(options.sweep, folder, options.workers)
    if options.slurm:
        name = (
            str(Path(options.sweep).absolute())
            if options.sweep.endswith(".toml")
            else options.sweep
        )
        command = [
            sys.executable,
            "-m",
            "hvae_hpc.sweep",
            name,
            "--site",
            str(folder / "site.toml"),
        ]
        result = drill_slurm(plan, command, folder, options.faults, random.Random(options.seed))
    else:
        result = _drill(plan, folder, options)
    result["seconds"] = round(time.monotonic() - began)
    problems = result["problems"]
    for problem in problems:
        print(f"  {problem}")
    verdict = (
        f"{len(problems)} problems, see above"
        if problems
        else "none lost, none doubled, none different"
    )
    print(f"{result['faults']} faults in {result['runs']} runs, seed {options.seed}: {verdict}")
    if options.json:
        print(json.dumps(result))
    return 1 if problems else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=main.__doc__)
    parser.add_argument(
        "sweep",
        nargs="?",
        default=str(SWEEP),
        help="name or .toml file of a small sweep (default: %(default)s)",
    )
    parser.add_argument(
        "--faults", type=int, default=25, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, help="of what is drawn (default: a new one)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("drill"),
        metavar="DIR",
        help="its own (default: ./drill)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="runs at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--fresh",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of processes that import again (default: %(default)s)",
    )
    parser.add_argument(
        "--slurm",
        action="store_true",
        help="on the minislurm that SLURM_CONF names, and on no other",
    )
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    options = parser.parse_args(argv)
    if min(options.faults, options.workers) < 1 or not 0 <= options.fresh <= 1:
        raise UserError("expected --faults and --workers of 1 or more, and --fresh between 0 and 1")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


def _say(line: str) -> None:
    print(line, flush=True)


def _write_site(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    site = folder / "site.toml"
    if site.exists() and not site.read_text(errors="replace").startswith(SITE.partition("\n")[0]):
        raise UserError(
            f"{site}: is not the drill's, which would overwrite it; give a folder of its own by --folder"
        )
    site.write_text(SITE)
    return site


def make_undisturbed(sweep_file: str, folder: Path, workers: int) -> Plan:
    """Make all runs of a sweep undisturbed, in local processes, unless this very code did so before.

    Returns:
        Their plan; its runs folder is ``folder / undisturbed-<code>``.

    Raises:
        UserError: a run could not be made even so.
    """
    library = ROOT / "jobs" / "sweeps"
    path = find_toml(sweep_file, library)
    sweep = load(SweepConfig, read_toml(path, library), str(path))
    runs, resources = (
        folder / f"undisturbed-{code_sha()}",
        read_site(_write_site(folder), {}).resources,
    )
    data = [
        expand.DataSet(name=name, folder=it, manifest=read_manifest(it))
        for name, it in _shards(sweep, folder)
    ]
    plan, began = expand.make_plan(sweep, data, runs, resources), time.monotonic()
    missing = [run_id for run_id, result in read_results(plan).items() if not result.done]
    write_plan(plan, runs / "plan.json")
    reports = run_locally(plan, runs / "plan.json", missing, workers) if missing else {}
    if bad := [report for report in reports.values() if report.state != "done"]:
        run = plan.runs[bad[0].run_id]
        raise UserError(f"undisturbed, {run.stage} {run.label} came to nothing: {bad[0].message}")
    stages = ", ".join(
        f"{stage} {n}" for stage, n in Counter(run.stage for run in plan.runs.values()).items()
    )
    _say(f"undisturbed: {len(plan.runs)} runs ({stages}), {time.monotonic() - began:.0f} s")
    return plan


def _shards(sweep: SweepConfig, folder: Path) -> Iterator[tuple[str, Path]]:
    """Return the sweep's data sets below the drill's folder, after packing phantoms where they are missing."""
    for name in sweep.data:
        shards = folder / "shards" / name
        if not (shards / MANIFEST).is_file():
            raw = ["--phantom", str(sweep.phantoms or 1), "--raw", str(folder / "phantoms" / name)]
            command = [
                sys.executable,
                "-m",
                "hvae_hpc.preprocess",
                name,
                *raw,
                "--out",
                str(shards),
                "--local",
            ]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(
                    f"{shards}: no phantoms could be packed: {done.stderr.strip()[-600:]}"
                )
        yield name, shards


def _drill(plan: Plan, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run trials, some at a time, until so many faults met a run."""
    disturbed = folder / f"disturbed-{options.seed}-{os.getpid()}"
    rows: dict[str, list[str]] = {}
    for run in plan.runs.values():
        rows.setdefault(row_of(run), []).append(run.run_id)
    tally, warm = Tally(options.faults), replace(plan, runs_folder=disturbed / "warm")
    for first, *_ in rows.values():
        link_parents(plan, warm, first)
    write_plan(warm, disturbed / "warm.json")
    with open(folder / "drill.log", "a") as log:
        forking = Forking(
            disturbed / "warm.json", [first for first, *_ in rows.values()], options.workers, log
        )
        try:
            imports_s = forking.wait_until_ready()
            for row, (first, *_) in rows.items():
                tally.problems += [
                    f"{row}: {it}" for it in compare(plan.folder(first), warm.folder(first), first)
                ]
            lanes = [
                Series(
                    plan=plan,
                    folder=disturbed,
                    rows=rows,
                    options=options,
                    tally=tally,
                    lane=lane,
                    log=log,
                )
                for lane in forking.lanes
            ]
            lanes = [] if tally.problems else lanes  # not even undisturbed is a run what it was
            numbers = count()
            threads = [
                threading.Thread(target=lane.run, args=(numbers, imports_s)) for lane in lanes
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            forking.close()
    print(*_table(tally, list(rows)), sep="\n")
    if not tally.problems:
        shutil.rmtree(disturbed)
    found = {
        name: sum(n for (_, what), n in tally.found.items() if what == name) for name in COUNTED
    }
    sent: dict[str, int] = {
        kind: sum(n for (_, what), n in tally.sent.items() if what == kind) for kind in KINDS
    }
    of = {row: sum(n for (where, _), n in tally.sent.items() if where == row) for row in rows}
    return {
        "seed": options.seed,
        "faults": sum(sent.values()),
        **sent,
        **found,
        "of": of,
        "problems": tally.problems,
    }


@dataclass(frozen=True, kw_only=True)
class Series:
    """The trials of one lane, one after the other."""

    plan: Plan
    folder: Path
    rows: Mapping[str, Sequence[str]]
    options: argparse.Namespace
    tally: Tally
    lane: Lane
    log: IO[str]

    def run(self, numbers: Iterator[int], imports_s: float) -> None:
        """Run trials until there are no faults left; what goes wrong with the drill itself is a problem as well."""
        names, faults = list(self.rows), self.options.faults
        most = max(1, min(MOST, faults // len(names)))
        try:
            while self.tally.taken < faults and not self.tally.problems:
                number = next(numbers)
                chance = random.Random(f"{self.options.seed} {number}")
                run_id = chance.choice(self.rows[names[number % len(names)]])
                trial = Trial(
                    self.plan, run_id, self.folder / str(number), chance, self.options.fresh
                )
                trial.run(
                    most,
                    self.tally,
                    lambda fresh: Fresh(self.log) if fresh else self.lane,
                    imports_s,
                )
                where = f"{self.plan.runs[run_id].stage} {self.plan.runs[run_id].label} (trial {number}, {trial.folder})"
                self.tally.problems += [f"{where}: {problem}" for problem in trial.problems]
                if not trial.problems:
                    shutil.rmtree(trial.mine.runs_folder)
                    self._tell(sum(self.tally.sent.values()))
        except Exception as error:  # a thread's end would else go unheard
            traceback.print_exc()
            self.tally.problems.append(f"the drill itself: {type(error).__name__}: {error}")

    def _tell(self, sent: int) -> None:
        with self.tally.lock:
            step = max(1, self.options.faults // 10)
            if sent // step > self.tally.told:
                self.tally.told = sent // step
                _say(f"  {sent:5} of {self.options.faults} faults, all as undisturbed so far")


def _table(tally: Tally, rows: Sequence[str]) -> list[str]:
    """Return the tallies, a line per kind of run."""
    width = max(map(len, rows))
    lines = [
        f"{'sent':{width}}  " + "".join(f"{name:>{CELL}}" for name in (*KINDS, *COUNTED.values()))
    ]
    for row in (*rows, "all"):
        cells = [
            sum(n for (where, what), n in counts.items() if what == name and row in (where, "all"))
            for counts, names in ((tally.sent, KINDS), (tally.found, COUNTED))
            for name in names
        ]
        lines.append(f"{row:{width}}  " + "".join(f"{n:{CELL}}" for n in cells))
    return lines
