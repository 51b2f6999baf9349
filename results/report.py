"""The report: one HTML page with everything in it, to be opened by a double click and sent by mail.

It loads nothing: style, script and figures stand in the file. Whatever comes from metrics or names
    is escaped.
"""

import base64
import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.loader import dump
from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.tables.build import sweep_remarks
from hvae_hpc.results.tables.table import Table
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.plan import Plan

PAGE = Path(__file__).with_name("report.template.html")
MOST_MISSING = 200
CAPTIONS = {
    "figure2": "Real test images and each generator's first samples, with masks",
    "dice": "Dice, and below it the difference to the reference on the same cases and seeds, against the number of "
    "synthetic pairs: markers are means, bars and bands their 95 % intervals by a two-way bootstrap, over what the "
    "axis names (over fewer than six seeds they are too narrow); the reference and the largest standard augmentation "
    "have the bands",
    "per-case": "The Dice of every test case, mean over seeds, and beside it the difference from the reference: a "
    "row's points go from its lowest case to its highest, a bar is at the median, a box from quartile to quartile; "
    "where arms are many, each method's best by these same cases",
    "cost": "Mean Dice with its interval against the device time of one trained network: all attempts at its own "
    "training and, whole, at what it needed (moved copies; the generator's training and the making of all its pairs), "
    "mean over the arm's networks; packing, quality and likelihoods are not counted; numbered arms are named below",
    "cases": "Worst and median cases: truth and prediction outlined",
    "progress": "A training: its bound or losses, and what the flow did",
}
ARMS: tuple[tuple[Callable[[ArmConfig], object], str], ...] = (
    (
        lambda arm: arm.name.startswith("reference"),
        "<b>Reference</b>: the real training pairs alone.",
    ),
    (
        lambda arm: arm.n_standard,
        "<b>Standard aug. ×5</b>: with flipped, turned and cropped copies, 5 times as many.",
    ),
    (
        lambda arm: arm.moves,
        "<b>Moved in every step</b>: the same moves, drawn anew whenever a pair is seen.",
    ),
    (
        lambda arm: arm.n_copies,
        "<b>Copies ×5</b>: with plain copies; a control for training longer.",
    ),
    (lambda arm: arm.n_cases, "<b>Real, 300 cases</b>: the pairs of more real patients."),
    (
        lambda arm: arm.generator,
        "<b>HVAE + 100</b>: with 100 pairs that this generator made (LSGAN, VAE, HVAE, ...).",
    ),
    (
        lambda arm: arm.shuffled,
        "<b>masks shuffled</b>: each made image under another one's mask; a control.",
    ),
    (lambda arm: arm.alone, "<b>only</b>: made pairs alone, without the real ones."),
    (lambda arm: arm.first_share, "<b>first</b>: made pairs alone at first, then the real ones."),
    (
        lambda arm: "@" in arm.name,
        "<b>equal epochs, equal steps</b>: how long an arm with more images trains.",
    ),
)
"""Which arms are of a kind, and what it is, in HTML."""
SAMPLERS = {
    "aggregated": "pairs drawn between encoded real ones, not from the prior.",
    "mixture": "pairs drawn from Gaussians fitted on encoded real ones, not from the prior.",
    "hmc": "pairs drawn around real ones, not from the prior.",
    "mask": "pairs drawn to fit real masks, not from the prior.",
}


def write_report(
    path: Path,
    plan: Plan,
    collected: Collected,
    tables: Mapping[str, Table],
    verdicts: Sequence[str],
    figures: Sequence[Path],
    figure_remarks: Sequence[str] = (),
    spent: Table | None = None,
) -> Path:
    """Write the page.

    Args:
        path: of the page.
        plan, collected: what is expected, and what is there.
        tables: name to table, in the order of the page.
        verdicts: a sentence per data set.
        figures: files of figures: those in PNG are put in, others are named beside them.
        figure_remarks: "<figure>.png: what it does not show".
        spent: device hours by what came of them; None where nothing is known of it.

    Returns:
        The path.
    """
    parts = {
        "title": html.escape(f"{plan.sweep}: do synthetic pairs help?"),
        "sweep": html.escape(plan.sweep),
        "verdicts": "".join(f"<p>{html.escape(sentence)}</p>" for sentence in verdicts)
        or "<p>No arm is done yet.</p>",
        "state": " ".join(
            map(html.escape, (_state(plan, collected), *sweep_remarks(plan, collected)))
        ),
        "arms": _explain_arms(plan),
        "contents": "".join(
            f'<a href="#{name}">{html.escape(_short(table))}</a>' for name, table in tables.items()
        ),
        "tables": "".join(
            f'<section id="{name}">{table.to_html()}</section>' for name, table in tables.items()
        ),
        "figures": "".join(
            _figure(path, figures, figure_remarks) for path in figures if path.suffix == ".png"
        )
        or "<p>None yet.</p>",
        "missing": _missing(collected),
        "cost": _cost_table(collected).to_html() + (spent.to_html() if spent else ""),
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
    missing = f"; {len(collected.missing)} are missing, listed below" if collected.missing else ""
    costs = collected.costs
    spent = (costs["spent_s"] * costs["processes"]).groupby(costs["device"]).sum()
    took = " and ".join(
        f"{_duration(s)} of {'CPU' if name == 'cpu' else name}" for name, s in spent.items()
    )
    return f"{done}{missing}." + (f" They took {took}." if took else "")


def _duration(seconds: float, longest: float = 0.0) -> str:
    """Say how long, in hours where this or the longest of a column is one."""
    in_hours = max(seconds, longest) >= 3600
    return f"{seconds / 3600:,.1f} hours" if in_hours else f"{seconds / 60:.1f} minutes"


def _explain_arms(plan: Plan) -> str:
    """Say what the sweep's kinds of arms are, a line each."""
    arms = [config.arm for config in plan.configs(SegmentConfig)]
    lines = [text for is_there, text in ARMS if any(map(is_there, arms))]
    samplers = {arm.generator.partition("-")[2] for arm in arms}
    lines += [f"<b>{name}</b>: {text}" for name, text in SAMPLERS.items() if name in samplers]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _short(table: Table) -> str:
    return table.title.split(" (", 1)[0]


def _figure(path: Path, figures: Sequence[Path], figure_remarks: Sequence[str]) -> str:
    caption = next(
        (text for kind, text in CAPTIONS.items() if path.name.startswith(f"{kind}-")), ""
    )
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    names = [html.escape(other.name) for other in figures if other.stem == path.stem]
    files = ", ".join(f'<a href="{other}">{other}</a>' for other in names)
    said = [
        line.removeprefix(f"{path.name}: ")
        for line in figure_remarks
        if line.startswith(f"{path.name}: ")
    ]
    more = html.escape("; ".join(["", *said]))
    return (
        f'<figure><img loading="lazy" alt="{html.escape(caption)}: {name}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}{more} ({files})</figcaption></figure>"
    )


def _missing(collected: Collected) -> str:
    if not collected.missing:
        return "<p>Nothing: every run of the plan is done.</p>"
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in collected.missing[:MOST_MISSING])
    more = len(collected.missing) - MOST_MISSING
    return f"<ul>{shown}</ul>" + (
        f"<p>... and {more} more; missing.txt has all.</p>" if more > 0 else ""
    )


def _cost_table(collected: Collected) -> Table:
    """Return device hours per stage: of the attempts that ended in a result, and of those before them."""
    costs = collected.costs
    rows = []
    # All cells have one unit, by which they can be compared and sorted.
    longest = float(
        (costs["spent_s"] * costs["processes"])
        .groupby([costs["stage"], costs["device"]])
        .sum()
        .max()
    )
    for (stage, device), group in costs.groupby(["stage", "device"], sort=False):
        useful = float((group["wall_s"] * group["processes"]).sum()) / 3600
        lost = float(((group["spent_s"] - group["wall_s"]) * group["processes"]).sum()) / 3600
        energy = group["energy_j"].sum(min_count=1) / 3.6e6
        rows.append((
            str(stage), str(device), str(len(group)),
            _duration(3600 * useful, longest), _duration(3600 * lost, longest),
            "—" if pd.isna(energy) else f"{energy:.2f} kWh", f"{group['peak_memory_mib'].max():.0f} MiB",
        ))  # fmt: skip
    return Table(
        title="What it took",
        columns=(
            "stage",
            "device",
            "runs",
            "finished attempts",
            "interrupted attempts",
            "energy",
            "most memory",
        ),
        rows=tuple(rows),
        notes=(
            "Time of a device (a GPU, or a CPU process), of done runs: of the attempts that ended in a result, and of "
            "earlier ones that were preempted, killed or failed. A resumed run goes on from its checkpoint, so most of "
            "the latter is not lost. Energy is of the runs on one GPU each: of several, only one was asked for it.",
        ),
    )


def _settings(plan: Plan) -> str:
    """Show one resolved config per generator and one of the U-Net."""
    shown: dict[str, object] = {}
    for train in plan.configs(TrainConfig):
        shown.setdefault(
            f"generator {train.generator}", {"model": dump(train.model), "optim": dump(train.optim)}
        )
    for segment in plan.configs(SegmentConfig)[:1]:
        what = {
            "unet": segment.unet,
            "loss": segment.loss,
            "split": segment.split,
            "image_px": segment.image_px,
        }
        shown["U-Net"] = {
            **{name: dump(value) for name, value in what.items()},
            "optim": dump(segment.optim),
        }
    blocks = []
    for name, values in shown.items():
        lines = "\n".join(_lines(values))
        blocks.append(
            f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(lines)}</pre></details>"
        )
    return "".join(blocks)


def _lines(values: object, name: str = "") -> list[str]:
    """Return nested settings as lines "optim.lr = 0.001"."""
    if isinstance(values, Mapping):
        return [
            line
            for key, value in values.items()
            for line in _lines(value, f"{name}.{key}".lstrip("."))
        ]
    return [f"{name} = {values}"]


def _made_with(collected: Collected) -> str:
    costs = collected.costs
    lines = []
    for column, what in (
        ("torch", "torch"),
        ("device", "device"),
        ("host", "node"),
        ("code_sha", "code"),
    ):
        counts = Counter(costs[column]).most_common(12)
        named = ", ".join(f"{name or 'unknown'} ({n} runs)" for name, n in counts)
        lines.append(f"<li>{what}: {html.escape(named)}</li>")
    return f"<ul>{''.join(lines)}</ul>"
