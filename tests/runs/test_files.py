"""The one opener: what it refuses, who else opens files; and lines that are added whole or not at all."""

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hvae_hpc.config.loader import read_toml
from hvae_hpc.errors import UserError
from hvae_hpc.runs.files import read_file, read_last_lines, refuse_links
from hvae_hpc.runs.folder import append_line, write_atomic
from tests.test_house import modules


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


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize("make", [fifo, endless, Path.mkdir, huge])
def test_what_is_no_regular_file_or_too_large_is_an_error_at_once(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    make(path)
    for read in (lambda: read_file(path, 1000), lambda: read_toml(path, tmp_path)):
        with pytest.raises((OSError, UserError), match=r"no regular file|expected [0-9,]+ at most"):
            read()


def test_a_link_to_a_file_is_read_and_never_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("mine\n")
    link.symlink_to(target)
    assert read_file(link, 9) == b"mine\n"
    with pytest.raises(UserError, match=r"link: cannot be written \(is a link\)"):
        append_line(link, "theirs")
    write_atomic(link, "theirs")
    assert target.read_text() == "mine\n"


def test_of_a_long_file_the_last_whole_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\r2\nthree")
    assert read_last_lines(path, 99) == [b"one", b"two\r2", b"three"]
    assert read_last_lines(path, 8) == [b"three"]


def test_below_the_folder_that_a_person_named_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk/train").mkdir(parents=True)
    root = tmp_path / "runs"
    root.symlink_to("disk")
    refuse_links(root / "train/a/log.jsonl", root)  # people put runs folders on other disks
    (root / "segment").symlink_to("train")
    with pytest.raises(UserError, match="segment: is a link, and nothing is written"):
        refuse_links(root / "segment/a/log.jsonl", root)


METHODS = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}
OWN_WAYS = {
    "hvae_hpc.runs.files": "the opener",
    "hvae_hpc.runs.identity": "reads the package's own files",
    "hvae_hpc.results.report": "reads the package's own template",
    "hvae_hpc.results.tables.published": "reads the package's own tables",
    "hvae_hpc.runs.lease": "/proc; and new files under names with 64 random bits",
    "hvae_hpc.runs.folder": "a new file under a name with 32 random bits",
    "hvae_hpc.training.distributed": "a new file under a name with 32 random bits",
    "hvae_hpc.export.formats": "new files in a new folder",
    "hvae_hpc.jobs.submit.on_end": "a new log, where there is nothing yet",
    "hvae_hpc.jobs.state.run_log": "/proc and /sys",
    "hvae_hpc.jobs.worker.provenance": "/proc",
    "hvae_hpc.preprocess.store.reader": "/proc",
    "hvae_hpc.errors": "/dev/null",
    "hvae_hpc.preprocess.case": "/dev/null",
}
"""Modules that open files by themselves, and which."""


def is_opening(called: ast.expr) -> bool:
    if isinstance(called, ast.Attribute):
        owner = called.value.id if isinstance(called.value, ast.Name) else ""
        return called.attr in METHODS and owner != "Image"  # Pillow is given bytes
    return isinstance(called, ast.Name) and called.id == "open"


def test_only_the_opener_opens_what_others_may_have_made() -> None:
    opening: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and is_opening(node.func):
                opening.setdefault(name, []).append(f"line {node.lineno}")
    assert {name: calls for name, calls in opening.items() if name not in OWN_WAYS} == {}
    assert OWN_WAYS.keys() <= opening.keys() | {"hvae_hpc.runs.files"}  # the list is not too long
