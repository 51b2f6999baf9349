"""The table of claims: what the paper says of its results, and whether the means hold here."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from hvae_hpc.results.collect import Collected, rows_of
from hvae_hpc.results.labels import REFERENCE
from hvae_hpc.results.tables.published import read_published
from hvae_hpc.results.tables.table import NOTHING, Table, paragraph
from hvae_hpc.runs.plan import Plan

PAPER_DATA = ("brats2021", "hecktor2022")
FALLS_BEYOND = {"lsgan": 200, "vae": 200, "hvae": 300}
"""Generator to the number of pairs from which on more of them lower the Dice, says the paper."""
LARGEST_SD = 0.03

Numbers = dict[str, float]
"""Dice by arm ("hvae+300"), its sd ("hvae+300 sd"), PSNR and SSIM by generator ("hvae psnr")."""


class Finding(NamedTuple):
    """What some numbers say of a claim: the numbers as text, and whether it holds."""

    text: str
    holds: bool


Check = Callable[[Numbers], Finding | None]


def build_claims(plan: Plan, collected: Collected) -> Table | None:
    """Return the paper's claims beside ours; None for a plan without the paper's data sets."""
    rows = []
    for data in filter(plan.data.__contains__, PAPER_DATA):
        paper, ours = _read_paper(data), _read_ours(collected, data)
        for claim, check in _claims_about(data).items():
            in_paper, here = check(paper), check(ours)
            verdict = {None: "not tested", True: "holds", False: "does not hold"}[
                here and here.holds
            ]
            texts = (finding.text if finding else NOTHING for finding in (in_paper, here))
            rows.append((data, claim, *texts, verdict))
    if not rows:
        return None

    names = ("data", "claim", "paper", "ours", "holds")
    return Table(
        title=f"Claims ({plan.sweep}): what the paper says, and what came out here",
        columns=("data", "claim", "paper's tables", "ours", "here"),
        rows=tuple(rows),
        notes=(
            paragraph(
                """
            Compared are means, without a test: the table of arms has intervals. Made-up phantoms
            under a data set's name say nothing about it. The gains that the paper's text gives:
            26.8 % for BRATS; 61.1 % for HECKTOR, which is its VAE's.
            """
            ),
        ),
        numbers=[dict(zip(names, row, strict=True)) for row in rows],
    )


def _claims_about(data: str) -> dict[str, Check]:
    """Return each claim about a data set with what checks it."""
    claims: dict[str, Check] = {
        "the best HVAE arm gains over the reference": _check_gain,
        "the best HVAE arm is above standard augmentation ×5": _check_above_standard,
        "the HVAE arms vary by about 2 % Dice (sd at most 0.03)": _check_sd,
    }
    for metric, digits in (("psnr", 2), ("ssim", 3)):
        names = [f"{name} {metric}" for name in ("hvae", "vae", "lsgan")]
        claim = f"{metric.upper()}: HVAE > VAE > LSGAN"
        claims[claim] = partial(_check_falling, names=names, digits=digits)
    for generator, n in FALLS_BEYOND.items() if data == "brats2021" else ():
        arms = [f"{generator}+{more}" for more in (200, 300, 500) if more >= n]
        claim = f"{generator.upper()}: Dice falls beyond +{n}"
        claims[claim] = partial(_check_falling, names=arms, signs=(" > ", ", "))
    return claims


def _hvae_arms(numbers: Numbers, ending: str = "") -> list[float]:
    """Return the Dice of all HVAE arms, or with " sd" its standard deviations."""
    return [x for name, x in numbers.items() if re.fullmatch(rf"hvae\+\d+{ending}", name)]


def _check_gain(numbers: Numbers) -> Finding | None:
    dice = _hvae_arms(numbers)
    if not dice or not numbers.get(REFERENCE):
        return None
    gain = max(dice) / numbers[REFERENCE] - 1
    return Finding(f"{100 * gain:+.1f} %", gain > 0)


def _check_above_standard(numbers: Numbers) -> Finding | None:
    dice, standard = _hvae_arms(numbers), numbers.get("standard-x5")
    if not dice or standard is None:
        return None
    return Finding(f"{max(dice):.3f} against {standard:.3f}", max(dice) > standard)


def _check_sd(numbers: Numbers) -> Finding | None:
    sds = _hvae_arms(numbers, " sd")
    if not sds:
        return None
    return Finding(f"{min(sds):.3f} to {max(sds):.3f}", max(sds) <= LARGEST_SD)


def _check_falling(
    numbers: Numbers,
    names: Sequence[str],
    digits: int = 3,
    signs: tuple[str, str] = (" / ", " / "),
) -> Finding | None:
    """Check that each of the named numbers is below the one before.

    Args:
        numbers: the paper's or ours.
        names: in the order in which they fall.
        digits: of the text.
        signs: between the numbers of the text, where they fall and where they do not.
    """
    if not numbers.keys() >= set(names):
        return None
    values = [numbers[name] for name in names]
    falls = all(later < earlier for earlier, later in pairwise(values))
    return Finding(signs[not falls].join(f"{value:.{digits}f}" for value in values), falls)


def _read_paper(data: str) -> Numbers:
    numbers: Numbers = {}
    for (of, method, amount), row in read_published("table1").items():
        if of == data:
            arm = f"standard-{amount}" if method == "standard" else f"{method}{amount}"
            numbers |= {arm: float(row["mean"]), f"{arm} sd": float(row["sd"])}
    for (of, method, _), row in read_published("table2").items():
        if of == data:
            for metric in ("psnr", "ssim"):
                numbers[f"{method} {metric}"] = float(row[f"{metric}_mean"])
    return numbers


def _read_ours(collected: Collected, data: str) -> Numbers:
    numbers: Numbers = {}
    for arm in rows_of(collected.segment, data=data)["arm"].unique():
        dice = collected.dice(data, arm)
        if dice:
            numbers[arm] = dice.mean
        if dice and dice.sd is not None:
            numbers[f"{arm} sd"] = dice.sd
    for source, rows in rows_of(collected.quality, data=data).groupby("source"):
        for metric in ("psnr", "ssim"):
            numbers[f"{source} {metric}"] = float(rows[f"{metric}_mean"].mean())
    return numbers
