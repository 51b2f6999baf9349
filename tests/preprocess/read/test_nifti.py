"""Reading NIfTI files, good ones in any orientation and bad ones of any kind."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read import nifti
from hvae_hpc.preprocess.read.nifti import read_scan
from tests.preprocess.scans import LPS, save

SHAPE = (4, 5, 6)


def marked():
    data = np.zeros(SHAPE, np.int16)
    data[1, 3, 2] = 7
    return data


def stored_as(codes):
    """Return the marked LPS volume as a file of another orientation holds it: data and affine."""
    image = nib.Nifti1Image(marked(), LPS)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(LPS), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine


@pytest.mark.parametrize("codes", ["LPS", "LAS", "RAS", "RPI", "PIR", "SAL", "ILA"])
def test_the_same_place_lands_at_the_same_voxel_from_any_orientation(tmp_path, codes):
    data, affine = stored_as(codes)
    assert nib.aff2axcodes(affine) == tuple(codes)
    scan = read_scan(save(tmp_path / "a.nii.gz", data, affine), "LPS")
    np.testing.assert_array_equal(scan.data, marked())
    np.testing.assert_allclose(scan.affine, LPS)


def test_an_oblique_scan_is_turned_to_the_nearest_orientation_and_keeps_its_place(tmp_path):
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([1.5, 1.5, 3.0, 1.0])  # nearest to RAS
    scan = read_scan(save(tmp_path / "a.nii.gz", marked(), affine), "LPS")
    place = [*np.argwhere(scan.data == 7)[0], 1]
    assert place[:3] == [SHAPE[0] - 1 - 1, SHAPE[1] - 1 - 3, 2]
    np.testing.assert_allclose(scan.affine @ place, affine @ [1, 3, 2, 1], atol=1e-5)
    np.testing.assert_allclose(scan.spacing_mm, [1.5, 1.5, 3.0], rtol=1e-6)
    np.testing.assert_allclose(scan.directions.T @ scan.directions, np.eye(3), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.nii", nib.Nifti1Image), ("a.nii", nib.Nifti2Image), ("a.nii.gz", nib.Nifti2Image)],
)
def test_plain_files_and_version_2_are_read_too(tmp_path, name, kind):
    scan = read_scan(save(tmp_path / name, marked(), kind=kind), "LPS")
    np.testing.assert_array_equal(scan.data, marked())


def test_values_are_scaled_as_the_header_says(tmp_path):
    image = nib.Nifti1Image(marked(), LPS)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii.gz")
    raw = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    scan = read_scan(tmp_path / "a.nii.gz", "LPS")
    assert np.frombuffer(raw[112:120], "<f4").tolist() == [0.5, 10]  # scl_slope, scl_inter
    expected = np.frombuffer(raw[352:], "<i2").reshape(SHAPE, order="F") * 0.5 + 10
    np.testing.assert_allclose(scan.data, expected)


def test_a_fourth_axis_of_length_one_is_no_harm(tmp_path):
    np.testing.assert_array_equal(
        read_scan(save(tmp_path / "a.nii.gz", marked()[..., None]), "LPS").data, marked()
    )


def cut_gzip(path):
    path.write_bytes(path.read_bytes()[:-40])


def wrong_checksum(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # gzip's CRC: every voxel can be unpacked, and one of them may be wrong
    path.write_bytes(content)


def edit(change):
    def apply(path):
        content = bytearray(gzip.decompress(path.read_bytes()))
        change(content)
        path.write_bytes(gzip.compress(bytes(content)))

    return apply


def wrong_magic(content):
    content[344:348] = b"nope"


def no_header(content):
    content[:4] = b"\0\0\0\0"


def fewer_voxels(content):
    del content[-20:]


def no_orientation(content):
    content[252:256] = b"\0\0\0\0"  # qform_code, sform_code


def no_quaternion(content):
    content[252:254] = b"\1\0"  # qform_code, beside the sform's
    content[256:260] = np.float32(1e30).tobytes()  # quatern_b


def sheared(content):
    content[284:288] = np.float32(0.3).tobytes()  # srow_x[1]


def no_spacing(content):
    content[280:292] = bytes(12)  # srow_x


def text_voxels(content):
    content[70:74] = np.array([128, 24], "<i2").tobytes()  # RGB


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_gzip, "not a sound gzip file .Compressed file ended"),
        (wrong_checksum, "not a sound gzip file"),
        (lambda path: path.write_bytes(b""), "not a NIfTI file"),
        (lambda path: path.unlink(), "cannot be read"),
        (edit(wrong_magic), "not a NIfTI file"),
        (edit(no_header), "NIfTI header is damaged .size 0"),
        (edit(fewer_voxels), "ends before its last voxel"),
        (edit(no_orientation), "no orientation"),
        (edit(no_quaternion), "NIfTI header is damaged"),
        (edit(sheared), "not at right angles"),
        (edit(no_spacing), "voxel spacing"),
        (edit(text_voxels), "expected plain numbers"),
        (lambda path: save(path, np.zeros((*SHAPE, 2), np.int16)), "expected one 3D volume"),
        (lambda path: save(path, np.zeros(SHAPE[:2], np.int16)), "expected one 3D volume"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, capfd, spoil, message):
    path = save(tmp_path / "case_flair.nii.gz", marked())
    spoil(path)
    with pytest.raises(UserError, match=message) as caught:
        read_scan(path, "LPS")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_second_member_of_a_gzip_file_is_one_line(tmp_path):
    content = nib.Nifti1Image(np.arange(6 * 6 * 6, dtype=np.int16).reshape(6, 6, 6), LPS).to_bytes()
    half = len(content) // 2
    damaged = bytearray(gzip.compress(content[half:]))
    damaged[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:half]) + damaged)
    with pytest.raises(UserError, match="not a sound gzip file"):
        read_scan(tmp_path / "a.nii.gz", "LPS")


def test_a_file_that_unzips_to_far_more_than_its_header_says_takes_no_memory(tmp_path):
    path = save(tmp_path / "a.nii.gz", marked())
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"holds more than the 592 bytes of its header; copy it"):
        read_scan(path, "LPS")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_a_header_that_asks_for_more_memory_than_there_is_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", marked())
    monkeypatch.setattr(nifti, "available_memory", lambda: 500.0)
    with pytest.raises(UserError, match=r"needs 0.0 GiB of memory by its header, 0.0 GiB are free"):
        read_scan(path, "LPS")
