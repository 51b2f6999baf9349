"""``hvae-hpc export``: hand over the pairs of a generate run, to nnU-Net or as PNG files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hvae_hpc.errors import UserError, run_command, say
from hvae_hpc.jobs.state.find_run import add_run, find_run


def main(argv: Sequence[str]) -> int:
    """Write a generate run's pairs to a folder, without pairs that copy a training image."""
    parser = argparse.ArgumentParser(prog="hvae-hpc export", description=main.__doc__)
    add_run(parser)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--nnunet",
        type=Path,
        metavar="DIR",
        help="write a raw data set of nnU-Net v2, with the real pairs",
    )
    form.add_argument(
        "--png", type=Path, metavar="DIR", help="write the synthetic pairs as 8-bit pictures"
    )
    parser.add_argument(
        "--keep-copies", action="store_true", help="export copies too, marked in manifest.json"
    )
    parser.add_argument(
        "--synthetic-only", action="store_true", help="with --nnunet: leave out the real pairs"
    )
    parser.add_argument(
        "--id",
        type=int,
        metavar="N",
        help="with --nnunet: the data set number (default: 501)",
    )
    options = parser.parse_args(argv)
    if options.png and (options.synthetic_only or options.id is not None):
        raise UserError("--synthetic-only and --id belong to --nnunet; leave them out with --png")
    plan, run_id = find_run(options.runs, options.run, "generate")

    from hvae_hpc.export.pairs import export_pairs  # torch: not before it is needed

    lines = export_pairs(
        plan,
        run_id,
        "nnunet" if options.nnunet else "png",
        options.nnunet or options.png,
        keep_copies=options.keep_copies,
        synthetic_only=options.synthetic_only,
        dataset_id=501 if options.id is None else options.id,
    )
    say("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
