"""Components of variance against REML and against known ones, and the power of designs."""

import numpy as np
import pandas as pd
import pytest

from hvae_hpc.results.power import ASSUMED_SD, Design, find_power, find_variances
from hvae_hpc.results.statistics import compare
from tests.results.test_statistics import draw


def test_components_are_those_of_reml_on_balanced_tables() -> None:
    pytest.importorskip("statsmodels", reason="REML is statsmodels', a package of the bench extra")
    from statsmodels.regression.mixed_linear_model import MixedLM

    compared = 0
    for seed in range(200):
        splits = 1 + 3 * (seed % 2)
        blocks = next(
            iter(
                draw(
                    seed, splits=splits, shape=(3, 4, 5), sds=(2.0, 2.0, 2.0), of_split=3.0
                ).values()
            )
        )
        # Cases of their own in every split: else the table is not balanced.
        blocks = [
            b._replace(cases=[f"{i}-{case}" for case in b.cases]) for i, b in enumerate(blocks)
        ]
        ours = find_variances(blocks)
        if min(ours.values()) < 0.3:  # REML's optimiser ends at its bound near 0
            continue
        rows = [
            (split, f"{split}-{t}", f"{split}-{s}", f"{split}-{c}", float(score))
            for split, block in enumerate(blocks)
            for (t, s, c), score in np.ndenumerate(block.scores)
        ]
        table = pd.DataFrame(rows, columns=["split", "training", "seed", "case", "score"])
        sources = [name for name in ("split", "training", "seed", "case") if name in ours]
        fit = MixedLM.from_formula(
            "score ~ 1",
            groups=np.ones(len(table)),
            vc_formula={name: f"0 + C({name})" for name in sources},
            data=table,
        ).fit(reml=True, method="lbfgs")
        theirs = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True), rest=fit.scale)
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3)
        compared += 1
        if compared == 20:
            return
    pytest.fail("fewer than 20 tables had no component below 0")


def test_variances_are_the_true_ones_on_average() -> None:
    design = {"splits": 6, "shape": (3, 4, 30), "sds": (1.0, 1.0, 1.0), "of_split": 1.0}
    tables = [find_variances(draw(seed, **design, tested=60)["arm-0"]) for seed in range(80)]
    for source in ("split", "training", "seed", "case", "rest"):
        assert np.mean([each[source] for each in tables]) == pytest.approx(1, rel=0.35), source


def test_what_was_not_repeated_has_no_variance() -> None:
    (blocks,) = draw(0, shape=(1, 5, 20)).values()
    assert set(find_variances(blocks)) == {"seed", "case", "rest"}
    (blocks,) = draw(0, shape=(1, 1, 20)).values()
    assert find_variances(blocks) == {}


@pytest.mark.parametrize(("splits", "shape"), [(1, (1, 8, 40)), (4, (2, 3, 40))])
def test_the_power_of_a_design_is_the_share_of_tables_that_show_the_gain(
    splits: int, shape: tuple[int, int, int]
) -> None:
    variances = dict.fromkeys(("seed", "case", "rest"), 1.0)
    variances |= {"split": 0.5**2, "training": 0.0}
    design = Design(splits, *shape, of_all=80 if splits > 1 else 40)
    drawn = [
        compare(
            draw(
                seed,
                arms=4,
                splits=splits,
                shape=shape,
                of_split=0.5 * (splits > 1),
                tested=design.of_all,
            )
        ).values()
        for seed in range(50)
    ]
    for gain in (0.8, 1.3):
        shown = np.mean([each.low + gain > 0 for of_sweep in drawn for each in of_sweep])
        assert find_power(gain, variances, design, 4) == pytest.approx(shown, abs=0.12)
    assert find_power(0.8, variances, Design(1, 1, 1, 40, 40), 4) == 0.0


def test_a_single_test_case_has_a_power_as_well() -> None:
    variances = {name: sd**2 for name, sd in ASSUMED_SD.items()}
    for splits in (1, 12):
        design = Design(splits=splits, trainings=1, seeds=4, cases=1, of_all=20)
        assert 0 < find_power(0.04, variances, design, 15) < 0.1
