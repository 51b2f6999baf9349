"""The main command: a sweep file to tables, on this machine or as SLURM arrays.

``python -m hvae_hpc.sweep --partition gpu`` runs the paper's experiment on the data sets in
./shards. The same command, run again, makes only what is missing.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hvae_hpc.config.loader import find_toml, load, read_toml
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.errors import UserError, run_command
from hvae_hpc.jobs.sites.site import Site, add_flags, fit_cluster, flags_of, read_site
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.slurm.limits import read_cluster
from hvae_hpc.jobs.state.run_log import let_output_be_lost
from hvae_hpc.jobs.state.submissions import PLAN_FILE, SUBMISSIONS, Submissions, submitting
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.sweeps.config import SweepConfig
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.plan import Plan, plan_path, read_plan, write_plan

SWEEPS = Path(__file__).parent / "jobs" / "sweeps"
RECIPES = Path(__file__).parent / "preprocess" / "recipes"
OWN_SWEEP = Path("sweep.toml")

EXAMPLES = """examples:
  python -m hvae_hpc.sweep demo                    try it: phantoms, small sizes, local processes
  python -m hvae_hpc.sweep --plan                  show what the paper's experiment would run
  python -m hvae_hpc.sweep --partition gpu         submit it as SLURM arrays; the shell may close
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = _parse(argv)
    if options.finish:
        return _finish(options, argv)
    sweep = read_sweep(options.sweep)
    runs_folder = options.runs or Path(sweep.runs)
    site = read_site(options.site, flags_of(options))
    cluster = read_cluster() if options.partition else None
    if cluster:
        site = fit_cluster(site, options.partition, cluster)
    if not options.plan:
        _check_where(options)
        _make_phantoms(sweep, options)
    plan = expand.make_plan(sweep, find_data(sweep, options.data), runs_folder, site.resources)
    plan = replace(plan, allow_code_drift=options.allow_code_drift)
    results = read_results(plan)
    missing = [run_id for run_id, result in results.items() if not result.done]
    _describe(sweep, plan, missing)
    for run_id in missing:
        if results[run_id].reason:
            print(
                f"  to be made anew: {plan.runs[run_id].stage} {plan.runs[run_id].label}: {results[run_id].reason}"
            )
    if cluster:
        return _submit(plan, missing, site, cluster, options, argv)
    if options.plan:
        print("nothing was done (--plan)")
        return 0
    write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    return _run_here(plan, missing, options.workers, site, min(options.retries, site.caps.retries))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hvae_hpc.sweep",
        usage="python -m hvae_hpc.sweep [SWEEP] [--partition P | --local] [options]",
        description="Train the generators, evaluate every arm with every seed, make the tables.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sweep", nargs="?", help="name or .toml file (default: ./sweep.toml if there, else table1)"
    )
    where_data = "where a data set's shards lie (default: ./shards/NAME)"
    parser.add_argument(
        "--data", nargs="+", action="extend", default=[], metavar="NAME=DIR", help=where_data
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="the runs folder (default: ./runs)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--partition", metavar="P", help="submit SLURM arrays to this partition")
    where.add_argument("--local", action="store_true", help="run here, also where sbatch is")
    parser.add_argument(
        "--workers",
        type=int,
        default=1 if _has_gpu() else os.cpu_count() or 1,
        metavar="N",
        help="local processes at a time (default: %(default)s)",
    )
    parser.add_argument("--plan", action="store_true", help="show what would run, and do nothing")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="try again what failed, each run up to N times (default: 0)",
    )
    parser.add_argument(
        "--allow-code-drift",
        action="store_true",
        help="let queued runs start after the package was changed",
    )
    parser.add_argument(
        "--finish", type=Path, help=argparse.SUPPRESS
    )  # the last job of a submission
    add_flags(parser)
    options = parser.parse_args(argv)
    if options.workers < 1:
        raise UserError(f"--workers is {options.workers}, expected 1 or more")
    if options.retries < 0:
        raise UserError(f"--retries is {options.retries}, expected 0 or more")
    return options


def read_sweep(name: str | None) -> SweepConfig:
    """Read the sweep that the command names: a file, a name of the library, ./sweep.toml, or table1."""
    if name is None:
        name = str(OWN_SWEEP) if OWN_SWEEP.is_file() else "table1"
    path = find_toml(name, SWEEPS)
    return load(SweepConfig, read_toml(path, SWEEPS), str(path))


def find_data(sweep: SweepConfig, options: Sequence[str]) -> list[expand.DataSet]:
    """Return the sweep's data sets with their manifests.

    Raises:
        UserError: one is not packed; it says which command packs it.
    """
    folders = {name: Path(sweep.shards) / name for name in sweep.data}
    given: set[str] = set()
    for option in options:
        name, sign, place = option.partition("=")
        if not sign or name not in folders:
            raise UserError(
                f"--data {option}: expected NAME=DIR with NAME one of {', '.join(folders)}"
            )
        folders[name] = Path(place)
        given.add(name)
    found = []
    for name, folder in folders.items():
        if not (folder / MANIFEST).is_file():
            if sweep.phantoms and name not in given:
                raise UserError(
                    f"data set {name}: not there yet; without --plan this sweep makes phantoms of it first"
                )
            cases = sweep.split.train + sweep.split.test
            recipe = name if (RECIPES / f"{name}.toml").is_file() else f"{name}.toml"
            pack = f"python -m hvae_hpc.preprocess {recipe} --out {folder}"
            raise UserError(
                f"data set {name}: no {MANIFEST} in {folder}; pack yours with: {pack} --raw DIR"
                f"  (or try phantoms: {pack} --phantom {cases})"
            )
        found.append(expand.DataSet(name=name, folder=folder, manifest=read_manifest(folder)))
    return found


def _check_where(options: argparse.Namespace) -> None:
    if slurm.is_available() and not options.partition and not options.local:
        raise UserError(
            "this is a SLURM machine; give --partition P to submit, or --local to run here"
        )


def _make_phantoms(sweep: SweepConfig, options: argparse.Namespace) -> None:
    """Make and pack phantoms of the data sets that are missing, where the sweep asks for it."""
    if not sweep.phantoms:
        return
    given = {option.partition("=")[0] for option in options.data}
    for name in sweep.data:
        folder = Path(sweep.shards) / name
        if name in given or (folder / MANIFEST).is_file():
            continue
        from hvae_hpc.preprocess.__main__ import main as preprocess

        raw = folder.parent.parent / "phantoms" / name
        arguments = [
            name,
            "--phantom",
            str(sweep.phantoms),
            "--raw",
            str(raw),
            "--out",
            str(folder),
            "--local",
        ]
        if preprocess([*arguments, "--workers", str(options.workers)]):
            raise UserError(f"data set {name}: the phantoms could not be packed; see above")


def _describe(sweep: SweepConfig, plan: Plan, missing: Sequence[str]) -> None:
    print(f"sweep {sweep.name}: {sweep.about}" if sweep.about else f"sweep {sweep.name}")
    for name, data in plan.data.items():
        print(f"  data {name}: {data['folder']} (content {data['content_hash'][:12]})")
        arms = {config.arm.name for config in plan.configs(SegmentConfig) if config.data == name}
        for arm in sorted(set(sweep.arms) - arms):
            print(f"    goes without arm {arm}: too few cases beside the test cases")
        compared = len(arms) - len({name for name in arms if name.partition("@")[0] == "reference"})
        if compared * 2 / 2 ** (sweep.seeds * sweep.splits) >= 0.05:
            print(
                f"    {sweep.seeds} seeds are too few to show that any of {compared} arms differs from the reference"
            )
    every = Counter(run.stage for run in plan.runs.values())
    todo = Counter(plan.runs[run_id].stage for run_id in missing)
    for stage, number in every.items():
        print(
            f"  {stage:8} {number:5} runs, {number - todo[stage]:5} done, {todo[stage]:5} to make"
        )
    print(f"  runs folder: {plan.runs_folder}")


def _submit(
    plan: Plan,
    missing: Sequence[str],
    site: Site,
    cluster: slurm.Cluster,
    options: argparse.Namespace,
    argv: Sequence[str],
    rest: bool = True,
) -> int:
    """Submit what is neither done nor queued, never-submitted runs if asked to; with --plan say what that would be."""
    from hvae_hpc.jobs.submit import apply, prepare, preview

    for note in site.notes:
        print(f"  {note}")
    if not missing:
        print("submitted nothing: every run is done")
        print(f"tables: python -m hvae_hpc.results {plan.runs_folder}")
        return 0
    again = [word for word in argv if word not in ("--plan", "--finish", str(options.finish))]
    last, retries = (
        ["-m", "hvae_hpc.sweep", *again, "--finish"],
        min(options.retries, site.caps.retries),
    )
    if options.plan:
        prepared = prepare.prepare(plan, site, cluster, last, retries=retries)
        lines = preview.describe(prepared, prepare.check_space(prepared))
        print(
            *lines,
            *preview.sbatch_texts(prepared.plan.arrays),
            "nothing was done (--plan)",
            sep="\n",
        )
        return 0
    with submitting(plan.runs_folder / SUBMISSIONS) as lock:
        new = bool(options.finish)
        prepared = prepare.prepare(
            plan, site, cluster, last, only_new=new, rest=rest, retries=retries
        )
        for line in preview.describe(prepared, prepare.check_space(prepared)):
            print(line)
        write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
        application = apply.Application(prepared, lock)
        application.run()
    print(*preview.tell(application, retries), sep="\n")
    there = any(status.kind in ("waiting", "running") for status in prepared.statuses.values())
    return 0 if application.jobs or there or not application.refused else 1


def _finish(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Be the last job of a submission: make the tables, then submit what SLURM did not take at first.

    Its plan counts, not the sweep file, which may have been edited since.
    """
    from hvae_hpc.results.write import write_results

    submission = read_plan(options.finish / PLAN_FILE)
    plan = replace(submission, arrays=(), totals={})
    try:
        write_results(plan.runs_folder, plan.sweep, True, None)
    except UserError as error:  # the rest is to be submitted all the same
        print(f"no tables: {error}", file=sys.stderr)
    results, submitted = read_results(plan), Submissions(plan.runs_folder).last_elements()
    never = sum(not result.done and run_id not in submitted for run_id, result in results.items())
    # Where none of its runs is done, the same submission would most likely fail again.
    own = [
        run_id for array in submission.arrays for element in array.elements for run_id in element
    ]
    goes_on = never > 0 and any(results[run_id].done for run_id in own)
    if not goes_on and not (
        options.retries and not all(result.done for result in results.values())
    ):
        return 0
    left = f"{never} runs are not in the queue yet" if goes_on else "what failed is not retried"
    if read_plan(plan_path(plan.runs_folder, plan.sweep)).runs != plan.runs:
        raise UserError(f"{left}, and the sweep has changed; give the command again")
    if code_sha() != plan.code_sha and not plan.allow_code_drift:
        raise UserError(f"{left}, and the package has changed; give the command again")
    try:
        return _submit(
            plan, list(plan.runs), read_site(options.site), read_cluster(), options, argv, goes_on
        )
    except UserError as error:  # many sites forbid sbatch on compute nodes
        raise UserError(f"{left}: {error}; give the sweep command again") from error


def _run_here(plan: Plan, missing: Sequence[str], workers: int, site: Site, retries: int) -> int:
    from hvae_hpc.jobs.failures.retry import choose_local_retries
    from hvae_hpc.jobs.worker.pool import run_locally

    plan = replace(
        plan, resources={stage: _for_this_machine(value) for stage, value in plan.resources.items()}
    )
    # Workers read a plan of their own: another command may replace the sweep's while they are
    # at work.
    plan_file = plan.runs_folder / "local" / f"{plan.sweep}-{os.getpid()}.json"
    write_plan(plan, plan_file)
    reports = run_locally(plan, plan_file, missing, workers) if missing else {}
    for number in range(
        retries * len(plan.resources)
    ):  # children may fail in their turn, stage by stage
        if all(report.state == "done" for report in reports.values()):
            break
        plan, again = choose_local_retries(plan, site, retries, by_hand=number == 0)
        if not again:
            break
        write_plan(plan, plan_file)
        reports |= run_locally(
            plan, plan_file, again, 1
        )  # one at a time: each has the machine for itself
    bad = [report for report in reports.values() if report.state != "done"]
    if bad:
        first = plan.runs[bad[0].run_id]
        raise UserError(
            f"{len(bad)} of {len(missing)} runs were not made; first: {first.stage} {first.label}: {bad[0].message}; "
            f"mend that and give the same command again (log: {plan_file.with_suffix('.log')})"
        )
    from hvae_hpc.results.write import write_results

    write_results(plan.runs_folder, plan.sweep, False, None)
    return 0


def _for_this_machine(resources: Resources) -> Resources:
    """Let a stage use a GPU that is here, and do without where there is none: nobody was asked for one."""
    return resources if _has_gpu() else replace(resources, gpus=0)


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


if __name__ == "__main__":
    if "--finish" in sys.argv:
        let_output_be_lost()
    sys.exit(run_command(main))
