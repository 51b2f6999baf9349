"""Where the variance of a difference comes from, and which gains a design can show.

A design has splits, generator trainings and U-Net seeds within each split, and test cases. Every
repetition divides the variance of its own source.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hvae_hpc.results.scores import to_blocks
from hvae_hpc.results.statistics import (
    SOURCES,
    Block,
    divide_variance,
    draw_largest,
    find_level,
    share_cases,
    split_means,
)

ASSUMED_SD = {"split": 0.02, "training": 0.01, "seed": 0.02, "case": 0.08, "rest": 0.16}
"""Of differences of Dice to the reference. Seed, case and rest are those of the kept sweep lgg-arms
(benchmarks/measured); split and training were not repeated there and are guessed."""
CORRELATION = 0.5
"""Of two arms: both are compared with the same reference."""


class Design(NamedTuple):
    """How often each source is repeated: cases are those of a split, ``of_all`` the data set's."""

    splits: int
    trainings: int
    seeds: int
    cases: int
    of_all: int


def find_variances(blocks: Sequence[Block]) -> dict[str, float]:
    """Return the variance that each source gives to a single score.

    They are estimated by mean squares: those of balanced tables are REML's, where none is below 0.

    Args:
        blocks: an arm's differences, one per split.

    Returns:
        Source ("split", "training", "seed", "case", "rest") to variance, without those that were
        not repeated; empty where nothing tells cases from the rest. Chance may make one negative.
    """
    parts, freedoms = divide_variance(blocks)
    if not freedoms[2:].all():
        return {}
    shape, rest = blocks[0].scores.shape, float(parts[3])
    beyond_rest = np.where(freedoms[:3] > 0, parts[:3] - rest, 0.0)
    variances = {"rest": rest * math.prod(shape)}
    if len(blocks) > 1:
        share = np.array([1, 1, 1 - share_cases(blocks)])
        variances["split"] = float(split_means(blocks).var(ddof=1) - beyond_rest @ share - rest)
    sized = zip(SOURCES, beyond_rest * shape, freedoms, strict=False)
    return variances | {name: float(variance) for name, variance, free in sized if free}


def median_variances(differences: Iterable[pd.DataFrame]) -> dict[str, float]:
    """Return the median of all arms' variances of each source, 0 where it is below.

    Args:
        differences: of each arm to its reference, see :func:`subtract_references`.
    """
    table = pd.DataFrame([find_variances(to_blocks(rows)) for rows in differences if len(rows)])
    medians = table.median().clip(lower=0).to_dict()
    return {name: medians[name] for name in ASSUMED_SD if name in medians}


def find_power(gain: float, variances: Mapping[str, float], design: Design, n_arms: int) -> float:
    """Return the chance that a true gain of one arm has p below 0.05, adjusted for all arms.

    With one split, it is a gain on that split and of that training.

    Args:
        gain: in Dice.
        variances: of all five sources.
        design: of the sweep.
        n_arms: how many are compared with the reference.
    """
    from scipy.special import nctdtr, stdtrit

    splits, trainings, seeds, n_cases, of_all = design
    # Of the cases' part, splits do not differ by the cases that they share.
    shared = variances["case"] / (of_all if splits > 1 else n_cases)
    draws = variances["seed"] / (splits * seeds)
    draws += variances["rest"] / (splits * trainings * seeds * n_cases)
    if splits > 1:
        draws += variances["split"] / splits + variances["training"] / (splits * trainings)
        draws += variances["case"] * (1 / n_cases - 1 / of_all) / splits

    # Arms lend each other the variance of their draws, as far as they are independent.
    alike = (1 + (n_arms - 1) * CORRELATION**2) / n_arms
    of_draws = ((splits if splits > 1 else seeds) - 1) / alike
    if not of_draws or not draws:
        return 0.0
    freedom = (draws + shared) ** 2 / (draws**2 / of_draws + shared**2 / max(1, n_cases - 1))
    level = find_level(draw_largest(n_arms, CORRELATION, freedom), freedom)
    needed = -float(stdtrit(freedom, level / 2))
    return 1 - float(nctdtr(freedom, gain / math.sqrt(draws + shared), needed))
