"""A NIfTI file -> a scan in a known orientation, or one line that says what is wrong with the file.

The whole file is read once: its SHA-256, gzip's own checksum and the voxels come from the same
bytes.
"""

import contextlib
import gzip
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.gunzip import gunzip
from hvae_hpc.preprocess.read.scan import (
    MOST_VOXELS,
    Affine,
    Scan,
    check_affine,
    choose_volume,
    read_source,
    turn_axes,
)
from hvae_hpc.preprocess.store.reader import available_memory

_READERS = (nib.Nifti1Header, nib.Nifti2Header)
_LONGEST_QUATERNION = 1.001
"""A rotation's quaternion has length 1; one that is longer than this is damaged, not rounded."""
_SPARE_BYTES = 2**20
"""A file may have so many more than its header says."""


def read_scan(path: Path, orientation: str, channel: int | None = None) -> Scan:
    """Read a NIfTI file (.nii or .nii.gz, version 1 or 2) and turn its axes to an orientation.

    Args:
        path: the file.
        orientation: of ``data``: "LPS".
        channel: which volume of a 4D file; None refuses one.

    Raises:
        UserError: missing, cut short, not NIfTI, not 3D, or without a usable orientation.
    """
    content, digest = read_source(path)
    longest = nib.Nifti2Header.sizeof_hdr
    header = _parse(path, _unzip(path, content, longest, longest))
    dims = tuple(int(side) for side in header["dim"][1 : max(0, int(header["dim"][0])) + 1])
    shape, first = choose_volume(path, dims, channel)
    kind, start = _find_voxels(path, header)
    affine = _checked_affine(path, header)

    count = math.prod(shape)
    whole = start + math.prod(dims) * kind.itemsize
    start += first * count * kind.itemsize
    end = start + count * kind.itemsize
    unzipped = _unzip_voxels(path, content, end, whole)
    if len(unzipped) < end:
        raise UserError(f"{path}: ends before its last voxel (truncated); copy it again")

    values = np.frombuffer(unzipped, kind, count, start)
    if not kind.isnative:
        values = values.astype(kind.newbyteorder("="))
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept) != (1, 0):
        values = values * np.float64(slope) + np.float64(intercept)

    scan = turn_axes(path, digest, values, shape, affine, orientation)
    return replace(scan, to_qform=_find_to_qform(header, affine))


def _find_voxels(path: Path, header: Any) -> tuple[np.dtype[Any], int]:
    """Return the voxels' type, and the byte at which they start."""
    kind = header.get_data_dtype()
    if kind.kind not in "iufb":
        raise UserError(f"{path}: voxels are {kind}, expected plain numbers; convert it")
    size, start = int(header["sizeof_hdr"]), float(header["vox_offset"])
    if size != header.sizeof_hdr or not size <= start < MOST_VOXELS:  # NaN fails it too
        raise UserError(
            f"{path}: NIfTI header is damaged (size {size}, voxels start at byte {start:g}); "
            "copy it again"
        )
    return kind, int(start)


def _unzip_voxels(path: Path, content: bytes, end: int, whole: int) -> bytes | bytearray:
    """Unzip a file whose voxels end at a byte, and which has so many bytes by its header.

    Raises:
        UserError: it does not fit into memory, or holds far more than its header says.
    """
    if (free := available_memory()) < end:
        raise UserError(
            f"{path}: needs {end / 2**30:.1f} GiB of memory by its header, "
            f"{free / 2**30:.1f} GiB are free; copy it again, or ask for more memory"
        )
    most = whole + _SPARE_BYTES
    unzipped = _unzip(path, content, end, most)
    if len(unzipped) >= most:
        raise UserError(f"{path}: holds more than the {whole:,} bytes of its header; copy it again")
    return unzipped


def _unzip(path: Path, content: bytes, least: int, most: int) -> bytes | bytearray:
    """Unzip the file if it is zipped: only at its end is gzip's checksum verified."""
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gunzip(content, least, most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: not a sound gzip file ({error}); copy or download it again"
        ) from error


def _parse(path: Path, content: bytes | bytearray) -> Any:
    reader = next((each for each in _READERS if each.may_contain_header(content)), None)
    if reader is None:
        raise UserError(
            f"{path}: not a NIfTI file (no n+1 or n+2 in its header); copy it again, "
            "or convert it (DICOM: dcm2niix)"
        )
    try:
        # Unchecked: nibabel's checks repair in silence (spacing 0 becomes 1). We refuse instead.
        header = reader(bytes(content[: reader.sizeof_hdr]), check=False)
        _round_qform(header)
        for read in (header.get_best_affine, header.get_data_dtype, header.get_slope_inter):
            read()
        header.get_qform(coded=True)  # what is damaged says so only here
    except Exception as error:  # nibabel has a dozen kinds for a header that makes no sense
        raise UserError(
            f"{path}: NIfTI header is damaged ({type(error).__name__}: {error}); copy it again"
        ) from error
    return header


def _round_qform(header: Any) -> None:
    """Read a qform as the standard's own code does: pixdim[0] = 0 is 1, rotations are of length 1.

    Source: nifti1.h, nifti1_io.c (nifti_quatern_to_mat44).
    """
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = math.hypot(*(float(header[name]) for name in names))
    if 1 < length < _LONGEST_QUATERNION:
        for name in names:
            header[name] = header[name] / length


def _find_to_qform(header: Any, affine: Affine) -> Affine:
    """Return :attr:`Scan.to_qform`, given the affine of the sform."""
    if header["sform_code"] and header["qform_code"]:
        with contextlib.suppress(HeaderDataError):  # the qform makes no sense
            qform = header.get_qform()
            if abs(np.linalg.det(qform)) > 0:  # neither NaN nor a spacing of 0
                return qform @ np.linalg.inv(affine)
    return np.eye(4)


def _checked_affine(path: Path, header: Any) -> Affine:
    """Return the header's (4, 4) from voxel index to world (RAS+), mm, if it can be believed."""
    if not (header["sform_code"] or header["qform_code"]):
        raise UserError(
            f"{path}: the header says no orientation (sform_code and qform_code are 0); set one"
        )

    unit = int(header["xyzt_units"]) & 7  # nifti1.h; the other bits are of time
    if unit not in (0, 2):  # unknown, mm
        raise UserError(
            f"{path}: header counts in unit {unit} (1 is metre), expected 2 (mm); repair it"
        )
    return check_affine(path, header.get_best_affine())
