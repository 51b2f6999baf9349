"""The table of arms: how much each arm gains over the reference."""

from collections.abc import Sequence

from hvae_hpc.config.stages import SegmentConfig
from hvae_hpc.results.labels import arm_label
from hvae_hpc.results.scores import LEVEL, ArmScores, supported_best
from hvae_hpc.results.statistics import Estimate
from hvae_hpc.results.tables.table import NOTHING, Cell, Table, format_estimate, paragraph
from hvae_hpc.runs.plan import Plan


def build_arms(plan: Plan, scores: Sequence[ArmScores]) -> Table | None:
    """Return each arm's scores and its paired difference to the reference.

    Returns:
        None for a plan without segment runs.
    """
    if not scores:
        return None
    best = supported_best(scores)
    rows = [_format_scores(s) for s in scores]
    return Table(
        title=f"Arms ({plan.sweep}): segmentation of the test cases",
        columns=tuple(rows[0]),
        rows=tuple(tuple(row.values()) for row in rows),
        notes=(_caption(plan),),
        numbers=[_numbers_of(s) for s in scores],
        bold=frozenset((i, 3) for i, s in enumerate(scores) if best.get(s.data) == s.arm.name),
    )


def _format_scores(scores: ArmScores) -> dict[str, str]:
    """Return an arm's row for people."""
    n = str(scores.n) if scores.n == scores.n_expected else f"{scores.n}/{scores.n_expected}"
    return {
        "data": scores.data,
        "arm": arm_label(scores.arm),
        "runs": n,
        "Dice": format_estimate(scores.dice),
        "against the reference": format_estimate(scores.difference, "+") if scores.versus else "",
        "better": f"{scores.better} of {scores.paired}" if scores.paired else "",
        "p": _format_p(scores.p) if scores.versus else "",
    }


def _numbers_of(scores: ArmScores) -> dict[str, Cell]:
    """Return an arm's row of the CSV."""
    return {
        "data": scores.data,
        "arm": scores.arm.name,
        "n": scores.n,
        "n_expected": scores.n_expected,
        **_estimate_numbers("dice", scores.dice),
        "versus": scores.versus or None,
        **_estimate_numbers("difference", scores.difference),
        "better": scores.better if scores.paired else None,
        "paired": scores.paired or None,
        "p_holm": scores.p,
        "effect_size": scores.effect,
    }


def _format_p(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _estimate_numbers(name: str, estimate: Estimate | None) -> dict[str, Cell]:
    mean, low, high = (estimate.mean, estimate.low, estimate.high) if estimate else (None,) * 3
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _caption(plan: Plan) -> str:
    """Say what the columns are, and what the number of seeds and trainings does to them."""
    configs = plan.configs(SegmentConfig)
    seeds = len({(config.split.seed, config.seed) for config in configs})
    splits = len({config.split.seed for config in configs})
    generators = len({config.arm.generator_seed for config in configs})

    few = several = budget = ""
    tested = paragraph(
        """
        p: of no difference, the largest of two sign-flip tests, over seeds and over cases, and a
        t-test with the variance of both, adjusted by Holm for all arms of the data set; bold: the
        highest, where it is below 0.05.
        """
    )
    least_p = 2 / 2**seeds
    if least_p >= LEVEL:
        few = (
            f" With {seeds} seeds there is no p (none could be below {least_p:.2g}), and intervals"
            " are too narrow."
        )
        tested = ""
    if splits > 1 or generators > 1:
        several = (
            f" Several trainings of a generator are averaged, {splits} split(s) pooled: intervals"
            " and p are about these trainings and splits, not about others."
        )
    if any("@" in config.arm.name for config in configs):
        budget = paragraph(
            """
            Arms named by a budget (equal epochs, equal steps) are compared with the reference of
            that budget: at equal epochs it has far fewer steps, so that differences to it are not
            those to the reference above.
            """
        )

    return paragraph(
        f"""
        Hard Dice per case, mean over runs and test cases; in brackets 95 % intervals of a two-way
        bootstrap over seeds and cases. {few} Against the reference: the mean difference of runs
        with the same seed, which have the same initial weights and order of the real pairs.
        {budget} Better: for how many seeds the arm is above. {tested}
        {several}
        """
    )
