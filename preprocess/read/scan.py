"""What a file of a raw folder becomes: its voxels in a known orientation, their place and its hash.

A 2D picture is a scan of one slice whose place and spacing are unknown (NaN).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError


@dataclass(frozen=True, kw_only=True)
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
    """

    path: Path
    sha256: str
    data: NDArray[Any]
    values: NDArray[Any]
    affine: NDArray[np.float64]
    stored: str
    shape: tuple[int, ...]

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Distance between neighbouring voxels along each axis, mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3), orthonormal: columns are the axes' directions in the world."""
        return np.asarray(self.affine[:3, :3] / self.spacing_mm)


def read_bytes(path: Path) -> bytes:
    """Read a file whole: its hash and its voxels come from the same bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check path and permission"
        ) from error
