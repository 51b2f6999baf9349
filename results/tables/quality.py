"""The table of set measures: what a segmentation network sees in each source's images, against the real test images."""

from collections import Counter

import pandas as pd

from hvae_hpc.config.stages import QualityConfig
from hvae_hpc.results.collect import MASK_MEDIANS, SET_MEASURES, Collected
from hvae_hpc.results.labels import IMAGE_SOURCES, ordered_sources, source_label
from hvae_hpc.results.statistics import summarise
from hvae_hpc.results.tables.dice import NOTHING, Cell, Table, cell_of, remarks, tidy_of
from hvae_hpc.runs.plan import Plan

ROWS = {
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
}
"""Measure to what its row is called, with the better direction, and digits."""
MEDIANS = {
    "area": ("median area, px (test)", 0),
    "components": ("median parts (test)", 0),
    "row": ("median row, px (test)", 1),
    "column": ("median column, px (test)", 1),
}
"""Mask statistic to the row of its medians, and digits."""
TIDY_QUALITY = ("data", "source", "metric", "n", "n_expected", "mean", "sd", "low", "high")
REPEATS_ITSELF = 0.1
"""Share of near-duplicates that the whole interval must exceed, beside real images', for a generator to be named."""


def build_quality(plan: Plan, collected: Collected) -> Table | None:
    """Return set measures per data set and source; None for a plan whose quality runs measure none."""
    configs = [config for config in plan.configs(QualityConfig) if config.features]
    if not configs:
        return None
    expected = Counter((config.data, config.source) for config in configs)
    names = [data for data in plan.data if any(key[0] == data for key in expected)]
    sources = list(
        dict.fromkeys(source for data in names for source in ordered_sources(plan, data))
    )
    table = collected.quality
    done = {
        (d, s): table[(table["data"] == d) & (table["source"] == s)] for d in names for s in sources
    }
    rows: list[tuple[str, ...]] = []
    tidy: list[tuple[Cell, ...]] = []
    for data in names:
        runs = {source: done[data, source] for source in sources}
        for name, (label, digits) in ROWS.items():
            rows.append(
                (data, label, *(_cell(runs[s], expected[data, s], name, digits) for s in sources))
            )
            if name in MEDIANS:
                label, digits = MEDIANS[name]
                rows.append((data, label, *(_medians(runs[s], name, digits) for s in sources)))
        for source in sources:
            for name in (*SET_MEASURES, *MASK_MEDIANS, "copying") if expected[data, source] else ():
                tidy.append(
                    (data, source, name, *_tidy(runs[source], expected[data, source], name))
                )
    return Table(
        title=f"Quality ({plan.sweep}): sets of images against the test images",
        columns=("data", "measure", *map(source_label, sources)),
        rows=tuple(rows),
        notes=(*_findings(done), *_captions(configs[0]), *remarks(plan, collected)),
        tidy_columns=TIDY_QUALITY,
        tidy_rows=tuple(tidy),
    )


def _cell(runs: pd.DataFrame, expected: int, name: str, digits: int) -> str:
    """Return one run's value and interval, or several runs' mean ± sd (n)."""
    values = runs[name].dropna()
    if values.empty and not runs.empty:  # the source does not have it
        return NOTHING
    if len(values) == expected == 1:
        value, low, high = (
            f"{runs[f'{name}{end}'].iloc[0]:.{digits}f}" for end in ("", "_low", "_high")
        )
        return f"{value} [{low}, {high}]"
    return cell_of(summarise(values) if len(values) else None, expected, digits)


def _medians(runs: pd.DataFrame, name: str, digits: int) -> str:
    means = [runs[f"{name}_median{of}"].mean() for of in ("", "_test")]
    return NOTHING if any(map(pd.isna, means)) else f"{means[0]:.{digits}f} ({means[1]:.{digits}f})"


def _tidy(runs: pd.DataFrame, expected: int, name: str) -> tuple[Cell, ...]:
    values = runs[name].dropna()
    alone = len(values) == 1 and f"{name}_low" in runs
    low, high = (
        float(runs.loc[values.index[0], f"{name}_{end}"]) if alone else None
        for end in ("low", "high")
    )
    return *tidy_of(summarise(values) if len(values) else None, expected), low, high


def _findings(done: dict[tuple[str, str], pd.DataFrame]) -> list[str]:
    """Say in plain words of each generator's pairs whether they repeat themselves or copy the training set."""
    looked_at, lines = 0, []
    for (data, source), runs in done.items():
        for _, run in runs.iterrows() if source not in IMAGE_SOURCES else ():
            if pd.isna(run["duplicates_low"]):
                continue  # measured without features
            usual = list(done[data, "real"]["duplicates_high"]) if (data, "real") in done else []
            looked_at += 1
            who = f"{data}, {source_label(source)}"
            who += (
                f" (split {run['split_seed']}, generator seed {run['seed']})"
                if len(runs) > 1
                else ""
            )
            if run["duplicates_low"] > max([REPEATS_ITSELF, *usual]):
                lines.append(
                    f"{who} repeats itself: {100 * run['duplicates']:.0f} % of its pairs are near-duplicates of others "
                    f"of its own; they amount to {run['distinct']:.0f} different ones."
                )
            if run["copying"] == 1:
                lines.append(
                    f"{who} copies its training set: {100 * run['copies']:.0f} % of its pairs are copies of a training "
                    "image, more than chance explains."
                )
    if looked_at and not lines:
        return [
            f"None of the {looked_at} sets of pairs was found to repeat itself or to copy its training set."
        ]
    return lines


def _captions(config: QualityConfig) -> tuple[str, ...]:
    return (
        f"Up to {config.n_images} images of each source against as many test images; ↑: higher is better, ↓: lower is. "
        "Real (training images) is what a perfect copy of the training set would get: numbers beyond it mean images "
        "that are easier or more uniform, not better. A source that repeats itself fools KID and realism. [low, high] "
        "is the 95 % interval over images, found by leaving out one case at a time. Where there are several trainings "
        "or splits, ± is the standard deviation (ddof 1) over them (their number in brackets).",
        "All but copies and masks is about what the judge sees: the reference arm's first U-Net, trained on the real "
        "training cases alone, which it therefore knows a little better than the test cases. Another judge has another "
        "scale: compare sources of one table, not tables. KID: distance of the two sets; 0 where they are alike, below "
        "0 by chance. Realism: share of the images that look like test images. Variety: share of the test images that "
        "look like the source's. Density and coverage: the same two by real images' neighbourhoods alone "
        f"(k = {config.nearest}), which outliers and a source that makes one picture fool less. Near-duplicates: share "
        "of the images with another one of their own within half the usual distance of real neighbours; 1 is a "
        "generator that makes one picture. Distinct images: how many different ones they amount to (Vendi score). "
        "Copies: share of the images that are much nearer to one training patient than to any other, as at most 1 in "
        "20 held-out real cases is (1 in N + 1 where there are N, fewer than 19). Image-mask Dice: of the judge's "
        "prediction with the pair's own mask; for real, on the test pairs; low also where the images are unlike any "
        "real ones.",
        "Tumour area, parts (8-connected) and centre: by how much the masks' values must change on average to be "
        "spread like the test masks' (Wasserstein distance; not 0 for real masks either); and the median of the "
        "source, in brackets that of the test masks.",
    )
