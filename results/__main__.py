"""``python -m hvae_hpc.results RUNS``: turn a runs folder into tables and figures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.errors import UserError, run_command, say
from hvae_hpc.runs.plan import find_plans

_DESCRIPTION = """\
Make the tables and figures of every sweep in a runs folder, beside the published numbers.
The tables are printed; all files go to RUNS/results/<sweep>/."""
_EXAMPLE = """\
example:
  python -m hvae_hpc.results runs --sweep table1 --partial

A sweep with missing runs is refused. With --partial it is shown, with the counts of done runs."""


def main(argv: Sequence[str]) -> int:
    """Make each sweep's results; a sweep that is refused does not stop the others."""
    parser = argparse.ArgumentParser(
        prog="python -m hvae_hpc.results",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    about = "the runs folder (default: ./runs)"
    add("runs", type=Path, nargs="?", default=Path("runs"), metavar="RUNS", help=about)
    add("--sweep", metavar="NAME", help="only this sweep (default: every sweep in RUNS)")
    add("--partial", action="store_true", help="make the tables even if runs are missing")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="write to DIR/<sweep>/ (default: RUNS/results/<sweep>/)",
    )
    options = parser.parse_args(argv)
    plans = find_plans(options.runs, options.sweep)
    # pandas and matplotlib take a second that --help and a wrong path need not wait for.
    from hvae_hpc.results.write import write_results

    code = 0
    for path in plans:
        try:
            write_results(options.runs, path.stem, options.partial, options.out)
        except UserError as error:
            say(f"error: {error}", to=sys.stderr)
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(run_command(main))
