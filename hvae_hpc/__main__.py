"""``python -m hvae_hpc`` is the console script ``hvae-hpc``."""

import sys

from hvae_hpc.cli import main

sys.exit(main())
