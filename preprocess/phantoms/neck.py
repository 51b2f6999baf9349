"""A made-up head and neck as HECKTOR has it: PET in SUV, CT in HU, labels on the CT's grid."""

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.preprocess.phantoms.shapes import (
    Axes,
    Drawing,
    Floats,
    Grid,
    Places,
    Triple,
    cut_box,
    draw_noise,
    ellipsoid,
    make_noise,
    soft,
)

_LEVELS_MM = (0.0, 40.0, 75.0, 110.0, 140.0, 175.0)
_HALF_WIDTH_MM = (170.0, 110.0, 62.0, 66.0, 72.0, 74.0)
_HALF_DEPTH_MM = (95.0, 72.0, 60.0, 72.0, 90.0, 95.0)
"""The body's outline from the shoulders (0 mm) to the brain."""

_SINGLE = [
    ((0.0, 5.0, 185.0), (58.0, 75.0, 42.0), (4, 9)),  # brain
    ((0.0, 30.0, 70.0), (5.0, 5.0, 110.0), (0.5, 1.5)),  # spinal cord
    ((0.0, -28.0, 62.0), (11.0, 9.0, 7.0), (0.5, 6)),  # larynx
    ((0.0, -50.0, 104.0), (16.0, 11.0, 7.0), (0.5, 5)),  # floor of the mouth
]
_PAIRED = [
    ((17.0, -18.0, 118.0), (7.0, 9.0, 10.0), (1.0, 6)),  # tonsils
    ((54.0, 4.0, 126.0), (9.0, 15.0, 16.0), (0.5, 3.5)),  # parotid glands
    ((30.0, -32.0, 94.0), (8.0, 11.0, 9.0), (1.0, 5)),  # submandibular glands
    ((20.0, -16.0, 42.0), (7.0, 8.0, 15.0), (0.2, 3.5)),  # thyroid
    ((44.0, 20.0, 80.0), (6.0, 8.0, 45.0), (0.0, 3)),  # neck muscles
]
"""Places, radii (mm) and range of SUVs of uptake that is no tumour; paired ones left and right."""


def draw_neck(rng: np.random.Generator) -> Drawing:
    """Draw a patient. The body's middle lies at x = y = 0, its lowest slice at z = 0, mm.

    Returns:
        PET (SUV) float32, CT (HU) int16, labels uint8 (1 primary tumour, 2 nodes), each with its
        grid.
    """
    patient = _Patient(rng)
    return [
        (patient.draw_pet(), patient.pet_grid),
        (patient.draw_ct(), patient.ct_grid),
        (patient.labels, patient.ct_grid),
    ]


class _Patient:
    """A patient being drawn: PET and CT, each on a grid of its own, and labels on the CT's."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.pet_grid, self.ct_grid = _draw_grids(rng)
        self.size = float(rng.uniform(0.92, 1.08))
        self.labels = np.zeros(self.ct_grid.shape, np.uint8)

    def draw_pet(self) -> Floats:
        """Draw the PET, tumours included, and the tumours' labels."""
        rng, axes = self.rng, self.pet_grid.axes
        body = soft(1 - self._outline(axes), 0.03)
        texture = 1 + 0.25 * draw_noise(rng, axes, 14.0)
        pet = body * (rng.uniform(0.6, 1.1) * texture)
        for place, radii, suv in self._draw_uptake():
            distance = ellipsoid(axes, place * self.size, np.array(radii) * self.size)
            pet += suv * soft(1 - distance, 2.5 / min(radii))
        pet *= 1 - 0.85 * soft(1 - self._airway(axes), 0.3)
        self._add_tumours(pet)

        # Counting noise grows with the square root of the activity; the scanner's blur correlates
        # neighbours.
        noise = draw_noise(rng, axes, 0.8 * self.pet_grid.spacing_mm[0])
        pet += rng.uniform(0.08, 0.22) * np.sqrt(np.clip(pet, 0.02, None)) * noise
        return np.asarray(np.clip(pet, 0, None), dtype=np.float32)

    def draw_ct(self) -> NDArray[np.int16]:
        """Draw the CT: skin, soft tissue, spine, airway."""
        axes = self.ct_grid.axes
        outline = self._outline(axes)
        body = outline < 1
        ct = np.where(body, np.where(outline > 0.9, -100, 45), -1000).astype(np.float32)
        spine = np.hypot(axes[0] / 14, (axes[1] - 22) / 12) < 1
        ct[body & spine] = 350
        ct[body & (self._airway(axes) < 1)] = -1000
        # In steps of 8 HU: the noise of a real CT, at a fraction of its size on disk.
        noise = self.rng.integers(-2, 3, ct.shape, dtype=np.int8) * np.int16(8)
        return np.asarray(np.clip(ct + noise, -1000, 3000), dtype=np.int16)

    def _outline(self, axes: Axes) -> Floats:
        """Return the distance from the body's axis in units of its outline: 1 on the skin."""
        width, depth = (
            np.interp(axes[2], _LEVELS_MM, sides).astype(np.float32) * np.float32(self.size)
            for sides in (_HALF_WIDTH_MM, _HALF_DEPTH_MM)
        )
        return np.sqrt(np.square(axes[0] / width) + np.square(axes[1] / depth))

    def _airway(self, axes: Axes) -> Floats:
        return ellipsoid(axes, np.array([0.0, -22.0, 70.0]) * self.size, (8.0, 10.0, 70.0))

    def _draw_uptake(self) -> list[tuple[Places, Triple, float]]:
        """Draw places, radii (mm) and SUVs of uptake that is no tumour."""
        rng = self.rng
        spots = [(np.array(place), radii, rng.uniform(*suv)) for place, radii, suv in _SINGLE]
        paired = [(place, radii, rng.uniform(*suv)) for place, radii, suv in _PAIRED]
        for place, radii, suv in paired:
            for side in (-1, 1):
                jitter = rng.uniform(-3, 3, 3)
                spots.append(
                    (np.array(place) * (side, 1, 1) + jitter, radii, suv * rng.uniform(0.5, 1.5))
                )
        for _ in range(rng.integers(0, 6)):  # inflamed nodes: like small tumours, but not labelled
            node = rng.uniform((30, -20, 45), (48, 25, 115)) * (rng.choice([-1, 1]), 1, 1)
            spots.append((node, (4.0, 4.0, 5.0), rng.uniform(1, 4)))
        return spots

    def _add_tumours(self, pet: Floats) -> None:
        """Add a primary tumour and up to four nodes, most of them on its side."""
        rng = self.rng
        side = float(rng.choice([-1.0, 1.0]))
        primary = [side * rng.uniform(2, 26), rng.uniform(-38, -8), rng.uniform(66, 130)]
        self._add_tumour(pet, primary, rng.uniform(9, 22), rng.lognormal(1.8, 0.45), 1)
        for _ in range(rng.integers(0, 5)):
            its_side = side if rng.uniform() < 0.75 else -side
            node = [its_side * rng.uniform(32, 46), rng.uniform(-18, 22), rng.uniform(48, 112)]
            self._add_tumour(pet, node, rng.uniform(5, 13), rng.lognormal(1.5, 0.45), 2)

    def _add_tumour(
        self, pet: Floats, middle: list[float], radius: float, suv: float, label: int
    ) -> None:
        """Add one tumour to the PET, and its outline to the labels."""
        rng = self.rng
        place, reach = np.array(middle) * self.size, 2 * radius
        radii = radius * rng.uniform(0.75, 1.3, 3)
        shape = make_noise(rng, place - reach, place + reach, 0.6 * radius)
        uptake = make_noise(rng, place - reach, place + reach, 8.0)
        necrosis = float(rng.uniform(0.3, 0.9)) if radius > 13 and rng.uniform() < 0.4 else 0.0

        def edge(axes: Axes) -> Floats:
            """Return what is above 0 in the tumour: one function for both grids."""
            return 1 - ellipsoid(axes, place, radii) + 0.18 * shape(axes)

        part, axes = cut_box(self.pet_grid.axes, place, reach)
        inside = edge(axes)
        hot = suv * (1 + 0.2 * uptake(axes)) * (1 - necrosis * soft(inside - 0.45, 0.1))
        pet[part] += hot * soft(inside, 2.5 / radius)  # 2.5 mm: the scanner's blur

        part, axes = cut_box(self.ct_grid.axes, place, reach)
        drawn = self.labels[part]
        drawn[(edge(axes) > 0) & (drawn == 0)] = label


def _draw_grids(rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Draw the grids of PET and CT."""
    plane, thick = float(rng.choice([3.91, 4.07, 4.69])), float(rng.choice([3.0, 3.27, 4.0]))
    n = int(290 / plane)
    start = -plane * (n - 1) / 2
    x, y, z = rng.uniform(-6, 6, 3).tolist()
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
