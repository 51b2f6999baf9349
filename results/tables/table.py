"""A table of results: what people read, the numbers behind it, and how it is printed."""

import html
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from hvae_hpc.errors import printable
from hvae_hpc.frozen import frozen
from hvae_hpc.results.statistics import Comparison, Summary

NOTHING = "—"
_WIDTH = 100
_LATEX_TABLE = r"""\begin{table}
\centering
\caption{%s}
\label{tab:%s}
\begin{tabular}{%s}
\toprule
%s
\midrule
%s
\bottomrule
\end{tabular}
\end{table}
"""
_LATEX = str.maketrans(
    {
        **{letter: rf"\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "—": "---",
        "−": "$-$",
    }
)

# A formula (but "+100" and "+16.5 %" are none), or a whole number such as the hash 12345e678901.
_NOT_LIKE_TEXT = re.compile(r"[=@\t\r]|[-+](?![\d.]+( %)?$)|\d+(e\d+)?$", re.IGNORECASE)


@frozen
class Table:
    """A table, printed as text, Markdown, CSV, LaTeX or HTML; every text in it is escaped.

    Attributes:
        title: one line.
        columns, rows: what people read, rounded.
        notes: the caption's paragraphs, below the table; their line breaks do not count.
        numbers: the CSV's rows, column to value, with all digits; None for what does not exist.
            Where there are none, the CSV has ``rows``.
        bold: (row, column) of cells that stand out.
        remarks: what must be said below every table of the sweep. The HTML leaves them out: a page
            of many tables says them once.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers: Sequence[Mapping[Any, Any]] = ()
    bold: Collection[tuple[int, int]] = ()
    remarks: Sequence[str] = ()

    def __post_init__(self) -> None:
        # In the code they have line breaks and indentation.
        object.__setattr__(self, "notes", [" ".join(note.split()) for note in self.notes])

    def to_text(self) -> str:
        """Return the table for a terminal."""
        lines = [[printable(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]

        notes = [textwrap.fill(printable(note), _WIDTH) for note in (*self.notes, *self.remarks)]
        return "\n".join([printable(self.title), "", *body, "", *notes]) + "\n"

    def to_markdown(self) -> str:
        """Return the table for GitHub."""
        lines = (
            map(_escape_markdown, self.columns),
            *self._escape_rows(_escape_markdown, "**{}**"),
        )
        head, *body = (f"| {' | '.join(line)} |" for line in lines)
        rule = "|" + "---|" * len(self.columns)

        notes = map(_escape_markdown, (*self.notes, *self.remarks))
        title = f"### {_escape_markdown(self.title)}"
        return "\n\n".join([title, "\n".join([head, rule, *body]), *notes]) + "\n"

    def to_csv(self) -> str:
        """Return the numbers; equal numbers give equal bytes."""
        columns = None if self.numbers else list(self.columns)
        return to_csv(pd.DataFrame(self.numbers or self.rows, columns=columns, dtype=object))

    def to_latex(self, label: str) -> str:
        r"""Return a table environment, which needs ``\usepackage{booktabs}`` and nothing else.

        A column is aligned right if any of its cells is a number. Letters that LaTeX cannot print
        without packages become "?".

        Args:
            label: of ``\label{tab:...}``.
        """
        columns = zip(*self.rows, strict=True)
        align = "".join("r" if any(map(_leading_number, cells)) else "l" for cells in columns)
        caption = f"{self.title}. {' '.join((*self.notes, *self.remarks))}"

        lines = (
            map(_escape_latex, self.columns),
            *self._escape_rows(_escape_latex, r"\textbf{{{}}}"),
        )
        head, *body = (" & ".join(line) + r" \\" for line in lines)
        name = re.sub(r"[^A-Za-z0-9-]", "-", label)
        return _LATEX_TABLE % (_escape_latex(caption), name, align, head, "\n".join(body))

    def to_html(self) -> str:
        """Return a figure with the table, without the remarks.

        A column is sorted by the numbers that its cells begin with (``data-n``). The columns that
        name a row stay in sight when the table is scrolled: the first one, and after data sets the
        second one.
        """
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = ""
        escaped_rows = self._escape_rows(html.escape, "<strong>{}</strong>")
        for row, escaped in zip(self.rows, escaped_rows, strict=True):
            cells = ""
            for cell, shown in zip(row, escaped, strict=True):
                number = _leading_number(cell)
                cells += f'<td data-n="{number}">{shown}</td>' if number else f"<td>{shown}</td>"
            body += f"<tr>{cells}</tr>"

        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        scroll = "scroll two" if self.columns[0] == "data" else "scroll"
        return (
            f'<figure class="table"><h3>{html.escape(self.title)}</h3><div class="{scroll}">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
            f"<figcaption>{notes}</figcaption></figure>\n"
        )

    def without_constant_columns(self) -> "Table":
        """Leave out empty columns; name a single data set in the title."""
        if self.columns[0] != "data":
            return self
        names = {row[0] for row in self.rows}
        kept = [
            j
            for j, cells in enumerate(zip(*self.rows, strict=True))
            if (len(names) > 1 if j == 0 else not set(cells) <= {"", NOTHING})
        ]
        return replace(
            self,
            title=self.title if 0 in kept else f"{self.title}, {names.pop()}",
            columns=[self.columns[j] for j in kept],
            rows=[[row[j] for j in kept] for row in self.rows],
            bold=[(i, kept.index(j)) for i, j in self.bold],
        )

    def _escape_rows(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        """Return the cells escaped, and those in bold put into a format."""
        return [
            [
                bold.format(escape(cell)) if (i, j) in self.bold else escape(cell)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]


def to_csv(rows: pd.DataFrame) -> str:
    """Return rows as CSV whose texts stay texts, in pandas and in a spreadsheet.

    A text that would be read as a formula or as a whole number gets an apostrophe before it.
    """
    marked = rows.copy()
    for name in rows.select_dtypes(exclude="number"):
        cells = [
            f"'{cell}" if isinstance(cell, str) and _NOT_LIKE_TEXT.match(cell) else cell
            for cell in rows[name]
        ]
        marked[name] = pd.Series(cells, index=rows.index, dtype=object)
    return marked.to_csv(index=False, lineterminator="\n")


def format_summary(summary: Summary | None, expected: int, digits: int = 3) -> str:
    """Return "mean ± sd (n)" for people; "(7/10)" where 3 of 10 are missing."""
    if summary is None:
        return f"{NOTHING} (0/{expected})" if expected else NOTHING
    sd = NOTHING if summary.sd is None else f"{summary.sd:.{digits}f}"
    count = summary.n if summary.n == expected else f"{summary.n}/{expected}"
    return f"{summary.mean:.{digits}f} ± {sd} ({count})"


def format_estimate(estimate: Comparison | None, sign: str = "") -> str:
    """Return "mean [low, high]" of Dice for people, its ends cut to what Dice can be.

    A sign of "+" is for differences.
    """
    if estimate is None:
        return NOTHING
    low, high = max(estimate.low, -1 if sign else 0), min(estimate.high, 1)
    return f"{estimate.mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def summary_numbers(summary: Summary | None, **expected: int) -> dict[str, Any]:
    """Return n, n_expected where it is given by this name, mean and sd for the CSV."""
    numbers = {"n": 0, **expected, "mean": None, "sd": None}
    return {**numbers, **vars(summary)} if summary else numbers


def _leading_number(cell: str) -> str:
    """Return the number that a cell begins with, after "< " too; "" where it begins with none."""
    number = r"(?:< )?([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?![\w-])"
    match = re.match(number, cell)
    return match[1].replace(",", "") if match else ""


def _escape_markdown(text: str) -> str:
    """Make a text safe in a Markdown cell: its Markdown and HTML are shown and not obeyed."""
    text = html.escape(printable(text), quote=False)
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)


def _escape_latex(text: str) -> str:
    """Escape a text for LaTeX; what is neither ASCII nor known becomes "?"."""
    return re.sub(r"[^ -~]", "?", text.translate(_LATEX))
