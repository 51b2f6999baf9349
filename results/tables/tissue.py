"""The table of tissue: whether lesions look as real ones do, seen without any trained network."""

from collections import Counter

from hvae_hpc.config.stages import QualityConfig
from hvae_hpc.results.collect import TISSUE, Collected, rows_of
from hvae_hpc.results.labels import name_label, ordered_sources
from hvae_hpc.results.statistics import summarise
from hvae_hpc.results.tables.table import Cell, Table, format_summary, paragraph, summary_numbers
from hvae_hpc.runs.plan import Plan

CAPTION = paragraph(
    """
    How far the pairs are from the real test pairs, in standard deviations of these; 0 is best. The
    row of real training images is what chance alone gives: judge the others by it. Contrast: the
    lesion's brightness less that of the 3 px around it. Edge: how sharply brightness changes there.
    Texture: fine detail in the rest of the tissue. Distances are Wasserstein's, of one value per
    pair. Mean ± sd (n) is over trainings and splits.
    """
)


def build_tissue(plan: Plan, collected: Collected) -> Table | None:
    """Return the distances of tissue statistics by source; None where no run has them."""
    quality = collected.quality.dropna(subset=list(TISSUE))
    expected = Counter((config.data, config.source) for config in plan.configs(QualityConfig))
    rows = []
    numbers: list[dict[str, Cell]] = []
    for data in plan.data:
        for source in ordered_sources(plan, data):
            runs, n = rows_of(quality, data=data, source=source), expected[data, source]
            if runs.empty:
                continue
            summaries = {name: summarise(runs[name]) for name in TISSUE}
            cells = (
                f"{summary.mean:.2f}" if n == 1 and summary else format_summary(summary, n, 2)
                for summary in summaries.values()
            )
            rows.append((data, name_label(source), *cells))
            for name, summary in summaries.items():
                key = {"data": data, "source": source, "metric": name}
                numbers.append({**key, **summary_numbers(summary, n)})
    if not rows:
        return None
    return Table(
        title=f"Tissue ({plan.sweep}): lesions against those of the test images, without a judge",
        columns=("data", "images", "contrast", "lesion's mean", "its sd", "edge", "texture"),
        rows=tuple(rows),
        notes=(CAPTION,),
        numbers=numbers,
    )
