"""What phantoms are drawn with: grids in mm, smooth noise as a function of place, soft ellipsoids.

Places are (x, y, z) in mm, towards the patient's left, back and head (LPS). Everything is evaluated
on the axes of a grid, so two grids of different spacing see the same object.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.frozen import frozen

Floats = NDArray[np.float32]
Places = NDArray[np.float64]
"""(3,) x, y, z, mm."""
Triple = tuple[float, float, float]
"""The same, written down."""
Axes = tuple[Floats, Floats, Floats]
"""Coordinates along x, y, z, mm, shaped (X, 1, 1), (1, Y, 1), (1, 1, Z)."""


@frozen
class Grid:
    """Voxels along x, y, z (LPS).

    Attributes:
        shape: number of voxels.
        spacing_mm: their sides.
        origin_mm: centre of the first voxel.
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    origin_mm: Triple

    @property
    def axes(self) -> Axes:
        """Coordinates of the voxels' centres."""
        x, y, z = (
            (start + step * np.arange(n)).astype(np.float32)
            for start, step, n in zip(self.origin_mm, self.spacing_mm, self.shape, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4), voxel index to NIfTI's world, whose x and y run the other way (RAS)."""
        flip = np.array([-1.0, -1.0, 1.0])
        affine = np.diag([*flip * self.spacing_mm, 1.0])
        affine[:3, 3] = flip * self.origin_mm
        return affine


Drawing = list[tuple[NDArray[Any], Grid]]
"""The voxels of each of a case's files, and their grid."""


def cut_box(
    axes: Axes, centre: Places, reach_mm: Places | float
) -> tuple[tuple[slice, slice, slice], Axes]:
    """Cut a box about a place out of a grid.

    Returns:
        The voxels whose centres lie in the box, and their coordinates.
    """
    ends = np.stack([centre - reach_mm, centre + reach_mm], axis=1)
    x, y, z = (
        slice(*np.searchsorted(axis.ravel(), pair).tolist())
        for axis, pair in zip(axes, ends, strict=True)
    )
    return (x, y, z), (axes[0][x], axes[1][:, y], axes[2][:, :, z])


def make_noise(
    rng: np.random.Generator, low_mm: NDArray[Any], high_mm: NDArray[Any], cell_mm: float
) -> Callable[[Axes], Floats]:
    """Draw a smooth function of place, mean 0, standard deviation about 1: cubic B-splines.

    Args:
        rng: source of the draw.
        low_mm, high_mm: (3,) corners of the places; beyond them the function fades to 0.
        cell_mm: distance between the splines' knots; bumps are about two cells wide.

    Returns:
        The axes of a grid -> the values there, (X, Y, Z).
    """
    low = np.asarray(low_mm, np.float32)
    counts = np.ceil((np.asarray(high_mm) - low) / cell_mm).astype(int) + 4
    # 0.33 is the standard deviation of a sum of cubic B-splines with weights of
    # standard deviation 1.
    weights = rng.standard_normal(tuple(counts), dtype=np.float32) / np.float32(0.33)

    def evaluate(axes: Axes) -> Floats:
        """Add up the four splines that reach a place along each axis.

        They are added one by one, and not by a matrix product, whose last bit depends on the number
        of threads: a case would no longer be a function of its seed.
        """
        values = weights
        for axis in (2, 1, 0):  # the last, largest sum runs along the first axis: whole planes
            places = (axes[axis].ravel() - low[axis]) / np.float32(cell_mm)
            shape = [1, 1, 1]
            shape[axis] = -1
            knots, heights = _splines(places, weights.shape[axis])
            total = np.take(values, knots[0], axis) * heights[0].reshape(shape)
            for knot, height in zip(knots[1:], heights[1:], strict=True):
                total += np.take(values, knot, axis) * height.reshape(shape)
            values = total
        return values

    return evaluate


def draw_noise(rng: np.random.Generator, axes: Axes, cell_mm: float) -> Floats:
    """Draw :func:`make_noise` for the places of a grid and evaluate it there, (X, Y, Z)."""
    low, high = (np.array([axis.ravel()[end] for axis in axes]) for end in (0, -1))
    return make_noise(rng, low, high, cell_mm)(axes)


def ellipsoid(axes: Axes, centre: Triple | Places, radii: Triple | Places) -> Floats:
    """Return the distance from a centre in units of the radii: 1 on the surface, (X, Y, Z)."""
    middle, sides = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    x, y, z = (np.square((axes[i] - middle[i]) / sides[i]) for i in range(3))
    return np.sqrt(x + y + z)


def soft(value: NDArray[Any], width: float) -> Floats:
    """Step from 0 to 1 around value 0, over a few widths."""
    return np.asarray(1 / (1 + np.exp(np.clip(value * np.float32(-1 / width), -30, 30))))


def _splines(places: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the cubic B-splines that reach places (P,), in cells.

    Returns:
        Their numbers and their heights, (4, P) each.
    """
    knots = np.floor(places).astype(np.int64) + np.arange(4)[:, None]
    distance = np.abs(places + 1 - knots.astype(np.float32))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    heights = np.where(distance < 1, near, far) * ((knots >= 0) & (knots < count))
    return np.clip(knots, 0, count - 1), heights.astype(np.float32)
