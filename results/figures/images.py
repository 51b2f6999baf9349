"""Figures of images: generated pairs as in the paper's Figure 2, and cases with truth and prediction outlined."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.figures.panels import (
    PREDICTION,
    SPACER,
    TRUTH,
    Panel,
    Row,
    draw_grid,
    draw_outline_legend,
)
from hvae_hpc.results.figures.samples import (
    CASES,
    PAIRS,
    by_case,
    first_generate,
    first_segment,
    read_samples,
)
from hvae_hpc.results.figures.style import wrapped_label
from hvae_hpc.results.labels import REFERENCE, generator_label, generators_of, ordered_arms
from hvae_hpc.runs.plan import Plan

N_COLUMNS = 6
N_SHARED = 2


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
        rows.append(
            (label, [Panel(image=image, outlines=((mask, TRUTH),)) for image, mask in pairs])
        )
        rows.append(("mask", [Panel(image=mask > 0) for _, mask in pairs]))
    if {label for label, _ in rows} <= {"Real", "mask"}:
        raise UserError("; ".join(left_out) if made else "the sweep has no generator for it")
    return draw_grid(rows, size=1.05), [f"without {line}" for line in left_out]


def draw_cases(plan: Plan, collected: Collected, data: str) -> tuple[Figure, list[str]]:
    """Draw truth and prediction for the reference and for the arm of the highest mean Dice.

    Each arm shows its own worst and median case, then cases that both arms show and that were not
    chosen by either's Dice: on one arm's worst case any other arm looks better than it is.

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
    both = set.intersection(*map(set, seen.values())) - {
        case for two in chosen.values() for case in two
    }
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
        rows.append((wrapped_label(arms[name]), panels))
    figure = draw_grid(rows, size=1.75, top=0.38, gap=0.38, bottom=0.3)
    draw_outline_legend(figure)
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
