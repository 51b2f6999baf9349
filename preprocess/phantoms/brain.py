"""A made-up head as BraTS has it: skull-stripped FLAIR, 240 x 240 x 155 at 1 mm, with one lesion."""

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

GRID = Grid(shape=(240, 240, 155), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, -239.0, 0.0))
"""The grid and origin of the real files."""

WHITE, GREY, FLUID = 0.40, 0.56, 0.08
"""FLAIR intensities of tissue, as shares of the brightest."""


def draw_brain(rng: np.random.Generator) -> list[tuple[NDArray[Any], Grid]]:
    """Draw a head.

    Returns:
        FLAIR (240, 240, 155) int16, exactly 0 outside the brain; labels uint8 (1 core, 2 oedema, 4
        enhancing); each with its grid.
    """
    centre = np.array([120.0, -112.0, 70.0]) + rng.uniform(-4, 4, 3)
    radii = np.array([73.0, 90.0, 72.0]) * rng.uniform(0.93, 1.05, 3)
    box = part_of(GRID.axes, centre, radii * 1.06)
    axes = cut(GRID.axes, box)
    image, depth, inside = _draw_anatomy(rng, axes, centre, radii)
    _add_confounders(rng, image, axes, centre, radii)
    labels = _add_lesion(rng, image, axes, centre, radii, inside)
    image *= np.exp(np.float32(rng.uniform(0.05, 0.15)) * Noise.over(axes, rng, 70.0)(axes))
    image += np.float32(rng.uniform(0.012, 0.03)) * rng.standard_normal(
        image.shape, dtype=np.float32
    )
    peak = rng.uniform(500, 2000)  # MR intensities have no unit
    flair, seg = np.zeros(GRID.shape, np.int16), np.zeros(GRID.shape, np.uint8)
    brain = depth > 0
    flair[box] = np.where(brain, np.clip(image * np.float32(peak), 1, 32767), 0).astype(np.int16)
    seg[box] = np.where(brain, labels, 0)
    return [(flair, GRID), (seg, GRID)]


def _draw_anatomy(
    rng: np.random.Generator, axes: Axes, centre: NDArray[np.float64], radii: NDArray[np.float64]
) -> tuple[Floats, Floats, Floats]:
    """Draw brain tissue: folded cortex, white matter, deep grey nuclei, ventricles.

    Returns:
        Image; depth below the surface (share of the radius, negative outside); 1 in tissue, 0 in
        fluid.
    """
    u, v, w = (
        ((a - np.float32(c)) / np.float32(r)) for a, c, r in zip(axes, centre, radii, strict=True)
    )
    u = u + np.float32(rng.uniform(-0.06, 0.06)) * v  # heads are never quite straight
    flat = np.where(
        w < 0, np.float32(1.35), np.float32(1)
    )  # the brain's floor is flatter than its top
    radius = np.sqrt(u * u * (1.06 - 0.16 * v) + v * v + w * w * flat)
    depth = 1 - radius - np.float32(0.022) * Noise.over(axes, rng, 22.0)(axes)
    # Cortex: level sets of a noise are sheets that fold like sulci; around each lies a ribbon
    # of grey.
    fold = np.square(Noise.over(axes, rng, 7.0)(axes))
    shallow = soft(np.float32(rng.uniform(0.22, 0.34)) - depth, 0.03)
    # The gap between the hemispheres, but for the bridge between them.
    gap = np.square(u / np.float32(0.018)) + 40 * soft(0.52 - np.sqrt(v * v + w * w), 0.03)
    fold = np.minimum(fold, 0.06 * gap)
    shallow = np.maximum(shallow, np.exp(-gap / 16))
    grey = np.maximum(shallow * np.exp(-fold / 0.8), soft(0.05 - depth, 0.012))
    fluid = (
        np.float32(rng.uniform(0.6, 1))
        * shallow
        * np.exp(-fold / np.float32(rng.uniform(0.015, 0.05)))
    )
    thalamus = _mirrored(u, v, w, (0.20, 0.14, 0.02), (0.11, 0.20, 0.17))
    putamen = _mirrored(u, v, w, (0.34, -0.10, 0.02), (0.08, 0.26, 0.16))
    grey = np.maximum(grey, np.float32(0.8) * soft(1 - np.minimum(thalamus, putamen), 0.1))
    size = rng.uniform(0.8, 1.6)
    # The ventricles spread towards front and back.
    spread = u - np.sign(u) * np.float32(0.5) * v * v
    horns = _mirrored(spread, v, w, (0.085, 0.02, 0.14), (0.07 * size, 0.42, 0.17 * size))
    third = np.sqrt(
        np.square(u / 0.02) + np.square((v - 0.05) / 0.17) + np.square((w - 0.02) / 0.14)
    )
    ventricles = np.maximum(soft(1 - horns, 0.10), soft(1 - third, 0.15))
    fluid = np.maximum(fluid, ventricles)
    rim = (
        np.float32(rng.uniform(0.03, 0.25))
        * np.exp(-np.square((horns - 1.2) / 0.15))
        * np.square(v / 0.4)
    )
    tissue = (
        WHITE + (GREY - WHITE) * grey + rim * (1 - grey) + 0.012 * Noise.over(axes, rng, 9.0)(axes)
    )
    return (
        np.asarray(tissue * (1 - fluid) + FLUID * fluid),
        np.asarray(depth),
        np.asarray(1 - ventricles),
    )


def _mirrored(
    u: Floats,
    v: Floats,
    w: Floats,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> Floats:
    """Return the distance from the nearer one of two ellipsoids left and right: 1 on the surface."""
    sides = zip((np.abs(u), v, w), centre, radii, strict=True)
    a, b, c = (
        np.square((axis - np.float32(middle)) / np.float32(radius))
        for axis, middle, radius in sides
    )
    return np.asarray(np.sqrt(a + b + c))


def _place(
    rng: np.random.Generator,
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
    nearest: float,
    farthest: float,
) -> NDArray[np.float64]:
    """Draw a place in the brain, between two shares of its radius, not at its floor."""
    while True:
        direction = rng.standard_normal(3)
        place = direction / np.linalg.norm(direction) * rng.uniform(nearest, farthest)
        if place[2] > -0.35 and abs(place[0]) > 0.12:
            return np.asarray(centre + radii * place)


def _add_confounders(
    rng: np.random.Generator,
    image: Floats,
    axes: Axes,
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
) -> None:
    """Brighten places that are no tumour: small white-matter spots, and patches of cortex."""
    kinds = [(rng.uniform(2.0, 6.0), (0.3, 0.75), (0.12, 0.35)) for _ in range(rng.integers(5, 25))]
    kinds += [(rng.uniform(7.0, 18.0), (0.8, 1.0), (0.08, 0.28)) for _ in range(rng.integers(2, 7))]
    for radius, (nearest, farthest), (faint, bright) in kinds:
        place = _place(rng, centre, radii, nearest, farthest)
        part = part_of(axes, place, 2 * radius)
        distance = ellipsoid(cut(axes, part), place, radius * rng.uniform(0.7, 1.4, 3))
        # In proportion to what is there, so that fluid stays dark.
        image[part] *= 1 + np.float32(rng.uniform(faint, bright) / WHITE) * soft(1 - distance, 0.2)


def _add_lesion(
    rng: np.random.Generator,
    image: Floats,
    axes: Axes,
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
    inside: Floats,
) -> NDArray[np.uint8]:
    """Draw the lesion into the image and return its labels.

    Oedema lies around the enhancing rim, which lies around the core; every fourth lesion is oedema
    alone.
    """
    radius = float(np.exp(rng.uniform(np.log(14), np.log(30))))
    place = _place(rng, centre, radii, 0.3, 0.75)
    part = part_of(axes, place, 2 * radius)
    near = cut(axes, part)
    distance = ellipsoid(near, place, radius * rng.uniform(0.75, 1.3, 3))
    rough = 0.22 * Noise.over(near, rng, 0.55 * radius)(near)
    rough += 0.10 * Noise.over(near, rng, 6.0)(near)
    edge = 1 - distance + rough  # above 0 in the lesion
    texture = 1 + 0.25 * Noise.over(near, rng, 9.0)(near)
    tissue = inside[part]
    brightness = np.float32(rng.uniform(0.10, 0.36))
    image[part] += brightness * soft(edge, rng.uniform(0.03, 0.12)) * texture * tissue
    labels = np.zeros(image.shape, np.uint8)
    local = np.where((edge > 0) & (tissue > 0.5), 2, 0).astype(np.uint8)
    if rng.uniform() > 0.25:
        ring = 0.65 - distance + 0.8 * rough
        core = ring - rng.uniform(0.12, 0.25)
        image[part] += np.float32(rng.uniform(-0.10, 0.12)) * soft(ring, 0.04) * tissue
        image[part] += np.float32(rng.uniform(-0.35, 0.05)) * soft(core, 0.04) * tissue
        local[(ring > 0) & (local > 0)] = 4
        local[(core > 0) & (local > 0)] = 1
    labels[part] = local
    return labels
