"""A good folder of each recipe, a folder to work in, and the command."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.preprocess.bad_input.spoil")

from hvae_hpc.errors import run_command  # noqa: E402
from hvae_hpc.preprocess.__main__ import main  # noqa: E402
from tests.preprocess.bad_input.command import (  # noqa: E402
    Outcome,
    run_process,
    run_quietly,
    run_without_rights,
)
from tests.preprocess.bad_input.folders import GOOD, arguments, save_scans, write_recipes  # noqa: E402


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a maker of the folder with a recipe's good cases, raw and packed in one go."""
    made: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        if recipe not in made:
            place = tmp_path_factory.mktemp(recipe)
            write_recipes(place)
            GOOD.get(recipe, save_scans)(place / "raw")
            with contextlib.chdir(place):
                assert run_quietly(*arguments(recipe)).code == 0
            made[recipe] = place
        return made[recipe]

    return make


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder of its own, on a machine without SLURM."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, capfd):
    """Return the command: run(*argv, process="") -> Outcome."""

    def run(*argv: str, process: str = "") -> Outcome:
        if process:
            return run_process(*argv) if process == "own" else run_without_rights(*argv)
        capfd.readouterr()
        code = run_command(main, argv)
        out, err = capfd.readouterr()
        return Outcome(code=code, out=out, err=err)

    return run
