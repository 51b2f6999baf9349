"""Synthetic pairs are worth the real cases that give the same Dice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.collect import collect
from hvae_hpc.results.scores import score_arms
from hvae_hpc.results.worth import _look_up, build_worth
from hvae_hpc.runs.plan import plan_path, read_plan
from hvae_hpc.runs.run import Run
from tests.results import made_up

SYNTHETIC: dict[str, Any] = {"generator": "hvae", "n_synthetic": 100}
ARMS = (
    ArmConfig(name="reference"),
    ArmConfig(name="real-40", n_cases=40),
    ArmConfig(name="real-80", n_cases=80),
    ArmConfig(name="hvae+100", **SYNTHETIC),
    ArmConfig(name="real-40+hvae+100", n_cases=40, **SYNTHETIC),
    ArmConfig(name="real-80+hvae+100", n_cases=80, **SYNTHETIC),
    ArmConfig(name="hvae-shuffled+100", shuffled=True, **SYNTHETIC),
    ArmConfig(name="standard-x5", n_standard=80),
    ArmConfig(name="standard-x5+hvae+100", n_standard=80, **SYNTHETIC),
)


def fake_dice(run: Run) -> float:
    """Each doubling of the real cases gains 0.1, and pairs gain 0.05 in every seed."""
    config: Any = run.config
    noise = np.random.default_rng(len(config.arm.name) + 100 * config.seed).normal(0, 0.004)
    doublings = np.log2((config.arm.n_cases or 20) / 20)
    return float(0.5 + 0.1 * doublings + 0.05 * bool(config.arm.generator) + noise)


def test_pairs_are_worth_the_cases_of_the_curve_at_their_dice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_up, "fake_dice", fake_dice)
    made_up.write_sweep(tmp_path, arms=ARMS, seeds=6)
    plan = read_plan(plan_path(tmp_path, "small"))
    collected = collect(plan)
    scores = score_arms(plan, collected)
    table = build_worth(plan, scores)
    assert table is not None
    worth = {(row[1], row[2]): row[4] for row in table.rows}
    # Shuffled pairs and those beside moved copies have no curve.
    assert sorted(size for _, size in worth) == ["20", "40", "80"]
    by_size = {size: text for (_, size), text in worth.items()}
    mean, low, high = _numbers(by_size["20"])
    assert low < mean < high
    assert mean == pytest.approx(20 * 2**0.5, rel=0.1)
    assert _numbers(by_size["40"])[0] == pytest.approx(40 * 2**0.5, rel=0.1)
    assert by_size["80"].startswith("more than 80")

    few = [s for s in scores if not s.arm.n_cases]
    assert build_worth(plan, few) is None


def test_seeds_that_are_not_paired_yet_make_no_row(tmp_path: Path) -> None:
    unpaired = {"hvae+100": 0, "reference": 1}  # the one seed that is not done
    made_up.write_sweep(
        tmp_path,
        arms=ARMS[:4],
        seeds=2,
        skip=lambda run: (
            run.stage == "segment" and unpaired.get(run.config.arm.name) == run.config.seed
        ),
    )
    plan = read_plan(plan_path(tmp_path, "small"))
    collected = collect(plan)
    assert build_worth(plan, score_arms(plan, collected)) is None


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.replace("[", "").replace("]", "").replace(",", "").split()]


def test_outside_the_curve_is_said_in_words() -> None:
    points = {25: 0.5, 50: 0.6, 100: 0.58}
    assert _look_up(points, 0.61) == "more than 100"
    assert _look_up(points, 0.49) == "fewer than 25"
    assert _look_up(points, 0.55) == f"{25 * 2**0.5:.0f}"
