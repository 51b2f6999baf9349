"""Dice, and its difference to the reference, against the number of synthetic pairs."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.figures.style import (
    GREY,
    describe_interval,
    hide_frame,
    list_not_drawn,
    split_ends,
    style_of,
)
from hvae_hpc.results.labels import REFERENCE, method_of, name_label
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.plan import Plan

PANELS = {"dice": "Dice", "difference": "difference to the reference, Dice"}
"""Field of a score to the name of its panel."""
_TICK_INCH = 0.4


def draw_dose(plan: Plan, scores: Sequence[ArmScores]) -> tuple[Figure, list[str]]:
    """Draw one line per method, in steps of what it adds; the reference goes on as a level.

    Above is the mean Dice. Its interval is mostly the spread of cases, which all arms share, so
    below is the paired difference to the reference.

    Args:
        scores: of a data set's arms, in the tables' order.

    Returns:
        The figure, and a line that names the arms that it does not show.

    Raises:
        UserError: no arm with synthetic pairs is done yet.
    """
    # The reference, and arms that add only moved copies or only synthetic pairs.
    plain = [s for s in scores if method_of(s.arm)[0] in (REFERENCE, "standard", s.arm.generator)]
    drawn = [s for s in plain if s.dice]
    if not any(s.arm.generator for s in drawn):
        raise UserError("no arm that adds nothing but a number of synthetic pairs is done yet")
    by_method: dict[str, list[ArmScores]] = {}
    for s in drawn:
        by_method.setdefault(method_of(s.arm)[0], []).append(s)

    # Steps are equally far from each other, whatever their sizes.
    by_dose = sorted(drawn, key=lambda s: s.arm.n_synthetic)
    ticks = list(dict.fromkeys(_name_tick(s.arm) for s in by_dose))
    panels = [field for field in PANELS if any(getattr(s, field) for s in drawn)]
    size = max(5.8, 1.0 + _TICK_INCH * len(ticks)), 0.8 + 2.5 * len(panels)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]

    for axes, field in zip(grid, panels, strict=True):
        _draw_lines(axes, plan, by_method, ticks, field)
        for s in by_method.get(REFERENCE, []):
            level = s.dice.mean if field == "dice" and s.dice else 0.0
            axes.axhline(level, color=GREY, linewidth=0.8, zorder=0)
        axes.set_ylabel(PANELS[field])
        hide_frame(axes)

    grid[0].set_title(scores[0].data, loc="left")
    grid[-1].set_xticks(range(len(ticks)), ticks)
    grid[-1].set_xlabel(
        "synthetic pairs added to the real ones (+), or standard augmentation (×)\n"
        f"markers: mean; bars: {describe_interval(drawn)}"
    )
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, handlelength=3.5
    )
    return figure, list_not_drawn(scores, drawn)


def _draw_lines(
    axes: Axes,
    plan: Plan,
    by_method: Mapping[str, Sequence[ArmScores]],
    ticks: Sequence[str],
    field: str,
) -> None:
    """Draw each method's estimates, with the bars of one tick side by side."""
    aside = min(0.08, 0.6 / len(by_method))
    for i, (method, points) in enumerate(by_method.items()):
        known = [s for s in points if getattr(s, field)]
        estimates = [getattr(s, field) for s in known]
        shift = (i - len(by_method) / 2) * aside if points[0].arm.generator else 0.0
        axes.errorbar(
            [ticks.index(_name_tick(s.arm)) + shift for s in known],
            [estimate.mean for estimate in estimates],
            yerr=split_ends(estimates),
            label=name_label(method),
            markersize=4.5,
            linewidth=1.4,
            capsize=2,
            elinewidth=0.8,
            **style_of(plan, points[0].arm),
        )


def _name_tick(arm: ArmConfig) -> str:
    """Return what an arm adds: "+100", "×5", or "none" for the reference."""
    return method_of(arm)[1].replace("x", "×") or "none"
