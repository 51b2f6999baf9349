"""What a file of a raw folder becomes: its voxels in a known orientation, their place and its hash.

The formats of volumes share the checks of shape and place, and the turning of axes.

A 2D picture is a scan of one slice whose place and spacing are unknown (NaN).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
    ornt_transform,
)
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.files import IMAGE_BYTES, read_file

Array = NDArray[Any]
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Affine = NDArray[np.float64]
"""A matrix or a vector of places, in mm or voxels."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""NIfTI's world is RAS+, ITK's is LPS+; the same matrix turns either to the other."""
MOST_VOXELS = 2**40
_SMALLEST_MM, _LARGEST_MM = 0.01, 50.0
"""No scan that anybody segments tumours in has voxels beyond these: such a header is wrong."""


@frozen
class Scan:
    """One file, read and reoriented.

    Attributes:
        path: for messages.
        sha256: of the file's bytes.
        data: (columns, rows, slices), a view of ``values``.
        values: (columns * rows * slices,) the same voxels in the file's own order, which is the
            quick one for statistics.
        affine: (4, 4) from voxel index to world (RAS+), mm; NaN for a picture.
        stored: the file's own orientation, as "LPS"; "" for a picture.
        shape: columns, rows, slices of the file, before a picture is scaled.
        to_qform: (4, 4) from a voxel's place in the world by a NIfTI header's sform, which counts,
            to its place by the qform, mm; the identity where only one of them is there.
    """

    path: Path
    sha256: str
    data: Array
    values: Array
    affine: Affine
    stored: str
    shape: tuple[int, ...]
    to_qform: Affine = field(default_factory=lambda: np.eye(4))

    @cached_property
    def lowest(self) -> Any:
        """The least of its voxels, in their own type; NaN where one is NaN."""
        return self.values.min()

    @property
    def spacing_mm(self) -> Affine:
        """Distance between neighbouring voxels along each axis, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def directions(self) -> Affine:
        """(3, 3), orthonormal: columns are the axes' directions in the world."""
        return self.affine[:3, :3] / self.spacing_mm

    def lies_off(self, affine: Affine) -> float:
        """Return how far off another affine places a corner of this volume, mm.

        0 where that is less than a tenth of a voxel: headers of one grid differ by rounding.
        """
        gap = float(np.abs((self.affine - affine) @ find_corners(self.data.shape)).max())
        return gap if gap > 0.1 * float(self.spacing_mm.min()) else 0.0


def find_corners(shape: Sequence[int]) -> Affine:
    """Return (4, 8), the places of a box's corners in voxels, from 0 to its shape; 1 below each."""
    corners = np.array([[*index, 1.0] for index in np.ndindex(2, 2, 2)])
    return (corners * [*shape, 1]).T


def read_source(path: Path) -> tuple[bytes, str]:
    """Read a scan's files whole, and return their bytes and the SHA-256 of these very bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = b"".join(read_file(file, IMAGE_BYTES) for file in source_files(path))
        return content, hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check path and permission"
        ) from error


def source_files(path: Path) -> list[Path]:
    """Return a scan's file and, where its name ends in .mhd, the file of its voxels."""
    endings = (".raw", ".zraw") if path.suffix.lower() == ".mhd" else ()
    return [path, *filter(Path.is_file, map(path.with_suffix, endings))]


def choose_volume(
    path: Path, shape: tuple[int, ...], channel: int | None
) -> tuple[tuple[int, ...], int]:
    """Return the shape of one volume, and which one of the file's volumes it is.

    Args:
        path: for messages.
        shape: of all that the file holds; the channels come last.
        channel: which volume of a 4D file; None refuses one.

    Raises:
        UserError: not 3D, or not 4D with such a channel.
    """
    if min(shape, default=0) < 1 or math.prod(shape) > MOST_VOXELS:
        raise UserError(
            f"{path}: shape {shape}, expected sides of 1 or more, and at most "
            f"{MOST_VOXELS:g} voxels; copy it again"
        )
    volumes, number = math.prod(shape[3:]), channel or 0
    if len(shape) < 3 or (channel is None and volumes > 1):
        raise UserError(
            f"{path}: shape {shape}, expected one 3D volume; convert it, "
            "or say layout.channel (of a label: label.channel) of a 4D file in the recipe"
        )
    if number >= volumes:
        raise UserError(
            f"{path}: shape {shape}, expected 4D with a channel {number} "
            "(layout.channel, of a label: label.channel)"
        )
    return shape[:3], number


def check_affine(path: Path, affine: Array) -> Affine:
    """Return a header's (4, 4) from voxel index to world (RAS+), mm, if it can be believed.

    Raises:
        UserError: spacing or origin are no numbers of mm, or the axes are sheared.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shown = " x ".join(f"{side:g}" for side in spacing)
    if not ((spacing >= _SMALLEST_MM) & (spacing <= _LARGEST_MM)).all():  # of NaN neither holds
        raise UserError(
            f"{path}: header has voxel spacing {shown} mm, "
            f"expected {_SMALLEST_MM:g} to {_LARGEST_MM:g}; repair it"
        )
    if not np.isfinite(affine).all():
        origin = ", ".join(f"{place:g}" for place in affine[:3, 3])
        raise UserError(f"{path}: header has origin {origin} mm, expected numbers; repair it")

    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise UserError(
            f"{path}: the header's axes are not at right angles (sheared); resample it first"
        )
    return np.asarray(affine, dtype=np.float64)


def turn_axes(
    path: Path,
    sha256: str,
    values: Array,
    shape: tuple[int, ...],
    affine: Affine,
    orientation: str,
) -> Scan:
    """Turn a volume's axes to an orientation.

    Args:
        path: for messages.
        sha256: of the file's bytes.
        values: (X * Y * Z,) in the file's order, X fastest.
        shape: X, Y, Z.
        affine: (4, 4) from voxel index to world (RAS+), mm.
        orientation: of the scan: "LPS".
    """
    own = io_orientation(affine)
    turn = ornt_transform(own, axcodes2ornt(tuple(orientation)))
    data = apply_orientation(values.reshape(shape, order="F"), turn)
    return Scan(
        path=path,
        sha256=sha256,
        data=data,
        values=values,
        affine=affine @ inv_ornt_aff(turn, shape),
        stored="".join(ornt2axcodes(own)),
        shape=data.shape,
    )
