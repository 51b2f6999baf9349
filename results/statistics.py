"""Means, standard deviations, intervals and tests: what the ± and the brackets of tables are.

One model gives intervals and p: crossed random effects of splits, trainings, seeds and cases.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.results.max_t import MaxT, mean_correlation

EXACT_UP_TO = 14
"""Up to so many differences, all ways to flip their signs are tried; of more, 2^14 random ways."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A sample's size, mean and standard deviation (ddof 1), which is None for a single value."""

    n: int
    mean: float
    sd: float | None


def summarise(values: Iterable[float]) -> Summary | None:
    """Return size, mean and standard deviation (ddof 1) of finite numbers; None of none."""
    array = np.asarray(list(values), dtype=float)
    if not array.size:
        return None
    assert np.isfinite(array).all(), "collect() lets only finite values through"
    sd = float(array.std(ddof=1)) if array.size > 1 else None
    return Summary(n=array.size, mean=float(array.mean()), sd=sd)


def pool(parts: Iterable[Summary]) -> Summary:
    """Return the summary of all values together, given the summaries of at least one part.

    ``n = sum n_i``, ``mean = sum n_i mean_i / n``,
    ``(n - 1) sd^2 = sum (n_i - 1) sd_i^2 + n_i (mean_i - mean)^2``.
    """
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    mean = sum(part.n * part.mean for part in parts) / n
    squares = sum(
        (part.n - 1) * (part.sd or 0.0) ** 2 + part.n * (part.mean - mean) ** 2 for part in parts
    )
    return Summary(n=n, mean=mean, sd=math.sqrt(squares / (n - 1)))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class Block(NamedTuple):
    """Scores of several runs on the test cases of one split.

    Attributes:
        scores: (generator trainings, U-Net seeds, cases); an arm without generator has one.
        cases: their names; the same case may be in several splits.
        has_trainings: whether the arm has a generator.
    """

    scores: NDArray[np.float64]
    cases: Sequence[str]
    has_trainings: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison(Estimate):
    """A mean with its interval and p, which agree: p is below 0.05 where 0 is outside.

    Attributes:
        p: two-sided, of a mean of 0. It and the interval allow for all arms that were compared.
        standard_error: of the mean.
        freedom: degrees of freedom of the standard error; 0 where nothing was repeated.
        not_covered: which of "split", "training", "seed" and "case" were not repeated. The interval
            says nothing about another one.
    """

    p: float
    standard_error: float
    freedom: float
    not_covered: tuple[str, ...]


class Part(NamedTuple):
    """What a source adds to the variance of a mean, and how many degrees of freedom tell it."""

    variance: float
    freedom: float


FEWEST_CASES = 3
ROUNDING = 1e-9
PRIORS = 2.0 ** np.arange(-1, 13)
ROUNDS = 30

SOURCES = ("training", "seed", "case")
"""The axes of a block's scores."""


def divide_variance(scores: NDArray[np.float64]) -> dict[str, Part]:
    """Return what each source adds to the variance of a block's mean, by mean squares.

    A source's part is the variance of its means (ddof 1) over their number. It holds the rest as
    well: the variance of the mean is the sum of the sources' parts, less the rest for all but one.

    Args:
        scores: (trainings, seeds, cases).

    Returns:
        Parts of SOURCES and of "rest"; one that was not repeated is 0 with a freedom of 0.
    """
    rest = scores - scores.mean()
    parts = {}
    for axis, source in enumerate(SOURCES):
        n = scores.shape[axis]
        others = tuple({0, 1, 2} - {axis})
        means = scores.mean(others, keepdims=True) - scores.mean()
        rest = rest - means
        parts[source] = Part(float((means**2).sum()) / (n * max(1, n - 1)), n - 1)

    freedom = scores.size - 1 - sum(part.freedom for part in parts.values())
    variance = float((rest**2).sum()) / (scores.size * max(1, freedom))
    return {**parts, "rest": Part(variance, freedom)}


def compare(differences: Mapping[str, Sequence[Block]]) -> dict[str, Comparison]:
    """Return each arm's mean difference, with intervals and p that allow for all arms.

    Splits, generator trainings and U-Net seeds within a split, and cases are drawn by chance
    (crossed random effects). The variance of a mean is a sum of mean squares, and its degrees of
    freedom are Satterthwaite's (1946). Arms of the same design lend each other the variance of
    their draws (:func:`_pool`). The largest t of all arms decides (:class:`MaxT`).

    Args:
        differences: each arm's scores less those of its comparator, a block per split.
    """
    # Not scipy.stats, whose import takes a second.
    from scipy.special import stdtr, stdtrit

    if not differences:
        return {}
    spreads = [_measure(blocks) for blocks in differences.values()]
    correlations = _correlate([spread.by_case for spread in spreads])
    # Arms whose correlation is unknown are taken to be one arm here, and to be independent below.
    alike = float(np.nan_to_num(correlations**2, nan=1.0).mean())
    draws, shared = _pool_designs(spreads, alike)
    totals = [
        _add([draw, spread.cases], spread.rest) for draw, spread in zip(draws, spreads, strict=True)
    ]

    # The part of all variances that arms do not have of their own, and its degrees of freedom.
    shares = [
        (draw.variance / total.variance) ** 2 * of_arm
        for draw, total, of_arm in zip(draws, totals, shared, strict=True)
        if total.variance
    ]
    joint = MaxT(
        len(spreads),
        mean_correlation(np.nan_to_num(correlations)),
        2 / max(2e-3, float(np.mean(shares or 0.0))),
    )
    level = joint.level()

    compared = {}
    for arm, spread, total in zip(differences, spreads, totals, strict=True):
        error = math.sqrt(total.variance)
        if not total.freedom:
            p, half = 1.0, math.inf
        elif error == 0:
            p, half = float(spread.mean == 0), 0.0
        else:
            p = joint.adjust(2 * float(stdtr(total.freedom, -abs(spread.mean) / error)))
            half = -float(stdtrit(total.freedom, level / 2)) * error
        compared[arm] = Comparison(
            mean=spread.mean,
            low=spread.mean - half,
            high=spread.mean + half,
            p=p,
            standard_error=error,
            freedom=total.freedom,
            not_covered=spread.not_covered,
        )
    return compared


def estimate_mean(blocks: Sequence[Block]) -> Comparison:
    """Return the mean of one arm's scores, with the interval and p of one arm alone."""
    return compare({"": blocks})[""]


class _Spread(NamedTuple):
    """An arm's mean and what its variance is made of.

    Attributes:
        draws: the part of splits; of trainings and seeds where there is one split.
        cases, rest: what cases add to that; the rest is in both, and comes off once.
        by_case: a case's mean, less that of its split.
        design: shape of every split's scores.
    """

    mean: float
    draws: Part
    cases: Part
    rest: Part
    by_case: dict[str, float]
    design: tuple[tuple[int, ...], ...]
    not_covered: tuple[str, ...]


def _measure(blocks: Sequence[Block]) -> _Spread:
    """Return where the variance of an arm's mean comes from."""
    of_blocks = [divide_variance(block.scores) for block in blocks]
    parts = {
        source: Part(
            float(np.mean([of_block[source].variance for of_block in of_blocks])),
            sum(of_block[source].freedom for of_block in of_blocks),
        )
        for source in (*SOURCES, "rest")
    }
    means = np.array([block.scores.mean() for block in blocks])
    by_case: dict[str, list[float]] = {}
    for block, mean in zip(blocks, means, strict=True):
        for case, of_case in zip(block.cases, block.scores.mean((0, 1)).tolist(), strict=True):
            by_case.setdefault(case, []).append(of_case - mean)

    # Two splits do not differ by the cases that both test: these are left for the part of cases.
    not_covered = []
    if len(blocks) > 1:
        draws = Part(float(means.var(ddof=1)) / len(means), len(means) - 1)
        share = _share_cases(blocks)
    else:
        draws, share = _add([parts["training"], parts["seed"]], parts["rest"]), 1.0
        not_covered = ["split", *(name for name in SOURCES[:2] if not parts[name].freedom)]
        if not blocks[0].has_trainings:
            not_covered.remove("training")
    if not parts["case"].freedom:
        not_covered.append("case")

    return _Spread(
        mean=float(means.mean()),
        draws=draws,
        cases=parts["case"]._replace(variance=share * parts["case"].variance),
        rest=parts["rest"]._replace(variance=share * parts["rest"].variance),
        by_case={case: float(np.mean(of_case)) for case, of_case in by_case.items()},
        design=tuple(block.scores.shape for block in blocks),
        not_covered=tuple(not_covered),
    )


def _share_cases(blocks: Sequence[Block]) -> float:
    """Return what part of the variance of cases two splits have in common."""
    cases = [set(block.cases) for block in blocks]
    common = [len(one & other) / (len(one) * len(other)) for one, other in combinations(cases, 2)]
    return float(np.mean(common) / np.mean([1.0 / len(of_split) for of_split in cases]))


def _add(parts: Sequence[Part], rest: Part) -> Part:
    """Return a sum of parts that each hold the rest, which counts once; Satterthwaite's freedom."""
    parts = [part for part in parts if part.freedom]
    if len(parts) < 2:
        return parts[0] if parts else Part(0.0, 0)
    twice = rest.variance * (len(parts) - 1)
    variances = [part.variance for part in parts]
    # Chance may make the sum less than one of its parts.
    variance = max(sum(variances) - twice, *variances)
    squares = sum(part.variance**2 / part.freedom for part in parts)
    squares += twice**2 / max(1, rest.freedom)
    return Part(variance, variance**2 / squares if squares else sum(part.freedom for part in parts))


def _correlate(by_case: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Return how arms correlate over the cases that all of them have; NaN where none can tell."""
    common = sorted(set.intersection(*map(set, by_case)))
    if len(common) < FEWEST_CASES:
        return np.full((len(by_case), len(by_case)), np.nan)
    table = np.array([[of_arm[case] for case in common] for of_arm in by_case])
    # Of cases that are all alike rounding is left, which means nothing.
    table[table.std(axis=1) < ROUNDING] = np.nan
    return np.atleast_2d(np.corrcoef(table))


def _pool_designs(spreads: Sequence[_Spread], alike: float) -> tuple[list[Part], list[float]]:
    """Return all arms' draws, pooled among arms of the same design, and what they share of it."""
    pooled, shared = [spread.draws for spread in spreads], [0.0] * len(spreads)
    for design in {spread.design for spread in spreads}:
        places = [i for i, spread in enumerate(spreads) if spread.design == design]
        if len(places) > 1 and pooled[places[0]].freedom:
            of_design = _pool([pooled[i] for i in places], alike)
            for i, (part, common) in zip(places, of_design, strict=True):
                pooled[i], shared[i] = part, common
    return pooled, shared


def _pool(parts: Sequence[Part], alike: float) -> list[tuple[Part, float]]:
    """Return arms' variances drawn to a common one, as far as they look alike (Smyth 2004).

    The arms' true variances are taken as draws of a scaled inverse chi-squared distribution, so
    that estimates over its scale have an F distribution. Its scale and degrees of freedom are the
    likeliest. The pooled variance is the mean of the scale and of the arm's own, weighted by the
    degrees of freedom of each.

    Args:
        parts: one per arm.
        alike: mean squared correlation of arms, from 1 / number of arms to 1. Their scale has so
            much of the chance of one arm's variance.

    Returns:
        For each arm its part, and the relative variance that all parts have in common.
    """
    from scipy.special import betaln

    own = np.array([part.variance for part in parts])
    freedom = float(np.mean([part.freedom for part in parts]))
    if not own.any():
        return [(part, 0.0) for part in parts]

    likeliest = (-math.inf, 0.0, 0.0)
    for prior in PRIORS:
        scale = own.mean()
        for _ in range(ROUNDS):
            scale = (own * (freedom + prior) / (freedom * own / scale + prior)).mean()
        logs = freedom * np.log(freedom / prior / scale)
        logs = logs - (freedom + prior) * np.log1p(freedom * own / prior / scale)
        likelihood = float(logs.mean()) / 2 - float(betaln(freedom / 2, prior / 2))
        likeliest = max(likeliest, (likelihood, prior, float(scale)))

    _, prior, scale = likeliest
    weight = prior / (prior + freedom)
    common = weight**2 * alike * 2 / freedom
    pooled_freedom = 2 / (2 / (prior + freedom) + common)
    return [
        (Part(weight * scale + (1 - weight) * variance, pooled_freedom), common)
        for variance in own.tolist()
    ]


def sign_flip_test(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of paired differences that are symmetric about 0.

    The signs of the differences are flipped. It is exact for up to 14 of them: with n, no p is
    below 2 / 2^n, which is 1/16 for 5. Of more, 2^14 random ways are taken, and the one that was
    seen among them.
    """
    n = len(differences)
    if n <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        sums = signs @ differences
    else:
        # Some ways at a time: all signs of thousands of cases would take a gigabyte.
        random, parts = np.random.default_rng(0), 16
        ways = (random.choice([-1.0, 1.0], size=(2**EXACT_UP_TO // parts, n)) for _ in range(parts))
        sums = np.concatenate([signs @ differences for signs in ways])
        sums[0] = differences.sum()

    sizes = np.abs(sums)
    # Ways that are the same but for rounding must not fall on both sides of what was seen.
    return float((sizes >= sizes[0] * (1 - 1e-9)).mean())


def effect_size(blocks: Sequence[Block]) -> float | None:
    """Return Cohen's d of paired cases: mean over standard deviation (ddof 1) of their differences.

    A case's difference is its mean over runs and splits. None where all are alike.
    """
    by_case = dict[str, list[float]]()
    for block in blocks:
        for case, mean in zip(block.cases, block.scores.mean((0, 1)).tolist(), strict=True):
            by_case.setdefault(case, []).append(mean)
    means = np.array([np.mean(of_case) for of_case in by_case.values()])
    spread = float(means.std(ddof=1)) if means.size > 1 else 0.0
    return float(means.mean()) / spread if spread > 0 else None
