"""A made-up head and neck as HECKTOR has it: PET in SUV, CT in HU, labels on the CT's grid."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.preprocess.phantoms.shapes import (
    Axes,
    Floats,
    Grid,
    Noise,
    cut,
    ellipsoid,
    part_of,
    soft,
)

Triple = tuple[float, float, float]

_LEVELS_MM = (0.0, 40.0, 75.0, 110.0, 140.0, 175.0)
_HALF_WIDTH_MM = (170.0, 110.0, 62.0, 66.0, 72.0, 74.0)
_HALF_DEPTH_MM = (95.0, 72.0, 60.0, 72.0, 90.0, 95.0)
"""The body's outline from the shoulders (0 mm) to the brain."""


def draw_neck(rng: np.random.Generator) -> list[tuple[NDArray[Any], Grid]]:
    """Draw a patient. The body's middle lies at x = y = 0, its lowest slice at z = 0, mm.

    Returns:
        PET (SUV) float32, CT (HU) int16, labels uint8 (1 primary tumour, 2 nodes), each with its
        grid.
    """
    pet_grid, ct_grid = _draw_grids(rng)
    size = float(rng.uniform(0.92, 1.08))
    pet, labels = _draw_pet(rng, pet_grid, ct_grid, size)
    return [(pet, pet_grid), (_draw_ct(rng, ct_grid, size), ct_grid), (labels, ct_grid)]


def _draw_grids(rng: np.random.Generator) -> tuple[Grid, Grid]:
    plane, thick = float(rng.choice([3.91, 4.07, 4.69])), float(rng.choice([3.0, 3.27, 4.0]))
    n = int(290 / plane)
    start = -plane * (n - 1) / 2
    x, y, z = (float(value) for value in rng.uniform(-6, 6, 3))
    pet = Grid(
        shape=(n, n, int(172 / thick)),
        spacing_mm=(plane, plane, thick),
        origin_mm=(start + x, start + y, 2 + z),
    )
    fine = float(rng.choice([0.98, 1.17]))
    m = int(212 / fine)
    begin = -fine * (m - 1) / 2
    ct = Grid(
        shape=(m, m, 56),
        spacing_mm=(fine, fine, 3.0),
        origin_mm=(begin + x / 2, begin + y / 2, 4.0),
    )
    return pet, ct


def _outline(axes: Axes, size: float) -> Floats:
    """Return the distance from the body's axis in units of its outline: 1 on the skin."""
    width, depth = (
        np.interp(axes[2], _LEVELS_MM, sides).astype(np.float32) * np.float32(size)
        for sides in (_HALF_WIDTH_MM, _HALF_DEPTH_MM)
    )
    return np.asarray(np.sqrt(np.square(axes[0] / width) + np.square(axes[1] / depth)))


def _draw_pet(
    rng: np.random.Generator, grid: Grid, ct_grid: Grid, size: float
) -> tuple[Floats, NDArray[np.uint8]]:
    axes = grid.axes
    body = soft(1 - _outline(axes, size), 0.03)
    texture = 1 + 0.25 * Noise.over(axes, rng, 14.0)(axes)
    pet = body * (np.float32(rng.uniform(0.6, 1.1)) * texture)
    for place, radii, suv in _physiology(rng):
        distance = ellipsoid(axes, np.array(place) * size, np.array(radii) * size)
        pet = pet + np.float32(suv) * soft(1 - distance, 2.5 / min(radii))
    airway = ellipsoid(axes, np.array([0.0, -22.0, 70.0]) * size, np.array([8.0, 10.0, 70.0]))
    pet = pet * (1 - 0.85 * soft(1 - airway, 0.3))
    labels = np.zeros(ct_grid.shape, np.uint8)
    _add_tumours(rng, pet, grid, labels, ct_grid, size)
    # Counting noise grows with the square root of the activity; the scanner's blur correlates
    # neighbours.
    noise = Noise.over(axes, rng, 0.8 * grid.spacing_mm[0])(axes)
    pet = pet + np.float32(rng.uniform(0.08, 0.22)) * np.sqrt(np.clip(pet, 0.02, None)) * noise
    return np.asarray(np.clip(pet, 0, None), dtype=np.float32), labels


def _physiology(rng: np.random.Generator) -> list[tuple[Triple, Triple, float]]:
    """Places, radii (mm) and SUVs of uptake that is no tumour."""
    spots = [((0.0, 5.0, 185.0), (58.0, 75.0, 42.0), rng.uniform(4, 9))]  # brain
    spots.append(((0.0, 30.0, 70.0), (5.0, 5.0, 110.0), rng.uniform(0.5, 1.5)))  # spinal cord
    spots.append(((0.0, -28.0, 62.0), (11.0, 9.0, 7.0), rng.uniform(0.5, 6)))  # larynx
    spots.append(
        ((0.0, -50.0, 104.0), (16.0, 11.0, 7.0), rng.uniform(0.5, 5))
    )  # floor of the mouth
    paired = [
        ((17.0, -18.0, 118.0), (7.0, 9.0, 10.0), rng.uniform(1.0, 6)),  # tonsils
        ((54.0, 4.0, 126.0), (9.0, 15.0, 16.0), rng.uniform(0.5, 3.5)),  # parotid glands
        ((30.0, -32.0, 94.0), (8.0, 11.0, 9.0), rng.uniform(1.0, 5)),  # submandibular glands
        ((20.0, -16.0, 42.0), (7.0, 8.0, 15.0), rng.uniform(0.2, 3.5)),  # thyroid
        ((44.0, 20.0, 80.0), (6.0, 8.0, 45.0), rng.uniform(0.0, 3)),  # neck muscles
    ]
    for (x, y, z), radii, suv in paired:
        for side in (-1, 1):
            jitter = rng.uniform(-3, 3, 3)
            place = (side * x + jitter[0], y + jitter[1], z + jitter[2])
            spots.append((place, radii, suv * rng.uniform(0.5, 1.5)))
    for _ in range(rng.integers(0, 6)):  # inflamed nodes: like small tumours, but not labelled
        x, y, z = rng.uniform((30, -20, 45), (48, 25, 115)) * (rng.choice([-1, 1]), 1, 1)
        spots.append(((x, y, z), (4.0, 4.0, 5.0), rng.uniform(1, 4)))
    return [(place, radii, float(suv)) for place, radii, suv in spots]


def _add_tumours(
    rng: np.random.Generator,
    pet: Floats,
    grid: Grid,
    labels: NDArray[np.uint8],
    ct_grid: Grid,
    size: float,
) -> None:
    """Add a primary tumour and up to four nodes to the PET, and their outlines to the labels."""
    side = float(rng.choice([-1.0, 1.0]))
    primary = (
        np.array([side * rng.uniform(2, 26), rng.uniform(-38, -8), rng.uniform(66, 130)]) * size
    )
    _add_tumour(
        rng, pet, grid, labels, ct_grid, primary, rng.uniform(9, 22), rng.lognormal(1.8, 0.45), 1
    )
    for _ in range(rng.integers(0, 5)):
        near_side = side if rng.uniform() < 0.75 else -side
        node = (
            np.array([near_side * rng.uniform(32, 46), rng.uniform(-18, 22), rng.uniform(48, 112)])
            * size
        )
        _add_tumour(
            rng, pet, grid, labels, ct_grid, node, rng.uniform(5, 13), rng.lognormal(1.5, 0.45), 2
        )


def _add_tumour(
    rng: np.random.Generator,
    pet: Floats,
    grid: Grid,
    labels: NDArray[np.uint8],
    ct_grid: Grid,
    place: NDArray[np.float64],
    radius: float,
    suv: float,
    label: int,
) -> None:
    reach = 2 * radius
    radii = radius * rng.uniform(0.75, 1.3, 3)
    shape = Noise(rng, place - reach, place + reach, 0.6 * radius)
    uptake = Noise(rng, place - reach, place + reach, 8.0)
    necrosis = float(rng.uniform(0.3, 0.9)) if radius > 13 and rng.uniform() < 0.4 else 0.0

    def edge(axes: Axes) -> Floats:
        return np.asarray(1 - ellipsoid(axes, place, radii) + 0.18 * shape(axes))

    part = part_of(grid.axes, place, reach)
    axes = cut(grid.axes, part)
    inside = edge(axes)
    hot = (
        np.float32(suv)
        * (1 + 0.2 * uptake(axes))
        * (1 - np.float32(necrosis) * soft(inside - 0.45, 0.1))
    )
    pet[part] += hot * soft(inside, 2.5 / radius)  # 2.5 mm: the scanner's blur
    fine = part_of(ct_grid.axes, place, reach)
    drawn = labels[fine]
    drawn[(edge(cut(ct_grid.axes, fine)) > 0) & (drawn == 0)] = label


def _draw_ct(rng: np.random.Generator, grid: Grid, size: float) -> NDArray[np.int16]:
    axes = grid.axes
    outline = _outline(axes, size)
    ct = np.where(outline < 1, np.where(outline > 0.9, -100, 45), -1000).astype(np.float32)
    spine = np.hypot(axes[0] / 14, (axes[1] - 22) / 12) < 1
    ct = np.where(spine & (outline < 1), np.float32(350), ct)
    airway = ellipsoid(axes, np.array([0.0, -22.0, 70.0]) * size, np.array([8.0, 10.0, 70.0])) < 1
    ct = np.where(airway & (outline < 1), np.float32(-1000), ct)
    # In steps of 8 HU: the noise of a real CT, at a fraction of its size on disk.
    noise = rng.integers(-2, 3, ct.shape, dtype=np.int8) * np.int16(8)
    return np.asarray(np.clip(ct + noise, -1000, 3000), dtype=np.int16)
