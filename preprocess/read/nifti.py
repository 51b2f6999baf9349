"""A NIfTI file -> a scan in a known orientation, or one line that says what is wrong with the file.

The whole file is read once: its SHA-256, gzip's own checksum and the voxels all come from the same
    bytes.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
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
from hvae_hpc.preprocess.read.gunzip import gunzip

_MAGIC = {348: (344, b"n+1\0", nib.Nifti1Header), 540: (4, b"n+2\0", nib.Nifti2Header)}
"""Size of the header -> where its magic stands, what it is, who reads it (nifti1.h, nifti2.h)."""
_UNITS = {1: "meter", 3: "micron"}
"""Lowest three bits of xyzt_units (nifti1.h)."""
_MOST_VOXELS = 2**40
_SMALLEST_MM, _LARGEST_MM = 0.01, 50.0
"""No scan that anybody segments tumours in has voxels beyond these: such a header is wrong."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One NIfTI file, reoriented.

    Attributes:
        path: for messages.
        sha256: of the file's bytes.
        data: (columns, rows, slices), a view of ``values``.
        values: (columns * rows * slices,) the same voxels in the file's own order, which is the
            quick one for statistics.
        affine: (4, 4) from voxel index to world (RAS+), mm.
        stored: the file's own orientation, as "LPS".
    """

    path: Path
    sha256: str
    data: NDArray[Any]
    values: NDArray[Any]
    affine: NDArray[np.float64]
    stored: str

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Distance between neighbouring voxels along each axis, mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3), orthonormal: columns are the axes' directions in the world."""
        return np.asarray(self.affine[:3, :3] / self.spacing_mm)


def read_scan(path: Path, orientation: str, channel: int | None = None) -> Scan:
    """Read a NIfTI file (.nii or .nii.gz, version 1 or 2) and turn its axes to an orientation.

    Args:
        path: the file.
        orientation: of ``data``: "LPS".
        channel: which volume of a 4D file; None refuses one.

    Raises:
        UserError: missing, cut short, not NIfTI, not 3D, or without a usable orientation.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check path and permission"
        ) from error
    unzipped = _unzip(path, content)
    header = _parse(path, unzipped)
    shape, first = _choose_volume(path, header, channel)
    kind, start, scaling = _read_layout(path, header)
    if not (header["sform_code"] or header["qform_code"]):
        raise UserError(
            f"{path}: the header says no orientation (sform_code and qform_code are 0); set one"
        )
    affine = _checked_affine(path, header)
    end = start + (first + 1) * math.prod(shape) * kind.itemsize
    if len(unzipped) < end and path.name.endswith(".gz"):
        unzipped = _unzip_by(
            path, gzip.decompress, content
        )  # one of several gzip members was read: bgzip's blocks
    if len(unzipped) < end:
        raise UserError(f"{path}: ends before its last voxel (truncated); copy it anew")
    count = math.prod(shape)
    values = np.frombuffer(unzipped, kind, count, start + first * count * kind.itemsize)
    if not kind.isnative:
        values = values.astype(kind.newbyteorder("="))
    if scaling != (1, 0):
        values = values * np.float64(scaling[0]) + np.float64(scaling[1])
    own = io_orientation(affine)
    turn = ornt_transform(own, axcodes2ornt(tuple(orientation)))
    return Scan(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        data=apply_orientation(values.reshape(shape, order="F"), turn),
        values=values,
        affine=affine @ inv_ornt_aff(turn, shape),
        stored="".join(ornt2axcodes(own)),
    )


def _choose_volume(
    path: Path, header: Any, channel: int | None
) -> tuple[tuple[int, int, int], int]:
    """Return the volume's shape, and which one of the file's volumes it is."""
    shape = tuple(int(side) for side in header["dim"][1 : max(0, int(header["dim"][0])) + 1])
    if any(side < 1 for side in shape):
        raise UserError(f"{path}: shape {shape}, expected sides of 1 or more; copy it anew")
    if math.prod(shape) > _MOST_VOXELS:
        raise UserError(
            f"{path}: shape {shape}, expected at most {_MOST_VOXELS} voxels; copy it anew"
        )
    volumes = math.prod(shape[3:])
    if len(shape) < 3 or (channel is None and volumes != 1):
        remedy = (
            "split it, or say layout.channel in the recipe" if len(shape) == 4 else "split it first"
        )
        raise UserError(f"{path}: shape {shape}, expected one 3D volume; {remedy}")
    if channel is not None and (len(shape) > 4 or channel >= volumes):
        raise UserError(
            f"{path}: shape {shape}, expected a 4D image with a channel {channel} (layout.channel)"
        )
    return (shape[0], shape[1], shape[2]), channel or 0


def _read_layout(path: Path, header: Any) -> tuple[np.dtype[Any], int, tuple[float, float]]:
    """Return the voxels' type, the byte at which they start, and the slope and intercept that scale them."""
    try:
        kind = header.get_data_dtype()
    except Exception as error:
        code = int(header["datatype"])
        raise UserError(
            f"{path}: NIfTI header is damaged (data type {code} is unknown); copy it anew"
        ) from error
    if kind.kind not in "iufb":
        raise UserError(f"{path}: voxels are {kind}, expected plain numbers; convert it")
    size, start = int(header["sizeof_hdr"]), float(header["vox_offset"])
    if not (math.isfinite(start) and size <= start < _MOST_VOXELS):
        raise UserError(
            f"{path}: NIfTI header is damaged (voxels start at byte {start:g}); copy it anew"
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(
        slope
    ):  # "no scaling", says the standard of 0, and everybody of NaN
        return kind, int(start), (1.0, 0.0)
    if not math.isfinite(intercept):
        raise UserError(
            f"{path}: NIfTI header is damaged (scaled by {slope:g} and {intercept:g}); copy it anew"
        )
    return kind, int(start), (slope, intercept)


def _unzip(path: Path, content: bytes) -> bytes | bytearray:
    """Unzip where the name says so: all of it, and not only what is needed, so that gzip's checksum is verified."""
    if not content:
        raise UserError(f"{path}: is empty; copy or download it anew")
    if content[128:132] == b"DICM":
        raise UserError(f"{path}: is DICOM, expected NIfTI; convert with dcm2niix")
    zipped, named = content[:2] == b"\x1f\x8b", path.name.endswith(".gz")
    if zipped and not named:
        raise UserError(f"{path}: is gzip though its name does not say so; rename it to .nii.gz")
    if named and not zipped and _find_form(content):
        raise UserError(f"{path}: is not zipped though its name says so; rename it to .nii")
    return _unzip_by(path, gunzip, content) if named else content


def _unzip_by(
    path: Path, unzip: Callable[[bytes], bytes | bytearray], content: bytes
) -> bytes | bytearray:
    try:
        return unzip(content)
    except EOFError as error:
        raise UserError(
            f"{path}: the gzip file ends early (truncated); copy or download it anew"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: not a sound gzip file ({error}); copy or download it anew"
        ) from error


def _find_form(content: bytes | bytearray) -> Any:
    """Return who reads the header that a file begins with, or None."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        form = _MAGIC.get(int.from_bytes(content[:4], order))
        if form and content[form[0] : form[0] + 4] == form[1]:
            return form[2]
    return None


def _parse(path: Path, content: bytes | bytearray) -> Any:
    reader = _find_form(content)
    if reader is None:
        raise UserError(
            f"{path}: not a NIfTI file (no n+1 or n+2 in its header); convert it to .nii.gz"
        )
    try:
        # Unchecked: nibabel's checks repair in silence (spacing 0 becomes 1) or tell its
        # log. We refuse instead.
        header = reader(bytes(content[: reader.sizeof_hdr]), check=False)
        header.get_best_affine()  # a quaternion that is none says so only here
    except Exception as error:  # nibabel has a dozen kinds for a header that makes no sense
        raise UserError(f"{path}: NIfTI header is damaged ({error}); copy it anew") from error
    return header


def _checked_affine(path: Path, header: Any) -> NDArray[np.float64]:
    affine = header.get_best_affine()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shown = " x ".join(f"{side:g}" for side in spacing)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError(
            f"{path}: header has voxel spacing {shown} mm, expected positive; repair it"
        )
    if not np.isfinite(affine).all():
        origin = ", ".join(f"{place:g}" for place in affine[:3, 3])
        raise UserError(f"{path}: header has origin {origin} mm, expected numbers; repair it")
    unit = int(header["xyzt_units"]) & 7  # the other bits are of time
    if unit not in (0, 2):  # unknown, mm
        raise UserError(
            f"{path}: header counts in {_UNITS.get(unit, f'unit {unit}')}, expected mm; repair it"
        )
    if spacing.min() < _SMALLEST_MM or spacing.max() > _LARGEST_MM:
        raise UserError(
            f"{path}: header has voxel spacing {shown} mm, expected {_SMALLEST_MM:g} to {_LARGEST_MM:g}; repair it"
        )
    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise UserError(
            f"{path}: the header's axes are not at right angles (sheared); resample it first"
        )
    return np.asarray(affine, dtype=np.float64)
