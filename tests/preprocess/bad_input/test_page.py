"""docs/BAD_INPUT.md is the tables of these tests; ``python -m tests.preprocess.bad_input.test_page`` writes it."""

from pathlib import Path

from tests import ROOT
from tests.preprocess.bad_input.test_bad_disk import DISK, Seen
from tests.preprocess.bad_input.test_bad_folders import FOLDERS
from tests.preprocess.bad_input.test_bad_pictures import PICTURES
from tests.preprocess.bad_input.test_bad_scans import SCANS
from tests.preprocess.bad_input.test_bad_shards import DAMAGE
from tests.preprocess.bad_input.test_odd_scans import ODD, ODD_NAMES

PAGE = ROOT / "docs" / "BAD_INPUT.md"


def render() -> str:
    """Return the text of docs/BAD_INPUT.md."""
    lines = [
        "# Bad input, and what you see",
        "",
        "A packing looks at all cases before it ends with exit code 2. For each case that it cannot",
        "pack it says in one line what it got, what it expected and what to do. It keeps the good",
        "cases packed and writes no `manifest.json`, so nothing reads a data set with holes. An earlier",
        "`manifest.json` stays. Repair the files and give the same command again: only what was bad is",
        "packed then, to the same bytes as if nothing had been wrong. `--skip-bad` accepts the data set",
        "without the bad cases and lists them in the manifest.",
        "",
        "The tests in `tests/preprocess/bad_input` make each of these files, give the command and check",
        "the line; `python -m tests.preprocess.bad_input.test_page` writes this page from their tables.",
        "Paths are shortened to their last part; `...` stands for words that change.",
    ]
    sections = {**SCANS, **PICTURES, **FOLDERS}
    for heading, entries in sections.items():
        rows = [
            (
                bad.wrong,
                f"{'error' if bad.whole else bad.shown or bad.case}: {shorten(bad.line, bad.file or 'raw')}",
            )
            for bad in entries
        ]
        lines += table(heading, rows)
    lines += table("The disk, and other processes", [seen_row(seen) for seen in DISK])
    lines += table(
        "A packed data set: `--verify DIR`, and every reader",
        [(damage.wrong, shorten(damage.line, damage.file)) for damage in DAMAGE],
    )
    lines += [
        "",
        "## What looks odd and is read as it is",
        "",
        "All of these give the pairs of the plain scan, bit for bit:",
        "",
        *(f"- {name}" for name in ODD),
        "",
        "So do case ids such as " + ", ".join(f"`{name}`" for name in ODD_NAMES) + ".",
        "Names that begin with a dot (`._x.nii.gz`) are passed over. Spacings that differ are recorded as they are:",
        "the manifest has a row's first, then a column's.",
    ]
    return "\n".join(lines) + "\n"


def seen_row(seen: Seen) -> tuple[str, str]:
    return seen.wrong, f"error: {shorten(seen.line, 'out')}"


def shorten(line: str, file: str) -> str:
    return line.replace("<file>", Path(file).name)


def table(heading: str, rows: list[tuple[str, str]]) -> list[str]:
    cells = [f"| {wrong} | `{line.replace('|', chr(92) + '|')}` |" for wrong, line in rows]
    return ["", f"## {heading}", "", "| what was wrong | what the user sees |", "|---|---|", *cells]


def test_the_page_says_what_was_seen():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "write it again: python -m tests.preprocess.bad_input.test_page"
    )


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
