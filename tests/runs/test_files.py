"""Lines are added whole or not at all."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.runs.folder import append_line


def test_a_line_that_was_cut_short_is_closed_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    with open(path, "a") as file:
        file.write("tw")
    append_line(path, "three")
    assert path.read_text() == "one\ntw\nthree\n"


def test_of_lines_that_do_not_fit_none_stays(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    code = f"from pathlib import Path; from hvae_hpc.runs.folder import append_line; append_line(Path({str(path)!r}), 'x' * 99)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (50, 50)
        ),  # room for a part of it
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be written (File too large)" in done.stderr
    assert path.read_text() == "one\n"


def test_where_there_is_no_folder_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        append_line(tmp_path / "nowhere/lines", "one")
