"""How often intervals and p of the table of arms are wrong, and how often they find a true gain.

    python benchmarks/calibration.py [--quick] [--tables N]

Tables of Dice are made up: 15 arms and their reference, with effects of split, training, U-Net seed
and case of known size. Each table goes through ``compare``, as a sweep's does.

* family: share of tables in which any of 15 arms that do not differ has p below 0.05 (target 3 to
  6 %). All intervals together hold the truth in the others.
* covers: share of tables in which the interval of one arm alone holds the truth (93 to 97 %).
* +0.02, +0.04: share of true gains of this size, of one arm of 15, that are found.

The sizes are those of one arm; a difference to the reference has sqrt(2) times as much. They follow
the kept sweep lgg-arms, whose differences have an sd of 0 to 0.03 over seeds, of 0 to 0.11 over
cases, and of 0.13 to 0.18 for the rest. The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.results.statistics import Block, compare, estimate_mean

ARMS = 15
GAINS = (0.02, 0.04)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A design, and the sd of one arm's effects.

    Attributes:
        splits, trainings, seeds, cases: how often each is repeated; cases per split.
        of_all: different cases of all splits together.
        of_split, of_training, of_seed, of_case, rest: sd of effects of one arm.
        heavy: whether all effects have a t-distribution of 3 degrees of freedom.
        unequal: factor of all effects of three of the arms.
        free: so many arms have no generator.
        required: whether the targets hold for it.
    """

    name: str
    splits: int = 1
    trainings: int = 1
    seeds: int = 10
    cases: int = 100
    of_all: int = 100
    of_split: float = 0.0
    of_training: float = 0.0
    of_seed: float = 0.012
    of_case: float = 0.04
    rest: float = 0.11
    heavy: bool = False
    unequal: float = 1.0
    free: int = 0
    required: bool = True


SPLIT_SD = 0.03 / 2**0.5
WHOLE_DESIGN = {"splits": 12, "seeds": 2, "of_training": 0.01, "of_all": 250}
"""The default of the sweep ``beyond``."""
SETTINGS = (
    *(Setting(name=f"base, {n} seeds", seeds=n) for n in (6, 8, 10, 12)),
    *(Setting(name=f"heavy tails, {n} seeds", seeds=n, heavy=True) for n in (6, 12)),
    *(Setting(name=f"large seed variance, {n} seeds", seeds=n, of_seed=0.05) for n in (6, 12)),
    *(Setting(name=f"large case variance, {n} seeds", seeds=n, of_case=0.15) for n in (6, 12)),
    Setting(name="3 splits x 4 seeds, sd 0.03", splits=3, seeds=4, of_split=SPLIT_SD, of_all=250),
    *(
        Setting(name=f"12 splits x 2 seeds, sd {sd}", **WHOLE_DESIGN, of_split=sd / 2**0.5)
        for sd in (0.03, 0.01)
    ),
    Setting(
        name="3 splits x 2 trainings x 4 seeds, sd 0.03",
        **{"splits": 3, "trainings": 2, "seeds": 4, "of_all": 250},
        **{"of_split": SPLIT_SD, "of_training": 0.01},
    ),
    Setting(
        name="3 splits x 2 trainings x 4 seeds, sd 0.01",
        **{"splits": 3, "trainings": 2, "seeds": 4, "of_all": 250},
        **{"of_split": SPLIT_SD / 3, "of_training": 0.01},
    ),
    Setting(
        name="12 splits x 2 seeds, trainings sd 0.03, 5 free",
        **{"splits": 12, "seeds": 2, "of_all": 250, "of_training": 0.03, "free": 5},
    ),
    Setting(name="three arms vary 2.5 times as much", seeds=8, unequal=2.5, required=False),
    Setting(name="3 seeds", seeds=3, required=False),
    Setting(name="one split, 2 trainings", seeds=5, trainings=2, of_training=0.02, required=False),
)


def draw(setting: Setting, random: np.random.Generator) -> dict[str, list[Block]]:
    """Draw the differences of 15 arms to their reference; no arm truly differs."""

    def normal(sd: float, *shape: int) -> NDArray[np.float64]:
        if setting.heavy:
            return sd * random.standard_t(3, (ARMS + 1, *shape)) / 3**0.5
        return sd * random.normal(size=(ARMS + 1, *shape))

    trainings, seeds, n_cases = setting.trainings, setting.seeds, setting.cases
    factors = np.ones((ARMS + 1, 1, 1, 1))
    factors[1:4] = setting.unequal
    of_cases = normal(setting.of_case, 1, 1, setting.of_all)
    blocks = {f"arm {arm}": list[Block]() for arm in range(ARMS)}
    for _ in range(setting.splits):
        cases = np.sort(random.choice(setting.of_all, n_cases, replace=False))
        of_training = normal(setting.of_training, trainings, 1, 1)
        of_training[: 1 + setting.free] = 0  # the reference has no generator
        scores = normal(setting.of_split, 1, 1, 1) + of_training + of_cases[..., cases]
        scores = scores + normal(setting.of_seed, trainings, seeds, 1)
        # The reference's runs are those of no training: all trainings share them.
        rest = normal(setting.rest, trainings, seeds, n_cases)
        scores = factors * (scores + rest)
        names = [f"case-{case}" for case in cases]
        for arm, of_arm in enumerate(blocks.values()):
            is_free = arm < setting.free
            runs = scores[arm + 1, :1] if is_free else scores[arm + 1]
            of_arm.append(Block(runs - scores[0, :1], names, not is_free))
    return blocks


def measure(setting: Setting, n_tables: int) -> dict[str, float]:
    """Return the shares of tables of a setting."""
    random = np.random.default_rng(list(setting.name.encode()))
    family, covers, freedoms = [], [], []
    powers: dict[float, list[float]] = {gain: [] for gain in GAINS}
    for _ in range(n_tables):
        blocks = draw(setting, random)
        compared = compare(blocks).values()
        family.append(any(each.p < 0.05 for each in compared))
        alone = estimate_mean(blocks["arm 9"])
        covers.append(alone.low <= 0 <= alone.high)
        freedoms.append(np.median([each.freedom for each in compared]))
        # A true gain moves the mean and leaves its interval's width as it is.
        for gain, found in powers.items():
            found.append(np.mean([each.low + gain > 0 for each in compared]))
    return {
        "family": float(np.mean(family)),
        "covers": float(np.mean(covers)),
        "freedom": float(np.median(freedoms)),
        **{f"{gain:+.2f}": float(np.mean(found)) for gain, found in powers.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per setting, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="150 tables each")
    parser.add_argument("--tables", type=int, default=2000, help="per setting (default: 2000)")
    options = parser.parse_args(argv)
    n_tables = 150 if options.quick else options.tables

    rows = {}
    print(f"{n_tables} tables of {ARMS} arms, {SETTINGS[0].cases} cases, per setting; in %")
    print(f"{'setting':44s} family  covers  +0.02  +0.04  freedom")
    with ProcessPoolExecutor(2) as pool:
        results = pool.map(partial(measure, n_tables=n_tables), SETTINGS)
        for setting, row in zip(SETTINGS, results, strict=True):
            shares = [100 * row[name] for name in ("family", "covers", "+0.02", "+0.04")]
            cells = "".join(f"{share:7.1f}" for share in shares)
            star = "" if setting.required else " (no target)"
            print(f"{setting.name + star:44s}{cells}{row['freedom']:9.0f}", flush=True)
            rows[setting.name] = row

    required = [rows[setting.name] for setting in SETTINGS if setting.required]
    base = rows["base, 10 seeds"]
    summary = {
        "type1_family_max": max(row["family"] for row in required),
        "type1_family_min": min(row["family"] for row in required),
        "coverage_min": min(row["covers"] for row in required),
        "coverage_max": max(row["covers"] for row in required),
        "power_002": base["+0.02"],
        "power_004": base["+0.04"],
        "tables": n_tables,
    }
    print(json.dumps({name: round(value, 4) for name, value in summary.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
