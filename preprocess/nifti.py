"""A NIfTI file -> a scan in a known orientation, or one line that says what is wrong with the file.

The whole file is read once: its SHA-256, gzip's own checksum and the voxels all come from the same bytes.
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from hvae_hpc.errors import UserError

_MAGIC = {348: (344, b"n+1\0", nib.Nifti1Image), 540: (4, b"n+2\0", nib.Nifti2Image)}
"""Size of the header -> where its magic stands, what it is, who reads it (nifti1.h, nifti2.h)."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One NIfTI file, reoriented.

    Attributes:
        path: for messages.
        sha256: of the file's bytes.
        data: (columns, rows, slices).
        affine: (4, 4) from voxel index to world (RAS+), mm.
    """

    path: Path
    sha256: str
    data: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Distance between neighbouring voxels along each axis, mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3), orthonormal: columns are the axes' directions in the world."""
        return np.asarray(self.affine[:3, :3] / self.spacing_mm)


def read_scan(path: Path, orientation: str) -> Scan:
    """Read a NIfTI file (.nii or .nii.gz, version 1 or 2) and turn its axes to an orientation.

    Raises:
        UserError: missing, cut short, not NIfTI, not 3D, or without a usable orientation.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    nifti = _parse(path, _unzip(path, content) if path.name.endswith(".gz") else content)
    header = nifti.header
    shape = header.get_data_shape()
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or 0 in shape:
        raise UserError(f"{path}: shape {shape}, expected one 3D volume; split it first")
    if header.get_data_dtype().kind not in "iufb":
        raise UserError(f"{path}: voxels are {header.get_data_dtype()}, expected plain numbers; convert it")
    if not (header["sform_code"] or header["qform_code"]):
        raise UserError(f"{path}: the header says no orientation (sform_code and qform_code are 0); set one")
    affine = _checked_affine(path, nifti.affine)
    try:
        data = np.asanyarray(nifti.dataobj).reshape(shape[:3])
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: ends before its last voxel (truncated); copy it anew") from error
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation)))
    return Scan(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        data=apply_orientation(data, turn),
        affine=affine @ inv_ornt_aff(turn, shape[:3]),
    )


def _unzip(path: Path, content: bytes) -> bytes:
    # All of it, and not only what the header asks for: then gzip's checksum is verified as well.
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise UserError(f"{path}: the gzip file ends early (truncated); copy or download it anew") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a sound gzip file ({error}); copy or download it anew") from error


def _parse(path: Path, content: bytes) -> Any:
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        size = int.from_bytes(content[:4], order)
        if size in _MAGIC:
            start, magic, reader = _MAGIC[size]
            if content[start : start + 4] != magic:
                break
            try:
                return reader.from_bytes(content)
            except Exception as error:  # nibabel has a dozen kinds for a header that makes no sense
                raise UserError(f"{path}: NIfTI header is damaged ({error}); copy it anew") from error
    raise UserError(f"{path}: not a NIfTI file (no n+1 or n+2 in its header); convert it to .nii.gz")


def _checked_affine(path: Path, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (spacing > 0).all()):
        raise UserError(f"{path}: header has voxel spacing {spacing} mm, expected positive; repair it")
    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise UserError(f"{path}: the header's axes are not at right angles (sheared); resample it first")
    return np.asarray(affine, dtype=np.float64)
