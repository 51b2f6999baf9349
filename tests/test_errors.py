"""What commands print: one function, which lets no text of a file reach the terminal as a command."""

from collections.abc import Sequence

import pytest

from hvae_hpc.errors import UserError, run_command, say


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
