"""What a submission will be, for people: before it happens, and after."""

from collections.abc import Iterator, Sequence

from hvae_hpc.jobs.failures.canary import GATE_MINUTES, canaries_alone
from hvae_hpc.jobs.submit.apply import Application
from hvae_hpc.jobs.submit.prepare import TABLES, Prepared
from hvae_hpc.runs.plan import Array


def describe(prepared: Prepared, free_bytes: float) -> Iterator[str]:
    """Yield what will be submitted and what it costs, in lines."""
    plan, totals = prepared.plan, prepared.plan.totals
    yield from (f"  {line}" for line in prepared.told)
    if not plan.arrays:
        return
    yield f"  to submit:  {'stage':9}{'runs':>6}{'arrays':>8}{'elements':>10}{'each':>9}{'limit':>9}  partition"
    stages = list(dict.fromkeys(array.stage for array in plan.arrays))
    for stage in stages:
        arrays = [array for array in plan.arrays if array.stage == stage]
        runs = sum(len(element) for array in arrays for element in array.elements)
        elements = sum(len(array.elements) for array in arrays)
        each = _span(sum(array.seconds for array in arrays) / elements) if elements else ""
        limit = _span(60 * max(array.minutes for array in arrays))
        where = plan.resources[stage].partition
        yield f"{'':14}{stage:9}{runs:6}{len(arrays):8}{elements or 1:10}{each:>9}{limit:>9}  {where}"
    ahead = [
        canaries_alone(array, plan.resources[array.stage].array_parallelism)
        for array in plan.arrays
    ]
    if n := sum(map(bool, ahead)):
        when = f"the rest begins {GATE_MINUTES} min after them"
        yield f"  canaries:   {max(ahead)} elements of {n} array{'s' * (n > 1)} go ahead, {when}"
    measured = f"{totals['measured']:.0%} of them" if totals["measured"] else "none yet"
    yield (
        f"  expected:   {totals['gpu_hours']:.1f} GPU-hours, {totals['cpu_hours']:.1f} CPU-hours "
        f"(from measured times: {measured})"
    )
    yield (
        f"  to write:   {totals['submission_files']:.0f} files now; {totals['files']:,.0f} files and "
        f"{_size(totals['bytes'])} are kept, up to {_size(totals['bytes_peak'])} while it runs; "
        f"{_size(free_bytes)} are free"
    )
    yield (
        f"  scheduler:  {totals['calls']:.0f} calls to submit; afterwards one per time limit reached, "
        "at most 4 a minute, and one squeue a minute while somebody looks"
    )
    if prepared.room is not None and totals["elements"] + 1 > prepared.room:
        yield f"  the queue takes {prepared.room} more elements; the last job submits the rest, or this command again"


def sbatch_texts(arrays: Sequence[Array]) -> Iterator[str]:
    """Yield the sbatch text of each stage's first array."""
    shown: set[str] = set()
    for array in arrays:
        if array.stage not in shown:
            shown.add(array.stage)
            others = sum(other.stage == array.stage for other in arrays) - 1
            more = f" ({others} more differ in name, number of elements and time)" if others else ""
            waits = list(dict.fromkeys(arrays[number].name for number, *_ in array.after))
            after = (
                f", after {', '.join(waits[:3])}{' ...' if len(waits) > 3 else ''}" if waits else ""
            )
            title = "the last job" if array.stage == TABLES else array.name
            yield f"\n--- sbatch text of {title}{after}{more}"
            yield array.script.rstrip()


def tell(application: Application, retries: int) -> Iterator[str]:
    """Yield what was submitted, and what to do next; each run is retried so often."""
    prepared = application.prepared
    for job, name, elements in application.jobs:
        yield f"  job {job}: {name}" + (f", {elements} elements" if elements else "")
    queued = sum(status.kind in ("waiting", "running") for status in prepared.statuses.values())
    yield f"submitted {application.submitted} runs in {len(application.jobs)} jobs; {queued} runs were queued already"
    if left := len(prepared.run_ids) - application.submitted:
        who = (
            "the last job submits them, or this command, given again"
            if application.jobs
            else "try again later"
        )
        yield f"{left} runs are not in the queue yet ({application.refused}); {who}"
    if application.jobs and retries:
        yield (
            f"retries:    the last job retries what failed, each run up to {retries} times; where jobs may not "
            "submit, this command does, given again"
        )
    if application.jobs:
        yield f"logs:       {prepared.folder}"
        yield f"status:     hvae-hpc status {prepared.plan.runs_folder}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
