"""A made-up head as BraTS has it: skull-stripped FLAIR, 240 x 240 x 155 at 1 mm, one lesion."""

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.preprocess.phantoms.shapes import (
    Drawing,
    Floats,
    Grid,
    Places,
    Triple,
    cut_box,
    draw_noise,
    ellipsoid,
    soft,
)

GRID = Grid(shape=(240, 240, 155), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, -239.0, 0.0))
"""The grid and origin of the real files."""

WHITE, GREY, FLUID = 0.40, 0.56, 0.08
"""FLAIR intensities of tissue, as shares of the brightest."""


def draw_brain(rng: np.random.Generator) -> Drawing:
    """Draw a head.

    Returns:
        FLAIR (240, 240, 155) int16, exactly 0 outside the brain; labels uint8 (1 core, 2 oedema, 4
        enhancing); each with its grid.
    """
    head = _Head(rng)
    head.draw_anatomy()
    head.add_confounders()
    labels = head.add_lesion()

    # The scanner: a bias field, noise, and intensities without a unit.
    image = head.image
    image *= np.exp(rng.uniform(0.05, 0.15) * draw_noise(rng, head.axes, 70.0))
    image += rng.uniform(0.012, 0.03) * rng.standard_normal(image.shape, dtype=np.float32)
    peak = rng.uniform(500, 2000)

    brain = head.depth > 0
    flair, seg = np.zeros(GRID.shape, np.int16), np.zeros(GRID.shape, np.uint8)
    flair[head.box] = np.where(brain, np.clip(image * peak, 1, 32767), 0).astype(np.int16)
    seg[head.box] = np.where(brain, labels, 0)
    return [(flair, GRID), (seg, GRID)]


class _Head:
    """A head being drawn, in the box around it.

    Attributes:
        image: intensities, as shares of the brightest.
        depth: below the brain's surface, as a share of its radius; negative outside.
        tissue: 1 in tissue, 0 in the ventricles.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.centre = np.array([120.0, -112.0, 70.0]) + rng.uniform(-4, 4, 3)
        self.radii = np.array([73.0, 90.0, 72.0]) * rng.uniform(0.93, 1.05, 3)
        self.box, self.axes = cut_box(GRID.axes, self.centre, self.radii * 1.06)

    def draw_anatomy(self) -> None:
        """Draw brain tissue: folded cortex, white matter, deep grey nuclei, ventricles."""
        rng, axes = self.rng, self.axes
        middle, radii = self.centre.astype(np.float32), self.radii.astype(np.float32)
        u, v, w = ((a - c) / r for a, c, r in zip(axes, middle, radii, strict=True))
        u = u + rng.uniform(-0.06, 0.06) * v  # heads are never quite straight
        flat = np.where(w < 0, np.float32(1.35), np.float32(1))  # the floor is flatter than the top
        radius = np.sqrt(u * u * (1.06 - 0.16 * v) + v * v + w * w * flat)
        depth = 1 - radius - 0.022 * draw_noise(rng, axes, 22.0)

        # Cortex: level sets of a noise are sheets that fold like sulci, in a ribbon of grey.
        fold = np.square(draw_noise(rng, axes, 7.0))
        shallow = soft(rng.uniform(0.22, 0.34) - depth, 0.03)
        # The gap between the hemispheres, but for the bridge between them.
        gap = np.square(u / 0.018) + 40 * soft(0.52 - np.sqrt(v * v + w * w), 0.03)
        fold = np.minimum(fold, 0.06 * gap)
        shallow = np.maximum(shallow, np.exp(-gap / 16))
        grey = np.maximum(shallow * np.exp(-fold / 0.8), soft(0.05 - depth, 0.012))
        fluid = rng.uniform(0.6, 1) * shallow * np.exp(-fold / rng.uniform(0.015, 0.05))

        thalamus = _mirrored(u, v, w, (0.20, 0.14, 0.02), (0.11, 0.20, 0.17))
        putamen = _mirrored(u, v, w, (0.34, -0.10, 0.02), (0.08, 0.26, 0.16))
        grey = np.maximum(grey, 0.8 * soft(1 - np.minimum(thalamus, putamen), 0.1))

        # Ventricles: the horns spread towards front and back; a bright rim lies around them.
        size = rng.uniform(0.8, 1.6)
        spread = u - np.sign(u) * np.float32(0.5) * v * v
        horns = _mirrored(spread, v, w, (0.085, 0.02, 0.14), (0.07 * size, 0.42, 0.17 * size))
        third = ellipsoid((u, v, w), (0.0, 0.05, 0.02), (0.02, 0.17, 0.14))
        ventricles = np.maximum(soft(1 - horns, 0.10), soft(1 - third, 0.15))
        fluid = np.maximum(fluid, ventricles)
        rim = (
            rng.uniform(0.03, 0.25) * np.exp(-np.square((horns - 1.2) / 0.15)) * np.square(v / 0.4)
        )

        tissue = (
            WHITE + (GREY - WHITE) * grey + rim * (1 - grey) + 0.012 * draw_noise(rng, axes, 9.0)
        )
        self.image = tissue * (1 - fluid) + FLUID * fluid
        self.depth, self.tissue = depth, 1 - ventricles

    def add_confounders(self) -> None:
        """Brighten places that are no tumour: small white-matter spots, and patches of cortex."""
        rng = self.rng
        spots = [
            (rng.uniform(2.0, 6.0), (0.3, 0.75), (0.12, 0.35)) for _ in range(rng.integers(5, 25))
        ]
        spots += [
            (rng.uniform(7.0, 18.0), (0.8, 1.0), (0.08, 0.28)) for _ in range(rng.integers(2, 7))
        ]
        for radius, shares, (faint, bright) in spots:
            place = self._draw_place(*shares)
            part, axes = cut_box(self.axes, place, 2 * radius)
            distance = ellipsoid(axes, place, radius * rng.uniform(0.7, 1.4, 3))
            # In proportion to what is there, so that fluid stays dark.
            self.image[part] *= 1 + rng.uniform(faint, bright) / WHITE * soft(1 - distance, 0.2)

    def add_lesion(self) -> NDArray[np.uint8]:
        """Draw the lesion and return its labels.

        Oedema lies around the enhancing rim, which lies around the core; every fourth lesion is
        oedema alone.
        """
        rng = self.rng
        radius = float(np.exp(rng.uniform(np.log(14), np.log(30))))
        place = self._draw_place(0.3, 0.75)
        part, axes = cut_box(self.axes, place, 2 * radius)
        tissue = self.tissue[part]

        # Oedema, with a rough edge and a texture.
        distance = ellipsoid(axes, place, radius * rng.uniform(0.75, 1.3, 3))
        rough = 0.22 * draw_noise(rng, axes, 0.55 * radius)
        rough += 0.10 * draw_noise(rng, axes, 6.0)
        edge = 1 - distance + rough  # above 0 in the lesion
        texture = 1 + 0.25 * draw_noise(rng, axes, 9.0)
        brightness = rng.uniform(0.10, 0.36)
        self.image[part] += brightness * soft(edge, rng.uniform(0.03, 0.12)) * texture * tissue
        local = np.where((edge > 0) & (tissue > 0.5), 2, 0).astype(np.uint8)

        if rng.uniform() > 0.25:
            ring = 0.65 - distance + 0.8 * rough
            core = ring - rng.uniform(0.12, 0.25)
            self.image[part] += rng.uniform(-0.10, 0.12) * soft(ring, 0.04) * tissue
            self.image[part] += rng.uniform(-0.35, 0.05) * soft(core, 0.04) * tissue
            local[(ring > 0) & (local > 0)] = 4
            local[(core > 0) & (local > 0)] = 1
        labels = np.zeros(self.image.shape, np.uint8)
        labels[part] = local
        return labels

    def _draw_place(self, nearest: float, farthest: float) -> Places:
        """Draw a place in the brain, between two shares of its radius, not at its floor."""
        while True:
            direction = self.rng.standard_normal(3)
            share = self.rng.uniform(nearest, farthest)
            place = direction / np.linalg.norm(direction) * share
            if place[2] > -0.35 and abs(place[0]) > 0.12:
                return self.centre + self.radii * place


def _mirrored(u: Floats, v: Floats, w: Floats, centre: Triple, radii: Triple) -> Floats:
    """Return the distance from the nearer of two ellipsoids left and right: 1 on the surface."""
    return ellipsoid((np.abs(u), v, w), centre, radii)
