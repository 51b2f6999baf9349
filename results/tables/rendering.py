"""Tables for papers and pages: LaTeX with booktabs, and HTML whose columns can be sorted."""

import html
import re

from hvae_hpc.results.tables.dice import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
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


def render_latex(table: Table, label: str) -> str:
    """Return a table environment; it needs ``\\usepackage{booktabs}`` and nothing else.

    Args:
        table: cells in bold are set so; what LaTeX cannot print without packages becomes "?".
        label: of ``\\label{tab:...}``.
    """
    text_columns = [
        i for i in range(len(table.columns)) if not any(_number(row[i]) for row in table.rows)
    ]
    align = "".join("l" if i in text_columns else "r" for i in range(len(table.columns)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}. {_latex(' '.join(table.notes))}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', label)}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(map(_latex, table.columns)) + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        cells = [
            rf"\textbf{{{_latex(cell)}}}" if (i, j) in table.bold else _latex(cell)
            for j, cell in enumerate(row)
        ]
        # A "[" or "*" after the line before would be taken for an argument of its end.
        lines.append("{}" * row[0].startswith(("[", "*")) + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def render_html(table: Table) -> str:
    """Return a figure with a table; all text is escaped, and a cell's first number is what its column is sorted by.

    What names a row stays in sight when the table is scrolled: its first column, and the next one
        too after data sets.
    """
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    body = []
    for i, row in enumerate(table.rows):
        cells = []
        for j, cell in enumerate(row):
            number = _number(cell)
            shown = html.escape(cell)
            shown = f"<strong>{shown}</strong>" if (i, j) in table.bold else shown
            cells.append(f'<td data-n="{number}">{shown}</td>' if number else f"<td>{shown}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    kept = "scroll two" if table.columns[0] == "data" else "scroll"
    return (
        f'<figure class="table"><h3>{html.escape(table.title)}</h3><div class="{kept}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div><figcaption>{notes}</figcaption></figure>\n"
    )


def _number(cell: str) -> str:
    """Return the number that a cell begins with, after "<" too, thousands or not; "" where it begins with none."""
    found = re.match(r"(?:< )?([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?![\w-])", cell)
    return found[1].replace(",", "") if found else ""


def _latex(text: str) -> str:
    """Escape a text for LaTeX."""
    escaped = (
        _LATEX.get(char, char if char.isascii() and char.isprintable() else "?") for char in text
    )
    return "".join(escaped)
