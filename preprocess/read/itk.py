"""A MetaImage (.mha, .mhd) or NRRD (.nrrd) file -> a scan, or one line that says what is wrong.

SimpleITK reads the voxels. What it would pass over in silence is checked before: a header without
orientation, a scaling, damaged bytes of a MetaImage, and voxels in a file that we did not hash.
"""

import contextlib
import math
import re
import zlib
from pathlib import Path

import numpy as np

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.scan import (
    LPS_TO_RAS,
    Scan,
    check_affine,
    choose_volume,
    read_source,
    source_files,
    turn_axes,
)

ENDINGS = (".mha", ".mhd", ".nrrd")
_META = re.compile(rb"(?i)(?:.*\n){0,200}?ElementDataFile *= *(.*?)\r?\n")
_META_PLACE = re.compile(
    rb"(?ims)(?=.*^NDims *=.*^(TransformMatrix|Rotation|Orientation) *=)(?=.*^DimSize *=)"
    rb"(?=.*^ElementType *=).*^Element(Spacing|Size) *="
)
_NRRD = re.compile(rb"NRRD000\d\r?\n(?:(?:[^\r\n]{1,500}|[^\r\n:]+:=.*)\r?\n)*+\r?\n")
"""A longer line that it does not understand crashes SimpleITK."""
_NRRD_PLACE = re.compile(
    rb"(?ims)(?=.*^space: *(left-post|right-ant|left-ant|LPS|RAS|LAS)).*^space directions:"
)
_NOT_READ = re.compile(
    rb"(?im)^(NDims(?! *= *[1-4]\s)|ElementToIntensityFunction|BinaryData *= *F"
    rb"|HeaderSize *=(?! *0)|data ?file:|space dimension:(?! *3\s)"
    rb"|encoding:(?! *(raw|gz))|(byte|line) ?skip:(?! *0)"
    rb'|space units:(?! *("(mm)?" *)+\r?$)).*'
)
_ZIPPED = re.compile(rb"(?im)^(CompressedData *= *T|encoding: *gz)")


def read_itk(path: Path, orientation: str, channel: int | None = None) -> Scan:
    """Read a MetaImage or NRRD file and turn its axes to an orientation.

    Args:
        path: the file.
        orientation: of ``data``: "LPS".
        channel: which volume of a 4D file, or which number of each voxel; None refuses several.

    Raises:
        UserError: missing, damaged, not 3D, or without a usable orientation.
    """
    import SimpleITK as sitk  # only data sets in these formats pay for it

    content, digest = read_source(path)
    header, voxels = _split(path, content)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if header.startswith(b"NRRD") else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        channels = reader.GetNumberOfComponents()
        pixel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), channels)
        count = math.prod(reader.GetSize()) * channels
        _check_voxels(path, header, voxels, count * pixel.GetSizeOfPixelComponent())
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError(f"{path}: SimpleITK cannot read it; copy it again") from error

    # Slices first, as they lie in the file; channels before them.
    array = sitk.GetArrayFromImage(image)
    array = np.moveaxis(array, -1, 0) if channels > 1 else array
    shape, number = choose_volume(path, array.shape[::-1], channel)
    values = np.ascontiguousarray(array.reshape(-1, *shape[::-1])[number]).reshape(-1)

    affine, sides = np.eye(4), image.GetDimension()
    steps = np.reshape(image.GetDirection(), (sides, sides)) * image.GetSpacing()
    affine[:3, :3] = LPS_TO_RAS @ steps[:3, :3]
    affine[:3, 3] = LPS_TO_RAS @ image.GetOrigin()[:3]
    return turn_axes(path, digest, values, shape, check_affine(path, affine), orientation)


def _split(path: Path, content: bytes) -> tuple[bytes, bytes]:
    """Return the header, whose words are checked, and the bytes of the voxels."""
    is_nrrd = path.suffix.lower() == ".nrrd"
    match = (_NRRD if is_nrrd else _META).match(content)
    header = match[0] if match else b""
    if unread := _NOT_READ.search(header):
        line = unread[0].decode("latin-1").strip()[:80]
        raise UserError(f"{path}: has {line!r}, which is not read; convert it to .nii.gz")
    if not (match and (_NRRD_PLACE if is_nrrd else _META_PLACE).match(header)):
        raise UserError(f"{path}: the header lacks its size, type, orientation or spacing; set it")

    if is_nrrd or match[1].upper() == b"LOCAL":
        return header, content[match.end() :]
    name = match[1].decode("latin-1")
    if name not in [file.name for file in source_files(path)[1:]]:
        raise UserError(
            f"{path}: its voxels lie in {name!r}, expected {path.stem}.raw or .zraw; "
            "save it as .mha"
        )
    return header, content[path.stat().st_size :]


def _check_voxels(path: Path, header: bytes, voxels: bytes, size: int) -> None:
    """Refuse voxels that are damaged, or fewer or more than the header promises."""
    if _ZIPPED.search(header):
        stream = zlib.decompressobj(47)  # of zlib (MetaImage) and of gzip (NRRD)
        with contextlib.suppress(zlib.error):
            voxels = stream.decompress(voxels, size + 1)
        voxels = voxels if stream.eof else b""
    if len(voxels) != size:
        raise UserError(
            f"{path}: its voxels are damaged, or fewer or more than it says; copy it again"
        )
