"""``make drill``: faults on purpose, then a comparison with undisturbed runs."""

import sys

from hvae_hpc.errors import run_command
from tests.drill.drill import main

sys.exit(run_command(main))
