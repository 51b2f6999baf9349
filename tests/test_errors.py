"""What commands print: one function, which lets no text of a file reach the terminal as a command."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError, run_command, say
from hvae_hpc.runs.folder import write_atomic


def test_what_a_terminal_would_obey_is_escaped_and_lines_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("a\nb\x1b]0;title\x07", 3, "é\udcff\r\x9b2K")
    assert capsys.readouterr().out == "a\nb\\x1b]0;title\\x07\n3\né\\udcff\\r\\x9b2K\n"


def test_a_fault_of_a_user_is_escaped_too(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        raise UserError(f"{argv[0]}: unknown key")

    assert run_command(main, ["x\x1b[31m"]) == 2
    assert capsys.readouterr().err == "error: x\\x1b[31m: unknown key\n"


def test_what_a_command_writes_is_for_the_group_to_read_at_most(tmp_path: Path) -> None:
    def main(argv: Sequence[str]) -> int:
        (tmp_path / argv[0]).mkdir()
        write_atomic(tmp_path / argv[0] / "file", "text")
        return 0

    before = os.umask(0)
    try:
        for umask, of_folder, of_file in ((0o022, 0o750, 0o640), (0o077, 0o700, 0o600)):
            os.umask(umask)
            assert run_command(main, [oct(umask)]) == 0
            assert os.umask(umask) == umask
            folder = tmp_path / oct(umask)
            assert folder.stat().st_mode & 0o777 == of_folder
            assert (folder / "file").stat().st_mode & 0o777 == of_file
    finally:
        os.umask(before)
