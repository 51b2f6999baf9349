"""The tests: one folder per folder of the product; drill and minislurm are tools of the tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
