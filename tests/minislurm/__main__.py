"""``python -m tests.minislurm up | down | status``: a private SLURM on this machine."""

import sys

from hvae_hpc.errors import run_command
from tests.minislurm.minislurm import main

sys.exit(run_command(main))
