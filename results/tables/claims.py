"""The table of claims: what the paper says of its results, and whether the means hold here."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from hvae_hpc.results.collect import Collected, rows_of
from hvae_hpc.results.labels import REFERENCE
from hvae_hpc.results.scores import ArmScores
from hvae_hpc.results.tables.published import read_published
from hvae_hpc.results.tables.table import NOTHING, Table
from hvae_hpc.runs.plan import Plan

PAPER_DATA = ("brats2021", "hecktor2022")
FALLS_BEYOND = {"lsgan": 200, "vae": 200, "hvae": 300}
"""Generator to the number of pairs from which on more of them lower the Dice, says the paper."""
LARGEST_SD = 0.03
COLUMNS = ("data", "claim", "paper", "ours", "holds")
NOTE = """
Compared are means, without a test: the table of arms has intervals. Made-up phantoms under a
data set's name say nothing about it. The gains that the paper's text gives: 26.8 % for BRATS;
61.1 % for HECKTOR, which is its VAE's.
"""

Numbers = dict[str, float]
"""Dice by arm ("hvae+300"), its sd ("hvae+300 sd"), PSNR and SSIM by generator ("hvae psnr")."""


class Finding(NamedTuple):
    """What some numbers say of a claim: the numbers as text, and whether it holds."""

    text: str
    holds: bool


def build_claims(plan: Plan, collected: Collected, scores: Sequence[ArmScores]) -> Table | None:
    """Return the paper's claims beside ours; None for a plan without the paper's data sets."""
    rows = []
    for data in PAPER_DATA:
        if data not in plan.data or "made_up" in plan.data[data]:
            continue
        ours = _check_claims(_read_ours(collected, scores, data), data)
        for claim, in_paper in _check_claims(_read_paper(data), data).items():
            cells = NOTHING, "not tested"
            if here := ours.get(claim):
                cells = here.text, "holds" if here.holds else "does not hold"
            rows.append((data, claim, in_paper.text, *cells))
    if not rows:
        return None
    return Table(
        title=f"Claims ({plan.sweep}): what the paper says, and what came out here",
        columns=("data", "claim", "paper's tables", "ours", "here"),
        rows=rows,
        notes=[NOTE],
        numbers=[dict(zip(COLUMNS, row, strict=True)) for row in rows],
    )


def _check_claims(numbers: Numbers, data: str) -> dict[str, Finding]:
    """Return what some numbers say of each claim about a data set that they can be held against."""
    findings = {}
    dice, sds = (
        [x for name, x in numbers.items() if re.fullmatch(rf"hvae\+\d+{ending}", name)]
        for ending in ("", " sd")
    )
    if dice and (reference := numbers.get(REFERENCE)):
        gain = max(dice) / reference - 1
        findings["the best HVAE arm gains over the reference"] = Finding(
            f"{100 * gain:+.1f} %", gain > 0
        )
    if dice and (standard := numbers.get("standard-x5")) is not None:
        findings["the best HVAE arm is above standard augmentation ×5"] = Finding(
            f"{max(dice):.3f} against {standard:.3f}", max(dice) > standard
        )
    if sds:
        findings["the HVAE arms vary by about 2 % Dice (sd at most 0.03)"] = Finding(
            f"{min(sds):.3f} to {max(sds):.3f}", max(sds) <= LARGEST_SD
        )

    # What is said to fall, in this order.
    for metric, digits in (("psnr", 2), ("ssim", 3)):
        values = [numbers.get(f"{name} {metric}") for name in ("hvae", "vae", "lsgan")]
        if fall := _check_fall(values, digits, " / ", " / "):
            findings[f"{metric.upper()}: HVAE > VAE > LSGAN"] = fall
    for generator, n in FALLS_BEYOND.items() if data == "brats2021" else ():
        values = [numbers.get(f"{generator}+{more}") for more in (200, 300, 500) if more >= n]
        if fall := _check_fall(values, 3, " > ", ", "):
            findings[f"{generator.upper()}: Dice falls beyond +{n}"] = fall
    return findings


def _check_fall(
    values: Sequence[float | None], digits: int, falling: str, rising: str
) -> Finding | None:
    """Check that each number is below the one before; the two signs stand between them as text."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    falls = all(later < earlier for earlier, later in pairwise(known))
    sign = falling if falls else rising
    return Finding(sign.join(f"{value:.{digits}f}" for value in known), falls)


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


def _read_ours(collected: Collected, scores: Sequence[ArmScores], data: str) -> Numbers:
    numbers: Numbers = {}
    for s in scores:
        if s.data == data and s.summary:
            numbers[s.arm.name] = s.summary.mean
            if s.summary.sd is not None:
                numbers[f"{s.arm.name} sd"] = s.summary.sd
    for source, rows in rows_of(collected.quality, data=data).groupby("source"):
        for metric in ("psnr", "ssim"):
            numbers[f"{source} {metric}"] = float(rows[f"{metric}_mean"].mean())
    return numbers
