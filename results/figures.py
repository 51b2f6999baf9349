"""The figures: generated pairs as in the paper's Figure 2, Dice against dose, and cases with outlines.

Pictures are drawn from the collected rows and from the samples.npz of done runs; what has no data yet
is left out with a remark. Every line can be told from the others without colour.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.arms import ArmConfig
from hvae_hpc.errors import UserError
from hvae_hpc.plan import Plan
from hvae_hpc.results.collect import KNOWN_GENERATORS, Collected, generators_of
from hvae_hpc.results.labels import REFERENCE, arm_label, generator_label, method_of, ordered_arms
from hvae_hpc.results.panels import PREDICTION, SPACER, TRUTH, Panel, Row, draw_grid, draw_outline_legend
from hvae_hpc.results.progress import draw_progress, progress_name, trainings
from hvae_hpc.results.samples import CASES, PAIRS, by_case, first_generate, first_segment, read_samples
from hvae_hpc.results.statistics import Summary
from hvae_hpc.rundir import write_atomic_by
from hvae_hpc.stages import GenerateConfig

DPI = 150
N_COLUMNS = 6
N_SHARED = 2
# Okabe and Ito's colours; with a marker and a line style each, they are told apart in grey as well.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "marker": "s", "linestyle": (0, (5, 2))},
    {"color": "#0072B2", "marker": "^", "linestyle": (0, (5, 1.5, 1, 1.5))},
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#CC79A7", "marker": "D", "linestyle": (0, (1, 1))},
    {"color": "#009E73", "marker": "v", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (8, 2))},
)
# parse_math off: a $ in a case id is a dollar sign.
_TEXT: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "text.parse_math": False,
}


def write_figures(plan: Plan, collected: Collected, out: Path) -> tuple[list[Path], list[str]]:
    """Draw the three figures of each data set, and one of each training.

    Args:
        plan: what is expected, and where.
        collected: what is there.
        out: the folder for figure2-<data>.png, dice-<data>.png, cases-<data>.png and progress-<training>.png.

    Returns:
        What was written, and a line for everything that was left out.
    """
    wanted: list[tuple[str, Callable[[], tuple[Figure, list[str]]]]] = []
    for data in plan.data:
        for name, draw in (("figure2", draw_figure2), ("dice", draw_dice), ("cases", draw_cases)):
            wanted.append(
                (f"{name}-{re.sub(r'[^A-Za-z0-9._+-]', '_', data)}.png", partial(draw, plan, collected, data))
            )
    for run_id, label in trainings(plan).items():
        if run_id in collected.done:
            wanted.append((progress_name(label), partial(draw_progress, plan.folder(run_id), label)))
    paths, remarks = [], []
    for name, make in wanted:
        try:
            with matplotlib.rc_context(_TEXT):
                figure, left_out = make()
                _save(figure, out / name)
        except UserError as error:
            remarks.append(f"{name} is left out: {error}")
            continue
        paths.append(out / name)
        remarks += [f"{name}: {line}" for line in left_out]
    return paths, remarks


def draw_figure2(plan: Plan, collected: Collected, data: str) -> tuple[Figure, list[str]]:
    """Draw real test images and each generator's samples, outlined, with the masks below.

    The generators' pairs are the first ones that they made, not chosen ones.

    Raises:
        UserError: no generator has samples yet.
    """
    made = {c.source for c in plan.configs(GenerateConfig) if c.data == data}
    sources = [("Real", first_segment(collected, data, REFERENCE))]
    for name in generators_of(plan):
        if name in made:
            sources.append((generator_label(name), first_generate(plan, collected, data, name)))
    rows: list[Row] = []
    left_out = []
    for label, folder in sources:
        try:
            samples = read_samples(plan.runs_folder, folder, PAIRS)
        except UserError as error:
            left_out.append(f"{label}: {error}")
            continue
        if rows:
            rows.append(SPACER)
        pairs = list(zip(samples["images"], samples["masks"], strict=True))[:N_COLUMNS]
        rows.append((label, [Panel(image=image, outlines=((mask, TRUTH),)) for image, mask in pairs]))
        rows.append(("mask", [Panel(image=mask > 0) for _, mask in pairs]))
    if {label for label, _ in rows} <= {"Real", "mask"}:
        raise UserError("; ".join(left_out) if made else "the sweep has no generator for it")
    return draw_grid(rows, size=1.05), [f"without {line}" for line in left_out]


def draw_cases(plan: Plan, collected: Collected, data: str) -> tuple[Figure, list[str]]:
    """Draw truth and prediction for the reference and for the arm of the highest mean Dice.

    Each arm shows its own worst and median case, then cases that both arms show and that were not chosen by
    either's Dice: on one arm's worst case any other arm looks better than it is.

    Raises:
        UserError: one of the two arms has no samples yet.
    """
    arms = {arm.name: arm for arm in ordered_arms(plan)}
    medians = collected.segment.set_index("folder")["median_dice"]
    chosen, seen = {}, {}
    for name in (REFERENCE, _best_arm(collected, data, list(arms))):
        folder = first_segment(collected, data, name)
        seen[name] = cases = by_case(read_samples(plan.runs_folder, folder, CASES))
        chosen[name] = _choose_cases(cases, float(medians[str(folder)]))
    both = set.intersection(*map(set, seen.values())) - {case for two in chosen.values() for case in two}
    shared = sorted(both)[:N_SHARED]
    rows: list[Row] = []
    for name, cases in seen.items():
        panels = []
        for rank, case in (
            *zip(("worst: ", "median: "), chosen[name], strict=True),
            *(("", one) for one in shared),
        ):
            title = f"{rank}Dice {cases[case]['dice']:.3f}\n{case[:28]}"
            outlines = (cases[case]["masks"], TRUTH), (cases[case]["predictions"], PREDICTION)
            panels.append(Panel(image=cases[case]["images"], title=title, outlines=outlines))
        rows.append((arm_label(arms[name]), panels))
    figure = draw_grid(rows, size=1.75, top=0.38, gap=0.38, bottom=0.3)
    draw_outline_legend(figure)
    return figure, []


def draw_dice(plan: Plan, collected: Collected, data: str) -> tuple[Figure, list[str]]:
    """Draw Dice (mean ± sd over seeds) against the number of synthetic pairs, one line per generator.

    Raises:
        UserError: no arm with synthetic pairs is done yet.
    """
    done = [(arm, dice) for arm in ordered_arms(plan) if (dice := collected.dice(data, arm.name))]
    lines = {
        name: [(arm.n_synthetic, dice) for arm, dice in done if method_of(arm)[0] == name]
        for name in generators_of(plan)
    }
    doses = sorted({dose for points in lines.values() for dose, _ in points})
    if not doses:
        raise UserError("no arm that adds nothing but a number of synthetic pairs is done yet")
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    step = 0.012 * (doses[-1] - doses[0] or 100)
    for i, (name, points) in enumerate(lines.items()):
        if points:
            shift = (i - (len(lines) - 1) / 2) * step  # bars side by side, not on one another
            _draw_line(axes, generator_label(name), points, shift, _style(plan, name))
    axes.set_xlim(doses[0] - 8 * step, doses[-1] + 8 * step)
    _draw_levels(axes, [(arm, dice) for arm, dice in done if method_of(arm)[0] in (REFERENCE, "standard")])
    axes.set_xticks(doses, [f"+{dose}" for dose in doses])
    axes.set_xlabel("synthetic pairs added to the real ones")
    axes.set_ylabel("Dice, mean ± sd over seeds")
    axes.set_title(data, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, handlelength=3.5)
    return figure, []


def _best_arm(collected: Collected, data: str, names: Sequence[str]) -> str:
    means = {name: dice.mean for name in names if (dice := collected.dice(data, name))}
    means.pop(REFERENCE, None)
    if not means:
        raise UserError("no arm but the reference is done yet")
    return max(means, key=means.__getitem__)


def _choose_cases(cases: dict[str, dict[str, Any]], median: float) -> tuple[str, str]:
    """Return the worst shown case and the shown case nearest to the median over all test cases."""
    worst = min(cases, key=lambda case: float(cases[case]["dice"]))
    return worst, min(cases, key=lambda case: abs(float(cases[case]["dice"]) - median))


def _style(plan: Plan, generator: str) -> dict[str, Any]:
    """Return a generator's line style; the paper's three keep theirs in every figure."""
    names = [*KNOWN_GENERATORS, *(name for name in generators_of(plan) if name not in KNOWN_GENERATORS)]
    return STYLES[names.index(generator) % len(STYLES)]


def _draw_line(
    axes: Axes, label: str, points: Sequence[tuple[int, Summary]], shift: float, style: dict[str, Any]
) -> None:
    x = [dose + shift for dose, _ in points]
    mean = [dice.mean for _, dice in points]
    sd = [dice.sd or 0.0 for _, dice in points]  # one seed: a marker without a bar
    axes.errorbar(x, mean, yerr=sd, label=label, markersize=4.5, linewidth=1.4, capsize=2, elinewidth=0.8, **style)


def _draw_levels(axes: Axes, levels: Sequence[tuple[ArmConfig, Summary]]) -> None:
    """Draw arms without a dose as lines named at the right; the reference with its ± as a band."""
    dashes = itertools.cycle([(0, (1, 1.5)), (0, (4, 2)), (0, (9, 2))])
    for arm, dice in levels:
        sd = dice.sd or 0.0
        if method_of(arm)[0] == REFERENCE:
            axes.axhspan(dice.mean - sd, dice.mean + sd, color="0.9", linewidth=0, zorder=0)
            axes.axhline(dice.mean, color="0.35", linewidth=1.2, zorder=1)
        else:
            axes.axhline(dice.mean, color="0.5", linewidth=0.9, linestyle=next(dashes), zorder=1)
    bottom, top = axes.get_ylim()
    means = [dice.mean for _, dice in levels]
    for (arm, _), height in zip(levels, _apart(means, 0.05 * (top - bottom)), strict=True):
        axes.text(1.02, height, arm_label(arm), transform=axes.get_yaxis_transform(), va="center")


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights up until neighbours are at least a gap apart."""
    moved = list(heights)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


def _save(figure: Figure, path: Path) -> None:
    write_atomic_by(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))
