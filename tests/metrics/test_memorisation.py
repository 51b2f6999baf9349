"""Copies of training images are found however they are moved, and new images are left alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hvae_hpc.errors import UserError
from hvae_hpc.metrics import memorisation
from hvae_hpc.metrics.memorisation import FALSE_ALARMS, HALF, SHIFT_PX, Copies, Features

SIDE = 64
Images = np.ndarray[Any, np.dtype[np.float32]]


def draw_heads(n: int, seed: int, side: int = SIDE) -> Images:
    """Draw n heads that lie alike, each with folds and a lesion of its own."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    images = []
    for _ in range(n):
        radii, centre, lesion = (
            random.uniform(0.37, 0.43, 2),
            random.normal(0, 0.01, 2),
            random.uniform(-0.2, 0.2, 2),
        )
        inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
        folds = gaussian_filter(random.normal(0, 1, y.shape), side / 25)
        bright = (y - lesion[0]) ** 2 + (x - lesion[1]) ** 2 < random.uniform(0.05, 0.12) ** 2
        images.append(
            np.where(inside, 0.4 + 0.1 * folds / folds.std() + 0.3 * bright, 0)
            + random.normal(0, 0.01, y.shape)
        )
    return np.clip(images, 0, 1).astype(np.float32)


def find_copies(
    images: Images,
    train: Images,
    held_out: Images,
    train_cases: list[str] | None = None,
    held_out_cases: list[str] | None = None,
) -> Copies:
    """Find copies; where no cases are given, each image is of a case of its own."""
    return memorisation.find_copies(
        images,
        train,
        held_out,
        train_cases or [f"case{i}" for i in range(len(train))],
        held_out_cases or [f"case{i}" for i in range(len(held_out))],
    )


TRAIN, HELD_OUT = draw_heads(20, seed=1), draw_heads(20, seed=2)


def moved(images: Images, rows: int, columns: int) -> Images:
    return np.roll(images, (rows, columns), (1, 2))


def flipped(images: Images) -> Images:
    return images[:, :, ::-1]


def noisy(images: Images) -> Images:
    noise = np.random.default_rng(3).normal(0, 0.05, images.shape)  # 5 % of the range
    return np.clip(images + noise, 0, 1).astype(np.float32)


def blurred(images: Images) -> Images:
    return np.asarray(gaussian_filter(images, (0, 1, 1)))


WAYS: dict[str, Callable[[Images], Images]] = {
    "as it is": lambda images: images,
    "shifted down": lambda images: moved(images, 2, 0),
    "shifted aslant": lambda images: moved(images, -2, 2),
    "flipped": flipped,
    "noisy": noisy,
    "all of it": lambda images: noisy(moved(flipped(images), -2, -2)),
    "in another contrast": lambda images: 0.1 + 0.8 * images**1.3,
    "a little blurred": blurred,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_generator_that_replays_its_training_set_is_found_and_the_image_is_named(
    way: str,
) -> None:
    shown = np.random.default_rng(4).permutation(len(TRAIN))
    copies = find_copies(WAYS[way](TRAIN[shown]), TRAIN, HELD_OUT)
    assert copies.flagged.all()
    assert copies.copying
    assert (copies.nearest == shown).all()


@pytest.mark.parametrize("in_turn", [False, True], ids=["held-out set", "each case in turn"])
def test_a_smooth_generator_hides_no_copies_and_honest_smooth_images_are_none(
    in_turn: bool,
) -> None:
    side = 60
    train, held_out, new = (draw_heads(20, seed, side) for seed in (14, 15, 16))
    smooth = (0, 8 / 240 * side, 8 / 240 * side)
    shown = np.concatenate([gaussian_filter(images, smooth) for images in (train, new)])
    names = [f"case{i}" for i in range(20)]
    copies = memorisation.find_copies(
        np.concatenate([shown, new]), train, None if in_turn else held_out, names, names
    )
    assert copies.flagged.tolist() == [True] * 20 + [False] * 40
    assert (copies.nearest[:20] == range(20)).all()


def test_the_judge_finds_a_copy_that_pixels_do_not_show() -> None:
    # Turned upside down: another image, but of equal features.
    features = np.random.default_rng(17).normal(size=(3, 20, 8))
    seen = Features(images=features[0] + 0.01, train=features[0], held_out=features[1])
    cases = [f"case{i}" for i in range(20)]
    found = [
        memorisation.find_copies(TRAIN[:, ::-1], TRAIN, HELD_OUT, cases, cases, of)
        for of in (None, seen, seen._replace(images=features[2]))
    ]
    assert [copies.flagged.all() for copies in found] == [False, True, False]
    assert (found[1].nearest == range(20)).all()


def test_an_exact_copy_has_no_distance_and_a_stranger_has_one() -> None:
    copies = find_copies(
        np.concatenate([flipped(TRAIN[:3]), draw_heads(3, seed=5)]), TRAIN, HELD_OUT
    )
    assert copies.distance[:3] == pytest.approx(0, abs=2e-3)
    assert (copies.distance[3:] > 0.2).all()
    assert copies.flagged.tolist() == [True] * 3 + [False] * 3


def test_a_shift_beyond_those_that_are_searched_is_further_away() -> None:
    inside, outside = (
        find_copies(moved(TRAIN, 0, px), TRAIN, HELD_OUT).distance
        for px in (SHIFT_PX, 2 * SHIFT_PX)
    )
    assert inside.max() < 0.01 < outside.min()


def test_averages_of_several_training_images_are_no_copies_though_nearer_than_new_patients() -> (
    None
):
    random, new = np.random.default_rng(6), find_copies(HELD_OUT, TRAIN, HELD_OUT)
    for n in (2, 3, 5, 20):
        averages = np.stack([TRAIN[random.permutation(20)[:n]].mean(0) for _ in range(20)])
        copies = find_copies(blurred(averages), TRAIN, HELD_OUT)
        assert not copies.flagged.any()
        assert not copies.copying
        assert np.median(copies.distance) < np.median(
            new.distance
        )  # what a plain distance would have made copies


@pytest.mark.parametrize("n_held_out", [20, 39])
def test_new_real_images_give_few_false_alarms_over_many_draws(n_held_out: int) -> None:
    random, train = np.random.default_rng(7), draw_heads(5, seed=8, side=24)
    # Patients who resemble a training case, many of them by more than half: a ratio of a half
    # alone is no guard here.
    share = random.uniform(0, 0.9, (400, 1, 1)).astype(np.float32)
    real = share * train[random.integers(5, size=400)] + (1 - share) * draw_heads(
        400, seed=9, side=24
    )
    alarms, called = [], []
    for _ in range(30):
        drawn = real[random.permutation(400)[: n_held_out + 150]]
        copies = find_copies(drawn[n_held_out:], train, drawn[:n_held_out])
        assert copies.threshold < HALF
        alarms.append(copies.flagged.mean())
        called.append(copies.copying)
    assert 0.03 < np.mean(alarms) < FALSE_ALARMS + 2 * np.std(alarms) / len(alarms) ** 0.5
    assert np.mean(called) < FALSE_ALARMS + 2 * (0.05 * 0.95 / len(called)) ** 0.5


def test_images_that_are_far_from_copies_are_not_flagged_though_they_are_the_nearest_of_all() -> (
    None
):
    copies = find_copies(draw_heads(200, seed=10), TRAIN, HELD_OUT)
    assert copies.threshold == HALF
    assert not copies.flagged.any()


def test_one_copy_among_many_new_images_is_flagged_but_the_generator_is_not_called_copying() -> (
    None
):
    copies = find_copies(np.concatenate([TRAIN[:1], draw_heads(99, seed=11)]), TRAIN, HELD_OUT)
    assert copies.flagged.nonzero()[0].tolist() == [0]
    assert not copies.copying


def test_a_patient_who_is_there_twice_or_in_many_slices_hides_no_copy() -> None:
    again = np.concatenate([TRAIN, noisy(TRAIN[:1]), noisy(TRAIN)])
    names = [f"case{i}" for i in range(20)]
    cases = [*names, "another name of case0", *names]
    assert find_copies(blurred(TRAIN), again, HELD_OUT, cases).flagged.all()


def test_the_order_of_the_training_images_does_not_matter() -> None:
    images, order = (
        np.concatenate([TRAIN[:4], draw_heads(4, seed=12)]),
        np.random.default_rng(13).permutation(20),
    )
    cases = [f"case{i // 2}" for i in range(20)]
    straight = find_copies(images, TRAIN, HELD_OUT, cases)
    mixed = find_copies(images, TRAIN[order], HELD_OUT[::-1], [cases[i] for i in order])
    assert (order[mixed.nearest] == straight.nearest).all()
    np.testing.assert_allclose(mixed.score, straight.score, atol=1e-5)
    assert mixed.threshold == pytest.approx(straight.threshold, abs=1e-5)


def test_brightness_and_empty_images_are_no_likeness() -> None:
    empty = np.stack([np.zeros((SIDE, SIDE)), np.full((SIDE, SIDE), 0.7)]).astype(np.float32)
    copies = find_copies(empty, TRAIN, HELD_OUT)
    assert copies.distance == pytest.approx(2**0.5)
    assert not copies.flagged.any()


def test_what_cannot_be_compared_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"px; expected one size"):
        find_copies(TRAIN[:, 1:], TRAIN, HELD_OUT)
    with pytest.raises(UserError, match=r"expected one size of 12 px or more"):
        find_copies(TRAIN[:, :9, :9], TRAIN[:, :9, :9], HELD_OUT[:, :9, :9])
    with pytest.raises(UserError, match=r"1 training cases.*expected"):
        find_copies(TRAIN, TRAIN, HELD_OUT, ["one"] * 20)
    with pytest.raises(UserError, match=r"0 held-out images"):
        find_copies(TRAIN, TRAIN, HELD_OUT[:0])
    with pytest.raises(UserError, match=r"2 training cases.*expected 1, 3 and"):
        memorisation.find_copies(TRAIN, TRAIN[:2], None, ["one", "two"])


def test_several_images_of_a_held_out_case_are_one_observation() -> None:
    images = draw_heads(30, seed=5)
    alone = find_copies(images, TRAIN, HELD_OUT)
    twice = np.repeat(HELD_OUT, 3, axis=0)
    cases = [f"case{i // 3}" for i in range(len(twice))]
    together = find_copies(images, TRAIN, twice, held_out_cases=cases)
    assert (together.threshold, together.p_value) == (
        pytest.approx(alone.threshold),
        pytest.approx(alone.p_value),
    )
    # Taken one by one they would be three times as many, and the threshold would not be the
    # lowest any more.
    assert find_copies(images, TRAIN, twice).threshold >= together.threshold
