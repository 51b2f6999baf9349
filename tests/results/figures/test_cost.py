"""What arms cost: which runs are counted, in which unit they stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from hvae_hpc.results.collect import Collected, collect
from hvae_hpc.results.figures.cost import draw_cost, needed_runs, network_cost
from hvae_hpc.results.scores import score_arms
from hvae_hpc.runs.plan import Plan, read_plan
from tests.results.made_up import SMALL_ARMS, segments, write_sweep

SECONDS = {"train": 1000.0, "generate": 100.0, "segment": 10.0}


def read(folder: Path, scale: float = 1.0, **choices: Any) -> tuple[Plan, Collected]:
    """Return made-up runs that take SECONDS times a scale, on a device by stage."""
    write_sweep(folder, **choices)
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    stages = collected.costs["stage"]
    collected.costs["spent_s"] = [scale * SECONDS.get(stage, 7.0) for stage in stages]
    collected.costs["device"] = [
        "gpu" if stage == "train" else f"cpu of {stage}" for stage in stages
    ]
    return plan, collected


def draw(plan: Plan, collected: Collected) -> Figure:
    return draw_cost(plan, collected, score_arms(plan, collected))[0]


def bars(figure: Figure) -> list[float]:
    return [patch.get_width() for patch in figure.axes[1].patches]


def test_a_network_needs_its_own_run_and_the_generators_and_nothing_of_other_arms(
    tmp_path: Path,
) -> None:
    runs = write_sweep(tmp_path)
    plan = read_plan(tmp_path / "plans/small.json")
    (scores,) = [s for s in score_arms(plan, collect(plan)) if s.arm.name == "vae+300"]
    needed = [needed_runs(plan, run_id) for run_id in scores.run_ids]
    own = {run.run_id for run in segments(runs, "vae+300")}
    pairs = {
        run.run_id
        for run in runs
        if run.stage in ("train", "generate") and run.config.generator == "vae"
    }
    assert len(pairs) == 2
    assert sorted(map(sorted, needed)) == sorted(sorted({run_id} | pairs) for run_id in own)


def test_all_attempts_on_all_devices_are_counted_whatever_the_number_of_seeds(
    tmp_path: Path,
) -> None:
    costs = []
    for seeds in (1, 3):
        plan, collected = read(tmp_path / str(seeds), seeds=seeds)
        collected.costs.loc[collected.costs["stage"] == "train", "processes"] = 4
        (scores,) = [s for s in score_arms(plan, collected) if s.arm.name == "hvae+100"]
        costs.append(
            network_cost(collected, [needed_runs(plan, run_id) for run_id in scores.run_ids])
        )
    devices = {"gpu", "cpu of generate", "cpu of segment"}
    assert costs == [(4110.0, devices), (4110.0, devices)]


@pytest.mark.parametrize(
    ("scale", "shown", "unit"),
    [(0.1, 111.0, "seconds"), (1.0, 18.5, "minutes"), (7.2, 2.22, "hours")],
)
def test_costs_stand_in_a_unit_that_reads_well(
    tmp_path: Path, scale: float, shown: float, unit: str
) -> None:
    figure = draw(*read(tmp_path, scale, seeds=1))
    assert figure.axes[1].get_xlabel().startswith(f"device {unit} for one network")
    assert max(bars(figure)) == pytest.approx(shown)


def test_every_arm_has_a_row_with_its_mean_dice_and_its_cost(tmp_path: Path) -> None:
    plan, collected = read(tmp_path)
    figure = draw(plan, collected)
    left, right = figure.axes
    means = [s.dice.mean for s in score_arms(plan, collected) if s.dice]
    shown = [container.lines[0].get_xdata()[0] for container in left.containers]
    np.testing.assert_allclose(shown, means)
    costs = [10 / 60] * 2 + [1110 / 60] * (len(SMALL_ARMS) - 2)
    np.testing.assert_allclose(bars(figure), costs)
    assert [text.get_text() for text in right.texts][1:3] == ["0.167", "18.5"]
    assert right.get_xlabel().endswith("(cpu of generate, cpu of segment, gpu)")
