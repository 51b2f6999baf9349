"""Do synthetic image+mask pairs improve tumour segmentation, and which ones?

The package answers that on a group's own SLURM cluster and data. ``README.md`` has the commands;
the module floors (who may import whom) are enforced by ``tests/test_house.py``.
"""

__version__ = "0.1.0"
