"""What a submission will be, for people: before it happens, and after."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from hvae_hpc.jobs.failures.canary import GATE_MINUTES, canaries_ahead
from hvae_hpc.jobs.submit.apply import Application
from hvae_hpc.jobs.submit.prepare import TABLES, Prepared
from hvae_hpc.jobs.sweeps.costs import duration
from hvae_hpc.runs.plan import Array, Plan


def describe(prepared: Prepared, free_bytes: float) -> Iterator[str]:
    """Yield what will be submitted and what it costs, in lines."""
    plan, totals = prepared.plan, prepared.totals
    yield from (f"  {line}" for line in prepared.told)
    if not plan.arrays:
        return

    yield from _describe_stages(plan)
    ahead = list(filter(None, canaries_ahead(plan)))
    if ahead:
        yield (
            f"  canaries:   {max(ahead)} elements of {len(ahead)} array{'s' * (len(ahead) > 1)} go "
            f"ahead, the rest begins {GATE_MINUTES} min after them"
        )
    measured = f"{totals['measured']:.0%} of them" if totals["measured"] else "none yet"
    yield (
        f"  expected:   {totals['gpu_hours']:.1f} GPU-hours, {totals['cpu_hours']:.1f} CPU-hours "
        f"(from measured times: {measured})"
    )
    yield (
        f"  to write:   {len(plan.arrays) + 3} files now; {totals['files']:,.0f} files "
        f"and {_size(totals['bytes'])} are kept, up to {_size(totals['bytes_peak'])} while it "
        f"runs; {_size(free_bytes)} are free"
    )
    yield (
        f"  scheduler:  {len(plan.arrays) + len(ahead)} sbatch calls; afterwards one call per time "
        "limit reached, at most 4 a minute, and one squeue a minute while somebody looks"
    )
    if prepared.room is not None and totals["elements"] + 1 > prepared.room:
        yield (
            f"  the queue takes {prepared.room} more elements; the last job submits the rest, or "
            "this command again"
        )


def _describe_stages(plan: Plan) -> Iterator[str]:
    """Yield a table of what is submitted, a line per stage."""
    yield (
        f"  to submit:  {'stage':9}{'runs':>6}{'arrays':>8}{'elements':>10}"
        f"{'each':>12}{'limit':>12}  partition"
    )
    for stage in dict.fromkeys(array.stage for array in plan.arrays):
        arrays = [array for array in plan.arrays if array.stage == stage]
        runs = sum(len(array.run_ids) for array in arrays)
        elements = sum(len(array.elements) for array in arrays)
        each = duration(sum(array.seconds for array in arrays) / elements) if elements else ""
        limit = duration(60 * max(array.minutes for array in arrays))
        yield (
            f"{'':14}{stage:9}{runs:6}{len(arrays):8}{elements or 1:10}{each:>12}{limit:>12}"
            f"  {plan.resources[stage].partition}"
        )


def sbatch_texts(arrays: Sequence[Array]) -> Iterator[str]:
    """Yield the sbatch text of each stage's first array."""
    counts = Counter(array.stage for array in arrays)
    firsts = {array.stage: array for array in reversed(arrays)}
    for stage in counts:
        array, others = firsts[stage], counts[stage] - 1
        more = f" ({others} more differ in name, number of elements and time)" if others else ""
        waits = list(dict.fromkeys(arrays[number].name for number, _ in array.after))
        dots = " ..." if len(waits) > 3 else ""
        after = f", after {', '.join(waits[:3])}{dots}" if waits else ""
        title = "the last job" if stage == TABLES else array.name
        yield f"\n--- sbatch text of {title}{after}{more}"
        yield array.script.rstrip()


def tell(application: Application, retries: int) -> Iterator[str]:
    """Yield what was submitted, and what to do next.

    Args:
        application: that is over.
        retries: times that a run may be retried.
    """
    prepared = application.prepared
    for job in application.jobs:
        elements = f", {len(job.places)} elements" if job.places else ""
        yield f"  job {job.job}: {prepared.plan.arrays[job.array].name}{elements}"
    yield (
        f"submitted {application.submitted} runs in {len(application.jobs)} jobs; "
        f"{prepared.queued} runs were queued already"
    )
    if left := len(prepared.run_ids) - application.submitted:
        who = "try again later"
        if application.jobs:
            who = "the last job submits them, or this command, given again"
        yield f"{left} runs are not in the queue yet ({application.refused}); {who}"
    if not application.jobs:
        return

    if retries:
        yield (
            f"retries:    the last job retries what failed, each run up to {retries} times; where "
            "jobs may not submit, this command does, given again"
        )
    yield f"logs:       {prepared.folder}"
    yield f"status:     hvae-hpc status {shlex.quote(str(prepared.plan.runs_folder))}"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
