"""Figures of images: pairs as in the paper's Figure 2, and cases with truth and prediction.

Their images lie in the runs' samples.npz. generate runs leave ``images`` (n, H, W) in [0, 1] and
``masks`` (n, H, W); segment runs also ``predictions`` (n, H, W), ``dice`` (n,) and ``case_ids``
(n,), for test cases.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hvae_hpc.config.stages import GenerateConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import Collected, rows_of
from hvae_hpc.results.figures.panels import (
    PREDICTION,
    TRUTH,
    Panel,
    Row,
    draw_grid,
    draw_outline_legend,
)
from hvae_hpc.results.figures.style import wrap_label
from hvae_hpc.results.labels import REFERENCE, generators_of, name_label
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.runs.files import IMAGE_BYTES, open_file
from hvae_hpc.runs.folder import SAMPLES
from hvae_hpc.runs.plan import Plan

N_COLUMNS = 6
N_SHARED = 2
PAIRS = ("images", "masks")
LARGEST = 2**28
"""Bytes of all arrays of a samples.npz, which has some dozens of images."""
CASES = (*PAIRS, "predictions", "dice", "case_ids")


def draw_figure2(plan: Plan, collected: Collected, data: str) -> tuple[Figure, list[str]]:
    """Draw real test images and each generator's samples, outlined, with the masks below.

    The generators' pairs are the first ones that they made, not chosen ones.

    Returns:
        The figure, and a line for each source without samples.

    Raises:
        UserError: no generator has samples yet.
    """
    makers = {c.source for c in plan.configs(GenerateConfig) if c.data == data}
    if not makers:
        raise UserError("the sweep has no generator for it")
    folders = {"Real": first_folder(collected.segment, data=data, arm=REFERENCE)}
    folders |= {
        name_label(name): first_folder(collected.generate, data=data, source=name)
        for name in generators_of(plan)
        if name in makers
    }

    rows: list[Row] = []
    left_out = []
    for label, folder in folders.items():
        try:
            samples = read_samples(plan.runs_folder, folder, PAIRS)
        except UserError as error:
            left_out.append(f"{label}: {error}")
            continue
        pairs = list(zip(samples["images"], samples["masks"], strict=True))[:N_COLUMNS]
        outlined = [Panel(image=image, outlines=((mask, TRUTH),)) for image, mask in pairs]
        masks = [Panel(image=mask > 0) for _, mask in pairs]
        rows += [(textwrap.fill(label, 16), outlined), ("mask", masks)]

    if {label for label, _ in rows} <= {"Real", "mask"}:
        raise UserError("; ".join(left_out))
    return draw_grid(rows, size=1.05), [f"without {line}" for line in left_out]


def draw_cases(
    plan: Plan, collected: Collected, scores: Sequence[ArmScores]
) -> tuple[Figure, list[str]]:
    """Draw truth and prediction for the reference and for the arm of the highest mean Dice.

    Each arm shows its own worst and median case, then cases that both arms show and that were not
    chosen by either's Dice: on one arm's worst case any other arm looks better than it is.

    Args:
        scores: of a data set's arms.

    Raises:
        UserError: one of the two arms has no samples yet.
    """
    arms = {s.arm.name: s.arm for s in scores}
    means = {s.arm.name: s.summary.mean for s in scores if s.summary}
    means.pop(REFERENCE, None)
    if not means:
        raise UserError("no arm but the reference is done yet")
    medians = collected.segment.set_index("folder")["median_dice"]
    shown = {}
    chosen = {}
    for name in (REFERENCE, max(means, key=means.__getitem__)):
        folder = first_folder(collected.segment, data=scores[0].data, arm=name)
        samples = read_samples(plan.runs_folder, folder, CASES)
        shown[name] = {
            str(case): {field: array[i] for field, array in samples.items()}
            for i, case in enumerate(samples["case_ids"])
        }
        # Of the shown cases the worst, and the one nearest to the median over all test cases.
        dice = pd.Series({case: float(arrays["dice"]) for case, arrays in shown[name].items()})
        nearest = (dice - float(medians[str(folder)])).abs().idxmin()
        chosen[name] = str(dice.idxmin()), str(nearest)
    both = set.intersection(*map(set, shown.values())).difference(*chosen.values())
    shared = sorted(both)[:N_SHARED]

    rows: list[Row] = []
    for name, cases in shown.items():
        ranks = ["worst: ", "median: ", *[""] * len(shared)]
        panels = []
        for rank, case in zip(ranks, (*chosen[name], *shared), strict=True):
            arrays = cases[case]
            title = f"{rank}Dice {arrays['dice']:.3f}\n{case[:28]}"
            outlines = (arrays["masks"], TRUTH), (arrays["predictions"], PREDICTION)
            panels.append(Panel(image=arrays["images"], title=title, outlines=outlines))
        rows.append((wrap_label(arms[name]), panels))
    figure = draw_grid(rows, size=1.75, top=0.38, gap=0.38, bottom=0.3)
    draw_outline_legend(figure)
    return figure, []


def first_folder(runs: pd.DataFrame, **values: str) -> str | None:
    """Return the folder of the run with the lowest seeds that has some values; None without one."""
    rows = rows_of(runs, **values).sort_values(["split_seed", "seed"])
    return str(rows["folder"].iloc[0]) if len(rows) else None


def read_samples(runs: Path, folder: str | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read arrays of a run's samples.npz; all have the same first axis.

    Raises:
        UserError: no run, no file, or not what was expected in it.
    """
    if folder is None:
        raise UserError("no run is done yet")
    where = f"{folder}/{SAMPLES}"
    try:
        with open_file(runs / folder / SAMPLES, IMAGE_BYTES) as content:
            file = np.load(content, allow_pickle=False)
            if sum(info.file_size for info in file.zip.infolist()) > LARGEST:
                raise ValueError(f"its arrays have more than {LARGEST:,} bytes")
            samples = {name: file[name] for name in names}
    except Exception as error:  # numpy, zipfile and zlib each raise something else
        raise UserError(
            f"{where} cannot be read ({error}); delete the folder to make it again"
        ) from error

    shape = samples["images"].shape
    expected = {name: shape[:1] if name in ("dice", "case_ids") else shape for name in names}
    as_expected = all(samples[name].shape == expected[name] for name in names)
    if len(shape) != 3 or 0 in shape or not as_expected:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in samples.items())
        raise UserError(f"{where} has {shapes}; expected (n, H, W) with one n > 0 for all")
    return samples
