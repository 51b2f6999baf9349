"""Table 2, as in the paper, and the table of set measures: images against the test images."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from hvae_hpc.config.stages import QualityConfig
from hvae_hpc.results.collect import MASK_MEDIANS, SET_MEASURES, Collected, rows_of
from hvae_hpc.results.labels import IMAGE_SOURCES, name_label, ordered_sources
from hvae_hpc.results.statistics import Summary, pool, summarise
from hvae_hpc.results.tables.published import SOURCE, format_published, read_published
from hvae_hpc.results.tables.table import (
    NOTHING,
    Table,
    format_summary,
    summary_numbers,
)
from hvae_hpc.runs.plan import Plan

MEASURES = {
    "kid": ("KID ↓", 3),
    "precision": ("realism (precision) ↑", 2),
    "recall": ("variety (recall) ↑", 2),
    "density": ("density ↑", 2),
    "coverage": ("coverage ↑", 2),
    "duplicates": ("near-duplicates ↓", 2),
    "distinct": ("distinct images ↑", 1),
    "copies": ("copies of training images ↓", 2),
    "agreement": ("image-mask Dice ↑", 3),
    "area": ("tumour area, distance in px ↓", 1),
    "components": ("tumour parts, distance ↓", 2),
    "row": ("tumour's row, distance in px ↓", 1),
    "column": ("tumour's column, distance in px ↓", 1),
    "contrast": ("lesion's contrast, distance in sd ↓", 2),
    "lesion_mean": ("lesion's mean, distance in sd ↓", 2),
    "lesion_sd": ("lesion's spread, distance in sd ↓", 2),
    "lesion_edge": ("lesion's edge, distance in sd ↓", 2),
    "texture": ("tissue's texture, distance in sd ↓", 2),
}
"""Measure to its row's name, with the better direction, and digits."""
MEDIANS = {
    "area": ("median area, px (test)", 0),
    "components": ("median parts (test)", 0),
    "row": ("median row, px (test)", 1),
    "column": ("median column, px (test)", 1),
}
"""Mask statistic to the name of the row of its medians, and digits."""
MOST_DUPLICATES = 0.1
"""A generator repeats itself if its whole interval of near-duplicates is above this share and above
the interval of real images."""


def build_table2(plan: Plan, collected: Collected) -> Table | None:
    """Return PSNR and SSIM per data set and source beside the published.

    Returns:
        None for a plan without quality runs.
    """
    configs = plan.configs(QualityConfig)
    if not configs:
        return None
    published = read_published("table2")
    compared = any(data in plan.data for data, _, _ in published)
    rows, numbers = [], []
    for data in plan.data:
        for source in ordered_sources(plan, data):
            draws = sum(c.draws for c in configs if (c.data, c.source) == (data, source))
            runs = rows_of(collected.quality, data=data, source=source)
            in_paper = published.get((data, source, ""), {})
            cells = [data, name_label(source)]
            for metric in ("psnr", "ssim"):
                ours = _pool_draws(runs, metric)
                cells.append(format_summary(ours, draws))
                if compared:
                    cells.append(format_published(in_paper, f"{metric}_"))
                paper = {f"published_{n}": in_paper.get(f"{metric}_{n}") for n in ("mean", "sd")}
                key = {"data": data, "source": source, "metric": metric}
                numbers.append({**key, **summary_numbers(ours), **paper})
            rows.append(cells)

    beside = ["published"] if compared else []
    printed = f"Published: {SOURCE}, Table 2, as printed." if compared else ""
    note = f"""
    Unpaired: PSNR and SSIM compare unrelated images, as in the paper, a set's images with test
    images paired at random. A constant mean image typically scores higher than real images
    against real ones: read the generators against these two rows. ± is the standard deviation
    (ddof 1) over the draws (their number in brackets). SSIM is a fraction. {printed}
    """
    return Table(
        title=f"Table 2 ({plan.sweep}): images against the test images, unpaired",
        columns=("data", "images", "PSNR (dB)", *beside, "SSIM", *beside),
        rows=rows,
        notes=[note],
        numbers=numbers,
    )


def build_quality(plan: Plan, collected: Collected) -> Table | None:
    """Return set measures per data set and source.

    Returns:
        None for a plan whose quality runs measure none.
    """
    configs = [config for config in plan.configs(QualityConfig) if config.features]
    if not configs:
        return None
    expected = Counter((config.data, config.source) for config in configs)
    names = [data for data in plan.data if any(key[0] == data for key in expected)]
    sources = list(dict.fromkeys(s for data in names for s in ordered_sources(plan, data)))

    runs = {
        (data, source): rows_of(collected.quality, data=data, source=source)
        for data in names
        for source in sources
    }
    rows, numbers = [], []
    for data in names:
        for name, (label, digits) in MEASURES.items():
            cells = [
                _format_measure(runs[data, s], expected[data, s], name, digits) for s in sources
            ]
            if set(cells) != {NOTHING}:
                rows.append((data, label, *cells))
            if name in MEDIANS:
                label, digits = MEDIANS[name]
                cells = [_format_medians(runs[data, s], name, digits) for s in sources]
                rows.append((data, label, *cells))

    for (data, source), of_source in runs.items():
        n = expected[data, source]
        for name in (*SET_MEASURES, *MASK_MEDIANS, "copying") if n else ():
            key = {"data": data, "source": source, "metric": name}
            numbers.append({**key, **_measure_numbers(of_source, n, name)})

    return Table(
        title=f"Quality ({plan.sweep}): sets of images against the test images",
        columns=("data", "measure", *map(name_label, sources)),
        rows=rows,
        notes=[*_describe_faults(runs), *_captions(configs[0])],
        numbers=numbers,
    )


def _pool_draws(runs: pd.DataFrame, metric: str) -> Summary | None:
    """Return the summary of all draws of one source; None where no run is done."""
    columns = zip(runs["n"], runs[f"{metric}_mean"], runs[f"{metric}_sd"], strict=True)
    parts = [Summary(n=n, mean=mean, sd=None if math.isnan(sd) else sd) for n, mean, sd in columns]
    return pool(parts) if parts else None


def _format_measure(runs: pd.DataFrame, expected: int, name: str, digits: int) -> str:
    """Return one run's value and interval, or several runs' mean ± sd (n)."""
    values = runs[name].dropna()
    if values.empty and not runs.empty:  # the source does not have it
        return NOTHING
    if len(values) == expected == 1:
        value, low, high = (
            f"{runs[name + end].iloc[0]:.{digits}f}" for end in ("", "_low", "_high")
        )
        return f"{value} [{low}, {high}]"
    return format_summary(summarise(values), expected, digits)


def _format_medians(runs: pd.DataFrame, name: str, digits: int) -> str:
    """Return "median of the source (of the test masks)"."""
    source, test = (runs[f"{name}_median{of}"].mean() for of in ("", "_test"))
    if pd.isna(source) or pd.isna(test):
        return NOTHING
    return f"{source:.{digits}f} ({test:.{digits}f})"


def _measure_numbers(runs: pd.DataFrame, expected: int, name: str) -> dict[str, Any]:
    values = runs[name].dropna()
    numbers = summary_numbers(summarise(values), n_expected=expected)
    has_interval = len(values) == 1 and f"{name}_low" in runs
    for end in ("low", "high"):
        numbers[end] = float(runs.loc[values.index[0], f"{name}_{end}"]) if has_interval else None
    return numbers


def _describe_faults(runs: Mapping[tuple[str, str], pd.DataFrame]) -> list[str]:
    """Say which generators' pairs repeat themselves or copy the training set.

    Args:
        runs: data set and source to its done runs.
    """
    n_sets = 0
    faults = []
    for (data, source), of_source in runs.items():
        if source in IMAGE_SOURCES:
            continue
        usual = runs[data, "real"]["duplicates_high"] if (data, "real") in runs else ()
        for run in of_source.dropna(subset="duplicates_low").to_dict("records"):
            n_sets += 1
            name = f"{data}, {name_label(source)}"
            if len(of_source) > 1:
                name += f" (split {run['split_seed']}, generator seed {run['seed']})"
            if run["duplicates_low"] > max([MOST_DUPLICATES, *usual]):
                share, different = 100 * run["duplicates"], run["distinct"]
                faults.append(
                    f"{name} repeats itself: {share:.0f} % of its pairs are near-duplicates of"
                    f" others of its own; they amount to {different:.0f} different ones."
                )
            if run["copying"] == 1:
                faults.append(
                    f"{name} copies its training set: {100 * run['copies']:.0f} % of its pairs are"
                    " copies of a training image, more than chance explains."
                )

    if n_sets and not faults:
        none = "sets of pairs was found to repeat itself or to copy its training set."
        return [f"None of the {n_sets} {none}"]
    return faults


def _captions(config: QualityConfig) -> tuple[str, ...]:
    return (
        f"""
        Up to {config.n_images} images of each source against as many test images. ↑: higher is
        better. ↓: lower is better. Real (training images) is what a perfect copy of the training
        set would get. Numbers beyond it mean images that are easier or more uniform, not better. A
        source that repeats itself fools KID and realism. [low, high] is the 95 % interval over
        images, found by leaving out one case at a time. Where there are several trainings or
        splits, ± is the standard deviation (ddof 1) over them (their number in brackets).
        """,
        f"""
        All but copies, masks, lesions and tissue is about what the judge sees. The judge is the
        reference arm's first U-Net, trained on the real training cases alone. So it knows these a
        little better than the test cases. Another judge has another scale: compare sources of one
        table, not tables. KID: distance of the two sets; 0 where they are alike, below 0 by chance.
        Realism: share of the images that look like test images. Variety: share of the test images
        that look like the source's. Density and coverage: the same two by real images'
        neighbourhoods alone (k = {config.nearest}), which outliers and a source that makes one
        picture fool less. Near-duplicates: share of the images with another one of their own within
        half the usual distance of real neighbours; 1 is a generator that makes one picture.
        Distinct images: how many different ones they amount to (Vendi score). Copies: share of the
        images that are much nearer to one training patient than to any other. Of held-out real
        cases at most 1 in 20 is (1 in N + 1 where there are N, fewer than 19). Image-mask Dice: of
        the judge's prediction with the pair's own mask; for real, on the test pairs. It is low also
        where the images are unlike any real ones.
        """,
        """
        Tumour area, parts (8-connected) and centre: by how much the masks' values must change on
        average to be spread like the test masks' (Wasserstein distance). It is not 0 for real masks
        either. Below it stands the median of the source, in brackets that of the test masks.
        """,
        """
        Lesion and tissue, seen without the judge: the same distance, in standard deviations of the
        test pairs. Real (training images) shows what chance alone gives. Contrast: the lesion's
        brightness less that of the 3 px around it. Edge: how sharply brightness changes
        there. Texture: fine detail in the other tissue.
        """,
    )
