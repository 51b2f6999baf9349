"""Scans that cannot be packed: damaged files, headers, images and labels."""

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.preprocess.bad_input.folders import IMAGE, LABEL
from tests.preprocess.bad_input.spoil import (
    Bad,
    as_parameters,
    check_bad_case,
    dicom,
    flip_bit,
    forbid,
    moved,
    put,
    scaled,
    with_bytes,
    with_header,
    with_unzipped,
    with_voxels,
)
from tests.preprocess.scans import save


def replace_by_link_to_nothing(raw: Path) -> None:
    (raw / IMAGE).unlink()
    (raw / IMAGE).symlink_to(raw / "gone.nii.gz")


def write_uncountable(raw: Path) -> None:
    image = nib.load(raw / IMAGE)
    save(raw / IMAGE, np.asarray(image.dataobj), image.affine, nib.Nifti2Image)
    with_unzipped(
        IMAGE, lambda content: content[:24] + (2**62).to_bytes(8, "little") + content[32:]
    )(raw)  # dim[1]


bad_label = partial(Bad, file=LABEL)


SCANS: dict[str, list[Bad]] = {
    "Damaged and foreign files": [
        Bad(
            wrong="a .nii.gz cut short",
            spoil=with_bytes(IMAGE, lambda content: content[:-60]),
            line="<file>: not a sound gzip file (Compressed file ended ...); copy or download it again",
        ),
        bad_label(
            wrong="a .nii.gz label cut short",
            spoil=with_bytes(LABEL, lambda content: content[:-20]),
            line="<file>: not a sound gzip file (Compressed file ended ...); copy or download it again",
        ),
        Bad(
            wrong="a web page with the name .nii.gz",
            spoil=with_bytes(IMAGE, lambda _: b"<html>please log in</html>"),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); copy it again, or convert it (DICOM: dcm2niix)",
        ),
        Bad(
            wrong="gzip's checksum with a flipped bit",
            spoil=with_bytes(IMAGE, partial(flip_bit, at=-6)),
            line="<file>: not a sound gzip file (CRC check failed ...); copy or download it again",
        ),
        Bad(
            wrong="zipped voxels with a flipped bit",
            spoil=with_bytes(IMAGE, partial(flip_bit, at=1500)),
            line="<file>: not a sound gzip file (...); copy or download it again",
        ),
        Bad(
            wrong="a file of 0 bytes",
            spoil=with_bytes(IMAGE, lambda _: b""),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); copy it again, or convert it (DICOM: dcm2niix)",
        ),
        Bad(
            wrong="a header and no voxels",
            spoil=with_unzipped(IMAGE, lambda content: content[:352]),
            line="<file>: ends before its last voxel (truncated); copy it again",
        ),
        Bad(
            wrong="some voxels missing, gzip sound",
            spoil=with_unzipped(IMAGE, lambda content: content[:-20]),
            line="<file>: ends before its last voxel (truncated); copy it again",
        ),
        Bad(
            wrong="a DICOM file with the name .nii.gz",
            spoil=with_bytes(IMAGE, dicom),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); copy it again, or convert it (DICOM: dcm2niix)",
        ),
        Bad(
            wrong="a DICOM file with the name .nii",
            spoil=lambda raw: (
                (raw / IMAGE).unlink(),
                (raw / IMAGE).with_suffix("").write_bytes(dicom()),
            ),
            file=IMAGE.removesuffix(".gz"),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); copy it again, or convert it (DICOM: dcm2niix)",
        ),
        Bad(
            wrong="a file that you may not read",
            spoil=partial(forbid, name=IMAGE),
            process="without rights",
            line="<file>: cannot be read (Permission denied); check path and permission",
        ),
        Bad(
            wrong="a link to a file that is gone",
            spoil=replace_by_link_to_nothing,
            line="<file>: cannot be read (No such file or directory); check path and permission",
        ),
    ],
    "NIfTI headers": [
        Bad(
            wrong="a wrong magic",
            spoil=with_header(IMAGE, magic=b"nope"),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); copy it again, or convert it (DICOM: dcm2niix)",
        ),
        Bad(
            wrong="a header overwritten by zeros",
            spoil=with_unzipped(IMAGE, lambda content: bytes(348) + content[348:]),
            line="<file>: not a NIfTI file (no n+1 or n+2 in its header); copy it again, or convert it (DICOM: dcm2niix)",
        ),
        Bad(
            wrong="an unknown type of voxels",
            spoil=with_header(IMAGE, datatype=999),
            line="<file>: NIfTI header is damaged (KeyError: 999); copy it again",
        ),
        Bad(
            wrong="voxels that begin inside the header",
            spoil=with_header(IMAGE, vox_offset=16),
            line="<file>: NIfTI header is damaged (...); copy it again",
        ),
        Bad(
            wrong="a header's fault, seen by a terminal",
            spoil=with_header(IMAGE, vox_offset=16),
            process="own",
            line="<file>: NIfTI header is damaged (...); copy it again",
        ),
        Bad(
            wrong="voxels that begin at NaN",
            spoil=with_header(IMAGE, vox_offset=np.nan),
            line="<file>: NIfTI header is damaged (size 348, voxels start at byte nan); copy it again",
        ),
        Bad(
            wrong="voxels that begin at infinity",
            spoil=with_header(IMAGE, vox_offset=np.inf),
            line="<file>: NIfTI header is damaged (...); copy it again",
        ),
        Bad(
            wrong="a scaling by NaN",
            spoil=with_header(IMAGE, scl_slope=1, scl_inter=np.nan),
            line="<file>: NIfTI header is damaged (...); copy it again",
        ),
        Bad(
            wrong="an unknown unit of length",
            spoil=with_header(IMAGE, xyzt_units=5),
            line="<file>: header counts in unit 5 (1 is metre), expected 2 (mm); repair it",
        ),
        Bad(
            wrong="a header in metres",
            spoil=with_header(IMAGE, xyzt_units=1, **scaled(0.02)),
            line="<file>: header counts in unit 1 (1 is metre), expected 2 (mm); repair it",
        ),
        Bad(
            wrong="a negative number of voxels along an axis",
            spoil=with_header(IMAGE, dim=[3, -20, 18, 6, 1, 1, 1, 1]),
            line="<file>: shape (-20, 18, 6), expected ...",
        ),
        Bad(
            wrong="a negative number of voxels along two axes",
            spoil=with_header(IMAGE, dim=[3, -20, -18, 6, 1, 1, 1, 1]),
            line="<file>: shape (-20, -18, 6), expected ...",
        ),
        Bad(
            wrong="no voxels along an axis",
            spoil=with_header(IMAGE, dim=[3, 0, 18, 6, 1, 1, 1, 1]),
            line="<file>: shape (0, 18, 6), expected sides of 1 or more, and at most ... voxels; copy it again",
        ),
        Bad(
            wrong="more voxels than can be counted (NIfTI-2)",
            spoil=write_uncountable,
            line="<file>: ...; copy it again",
        ),
        Bad(
            wrong="no orientation",
            spoil=with_header(IMAGE, sform_code=0, qform_code=0),
            line="<file>: the header says no orientation (sform_code and qform_code are 0); set one",
        ),
        Bad(
            wrong="sheared axes",
            spoil=with_header(IMAGE, srow_x=[-1, 0.3, 0, 0]),
            line="<file>: the header's axes are not at right angles (sheared); resample it first",
        ),
        Bad(
            wrong="an axis that is NaN",
            spoil=with_header(IMAGE, srow_x=[np.nan, 0, 0, 0]),
            line="<file>: header has voxel spacing nan x 1 x 1 mm, expected 0.01 to 50; repair it",
        ),
        Bad(
            wrong="an origin that is NaN",
            spoil=with_header(IMAGE, srow_x=[-1, 0, 0, np.nan]),
            line="<file>: header has origin nan, 0, 0 mm, expected numbers; repair it",
        ),
        Bad(
            wrong="voxels of 1000 mm",
            spoil=with_header(IMAGE, **scaled(1000)),
            line="<file>: header has voxel spacing 1000 x 1000 x 1000 mm, expected 0.01 to 50; repair it",
        ),
        Bad(
            wrong="voxels of 0.00001 mm",
            spoil=with_header(IMAGE, **scaled(1e-5)),
            line="<file>: header has voxel spacing 1e-05 x 1e-05 x 1e-05 mm, expected 0.01 to 50; repair it",
        ),
        Bad(
            wrong="voxels of 0 mm (sform)",
            spoil=with_header(IMAGE, srow_x=[0, 0, 0, 0]),
            line="<file>: header has voxel spacing 0 x 1 x 1 mm, expected 0.01 to 50; repair it",
        ),
        Bad(
            wrong="voxels of 0 mm (qform)",
            spoil=with_header(IMAGE, sform_code=0, qform_code=1, pixdim=[1, 0, 1, 1, 1, 1, 1, 1]),
            line="<file>: header has voxel spacing 0 x 1 x 1 mm, expected 0.01 to 50; repair it",
        ),
    ],
    "Images": [
        Bad(
            wrong="a 4D image",
            spoil=with_voxels(IMAGE, lambda voxels: np.stack([voxels] * 2, axis=3)),
            line="<file>: shape (20, 18, 6, 2), expected one 3D volume; convert it, or say layout.channel (of a label: label.channel) of a 4D file in the recipe",
        ),
        Bad(
            wrong="a 2D NIfTI file",
            spoil=with_voxels(IMAGE, lambda voxels: voxels[:, :, 0]),
            line="<file>: shape (20, 18), expected one 3D volume; convert it, or say layout.channel (of a label: label.channel) of a 4D file in the recipe",
        ),
        Bad(
            wrong="complex voxels",
            spoil=with_voxels(IMAGE, lambda voxels: voxels.astype(np.complex64)),
            line="<file>: voxels are complex64, expected plain numbers; convert it",
        ),
        Bad(
            wrong="voxels in colours (RGB)",
            spoil=with_voxels(
                IMAGE,
                lambda voxels: np.zeros(voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
            ),
            line="<file>: voxels are [('R', 'u1'), ('G', 'u1'), ('B', 'u1')], expected plain numbers; convert it",
        ),
        Bad(
            wrong="a voxel that is NaN",
            spoil=with_voxels(IMAGE, put(np.nan)),
            line="<file>: voxels that are NaN or infinite: 1, expected none; repair the file",
        ),
        Bad(
            wrong="a voxel that is infinite",
            spoil=with_voxels(IMAGE, put(np.inf)),
            line="<file>: voxels that are NaN or infinite: 1, expected none; repair the file",
        ),
        Bad(
            wrong="every voxel the same",
            spoil=with_voxels(IMAGE, lambda voxels: voxels * 0 + 5),
            line="<file>: every voxel is 5; check that this is the image",
        ),
        Bad(
            wrong="every voxel negative",
            spoil=with_voxels(IMAGE, lambda voxels: -1 - voxels),
            line="<file>: no voxel is above 0; check that this is the image",
        ),
        Bad(
            wrong="a mask in the image's place",
            spoil=with_voxels(IMAGE, lambda voxels: (voxels > 0).astype(np.uint8)),
            line="<file>: all foreground is 1; check that this is the image",
        ),
        Bad(
            wrong="intensities above the recipe's window",
            spoil=with_voxels(IMAGE, lambda voxels: voxels + np.int16(2000)),
            recipe="window",
            line="100% of the image lies above the intensity window 0 to 1000, 0% of the tumour below: values are 2000 to 2999; "
            'set [intensity] in the recipe; or say accept = ["clipped", "faint", "levels"] at the head '
            "of the recipe",
        ),
        Bad(
            wrong="intensities above the window, in a plane smaller than the crop",
            spoil=with_voxels(IMAGE, lambda voxels: voxels + np.int16(2000)),
            recipe="wide",
            line="100% of the image lies above the intensity window 0 to 1000, 0% of the tumour below: values are 2000 to 2999; "
            'set [intensity] in the recipe; or say accept = ["clipped", "faint", "levels"] at the head '
            "of the recipe",
        ),
        Bad(
            wrong="image and label of two places, to be resampled",
            spoil=with_voxels(IMAGE, lambda voxels: voxels, moved(z=500)),
            recipe="resampled",
            line="<file>: does not cover the tumour of .../case1_seg.nii.gz; are both of one patient?",
        ),
    ],
    "Labels": [
        bad_label(
            wrong="no tumour",
            spoil=with_voxels(LABEL, lambda voxels: voxels * 0),
            line="<file>: no tumour voxel by the recipe's [label] tumour = [1, 2, 4], known = []; leave this case out",
        ),
        bad_label(
            wrong="another shape than the image's",
            spoil=with_voxels(LABEL, lambda voxels: voxels[:-1]),
            line="<file>: shape (19, 18, 6), case1_flair.nii.gz has (20, 18, 6); give them one grid, "
            "or of volumes set grid.spacing_mm in the recipe to resample",
        ),
        bad_label(
            wrong="the label lies 2 mm off",
            spoil=with_voxels(LABEL, lambda voxels: voxels, moved(x=2)),
            line="<file>: lies 2.00 mm off case1_flair.nii.gz by the headers; give them one grid, "
            "or of volumes set grid.spacing_mm in the recipe to resample",
        ),
        bad_label(
            wrong="a value of 0.5",
            spoil=with_voxels(LABEL, put(0.5)),
            line='<file>: label value 0.5, expected integers; resample it with nearest, or for a mask in grey [label] tumour = "any", threshold = 2',
        ),
        bad_label(
            wrong="a value of NaN",
            spoil=with_voxels(LABEL, put(np.nan)),
            line="<file>: label values are NaN or infinite; repair the file",
        ),
        bad_label(
            wrong="an infinite value",
            spoil=with_voxels(LABEL, put(np.inf)),
            line="<file>: label values are NaN or infinite; repair the file",
        ),
        bad_label(
            wrong="an unknown value",
            spoil=with_voxels(LABEL, put(3, kind=np.uint8)),
            line="<file>: label value 3, expected 0, 1, 2, 4; see label.known in the recipe, or the labels in dataset.json",
        ),
        bad_label(
            wrong="a negative value",
            spoil=with_voxels(LABEL, put(-1, kind=np.int16)),
            line="<file>: label value -1, expected 0, 1, 2, 4; see label.known in the recipe, or the labels in dataset.json",
        ),
        bad_label(
            wrong="a negative value where any is tumour",
            spoil=with_voxels(LABEL, put(-1, kind=np.int16)),
            recipe="any",
            line="<file>: label value -1, expected whole numbers from 0; see label.known in the recipe, or the labels in dataset.json",
        ),
        bad_label(
            wrong="the tumour outside the crop",
            spoil=with_voxels(
                LABEL, lambda voxels: (np.indices(voxels.shape)[0] == 0).astype(np.uint8)
            ),
            line="<file>: the largest tumour slice has 0 px inside the crop of 16 x 16, expected at least 1; "
            "leave the case out or enlarge grid.size_px",
        ),
    ],
}


@pytest.mark.parametrize(
    "bad", as_parameters(bad for bads in SCANS.values() for bad in bads if not bad.whole)
)
def test_a_bad_scan_is_named_in_one_line_and_the_good_ones_are_kept(bad, good, here, run, recwarn):
    check_bad_case(bad, good, here, run, recwarn)
