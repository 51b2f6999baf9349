"""The main command: a sweep file to tables, on this machine or as SLURM arrays.

``python -m hvae_hpc.sweep --partition gpu`` runs the paper's experiment on the data sets in
./shards. The same command, given again, makes only what is missing.

This module reads from top to bottom in the order of the command's steps: :func:`main` names them.
"""

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hvae_hpc.config.loader import find_toml, load, merge, read_toml
from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.errors import UserError, run_command, say
from hvae_hpc.jobs.sites.site import (
    Site,
    add_flags,
    fit_cluster,
    flags_of,
    place_of,
    read_site,
    require_partition,
)
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.slurm.limits import read_cluster
from hvae_hpc.jobs.state.run_log import let_output_be_lost
from hvae_hpc.jobs.state.submissions import PLAN_FILE, SUBMISSIONS, Submissions, submitting
from hvae_hpc.jobs.submit import apply, prepare
from hvae_hpc.jobs.submit.on_end import run_on_end
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.sweeps.config import SweepConfig
from hvae_hpc.jobs.worker.pool import run_locally
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest
from hvae_hpc.runs.done import Results, read_results
from hvae_hpc.runs.identity import JOB
from hvae_hpc.runs.plan import Plan, plan_path, read_plan, write_plan

SWEEPS = Path(__file__).parent / "jobs" / "sweeps"
RECIPES = Path(__file__).parent / "preprocess" / "recipes"
OWN_SWEEP = Path("sweep.toml")

EXAMPLES = """examples:
  python -m hvae_hpc.sweep demo                    try it: phantoms, small sizes, local processes
  python -m hvae_hpc.sweep --plan                  show what the paper's experiment would run
  python -m hvae_hpc.sweep --partition gpu         submit it as SLURM arrays; you may log out
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = _parse(argv)
    if options.finish:
        try:
            return _finish(options, argv)
        finally:
            run_on_end(options.finish, options.site)

    # What is asked, and what the machine or the cluster allows.
    sweep = read_sweep(options.sweep, [name for name, _ in options.data])
    site = read_site(options.site, flags_of(options))
    if options.partition:
        site = fit_cluster(site, options.partition, read_cluster())
    elif slurm.is_available() and not options.local and not options.plan:
        raise UserError(
            "this is a SLURM machine; give --partition P to submit, or --local to run here"
        )

    # The data, the runs that follow, and which of them are missing.
    folders = {name: Path(sweep.shards) / name for name in sweep.data}
    folders |= {name: Path(folder) for name, folder in options.data if folder}
    if not options.plan:
        _make_phantoms(sweep, folders, options.workers)
    data_sets = find_data(sweep, folders, place_of(options))
    plan = expand.make_plan(sweep, data_sets, options.runs or Path(sweep.runs), site.resources)
    plan = replace(plan, allow_code_drift=options.allow_code_drift)
    results = read_results(plan)
    missing = [run_id for run_id, result in results.items() if not result.done]
    summary = list(_describe(sweep, plan, results, options.sweep))
    if options.plan:
        # It loads pandas, which no other step needs.
        from hvae_hpc.jobs.sweeps.design import describe_power

        sizes = {data.name: len(data.manifest.cases) for data in data_sets}
        summary += describe_power(plan, sizes)

    # The runs, and in the end the tables.
    if options.partition and missing:
        return _submit(plan, site, options, argv, summary=summary)
    say(*summary)
    if options.plan:
        cost = "; --partition P shows the cost and the sbatch texts, on a SLURM machine"
        say("nothing was done (--plan)" + cost * bool(missing))
        return 0
    write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    if not options.partition:
        return _run_here(plan, missing, options)
    say("submitted nothing: every run is done")
    say(f"tables: python -m hvae_hpc.results {shlex.quote(str(plan.runs_folder))}")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    paths = sorted(SWEEPS.glob("*.toml"))
    sweeps = [f"  {path.stem:15}{read_toml(path, SWEEPS)['about']}" for path in paths]
    parser = argparse.ArgumentParser(
        prog="python -m hvae_hpc.sweep",
        usage="python -m hvae_hpc.sweep [SWEEP] [--partition P | --local] [options]",
        description="Train the generators, evaluate every arm with every seed, make the tables.",
        epilog="\n".join(["sweeps:", *sweeps, "", EXAMPLES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sweep", nargs="?", help="name or .toml file (default: ./sweep.toml if there, else table1)")
    add(
        "--data",
        type=lambda text: text.partition("=")[::2],  # name and folder, "" where there is none
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[=DIR]",
        help="only these data sets, and where their shards lie (default: ./shards/NAME)",
    )
    add("--runs", type=Path, metavar="DIR", help="the runs folder (default: ./runs)")
    where = parser.add_mutually_exclusive_group()
    fits = "submit SLURM arrays, each to the first of P[,P...] that fits"
    where.add_argument("--partition", metavar="P", help=fits)
    where.add_argument("--local", action="store_true", help="run here, even on a SLURM machine")
    add(
        "--workers",
        type=int,
        default=1 if _has_gpu() else min(os.cpu_count() or 1, 16),
        metavar="N",
        help="number of local processes (default: one per core, at most 16; with a GPU one)",
    )
    add("--plan", action="store_true", help="show what would run, and change nothing")
    add(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="with --partition: retry failed runs, each up to N times (default: 0)",
    )
    add(
        "--after",
        action="append",
        default=[],
        metavar="JOBID",
        help="with --partition: begin when this SLURM job is over; may be given again",
    )
    add("--allow-code-drift", action="store_true", help="let queued runs take changed code")
    # The last job of a submission is this command with the submission's folder.
    add("--finish", type=Path, help=argparse.SUPPRESS)
    add_flags(parser)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    options = _make_parser().parse_args(argv)
    options.sweep = options.sweep or (str(OWN_SWEEP) if OWN_SWEEP.is_file() else "table1")
    for name, folder in options.data:
        if not folder and _is_sweep(name):
            raise UserError(f"--data takes {name!r} too, which is a sweep; give it before --data")
        if "/" in name:
            raise UserError(f"--data is {name!r}, expected NAME or NAME=DIR")
    if options.workers < 1:
        raise UserError(f"--workers is {options.workers}, expected 1 or more")
    if options.retries < 0:
        raise UserError(f"--retries is {options.retries}, expected 0 or more")
    others = {"--retries": options.retries, "--after": options.after}
    require_partition(options, *filter(others.get, others))
    for job in options.after:
        if not re.fullmatch(JOB.pattern, job):
            raise UserError(f"--after is {job!r}, expected {JOB.words}")
    return options


def _is_sweep(name: str) -> bool:
    return name.endswith(".toml") or (SWEEPS / f"{name}.toml").is_file()


def read_sweep(name: str, data: Sequence[str] = ()) -> SweepConfig:
    """Read the sweep that the command names.

    A file without a name extends table1. It is called after itself, sweep.toml after its folder.

    Args:
        name: a file, or a name of the library.
        data: names of data sets, in place of the file's; none for the file's.
    """
    if not _is_sweep(name) and (Path(SweepConfig.shards) / name / MANIFEST).is_file():
        raise UserError(f"{name!r} is a data set, and no sweep; give --data {shlex.quote(name)}")
    path = find_toml(name, SWEEPS)
    table = read_toml(path, SWEEPS)
    if "name" not in table:
        called = path.resolve().parent.name if path.name == OWN_SWEEP.name else path.stem
        called = re.sub(r"[^A-Za-z0-9._-]+", "-", called).strip("._-") or "mine"
        table = merge(read_toml(SWEEPS / "table1.toml", SWEEPS), {**table, "name": called})

    where = f"--data and {path}" if data else str(path)
    return load(SweepConfig, table | ({"data": data} if data else {}), where)


def _is_made_up(sweep: SweepConfig, name: str, folder: Path) -> bool:
    """Tell whether the sweep makes phantoms of a data set that is not there."""
    from hvae_hpc.preprocess.phantoms.make import KINDS  # nibabel: not before it is needed

    return sweep.phantoms > 0 and folder == Path(sweep.shards) / name and name in KINDS


def _make_phantoms(sweep: SweepConfig, folders: Mapping[str, Path], workers: int) -> None:
    """Make and pack phantoms of the data sets that are missing, where the sweep asks for it."""
    for name, folder in folders.items():
        if (folder / MANIFEST).is_file() or not _is_made_up(sweep, name, folder):
            continue
        from hvae_hpc.preprocess.__main__ import pack_here, parse
        from hvae_hpc.preprocess.recipes.recipe import load_recipe

        options = parse([name, "--phantom", str(sweep.phantoms), "--workers", str(workers)])
        pack_here(options, load_recipe(name), folder.parent.parent / "phantoms" / name, folder)


def find_data(
    sweep: SweepConfig, folders: Mapping[str, Path], place: Sequence[str] = ()
) -> list[expand.DataSet]:
    """Return the sweep's data sets with their manifests.

    Args:
        sweep: whose data sets they are.
        folders: of their shards, by name.
        place: flags that a command which packs them needs on this machine.

    Raises:
        UserError: one is not packed; it says which command packs it.
    """
    data_sets = []
    for name, folder in folders.items():
        if not (folder / MANIFEST).is_file():
            raise UserError(f"data set {name}: {_how_to_pack(sweep, name, folder, place)}")
        manifest = read_manifest(folder)
        data_sets.append(expand.DataSet(name=name, folder=folder, manifest=manifest))
    return data_sets


def _how_to_pack(sweep: SweepConfig, name: str, folder: Path, place: Sequence[str]) -> str:
    from hvae_hpc.preprocess.phantoms.make import KINDS

    if _is_made_up(sweep, name, folder):
        return "not there yet; without --plan this sweep makes phantoms of it first"
    recipe = name if (RECIPES / f"{name}.toml").is_file() else f"{name}.toml"
    pack = ["python", "-m", "hvae_hpc.preprocess", recipe, "--out", str(folder), *place]
    ways = [f"pack yours with: {shlex.join(pack)} --raw DIR"]
    if name in KINDS:
        n_cases = sweep.split.train + sweep.split.test
        ways.append(f"try phantoms: {shlex.join(pack)} --phantom {n_cases}")
    packed = sorted(path.parent.name for path in Path(sweep.shards).glob(f"*/{MANIFEST}"))
    if packed:
        ways.append(f"take what is packed: --data {shlex.join(packed)}")
    return f"no {MANIFEST} in {folder}; " + "; or ".join(ways)


def _describe(sweep: SweepConfig, plan: Plan, results: Results, source: str) -> Iterator[str]:
    """Yield what the sweep is: its source, data, arms left out, and its runs by stage."""
    source = f" from {source}" if source.endswith(".toml") else ""
    yield f"sweep {sweep.name}{source}" + (f": {sweep.about}" if sweep.about else "")
    for name, data in plan.data.items():
        yield f"  data {name}: {data['folder']} (content {data['content_hash'][:12]})"
        arms = {config.arm.name for config in plan.configs(SegmentConfig) if config.data == name}
        for arm in sorted(set(sweep.arms) - arms):
            yield f"    goes without arm {arm}: too few cases beside the test cases"
    with contextlib.suppress(UserError):  # there is no plan yet, or it is damaged
        before = read_plan(plan_path(plan.runs_folder, plan.sweep))
        for name in sorted(before.data.keys() - plan.data.keys()):
            yield f"  goes without data {name}, which it had; name it too to see it in the tables"

    runs = Counter(run.stage for run in plan.runs.values())
    done = Counter(plan.runs[run_id].stage for run_id, result in results.items() if result.done)
    for stage, n in runs.items():
        yield f"  {stage:10} {n:5} runs, {done[stage]:5} done, {n - done[stage]:5} to make"
    yield f"  runs folder: {plan.runs_folder}"
    for run_id, result in results.items():
        if not result.done and result.reason:
            run = plan.runs[run_id]
            yield f"  to be made again: {run.stage} {run.label}: {result.reason}"


def _submit(
    plan: Plan,
    site: Site,
    options: argparse.Namespace,
    argv: Sequence[str],
    scope: prepare.Scope = "all",
    summary: Sequence[str] = (),
) -> int:
    """Submit what is neither done nor in the queue; with ``--plan`` only show it."""
    notes = [f"  {note}" for note in site.notes if not note.startswith("pack:")]
    words = [word for word in argv if word not in ("--plan", "--finish", str(options.finish))]
    last_job = ["hvae_hpc.sweep", *words, "--finish"]
    retries = min(options.retries, site.caps.retries)

    submissions = plan.runs_folder / SUBMISSIONS
    with contextlib.nullcontext() if options.plan else submitting(submissions):
        prepared = prepare.prepare(
            plan, site, last_job, scope=scope, retries=retries, after=options.after
        )
        if options.plan:  # before the rest, of which the end stays in sight
            say(*apply.sbatch_texts(prepared.plan.arrays), "")
        say(*summary, *notes, *apply.describe(prepared, prepare.check_space(prepared)))
        if options.plan:
            say("nothing was done (--plan)")
            return 0
        write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
        application = apply.Application(prepared)
        application.run()
    say(*apply.tell(application, retries))
    return 0 if application.jobs or prepared.n_queued or not application.refused else 1


def _finish(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Be the last job of a submission: make the tables, then submit what SLURM did not take.

    The submission's plan counts, not the sweep file, which may have been edited since.
    """
    submission = read_plan(options.finish / PLAN_FILE)
    plan = replace(submission, arrays=())
    try:
        _write_tables(plan, partial=True)
    except UserError as error:  # the rest is to be submitted all the same
        say(f"no tables: {error}", to=sys.stderr)

    # Where none of its own runs is done, the same submission would most likely fail again.
    results, submitted = read_results(plan), Submissions(plan.runs_folder).last_elements()
    rest = [i for i, result in results.items() if not result.done and i not in submitted]
    is_broken = not any(results[i].done for array in submission.arrays for i in array.run_ids)
    scope: prepare.Scope
    if rest and not is_broken:
        scope, left = "new", f"{len(rest)} runs are not in the queue yet"
    elif options.retries and not all(result.done for result in results.values()):
        scope, left = "retries", "what failed is not retried"
    else:
        return 0

    latest = read_plan(plan_path(plan.runs_folder, plan.sweep))
    if (latest.runs, latest.code_sha) != (plan.runs, plan.code_sha):
        raise UserError(f"{left}, and the sweep or its code has changed; give the command again")
    try:
        # How jobs run is the site file's to say: others may write in the runs folder.
        site = read_site(options.site, flags_of(options))
        site = fit_cluster(site, options.partition, read_cluster())
        plan = replace(plan, resources={stage: site.resources[stage] for stage in plan.resources})
        return _submit(plan, site, options, argv, scope)
    except UserError as error:  # many sites forbid sbatch on compute nodes
        raise UserError(f"{left}: {error}; give the sweep command again") from error


def _run_here(plan: Plan, missing: Sequence[str], options: argparse.Namespace) -> int:
    """Make the missing runs by local processes, then the tables."""
    if not _has_gpu():  # nobody was asked for one, so the stages do without
        resources = {stage: replace(asked, gpus=0) for stage, asked in plan.resources.items()}
        plan = replace(plan, resources=resources)
    # Another command may replace the sweep's plan while the workers read this one.
    plan_file = plan.runs_folder / "local" / f"{plan.sweep}-{os.getpid()}.json"
    write_plan(plan, plan_file)
    reports = run_locally(plan, plan_file, missing, options.workers) if missing else {}

    failed = [report for report in reports.values() if report.state != "done"]
    if failed:
        first = plan.runs[failed[0].run_id]
        raise UserError(
            f"{len(failed)} of {len(missing)} runs were not made; first: {first.stage} "
            f"{first.label}: {failed[0].message}; correct that and give the same command again "
            f"(log: {plan_file.with_suffix('.log')})"
        )
    _write_tables(plan, partial=False)
    return 0


def _write_tables(plan: Plan, *, partial: bool) -> None:
    from hvae_hpc.results.write import write_results

    write_results(plan.runs_folder, plan.sweep, partial)


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


if __name__ == "__main__":
    if "--finish" in sys.argv:
        let_output_be_lost()
    sys.exit(run_command(main))
