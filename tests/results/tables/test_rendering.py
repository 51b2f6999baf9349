"""Tables for papers and pages: their structure, and that no text of theirs is obeyed."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd

from hvae_hpc.results.statistics import Comparison
from hvae_hpc.results.tables.table import Table, format_estimate, to_csv

NASTY = r"50 % of $x_1$ & {a}\input{/etc/passwd} ~ ^ # <b>é±×↑↓—"
TABLE = Table(
    title=f"Title {NASTY}",
    columns=("arm", "Dice", NASTY),
    rows=(
        ("reference", "0.600 ± 0.009 (10)", "a"),
        (NASTY, "< 0.001", "2 of 3"),
        ("x", "-0.5 [-1, 2]", "—"),
    ),
    notes=("First.", f"Then {NASTY}"),
    bold=frozenset({(1, 1)}),
)


def plain(latex: str) -> str:
    """Undo the escapes that a text may have; what is left must have no special character of LaTeX."""
    words = r"textbackslash|textasciitilde|textasciicircum|textless|textgreater"
    latex = re.sub(rf"\\(?:{words})\{{\}}|\$\\(?:pm|times|uparrow|downarrow)\$|\$-\$", "", latex)
    return re.sub(r"\\[&%$#_{}]", "", latex)


def test_the_latex_is_one_table_of_booktabs_with_as_many_cells_as_columns() -> None:
    lines = TABLE.to_latex("table 1").splitlines()
    begins = [line for line in lines if line.startswith(r"\begin")]
    assert begins == [
        r"\begin{table}",
        r"\begin{tabular}{rrr}",
    ]  # right-aligned where any cell is a number
    assert [line for line in lines if line.startswith(r"\end")] == [
        r"\end{tabular}",
        r"\end{table}",
    ]
    rules = [lines.index(rf"\{rule}rule") for rule in ("top", "mid", "bottom")]
    assert rules == sorted(rules)
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 1 + len(TABLE.rows)
    for row in rows:
        assert plain(row.removesuffix(r"\\")).count("&") == 2
    assert r"\label{tab:table-1}" in lines
    (bold,) = [row for row in rows if r"\textbf" in row]
    assert r"\textbf{\textless{} 0.001}" in bold


def test_the_latex_has_no_command_and_no_special_character_from_a_text() -> None:
    text = TABLE.to_latex("x")
    own = r"begin|end|centering|caption|label|toprule|midrule|bottomrule|textbf"
    left = re.sub(rf"\\(?:{own})\b|\\\\$", "", plain(text), flags=re.M)
    assert "\\" not in left
    assert not re.search(r"[%$#_~^]", left)
    assert left.count("{") == left.count("}")
    assert left.isascii()


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.numbers: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "td":
            self.numbers.append(dict(attrs).get("data-n"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_html_says_what_the_table_says_and_obeys_none_of_it() -> None:
    reader = Reader()
    reader.feed(TABLE.to_html().strip())
    assert reader.open == []
    assert set(reader.tags) <= {
        "figure", "h3", "div", "table", "thead", "tbody", "tr", "th", "td", "strong", "figcaption", "p",
    }  # fmt: skip
    assert reader.texts == [
        TABLE.title, *TABLE.columns, *(cell for row in TABLE.rows for cell in row), *TABLE.notes,
    ]  # fmt: skip
    assert reader.tags.count("strong") == 1


def test_a_cell_is_sorted_by_the_number_that_it_begins_with() -> None:
    reader = Reader()
    reader.feed(TABLE.to_html())
    assert reader.numbers == [None, "0.600", None, "50", "0.001", "2", None, "-0.5", None]


def test_a_number_of_thousands_is_a_whole_number() -> None:
    reader = Reader()
    cells = ("1,234.5 hours", "12,345,678", "+1,000 x", "1, 2", "0.5,1", "1,2345")
    reader.feed(replace(TABLE, rows=(cells[:3], cells[3:]), bold=frozenset()).to_html())
    assert reader.numbers == ["1234.5", "12345678", "+1000", "1", "0.5", "1"]


def test_a_text_in_a_csv_is_neither_a_formula_nor_a_number() -> None:
    texts = ["12345e678901", "012345678901", "=cmd|' /C calc'!A0", "@SUM(A1)", "-1+HYPERLINK(A1)"]
    plain = ["+100", "+16.5 %", "x2", "abc", "a=1"]
    rows = pd.DataFrame({"text": [*texts, *plain], "number": [-1.5] * 9 + [None]})
    read = pd.read_csv(io.StringIO(to_csv(rows)))
    assert read["text"].tolist() == [*(f"'{text}" for text in texts), *plain]
    assert read["number"].equals(rows["number"])


def test_printed_intervals_end_where_dice_ends() -> None:
    estimate = Comparison(
        mean=0.56, low=-2.2, high=1.3, p=0.5, standard_error=0.3, freedom=1, not_covered=()
    )
    assert format_estimate(estimate) == "0.560 [0.000, 1.000]"
    assert format_estimate(estimate, "+") == "+0.560 [-1.000, +1.000]"
