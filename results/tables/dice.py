"""Table 1, as in the paper: Dice per arm and data set, beside the published numbers."""

from collections import Counter
from collections.abc import Sequence

from hvae_hpc.config.stages import SegmentConfig, TrainConfig
from hvae_hpc.results.labels import arm_label, method_of, ordered_arms
from hvae_hpc.results.scores import ArmScores, supported_best
from hvae_hpc.results.tables.published import SOURCE, format_published, read_published
from hvae_hpc.results.tables.table import Table, format_summary, summary_numbers
from hvae_hpc.runs.plan import Plan


def build_table1(plan: Plan, scores: Sequence[ArmScores]) -> Table | None:
    """Return Dice per arm and data set beside the published; None without segment runs."""
    if not scores:
        return None
    known = {(s.data, s.arm.name): s for s in scores}
    arms = ordered_arms(plan)
    best = supported_best(scores)
    published = read_published("table1")
    names = list(dict.fromkeys(s.data for s in scores))
    compared = {data for data, _, _ in published}.intersection(names)

    columns = {"arm": [arm_label(arm) for arm in arms]}
    numbers, bold = [], []
    for data in names:
        ours, printed = [], []
        for i, arm in enumerate(arms):
            s = known.get((data, arm.name))
            dice, n = (s.summary, s.n_expected) if s else (None, 0)
            method, amount = method_of(arm)
            in_paper = published.get((data, method, amount), {})
            ours.append(format_summary(dice, n))
            printed.append(format_published(in_paper))
            if best.get(data) == arm.name:
                bold.append((i, len(columns)))
            if n:
                paper = {f"published_{name}": in_paper.get(name) for name in ("mean", "sd")}
                key = {"data": data, "arm": arm.name, "method": method, "amount": amount}
                numbers.append({**key, **summary_numbers(dice, n_expected=n), **paper})
        columns[data] = ours
        if data in compared:
            columns[f"{data}, published"] = printed

    return Table(
        title=f"Table 1 ({plan.sweep}): Dice on the test cases",
        columns=list(columns),
        rows=list(zip(*columns.values(), strict=True)),
        notes=[_caption(plan, bool(compared), bool(bold))],
        numbers=numbers,
        bold=bold,
    )


def _caption(plan: Plan, compared: bool, bold: bool) -> str:
    splits = {config.data: config.split for config in plan.configs(SegmentConfig)}
    cases = "; ".join(
        f"{data}: {split.train} training and {split.test} test cases"
        for data, split in splits.items()
    )
    published = (
        f" Published: {SOURCE}, Table 1, as printed: real scans, 100 training and 100 test cases."
    )
    highest = (
        " Bold: the highest, where it differs from the reference beyond chance (p in the table of"
        " arms)."
    )
    return (
        f"Hard Dice per case, mean over the test cases. {_describe_sd(plan)}{_describe_steps(plan)}"
        f" {cases}.{published * compared}{highest * bold}"
    )


def _describe_steps(plan: Plan) -> str:
    """Say where arms of different sizes take the same number of steps, unlike the paper's."""
    configs = plan.configs(SegmentConfig)
    own_budget = [config for config in configs if "@" not in config.arm.name]
    sizes = {(c.arm.n_added, c.arm.n_cases, c.arm.alone) for c in own_budget}
    lengths = Counter(data for data, _ in {(c.data, c.optim.images) for c in own_budget})
    if len(sizes) == 1 or max(lengths.values(), default=1) > 1:
        return ""
    others = " but those that say otherwise" if len(own_budget) < len(configs) else ""
    return f" All arms take the same number of steps{others}, unlike the paper's."


def _describe_sd(plan: Plan) -> str:
    """Say which variance the ± of Table 1 covers, from what the plan multiplies."""
    splits = {config.split.seed for config in plan.configs(SegmentConfig)}
    trainings = Counter((c.data, c.generator, c.split) for c in plan.configs(TrainConfig))
    generators = max(trainings.values(), default=1)
    if len(splits) == 1 and generators == 1:
        return """
        ± is the standard deviation (ddof 1) over the U-Net seeds (their number in brackets), on
        one split and with one generator seed: it does not cover the draw of cases or the
        generator.
        """
    return (
        "± is the standard deviation (ddof 1) over all runs of an arm, their number in brackets:"
        f" U-Net seeds, {len(splits)} split(s) and {generators} generator seed(s) together."
    )
