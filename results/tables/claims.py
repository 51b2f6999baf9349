"""The table of claims: what the paper says of its results, and whether it holds here, by the means alone."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from hvae_hpc.config.stages import QualityConfig, SegmentConfig
from hvae_hpc.results.collect import Collected
from hvae_hpc.results.labels import REFERENCE
from hvae_hpc.results.tables.dice import NOTHING, Table, read_published, remarks
from hvae_hpc.runs.plan import Plan

PAPER_DATA = ("brats2021", "hecktor2022")
HVAE = re.compile(r"hvae\+\d+")
SD_SAID = 0.02
TIDY_CLAIMS = ("data", "claim", "paper", "ours", "holds")


@dataclass(frozen=True)
class Found:
    """What is there for a claim: a text with the numbers, and whether the claim holds."""

    text: str
    holds: bool


def build_claims(plan: Plan, collected: Collected) -> Table | None:
    """Return the paper's claims beside ours; None for a plan without the paper's data sets."""
    configs: list[SegmentConfig | QualityConfig] = [
        *plan.configs(SegmentConfig),
        *plan.configs(QualityConfig),
    ]
    planned = Counter(config.data for config in configs)
    done = Counter([*collected.segment["data"], *collected.quality["data"]])
    rows = []
    for data in PAPER_DATA:
        if data not in planned:
            continue
        paper, ours = _published(data), _ours(collected, data)
        for claim, check in _claims(data):
            said, seen = check(paper), check(ours)
            holds = "not tested" if seen is None else "holds" if seen.holds else "does not hold"
            holds += " so far" * (seen is not None and done[data] < planned[data])
            rows.append(
                (data, claim, said.text if said else NOTHING, seen.text if seen else NOTHING, holds)
            )
    if not rows:
        return None
    return Table(
        title=f"Claims ({plan.sweep}): what the paper says, and what came out here",
        columns=("data", "claim", "paper's tables", "ours", "here"),
        rows=tuple(rows),
        notes=(
            "Compared are means, without a test: the table of arms has intervals. Made-up phantoms under a data set's "
            "name say nothing about it. The gains that the paper's text gives: 26.8 % for BRATS; 61.1 % for HECKTOR, "
            "which is its VAE's.",
            *remarks(plan, collected),
        ),
        tidy_columns=TIDY_CLAIMS,
        tidy_rows=tuple(rows),
    )


Numbers = dict[str, float]
"""Mean Dice by arm ("hvae+300"), its sd ("hvae+300 sd"), PSNR and SSIM by generator ("hvae psnr")."""


Check = Callable[[Numbers], Found | None]


def _claims(data: str) -> list[tuple[str, Check]]:
    claims: list[tuple[str, Check]] = [
        ("the best HVAE arm gains over the reference", _gain),
        ("the best HVAE arm is above standard augmentation ×5", _above_standard),
        ("the HVAE arms vary by about 2 % Dice (sd at most 0.03)", _sd),
        ("PSNR: HVAE > VAE > LSGAN", partial(_order, metric="psnr")),
        ("SSIM: HVAE > VAE > LSGAN", partial(_order, metric="ssim")),
    ]
    if data == "brats2021":
        falls = {"lsgan": 200, "vae": 200, "hvae": 300}
        claims += [
            (
                f"{name.upper()}: Dice falls beyond +{dose}",
                partial(_falls, generator=name, dose=dose),
            )
            for name, dose in falls.items()
        ]
    return claims


def _gain(numbers: Numbers) -> Found | None:
    best = max((dice for arm, dice in numbers.items() if HVAE.fullmatch(arm)), default=None)
    if best is None or not numbers.get(REFERENCE):
        return None
    gain = best / numbers[REFERENCE] - 1
    return Found(f"{100 * gain:+.1f} %", gain > 0)


def _above_standard(numbers: Numbers) -> Found | None:
    best = max((dice for arm, dice in numbers.items() if HVAE.fullmatch(arm)), default=None)
    if best is None or "standard-x5" not in numbers:
        return None
    return Found(f"{best:.3f} against {numbers['standard-x5']:.3f}", best > numbers["standard-x5"])


def _sd(numbers: Numbers) -> Found | None:
    sds = [
        sd
        for arm, sd in numbers.items()
        if arm.endswith(" sd") and HVAE.fullmatch(arm.removesuffix(" sd"))
    ]
    if not sds:
        return None
    return Found(f"{min(sds):.3f} to {max(sds):.3f}", max(sds) <= SD_SAID + 0.01)


def _order(numbers: Numbers, metric: str) -> Found | None:
    names = [f"{name} {metric}" for name in ("hvae", "vae", "lsgan")]
    if not all(name in numbers for name in names):
        return None
    values = [numbers[name] for name in names]
    digits = 2 if metric == "psnr" else 3
    return Found(
        " / ".join(f"{value:.{digits}f}" for value in values), values[0] > values[1] > values[2]
    )


def _falls(numbers: Numbers, generator: str, dose: int) -> Found | None:
    at, beyond = (
        f"{generator}+{dose}",
        [f"{generator}+{more}" for more in (300, 500) if more > dose],
    )
    if not all(arm in numbers for arm in (at, *beyond)):
        return None
    values = [numbers[arm] for arm in (at, *beyond)]
    falls = all(later < earlier for earlier, later in pairwise(values))
    return Found(
        " > ".join(f"{value:.3f}" for value in values)
        if falls
        else ", ".join(f"{v:.3f}" for v in values),
        falls,
    )


def _published(data: str) -> Numbers:
    numbers: Numbers = {}
    for (of, method, amount), row in read_published("table1").items():
        if of == data:
            arm = f"standard-{amount}" if method == "standard" else f"{method}{amount}"
            numbers |= {arm: float(row["mean"]), f"{arm} sd": float(row["sd"])}
    for (of, method, _), row in read_published("table2").items():
        if of == data:
            numbers |= {
                f"{method} {metric}": float(row[f"{metric}_mean"]) for metric in ("psnr", "ssim")
            }
    return numbers


def _ours(collected: Collected, data: str) -> Numbers:
    numbers: Numbers = {}
    segment = collected.segment
    for arm in segment.loc[segment["data"] == data, "arm"].unique():
        if dice := collected.dice(data, arm):
            numbers[arm] = dice.mean
            if dice.sd is not None:
                numbers[f"{arm} sd"] = dice.sd
    quality = collected.quality[collected.quality["data"] == data]
    for source, rows in quality.groupby("source"):
        numbers |= {
            f"{source} {metric}": float(rows[f"{metric}_mean"].mean())
            for metric in ("psnr", "ssim")
        }
    return numbers
