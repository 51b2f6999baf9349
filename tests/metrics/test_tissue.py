"""Five statistics of lesions in their tissue: hand-made pairs, and distances between sets."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hvae_hpc.metrics.image_sets import TISSUE_STATISTICS
from hvae_hpc.metrics.tissue import compare_tissue, describe_tissue


def draw_pairs(
    n: int, seed: int, brightness: float = 0.8, noise: float = 0.05
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw heads of brightness 0.5 with a bright square lesion each."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - 15.5
    head = np.hypot(x, y) < 13
    images, masks = [], []
    for _ in range(n):
        row, column = random.integers(10, 17, 2)
        mask = np.zeros((32, 32), bool)
        mask[row : row + 5, column : column + 5] = True
        image = np.where(mask, brightness + 0.05 * random.normal(), 0.5) * head
        images.append(image + noise * random.normal(size=mask.shape) * head)
        masks.append(mask)
    return np.array(images, np.float32), np.array(masks)


def cases(n: int) -> list[str]:
    return [f"case{i}" for i in range(n)]


def test_the_statistics_of_a_flat_lesion_are_its_own() -> None:
    image = np.full((1, 24, 24), 0.5, np.float32)
    image[:, :4] = 0.0
    mask = np.zeros((1, 24, 24), bool)
    mask[0, 10:16, 10:16] = True
    image[mask] = 0.75
    described = {name: values[0] for name, values in describe_tissue(image, mask).items()}
    assert tuple(described) == TISSUE_STATISTICS
    assert described["contrast"] == pytest.approx(0.25)
    assert described["lesion_mean"] == pytest.approx(0.75)
    assert described["lesion_sd"] == pytest.approx(0)
    assert 0.125 < described["rim_gradient"] < 0.125 * np.sqrt(2)  # half of 0.25, more at corners

    for nothing in (~mask & False, mask | True):  # no lesion; no rim and no tissue
        assert all(np.isnan(values[0]) for values in describe_tissue(image, nothing).values())


def test_sets_alike_are_near_and_a_change_shows_in_its_own_statistic() -> None:
    real = describe_tissue(*draw_pairs(40, seed=0))
    alike = compare_tissue(describe_tissue(*draw_pairs(40, seed=1)), real, cases(40), cases(40))
    dull_set = describe_tissue(*draw_pairs(40, seed=2, brightness=0.6))
    smooth_set = describe_tissue(*draw_pairs(40, seed=3, noise=0.01))
    dull, smooth = (compare_tissue(of, real, cases(40), cases(40)) for of in (dull_set, smooth_set))
    assert max(of.value for of in alike.values()) < 0.6
    assert dull["contrast"].value > 3 > dull["texture"].value
    assert smooth["texture"].value > 3 > smooth["contrast"].value
    assert all(of.low <= of.value <= of.high for of in alike.values())


def test_the_distance_is_in_standard_deviations_whatever_the_unit() -> None:
    (images, masks), (others, other_masks) = draw_pairs(20, seed=0), draw_pairs(20, seed=1)
    one = compare_tissue(
        describe_tissue(others, other_masks), describe_tissue(images, masks), cases(20), cases(20)
    )
    scaled = compare_tissue(
        describe_tissue(others / 4, other_masks),
        describe_tissue(images / 4, masks),
        cases(20),
        cases(20),
    )
    for name in TISSUE_STATISTICS:
        assert scaled[name].value == pytest.approx(one[name].value, rel=1e-4)


def test_pairs_without_a_lesion_do_not_count_and_too_few_pairs_have_no_distance() -> None:
    images, masks = draw_pairs(12, seed=0)
    real, some = describe_tissue(images, masks), masks.copy()
    some[3:9] = False
    kept = [0, 1, 2, 9, 10, 11]
    assert compare_tissue(describe_tissue(images, some), real, cases(12), cases(12)) == (
        compare_tissue(
            describe_tissue(images[kept], masks[kept]),
            real,
            [cases(12)[i] for i in kept],
            cases(12),
        )
    )
    some[1:] = False
    assert compare_tissue(describe_tissue(images, some), real, cases(12), cases(12)) == {}
    flat = {name: np.ones(12) for name in real}
    assert compare_tissue(real, flat, cases(12), cases(12)) == {}
