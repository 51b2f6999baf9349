"""Do synthetic image+mask pairs improve tumour segmentation, and which ones?

The package answers that on a group's own SLURM cluster and data. ``README.md`` has the commands;
the module floors (who may import whom) are enforced by ``tests/test_house.py``.
"""

import os
import sys
from pathlib import Path

__version__ = "0.1.0"


def _leave_working_folder() -> None:
    """Look for no modules in the working folder: it may be one that somebody else made.

    ``python -m`` puts it first. While Python looks for the module of ``-m``, ``argv`` says so.
    """
    if sys.argv[0] != "-m" or sys.flags.safe_path:
        return
    del sys.path[0]
    home = str(Path(__file__).parents[1])
    if home not in sys.path:  # a checkout that is not installed; the children must find it too
        sys.path.append(home)
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


_leave_working_folder()
