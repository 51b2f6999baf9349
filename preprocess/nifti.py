"""A NIfTI file -> a scan in a known orientation, or one line that says what is wrong with the file.

The whole file is read once: its SHA-256, gzip's own checksum and the voxels all come from the same bytes.
"""

import gzip
import hashlib
import io
import zlib
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
from hvae_hpc.preprocess.codec import gunzip

_MAGIC = {348: (344, b"n+1\0", nib.Nifti1Header), 540: (4, b"n+2\0", nib.Nifti2Header)}
"""Size of the header -> where its magic stands, what it is, who reads it (nifti1.h, nifti2.h)."""
_SMALLEST_MM, _LARGEST_MM = 0.01, 50.0
"""No scan that anybody segments tumours in has voxels beyond these: such a header is wrong."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One NIfTI file, reoriented.

    Attributes:
        path: for messages.
        sha256: of the file's bytes.
        data: (columns, rows, slices), a view of ``values``.
        values: (columns * rows * slices,) the same voxels in the file's own order, which is the quick one for
            statistics.
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
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    zipped = path.name.endswith(".gz")
    unzipped = _unzip(path, content) if zipped else content
    header = _parse(path, unzipped)
    shape, first = _choose_volume(path, header.get_data_shape(), channel)
    if header.get_data_dtype().kind not in "iufb":
        raise UserError(f"{path}: voxels are {header.get_data_dtype()}, expected plain numbers; convert it")
    if not (header["sform_code"] or header["qform_code"]):
        raise UserError(f"{path}: the header says no orientation (sform_code and qform_code are 0); set one")
    affine = _checked_affine(path, header)
    try:
        values = _read_values(header, unzipped, first, shape)
    except ValueError:
        try:  # one of several gzip members was read: bgzip's blocks
            values = _read_values(header, gzip.decompress(content) if zipped else b"", first, shape)
        except ValueError as error:
            raise UserError(f"{path}: ends before its last voxel (truncated); copy it anew") from error
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


def _choose_volume(path: Path, shape: tuple[int, ...], channel: int | None) -> tuple[tuple[int, int, int], int]:
    """Return the volume's shape, and which one of the file's volumes it is."""
    volumes = int(np.prod(shape[3:]))
    if len(shape) < 3 or 0 in shape or (channel is None and volumes != 1):
        remedy = "split it, or say layout.channel in the recipe" if len(shape) == 4 else "split it first"
        raise UserError(f"{path}: shape {shape}, expected one 3D volume; {remedy}")
    if channel is not None and (len(shape) > 4 or channel >= volumes):
        raise UserError(f"{path}: shape {shape}, expected a 4D image with a channel {channel} (layout.channel)")
    return (shape[0], shape[1], shape[2]), channel or 0


def _read_values(header: Any, content: bytes | bytearray, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Take one volume's voxels, scaled as the header says.

    Raises:
        ValueError: the content ends before them.
    """
    kind, count = header.get_data_dtype(), int(np.prod(shape))
    start = header.get_data_offset() + first * count * kind.itemsize
    values = np.frombuffer(content, kind, count, start)
    slope, intercept = header.get_slope_inter()
    if not kind.isnative:
        values = values.astype(kind.newbyteorder("="))
    if slope is None or (slope, intercept) == (1, 0):
        return values
    return values * np.float64(slope) + np.float64(intercept)


def _unzip(path: Path, content: bytes) -> bytes | bytearray:
    # All of it, and not only what the header asks for: then gzip's checksum is verified as well.
    try:
        return gunzip(content)
    except EOFError as error:
        raise UserError(f"{path}: the gzip file ends early (truncated); copy or download it anew") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a sound gzip file ({error}); copy or download it anew") from error


def _parse(path: Path, content: bytes | bytearray) -> Any:
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        size = int.from_bytes(content[:4], order)
        if size in _MAGIC:
            start, magic, reader = _MAGIC[size]
            if content[start : start + 4] != magic:
                break
            try:
                header = reader.from_fileobj(io.BytesIO(content[:size]))
                header.get_best_affine()  # a quaternion that is none says so only here
            except Exception as error:  # nibabel has a dozen kinds for a header that makes no sense
                raise UserError(f"{path}: NIfTI header is damaged ({error}); copy it anew") from error
            return header
    if content[128:132] == b"DICM":
        raise UserError(f"{path}: is DICOM, expected NIfTI; convert with dcm2niix")
    raise UserError(f"{path}: not a NIfTI file (no n+1 or n+2 in its header); convert it to .nii.gz")


def _checked_affine(path: Path, header: Any) -> NDArray[np.float64]:
    affine = header.get_best_affine()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shown = " x ".join(f"{side:g}" for side in spacing)
    if not (np.isfinite(affine).all() and (spacing > 0).all()):
        raise UserError(f"{path}: header has voxel spacing {shown} mm, expected positive; repair it")
    if header.get_xyzt_units()[0] not in ("mm", "unknown"):
        raise UserError(f"{path}: header counts in {header.get_xyzt_units()[0]}, expected mm; repair it")
    if spacing.min() < _SMALLEST_MM or spacing.max() > _LARGEST_MM:
        raise UserError(
            f"{path}: header has voxel spacing {shown} mm, expected {_SMALLEST_MM:g} to {_LARGEST_MM:g}; repair it"
        )
    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise UserError(f"{path}: the header's axes are not at right angles (sheared); resample it first")
    return np.asarray(affine, dtype=np.float64)
