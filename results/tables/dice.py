"""Tables 1 and 2, as in the paper: built once from the collected rows, rendered as text, Markdown and CSV.

The text and the Markdown show rounded cells beside the published ones; the CSV is tidy, one line
per cell, with all digits.
"""

import csv
import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from hvae_hpc.config.stages import QualityConfig, SegmentConfig, TrainConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import (
    arm_label,
    method_of,
    ordered_arms,
    ordered_sources,
    source_label,
)
from hvae_hpc.results.statistics import Summary, pool
from hvae_hpc.runs.plan import Plan

PUBLISHED = Path(__file__).parents[1] / "published"
SOURCE = "Kebaili et al. 2023, arXiv:2311.10472"
NOTHING = "—"
_DIGITS = 3
_WIDTH = 100
_NAMED = 6

_NUMBERS = ("mean", "sd", "published_mean", "published_sd")
TIDY_1 = ("data", "arm", "method", "amount", "n", "n_expected", *_NUMBERS)
TIDY_2 = ("data", "source", "metric", "n", *_NUMBERS)

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table ready to be rendered.

    Attributes:
        title: one line.
        columns, rows: what people read.
        notes: the caption's paragraphs, below the table.
        tidy_columns, tidy_rows: the CSV; None for what is not there.
        bold: (row, column) of cells that stand out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    tidy_columns: tuple[str, ...]
    tidy_rows: tuple[tuple[Cell, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()


def without_constants(table: Table) -> Table:
    """Return a table by data sets without empty columns, and where there is but one set with its name in the title."""
    if table.columns[0] != "data":
        return table
    drop = {
        j
        for j in range(1, len(table.columns))
        if all(row[j] in ("", NOTHING) for row in table.rows)
    }
    names = {row[0] for row in table.rows}
    drop |= {0} if len(names) == 1 else set()
    kept = [j for j in range(len(table.columns)) if j not in drop]
    return replace(
        table,
        title=", ".join([table.title, *(names if 0 in drop else ())]),
        columns=tuple(table.columns[j] for j in kept),
        rows=tuple(tuple(row[j] for j in kept) for row in table.rows),
        bold=frozenset((i, kept.index(j)) for i, j in table.bold),
    )


def build_table1(plan: Plan, collected: Collected, best: Mapping[str, str]) -> Table | None:
    """Return Dice per arm and data set beside the published; None for a plan without segment runs.

    Args:
        plan, collected: what is expected, and what is there.
        best: data set to the arm that is set in bold; see
            :func:`hvae_hpc.results.tables.arms.supported_best`.
    """
    expected = Counter((config.data, config.arm.name) for config in plan.configs(SegmentConfig))
    if not expected:
        return None
    names = [data for data in plan.data if any(key[0] == data for key in expected)]
    published = read_published("table1")
    compared = [data for data in names if any(key[0] == data for key in published)]
    columns = ["arm"]
    for data in names:
        columns += [data, f"{data}, published"] if data in compared else [data]
    rows: list[tuple[str, ...]] = []
    tidy: list[tuple[Cell, ...]] = []
    bold: set[tuple[int, int]] = set()
    for arm in ordered_arms(plan):
        method, amount = method_of(arm)
        cells = [arm_label(arm)]
        for data in names:
            ours = collected.dice(data, arm.name)
            printed = published.get((data, method, amount), {})
            if best.get(data) == arm.name:
                bold.add((len(rows), len(cells)))
            cells.append(cell_of(ours, expected[data, arm.name]))
            if data in compared:
                cells.append(_printed(printed, ""))
            if expected[data, arm.name]:
                cell = (
                    *tidy_of(ours, expected[data, arm.name]),
                    printed.get("mean"),
                    printed.get("sd"),
                )
                tidy.append((data, arm.name, method, amount, *cell))
        rows.append(tuple(cells))
    return Table(
        title=f"Table 1 ({plan.sweep}): Dice on the test cases",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(_caption1(plan, bool(compared), bool(bold)), *remarks(plan, collected)),
        tidy_columns=TIDY_1,
        tidy_rows=tuple(sorted(tidy, key=lambda row: names.index(str(row[0])))),
        bold=frozenset(bold),
    )


def build_table2(plan: Plan, collected: Collected) -> Table | None:
    """Return PSNR and SSIM per data set and source beside the published; None without quality runs."""
    if not plan.configs(QualityConfig):
        return None
    published = read_published("table2")
    compared = any(data in plan.data for data, _, _ in published)
    draws: Counter[tuple[str, str]] = Counter()
    for config in plan.configs(QualityConfig):
        draws[config.data, config.source] += config.draws
    rows, tidy = [], []
    for data in plan.data:
        for source in ordered_sources(plan, data):
            quality = collected.quality
            of_source = quality[(quality["data"] == data) & (quality["source"] == source)]
            printed = published.get((data, source, ""), {})
            cells = [data, source_label(source)]
            for metric in ("psnr", "ssim"):
                ours = _over_draws(of_source, metric)
                cells.append(cell_of(ours, draws[data, source]))
                if compared:
                    cells.append(_printed(printed, f"{metric}_"))
                paper = printed.get(f"{metric}_mean"), printed.get(f"{metric}_sd")
                n, _, mean, sd = tidy_of(ours, 0)
                tidy.append((data, source, metric, n, mean, sd, *paper))
            rows.append(tuple(cells))
    beside = ["published"] if compared else []
    return Table(
        title=f"Table 2 ({plan.sweep}): images against the test images, unpaired",
        columns=("data", "images", "PSNR (dB)", *beside, "SSIM", *beside),
        rows=tuple(rows),
        notes=(_caption2(compared), *remarks(plan, collected)),
        tidy_columns=TIDY_2,
        tidy_rows=tuple(tidy),
    )


@cache
def read_published(name: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Read a published table: (data, method, amount) to column to number, digits as printed."""
    with open(PUBLISHED / f"{name}.csv", encoding="utf-8", newline="") as file:
        return {
            (row["data"], row["method"], row.get("amount", "")): row for row in csv.DictReader(file)
        }


def render_text(table: Table) -> str:
    """Return a table for the terminal."""
    lines = [[_printable(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    notes = [textwrap.fill(_printable(note), _WIDTH) for note in table.notes]
    return "\n".join([_printable(table.title), "", *text, "", *notes]) + "\n"


def render_markdown(table: Table) -> str:
    """Return a table as GitHub Markdown; names that hold Markdown or HTML are shown, not obeyed."""
    shown = [
        [
            f"**{_escape(cell)}**" if (i, j) in table.bold else _escape(cell)
            for j, cell in enumerate(row)
        ]
        for i, row in enumerate(table.rows)
    ]
    head, *body = (f"| {' | '.join(row)} |" for row in (map(_escape, table.columns), *shown))
    rule = f"|{'---|' * len(table.columns)}"
    paragraphs = [
        f"### {_escape(table.title)}",
        "\n".join([head, rule, *body]),
        *map(_escape, table.notes),
    ]
    return "\n\n".join(paragraphs) + "\n"


def render_csv(table: Table) -> str:
    """Return a table's numbers in tidy form with all digits; equal numbers give equal bytes."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.tidy_columns)
    writer.writerows(table.tidy_rows)
    return file.getvalue()


def _over_draws(rows: pd.DataFrame, metric: str) -> Summary | None:
    """Return the summary of all draws of one source; None where no run is done."""
    columns = zip(rows["n"], rows[f"{metric}_mean"], rows[f"{metric}_sd"], strict=True)
    parts = [Summary(n=n, mean=mean, sd=None if math.isnan(sd) else sd) for n, mean, sd in columns]
    return pool(parts) if parts else None


def cell_of(summary: Summary | None, expected: int, digits: int = _DIGITS) -> str:
    """Return "mean ± sd (n)" for people, with n of how many where some are missing."""
    if summary is None:
        return f"{NOTHING} (0/{expected})" if expected else NOTHING
    sd = NOTHING if summary.sd is None else f"{summary.sd:.{digits}f}"
    count = summary.n if summary.n == expected else f"{summary.n}/{expected}"
    return f"{summary.mean:.{digits}f} ± {sd} ({count})"


def _printed(row: dict[str, str], prefix: str) -> str:
    return f"{row[f'{prefix}mean']} ± {row[f'{prefix}sd']}" if row else NOTHING


def tidy_of(summary: Summary | None, expected: int) -> tuple[Cell, Cell, Cell, Cell]:
    """Return n, the expected n, mean and sd for the CSV."""
    if summary is None:
        return 0, expected, None, None
    return summary.n, expected, summary.mean, summary.sd


def _caption1(plan: Plan, compared: bool, bold: bool) -> str:
    splits = {config.data: config.split for config in plan.configs(SegmentConfig)}
    cases = "; ".join(
        f"{data}: {s.train} training and {s.test} test cases" for data, s in splits.items()
    )
    published = (
        f" Published: {SOURCE}, Table 1, as printed: real scans, 100 training and 100 test cases."
        if compared
        else ""
    )
    best = (
        " Bold: the highest, where it differs from the reference beyond chance (p in the table of arms)."
        * bold
    )
    return f"Hard Dice per case, mean over the test cases. {_spread(plan)}{_budget(plan)} {cases}.{published}{best}"


def _budget(plan: Plan) -> str:
    """Say where arms of different sizes take the same number of steps, which the paper's do not."""
    configs = [config for config in plan.configs(SegmentConfig) if "@" not in config.arm.name]
    sizes = {(config.arm.n_added, config.arm.n_cases, config.arm.alone) for config in configs}
    if len(sizes) == 1 or any(
        len({c.optim.images for c in configs if c.data == data}) > 1 for data in plan.data
    ):
        return ""
    others = any("@" in config.arm.name for config in plan.configs(SegmentConfig))
    return f" All arms take the same number of steps{' but those that say otherwise' * others}, unlike the paper's."


def _spread(plan: Plan) -> str:
    """Say which variance the ± of Table 1 covers, from what the plan multiplies."""
    splits = {config.split.seed for config in plan.configs(SegmentConfig)}
    trained = Counter(
        (config.data, config.generator, config.split) for config in plan.configs(TrainConfig)
    )
    generators = max(trained.values(), default=1)
    if len(splits) == 1 and generators == 1:
        return (
            "± is the standard deviation (ddof 1) over the U-Net seeds (their number in brackets), on one "
            "split and with one generator seed: it does not cover the draw of cases or the generator."
        )
    return (
        "± is the standard deviation (ddof 1) over all runs of an arm, their number in brackets: "
        f"U-Net seeds, {len(splits)} split(s) and {generators} generator seed(s) together."
    )


def _caption2(compared: bool) -> str:
    published = f" Published: {SOURCE}, Table 2, as printed." if compared else ""
    return (
        "Unpaired: PSNR and SSIM compare unrelated images, as in the paper, a set's images with test images "
        "paired at random. A constant mean image typically scores higher than real images against real ones: "
        "read the generators against these two rows. ± is the standard deviation (ddof 1) over the draws "
        f"(their number in brackets). SSIM is a fraction.{published}"
    )


def remarks(plan: Plan, collected: Collected) -> list[str]:
    """Return what must be said below any table: missing runs, mixed code, U-Nets that learned nothing."""
    lines = []
    if collected.missing:
        count = f"{len(collected.missing)} of {len(plan.runs)}"
        lines.append(f"Partial: {count} expected runs have no result; (7/10) means 7 of 10.")
    if len(collected.code_shas) > 1:
        versions = ", ".join(f"{sha} ({count} runs)" for sha, count in collected.code_shas.items())
        lines.append(
            f"Mixed code: {len(collected.code_shas)} versions of the code made the runs: {versions}."
        )
    failed = collected.segment[collected.segment["dice"] == 0]
    if len(failed):
        runs = [
            f"{data} {arm} seed {seed}"
            for data, arm, seed in failed[["data", "arm", "seed"]].itertuples(index=False)
        ]
        named = ", ".join(runs[:_NAMED]) + (
            f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
        )
        lines.append(
            f"Dice 0 on every test case: {named}. Such a training failed; it counts in means, intervals and p as it is."
        )
    return lines


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _escape(text: str) -> str:
    """Make a name safe in a Markdown cell."""
    text = _printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)
