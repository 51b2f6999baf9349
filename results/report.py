"""The report: one HTML page with everything in it, to be opened by a double click and sent by mail.

It loads nothing: style, script and figures stand in the file. Whatever comes from metrics or names
is escaped.
"""

import base64
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hvae_hpc.config.loader import dump
from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.tables.build import sweep_remarks
from hvae_hpc.results.tables.table import NOTHING, Table
from hvae_hpc.runs.files import IMAGE_BYTES, read_file
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.plan import Plan

PAGE = Path(__file__).with_name("report.template.html")
MOST_MISSING = 200
CAPTIONS = {
    "figure2": "Real test images and each generator's first samples, with masks",
    "dice": (
        "Dice, and below it the difference to the reference on the same cases and seeds, against "
        "what is added: markers are means, bars their 95 % intervals, as in the table of arms; the "
        "line across is the reference"
    ),
    "per-case": (
        "The Dice of every test case, mean over seeds, and beside it the difference from the "
        "reference: a row's points go from its lowest case to its highest, a bar is at the median, "
        "a box from quartile to quartile"
    ),
    "cost": (
        "Mean Dice with its interval, and beside it the device time of one trained network: all "
        "attempts at its own training and, whole, at what it needed (moved copies; the generator's "
        "training and the making of all its pairs), mean over the arm's networks; packing, quality "
        "and likelihoods are not counted"
    ),
    "cases": "Worst and median cases: truth and prediction outlined",
    "progress": "A training: its bound or losses, and what the flow did",
}
"""What is said of a figure, by the first word of its file's name."""


def write_report(
    path: Path,
    plan: Plan,
    collected: Collected,
    tables: Mapping[str, Table],
    verdicts: Sequence[str],
    figures: Sequence[Path],
    figure_remarks: Sequence[str],
    spent: Table | None,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        plan, collected: what is expected, and what is there.
        tables: name to table, in the order of the page.
        verdicts: two lines per data set: the answer, and what it rests on.
        figures: files of figures: those in PNG are put in, others are named beside them.
        figure_remarks: "<figure>.png: what it does not show".
        spent: device hours by what came of them; None where nothing is known of it.
    """
    # Remarks that hold for all tables are said once on the page.
    state = " ".join([_describe_progress(plan, collected), *sweep_remarks(plan, collected)])
    titles = {name: html.escape(table.title.split(" (", 1)[0]) for name, table in tables.items()}
    parts = {
        "title": html.escape(f"{plan.sweep}: do synthetic pairs help?"),
        "sweep": html.escape(plan.sweep),
        "verdicts": _join("<p>{}</p>", verdicts) or "<p>No arm is done yet.</p>",
        "state": html.escape(state),
        "contents": "".join(f'<a href="#{name}">{title}</a>' for name, title in titles.items()),
        "tables": "".join(
            f'<section id="{name}">{table.to_html()}</section>' for name, table in tables.items()
        ),
        "figures": _show_figures(figures, figure_remarks) or "<p>None yet.</p>",
        "missing": _list_missing(collected),
        "cost": _cost_table(collected).to_html() + (spent.to_html() if spent else ""),
        "settings": _show_settings(plan),
        "made_with": _show_versions(collected),
    }
    page = PAGE.read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)  # all texts are escaped
    write_atomic(path, page)


def _join(element: str, texts: Iterable[str]) -> str:
    """Return texts as HTML elements, one after the other."""
    return "".join(element.format(html.escape(text)) for text in texts)


def _describe_progress(plan: Plan, collected: Collected) -> str:
    """Say how many runs are done, and what they took."""
    done = f"{len(collected.costs)} of {len(plan.runs)} runs are done"
    missing = f"; {len(collected.missing)} are missing, listed below" if collected.missing else ""
    costs = collected.costs
    spent = (costs["spent_s"] * costs["processes"]).groupby(costs["device"]).sum()
    took = " and ".join(
        f"{_duration(s)} of {'CPU' if name == 'cpu' else name}" for name, s in spent.items()
    )
    return f"{done}{missing}." + (f" They took {took}." if took else "")


def _duration(seconds: float) -> str:
    """Say how long, in hours from one on."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _show_figures(figures: Sequence[Path], figure_remarks: Sequence[str]) -> str:
    """Return each picture with its caption, what else is said of it, and links to its files."""
    shown = ""
    for path in (path for path in figures if path.suffix == ".png"):
        caption = next((said for kind, said in CAPTIONS.items() if path.name.startswith(kind)), "")
        about = f"{path.name}: "
        said = [caption, *(s.removeprefix(about) for s in figure_remarks if s.startswith(about))]
        files = [html.escape(other.name) for other in figures if other.stem == path.stem]
        links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
        alt = html.escape(f"{caption}: {path.stem}")
        data = base64.b64encode(read_file(path, IMAGE_BYTES)).decode()
        shown += (
            f'<figure><img loading="lazy" alt="{alt}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape('; '.join(said))} ({links})</figcaption></figure>"
        )
    return shown


def _list_missing(collected: Collected) -> str:
    if not collected.missing:
        return "<p>Nothing: every run of the plan is done.</p>"
    listed = f"<ul>{_join('<li>{}</li>', collected.missing[:MOST_MISSING])}</ul>"
    more = len(collected.missing) - MOST_MISSING
    return listed + (f"<p>... and {more} more; missing.txt has all.</p>" if more > 0 else "")


def _cost_table(collected: Collected) -> Table:
    """Return the energy and memory of done runs per stage."""
    rows = []
    for (stage, device), runs in collected.costs.groupby(["stage", "device"], sort=False):
        joule = runs["energy_j"].sum(min_count=1)
        energy = NOTHING if pd.isna(joule) else f"{joule / 3.6e6:.2f} kWh"
        memory = f"{runs['peak_memory_mib'].max():.0f} MiB"
        rows.append((str(stage), str(device), str(len(runs)), energy, memory))
    return Table(
        title="What it took",
        columns=("stage", "device", "runs", "energy", "most memory"),
        rows=rows,
        notes=[
            "Of done runs. Energy is of the runs on one GPU each: of several, only one was asked "
            "for it."
        ],
    )


def _show_settings(plan: Plan) -> str:
    """Show one resolved config per generator and one of the U-Net."""
    shown: dict[str, dict[str, Any]] = {}
    for train in plan.configs(TrainConfig):
        settings = {"model": dump(train.model), "optim": dump(train.optim)}
        shown.setdefault(f"generator {train.generator}", settings)
    for segment in plan.configs(SegmentConfig)[:1]:
        names = ("unet", "loss", "split", "image_px", "optim")
        shown["U-Net"] = {name: dump(getattr(segment, name)) for name in names}

    blocks = []
    for name, values in shown.items():
        (flat,) = pd.json_normalize(values).to_dict("records")
        lines = html.escape("\n".join(f"{key} = {value}" for key, value in flat.items()))
        summary = html.escape(name)
        blocks.append(f"<details><summary>{summary}</summary><pre>{lines}</pre></details>")
    return "".join(blocks)


def _show_versions(collected: Collected) -> str:
    """Show which versions and machines made how many runs."""
    lines = []
    titles = {"torch": "torch", "device": "device", "host": "node", "code_sha": "code"}
    for column, title in titles.items():
        counts = Counter(collected.costs[column]).most_common(12)
        named = ", ".join(f"{name or 'unknown'} ({n} runs)" for name, n in counts)
        lines.append(f"{title}: {named}")
    return f"<ul>{_join('<li>{}</li>', lines)}</ul>"
