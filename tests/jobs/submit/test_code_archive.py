"""The code of a submission: what runs from the file, and what is refused."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.submit.code_archive import CodeArchive, pack_code
from hvae_hpc.runs.identity import PACKAGE_SUFFIXES, code_sha
from tests import ROOT
from tests.test_open import install_toy

LOOK = r"""
import os, subprocess, sys
import hvae_hpc
from hvae_hpc.config.kinds import choose_class
from hvae_hpc.config.model import OptimConfig
from hvae_hpc.config.stages import AugmentConfig
from hvae_hpc.results.report import PAGE
from hvae_hpc.results.tables.published import _FOLDER
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.sweep import read_sweep

assert read_sweep("demo").name == "demo"
assert PAGE.is_file() and any(_FOLDER.glob("*.csv"))
assert choose_class(AugmentConfig, "plain", "here").__module__ == "toy_configs"
child = [sys.executable, "-P", "-c", "import hvae_hpc; print(hvae_hpc.__file__)"]
print(subprocess.run(child, capture_output=True, text=True, check=True).stdout, end="")
print(hvae_hpc.__file__, code_sha(), *sys.argv[1:], sep="\n")
sys.exit(7)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> CodeArchive:
    """This package with one more module, in a file."""
    folder = tmp_path_factory.mktemp("runs")
    packed = pack_code(folder / "submissions")
    with zipfile.ZipFile(folder / "more.zip", "w") as more:
        with zipfile.ZipFile(io.BytesIO(packed.content)) as file:
            for name in file.namelist():
                more.writestr(name, file.read(name))
        more.writestr("hvae_hpc/look.py", LOOK)
    more_code = CodeArchive(packed.path, (folder / "more.zip").read_bytes())
    more_code.write()
    return more_code


def start(archive: CodeArchive, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a module from the file where another version of the package is installed."""
    places = os.pathsep.join([str(ROOT), str(install_toy(folder / "packages"))])
    environment = {**os.environ, "PYTHONPATH": places, "TMPDIR": str(folder)}
    command = [sys.executable, "-P", "-u", *archive.start, "hvae_hpc.look", *options]
    return subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False
    )


def test_equal_code_gives_the_same_file_with_all_that_the_package_reads(tmp_path: Path) -> None:
    one, two = pack_code(tmp_path), pack_code(tmp_path)
    assert one == two
    assert one.path.name.startswith(f"code-{code_sha()}-")
    one.write()
    with zipfile.ZipFile(one.path) as file:
        names = {name for name in file.namelist()}
        assert not any(
            entry.is_dir() or entry.external_attr >> 28 == 0xA for entry in file.filelist
        )
    assert "hvae_hpc/jobs/sweeps/demo.toml" in names
    assert {Path(name).suffix for name in names} == set(PACKAGE_SUFFIXES)
    assert one.path.stat().st_size < 600_000


def test_a_module_its_children_and_its_plugins_come_from_an_own_copy_that_goes_with_the_process(
    archive: CodeArchive, tmp_path: Path
) -> None:
    done = start(archive, "a b", "--c", folder=tmp_path)
    assert done.returncode == 7, done.stderr
    child, own, sha, *options = done.stdout.splitlines()
    assert child == own
    assert Path(own).is_relative_to(tmp_path)
    assert not Path(own).exists()
    assert sha != code_sha()
    assert options == ["a b", "--c"]


@pytest.mark.parametrize("damage", ["changed", "gone", "fifo"])
def test_another_file_is_refused_in_one_line_and_the_same_command_mends_it(
    archive: CodeArchive, tmp_path: Path, damage: str
) -> None:
    archive.path.unlink()
    if damage == "changed":
        archive.path.write_bytes(archive.content[:-1] + b"x")
    elif damage == "fifo":
        os.mkfifo(archive.path)
    done = start(archive, folder=tmp_path)
    assert done.returncode == 1
    refused = f"error: {archive.path}: is not the submitted code; give the sweep command again\n"
    assert done.stderr == refused
    archive.write()
    assert archive.path.read_bytes() == archive.content


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/submissions").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link, and nothing is written"):
        pack_code(tmp_path / "runs/submissions").write()
