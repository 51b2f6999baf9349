"""``python -m tests.fuzz``: damaged inputs of all kinds, each in one of a few processes.

An input is right when it ends in packed pairs, a result, or one line within 10 s and 1 GiB. What is
not right is printed with the command that repeats it, and kept in the file of ``--keep``, whose
inputs run first the next time.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.fuzz import Result, run_inputs
from tests.fuzz.inputs import KINDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fuzz; returns 1 where an input ends wrongly."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", nargs=2, metavar=("KIND", "SEED"), help="repeat one input")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, help="file of the inputs that ended wrongly")
    options = parser.parse_args(argv)

    inputs = [
        (options.kinds[number % len(options.kinds)], options.first + number // len(options.kinds))
        for number in range(options.inputs)
    ]
    if options.keep and options.keep.exists():
        before = [line.split() for line in options.keep.read_text().splitlines()]
        inputs = [*((kind, int(seed)) for kind, seed, *_ in before), *inputs]
    if options.only:
        inputs = [(options.only[0], int(options.only[1]))]

    results: list[Result] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for result in run_inputs(inputs, Path(folder), options.workers):
            results.append(result)
            if not result.is_right or options.only:
                print(f"{result.outcome}: {result.text}\n  again: {result.command}", flush=True)
            if len(results) % 1000 == 0:
                print(f"{len(results)} of {len(inputs)}", flush=True)
    wrong = [result for result in results if not result.is_right]
    if options.keep:
        options.keep.write_text("".join(f"{r.kind} {r.seed} {r.outcome}\n" for r in wrong))
    print(describe(results))
    return 1 if wrong else 0


def describe(results: Sequence[Result]) -> str:
    """Count results by kind and outcome, and name the slowest and the largest."""
    outcomes = sorted({result.outcome for result in results})
    counts = Counter((result.kind, result.outcome) for result in results)
    lines = [" ".join([f"{'kind':12}", *(f"{outcome:>10}" for outcome in outcomes)])]
    for kind in KINDS:
        row = [f"{counts[kind, outcome]:10}" for outcome in outcomes]
        lines.append(" ".join([f"{kind:12}", *row]))
    slowest = max(results, key=lambda result: result.seconds)
    largest = max(results, key=lambda result: result.mib)
    lines.append(f"slowest: {slowest.seconds:.1f} s, {slowest.kind} {slowest.seed}")
    lines.append(f"largest: {largest.mib:.0f} MiB, {largest.kind} {largest.seed}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
