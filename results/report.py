"""The report: one HTML page with everything in it, to be opened by a double click and sent by mail.

It loads nothing: style, script and figures stand in the file. Whatever comes from metrics or names is escaped.
"""

import base64
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hvae_hpc.config import dump
from hvae_hpc.plan import Plan
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.rendering import render_html
from hvae_hpc.results.tables import Table
from hvae_hpc.rundir import write_atomic
from hvae_hpc.stages import SegmentConfig, TrainConfig

PAGE = Path(__file__).with_name("report.template.html")
MOST_MISSING = 200
CAPTIONS = {
    "figure2": "Real test images and each generator's first samples, with masks",
    "dice": "Dice, and below it the difference to the reference on the same cases and seeds, against the number of "
    "synthetic pairs: markers are means, bars and bands their 95 % intervals by a two-way bootstrap, over what the "
    "axis names (over fewer than six seeds they are too narrow); the reference and the largest standard augmentation "
    "have the bands",
    "per-case": "The Dice of every test case, mean over seeds, and beside it the same less the reference's: a row's "
    "points go from its lowest case to its highest, a bar is at the median, a box from quartile to quartile; where "
    "arms are many, each method's best by these same cases",
    "cost": "Mean Dice with its interval against the device time of one trained network: all attempts at its own "
    "training and, whole, at what it needed (moved copies; the generator's training and the making of all its pairs), "
    "mean over the arm's networks; packing, quality and likelihoods are not counted; numbered arms are named below",
    "cases": "Worst and median cases: truth and prediction outlined",
    "progress": "A training: its bound or losses, and what the flow did",
}


def write_report(
    path: Path,
    plan: Plan,
    collected: Collected,
    tables: Mapping[str, Table],
    verdicts: Sequence[str],
    figures: Sequence[Path],
) -> Path:
    """Write the page.

    Args:
        path: of the page.
        plan, collected: what is expected, and what is there.
        tables: name to table, in the order of the page.
        verdicts: a sentence per data set.
        figures: files of figures: those in PNG are put in, others are named beside them.

    Returns:
        The path.
    """
    parts = {
        "title": html.escape(f"{plan.sweep}: do synthetic pairs help?"),
        "sweep": html.escape(plan.sweep),
        "verdicts": "".join(f"<p>{html.escape(sentence)}</p>" for sentence in verdicts) or "<p>No arm is done yet.</p>",
        "state": html.escape(_state(plan, collected)),
        "contents": "".join(f'<a href="#{name}">{html.escape(_short(table))}</a>' for name, table in tables.items()),
        "tables": "".join(f'<section id="{name}">{render_html(table)}</section>' for name, table in tables.items()),
        "figures": "".join(_figure(path, figures) for path in figures if path.suffix == ".png") or "<p>None yet.</p>",
        "missing": _missing(collected),
        "cost": render_html(_cost_table(collected)),
        "settings": _settings(plan),
        "made_with": _made_with(collected),
    }
    page = PAGE.read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)  # no text has a "<" of its own
    write_atomic(path, page)
    return path


def _state(plan: Plan, collected: Collected) -> str:
    done = f"{len(collected.done)} of {len(plan.runs)} runs are done"
    return done + ("." if not collected.missing else f"; {len(collected.missing)} are missing, listed below.")


def _short(table: Table) -> str:
    return table.title.split(" (", 1)[0]


def _figure(path: Path, figures: Sequence[Path]) -> str:
    caption = next((text for kind, text in CAPTIONS.items() if path.name.startswith(f"{kind}-")), "")
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    files = ", ".join(html.escape(other.name) for other in figures if other.stem == path.stem)
    return (
        f'<figure><img loading="lazy" alt="{html.escape(caption)}: {name}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)} ({files})</figcaption></figure>"
    )


def _missing(collected: Collected) -> str:
    if not collected.missing:
        return "<p>Nothing: every run of the plan is done.</p>"
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in collected.missing[:MOST_MISSING])
    more = len(collected.missing) - MOST_MISSING
    return f"<ul>{shown}</ul>" + (f"<p>... and {more} more.</p>" if more > 0 else "")


def _cost_table(collected: Collected) -> Table:
    """Return device hours per stage: of the attempts that ended in a result, and of those before them."""
    costs = collected.costs
    rows, tidy = [], []
    for (stage, device), group in costs.groupby(["stage", "device"], sort=False):
        useful = float((group["wall_s"] * group["processes"]).sum()) / 3600
        lost = float(((group["spent_s"] - group["wall_s"]) * group["processes"]).sum()) / 3600
        energy = group["energy_j"].sum(min_count=1) / 3.6e6
        rows.append((
            str(stage), str(device), str(len(group)), f"{useful:.2f} h", f"{lost:.2f} h",
            "—" if pd.isna(energy) else f"{energy:.2f} kWh", f"{group['peak_memory_mib'].max():.0f} MiB",
        ))  # fmt: skip
        tidy.append((str(stage), str(device), len(group), useful, lost, None if pd.isna(energy) else float(energy)))
    return Table(
        title="What it took",
        columns=("stage", "device", "runs", "last attempts", "attempts before", "energy", "most memory"),
        rows=tuple(rows),
        notes=(
            "Hours of a device (a GPU, or a CPU process), of done runs: of the attempts that ended in a result, and of "
            "earlier ones that were preempted, killed or failed. A resumed run goes on from its checkpoint, so most of "
            "the latter is not lost.",
        ),
        tidy_columns=("stage", "device", "runs", "last_attempts_h", "attempts_before_h", "energy_kwh"),
        tidy_rows=tuple(tidy),
    )


def _settings(plan: Plan) -> str:
    """Show one resolved config per generator and one of the U-Net."""
    shown: dict[str, object] = {}
    for train in plan.configs(TrainConfig):
        shown.setdefault(f"generator {train.generator}", {"model": dump(train.model), "optim": dump(train.optim)})
    for segment in plan.configs(SegmentConfig)[:1]:
        what = {"unet": segment.unet, "loss": segment.loss, "split": segment.split, "image_px": segment.image_px}
        shown["U-Net"] = {**{name: dump(value) for name, value in what.items()}, "optim": dump(segment.optim)}
    blocks = []
    for name, values in shown.items():
        lines = "\n".join(_lines(values))
        blocks.append(f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(lines)}</pre></details>")
    return "".join(blocks)


def _lines(values: object, name: str = "") -> list[str]:
    """Return nested settings as lines "optim.lr = 0.001"."""
    if isinstance(values, Mapping):
        return [line for key, value in values.items() for line in _lines(value, f"{name}.{key}".lstrip("."))]
    return [f"{name} = {values}"]


def _made_with(collected: Collected) -> str:
    costs = collected.costs
    lines = []
    for column, what in (("torch", "torch"), ("device", "device"), ("host", "node"), ("code_sha", "code")):
        counts = Counter(costs[column]).most_common(12)
        named = ", ".join(f"{name or 'unknown'} ({n} runs)" for name, n in counts)
        lines.append(f"<li>{what}: {html.escape(named)}</li>")
    return f"<ul>{''.join(lines)}</ul>"
