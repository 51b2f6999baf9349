"""Five statistics of lesions in their tissue: hand-made pairs, and distances between sets."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hvae_hpc.metrics.image_sets import TISSUE, Measurement, compare_tissue, describe_tissue


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


def compare(ours: tuple[NDArray[np.float32], NDArray[np.bool_]]) -> dict[str, Measurement]:
    """Compare pairs with 20 real ones."""
    real = draw_pairs(20, seed=0)
    described = [describe_tissue(*pairs, cases(len(pairs[0]))) for pairs in (ours, real)]
    return compare_tissue(*described[0], *described[1])


def test_the_statistics_of_a_flat_lesion_are_its_own() -> None:
    image = np.full((1, 24, 24), 0.5, np.float32)
    image[:, :4] = 0.0
    mask = np.zeros((1, 24, 24), bool)
    mask[0, 10:16, 10:16] = True
    image[mask] = 0.75
    (values,), kept = describe_tissue(image, mask, ["a"])
    assert kept == ["a"]
    described = dict(zip(TISSUE, values, strict=True))
    assert described["contrast"] == pytest.approx(0.25)
    assert described["lesion_mean"] == pytest.approx(0.75)
    assert described["lesion_sd"] == pytest.approx(0)
    assert 0.125 < described["lesion_edge"] < 0.125 * np.sqrt(2)  # half of 0.25, more at corners

    for nothing in (~mask & False, mask | True):  # no lesion; no rim and no tissue
        assert describe_tissue(image, nothing, ["a"])[1] == []


def test_sets_alike_are_near_and_a_change_shows_in_its_own_statistic() -> None:
    alike = compare(draw_pairs(20, seed=1))
    dull = compare(draw_pairs(20, seed=2, brightness=0.6))
    smooth = compare(draw_pairs(20, seed=3, noise=0.01))
    assert max(of.value for of in alike.values()) < 0.7
    assert dull["contrast"].value > 3 > dull["texture"].value
    assert smooth["texture"].value > 3 > smooth["contrast"].value
    assert all(of.low <= of.value <= of.high for of in alike.values())


def test_the_distance_is_in_standard_deviations_whatever_the_unit() -> None:
    (ours, our_masks), (real, masks) = draw_pairs(20, seed=1), draw_pairs(20, seed=0)
    darker = compare_tissue(
        *describe_tissue(ours / 4, our_masks, cases(20)),
        *describe_tissue(real / 4, masks, cases(20)),
    )
    for name, measure in compare((ours, our_masks)).items():
        assert darker[name].value == pytest.approx(measure.value, rel=1e-4)


def test_pairs_without_a_lesion_do_not_count_and_too_few_pairs_have_no_distance() -> None:
    images, masks = draw_pairs(12, seed=1)
    masks[3:9] = False
    kept = [0, 1, 2, 9, 10, 11]
    assert compare((images, masks)) == compare((images[kept], masks[kept])) != {}
    masks[1:] = False
    assert compare((images, masks)) == {}
    flat = np.ones((12, 5))
    assert compare_tissue(flat, cases(12), flat, cases(12)) == {}
