"""MetaImage and NRRD: what SimpleITK writes is the scan that it writes as NIfTI, or a line."""

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.case import pack_case
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.read.find_cases import CaseFiles
from hvae_hpc.preprocess.read.itk import read_itk
from hvae_hpc.preprocess.read.nifti import read_scan
from hvae_hpc.preprocess.recipes.recipe import LabelConfig, LayoutConfig
from hvae_hpc.preprocess.store.reader import DatasetReader
from hvae_hpc.preprocess.summary import SUMMARY
from hvae_hpc.preprocess.verify import verify
from tests.preprocess.scans import draw_case, save, tiny_recipe

SHAPE = (5, 6, 7)
ENDINGS = ("mha", "mhd", "nrrd")


def make_image(kind=np.int16, channels=0, codes="LPS"):
    """Return a SimpleITK image of random voxels, turned and away from the origin."""
    rng = np.random.default_rng(0)
    shape = (*SHAPE[::-1], *([channels] if channels else []))
    image = sitk.GetImageFromArray(rng.integers(0, 100, shape).astype(kind), isVector=channels > 0)
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 5.0))
    image.SetDirection([0, -1, 0, 0.8, 0, 0.6, -0.6, 0, 0.8])
    return sitk.DICOMOrient(image, codes)


def check_same(scan, expected):
    np.testing.assert_array_equal(scan.data, expected.data)
    np.testing.assert_array_equal(scan.values, expected.values)
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-5)
    assert (scan.shape, scan.stored) == (expected.shape, expected.stored)
    assert scan.values.dtype.isnative


@pytest.mark.parametrize("ending", [*ENDINGS, "MHA", "NRRD"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_a_scan_is_the_same_in_any_format(tmp_path, ending, zipped, kind):
    sitk.WriteImage(make_image(kind), tmp_path / f"a.{ending.lower()}", zipped)
    (tmp_path / f"a.{ending.lower()}").rename(tmp_path / f"a.{ending}")
    sitk.WriteImage(make_image(kind), tmp_path / "a.nii.gz")
    check_same(read_itk(tmp_path / f"a.{ending}", "LPS"), read_scan(tmp_path / "a.nii.gz", "LPS"))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SAL"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_orientation_is_turned_as_of_nifti(tmp_path, ending, codes):
    sitk.WriteImage(make_image(codes=codes), tmp_path / f"a.{ending}")
    sitk.WriteImage(make_image(codes=codes), tmp_path / "a.nii")
    check_same(read_itk(tmp_path / f"a.{ending}", "LPS"), read_scan(tmp_path / "a.nii", "LPS"))


@pytest.mark.parametrize(("space", "signs"), [("right", (-1, -1)), ("left", (1, -1))])
def test_the_worlds_of_nrrd_are_all_turned_to_one(tmp_path, space, signs):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(make_image(), path)
    expected = read_itk(path, "LPS")
    change(path, b"left-posterior-superior", f"{space}-anterior-superior".encode())
    assert np.abs(read_itk(path, "LPS").affine[:, 3] - expected.affine[:, 3]).max() > 1

    def flip(match):
        x, y, z = map(float, match[1].split(b","))
        return f"({signs[0] * x:.17g},{signs[1] * y:.17g},{z:.17g})".encode()

    header, voxels = path.read_bytes().split(b"\n\n", 1)
    path.write_bytes(re.sub(rb"\(([^)]*)\)", flip, header) + b"\n\n" + voxels)
    check_same(read_itk(path, "LPS"), expected)


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_of_several_numbers_of_a_voxel_is_taken_where_the_recipe_says_so(tmp_path, ending):
    image = make_image(channels=3)
    sitk.WriteImage(image, tmp_path / f"a.{ending}")
    with pytest.raises(UserError, match=r", 3\), expected one 3D volume"):
        read_itk(tmp_path / f"a.{ending}", "LPS")
    sitk.WriteImage(sitk.VectorIndexSelectionCast(image, 2), tmp_path / "a.nii")
    scan = read_itk(tmp_path / f"a.{ending}", "LPS", channel=2)
    check_same(scan, read_scan(tmp_path / "a.nii", "LPS"))


def test_a_volume_of_a_4d_file_is_taken_where_the_recipe_says_so(tmp_path):
    volumes = [make_image(), make_image() + 100]
    sitk.WriteImage(sitk.JoinSeries(volumes), tmp_path / "a.mha")
    sitk.WriteImage(volumes[1], tmp_path / "a.nii")
    scan = read_itk(tmp_path / "a.mha", "LPS", channel=1)
    np.testing.assert_array_equal(scan.data, read_scan(tmp_path / "a.nii", "LPS").data)


def test_a_picture_in_such_a_file_is_no_volume(tmp_path):
    sitk.WriteImage(make_image()[:, :, 0], tmp_path / "a.mha")
    with pytest.raises(UserError, match="expected one 3D volume"):
        read_itk(tmp_path / "a.mha", "LPS")


def change(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def flip_late_bit(path, *_):
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def cut(path, *_):
    path.write_bytes(path.read_bytes()[:-9])


def add(path, *_):
    path.write_bytes(path.read_bytes() + bytes(9))


DAMAGED = "its voxels are damaged, or fewer or more than it says; copy it again"
NO_PLACE = "the header lacks its size, type, orientation or spacing; set it"


@pytest.mark.parametrize(
    ("ending", "zipped", "spoil", "words", "message"),
    [
        ("mha", True, flip_late_bit, (), DAMAGED),
        ("nrrd", True, flip_late_bit, (), DAMAGED),
        ("mha", False, cut, (), DAMAGED),
        ("nrrd", False, cut, (), DAMAGED),
        ("mha", True, cut, (), DAMAGED),
        ("nrrd", True, cut, (), DAMAGED),
        ("mha", False, add, (), DAMAGED),
        ("mha", False, change, (b"DimSize = ", b"DimSize = 9"), DAMAGED),
        ("nrrd", False, change, (b"sizes: ", b"sizes: 99999999"), "copy it again"),
        ("mha", False, change, (b"DimSize = ", b"DimSize = -"), "copy it again"),
        (
            "mha",
            False,
            change,
            (b"ElementDataFile", b"Voxels"),
            "the header lacks its size, type, orientation or spacing",
        ),
        (
            "nrrd",
            False,
            change,
            (b"NRRD", b"HELO"),
            "the header lacks its size, type, orientation or spacing",
        ),
        ("nrrd", False, change, (b"endian: ", b"x" * 2000), NO_PLACE),
        ("nrrd", False, change, (b"space origin: ", b"space origin: " + b"(" * 2000), NO_PLACE),
        ("mha", False, change, (b"NDims = 3", b"NDims = 99999"), "has 'NDims = 99999', which is"),
        ("mha", False, change, (b"TransformMatrix", b"Turned"), NO_PLACE),
        ("mha", False, change, (b"NDims", b"Sides"), NO_PLACE),
        ("nrrd", False, change, (b"space: left-posterior", b"space: scanner"), NO_PLACE),
        ("nrrd", False, change, (b"space directions", b"spacings"), NO_PLACE),
        ("mha", False, change, (b"ElementSpacing = ", b"ElementSpacing = 99"), "expected 0.01"),
        ("mha", False, change, (b"ElementSpacing = ", b"ElementSpacing = nan "), "cannot read it"),
        (
            "mha",
            False,
            change,
            (b"ElementSpacing", b"ElementToIntensityFunctionSlope = 2\nElementSpacing"),
            "has 'ElementToIntensityFunctionSlope = 2', which is not read; convert it to .nii.gz",
        ),
        (
            "nrrd",
            False,
            change,
            (b"encoding: raw", b"encoding: raw\ndata file: /etc/passwd"),
            "has 'data file: /etc/passwd', which is not read; convert it to .nii.gz",
        ),
        (
            "nrrd",
            False,
            change,
            (b"space: left-posterior-superior", b"space dimension: 4"),
            "has 'space dimension: 4', which is not read; convert it to .nii.gz",
        ),
        (
            "nrrd",
            False,
            change,
            (b"encoding", b'space units: "m" "m" "m"\nencoding'),
            "which is not read",
        ),
        (
            "mha",
            False,
            change,
            (b"ElementDataFile", b"HeaderSize = 9\nElementDataFile"),
            "has 'HeaderSize = 9', which is not read",
        ),
        ("mhd", False, change, (b"a.raw", b"../a.raw"), "its voxels lie in '../a.raw', expected a"),
        ("mhd", False, change, (b"a.raw", b"a.mhd"), "its voxels lie in 'a.mhd', expected a.raw"),
        ("mhd", False, change, (b"a.raw", b"LIST"), "its voxels lie in 'LIST', expected a.raw"),
        ("mha", False, change, (b"LOCAL", b"/etc/passwd"), "its voxels lie in '/etc/passwd'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, capfd, ending, zipped, spoil, words, message):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(make_image(), path, zipped)
    spoil(path, *words)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_itk(path, "LPS")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_what_simpleitk_writes_to_stderr_is_no_part_of_the_line(tmp_path, capfd):
    paths = [tmp_path / f"{role}.mha" for role in ("image", "label")]
    for path in paths:
        sitk.WriteImage(make_image(), path)
        change(path, b"ObjectType = ", b"ObjectType ")
    files = CaseFiles(case_id="a", patient="a", images=(paths[0],), labels=((paths[1],),))
    skipped = pack_case(tiny_recipe(), (), files)
    assert skipped.reason == f"{paths[0]}: SimpleITK cannot read it; copy it again"
    assert capfd.readouterr().err == ""


def test_voxels_that_unzip_to_more_than_the_header_says_are_not_unzipped_to_their_end(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(make_image(), path, True)
    header = path.read_bytes().split(b"LOCAL\n")[0]
    path.write_bytes(header + b"LOCAL\n" + zlib.compress(bytes(2**26), 9))
    with pytest.raises(UserError, match=DAMAGED):
        read_itk(path, "LPS")


def test_metaimages_pack_as_nifti_does_and_a_change_of_their_voxels_is_seen(tmp_path):
    for number in range(3):
        for role, voxels in zip(("flair", "seg"), draw_case(number), strict=True):
            stem = f"case{number}/case{number}_{role}"
            nifti = save(tmp_path / "nifti" / f"{stem}.nii.gz", voxels)
            (tmp_path / "meta" / stem).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.ReadImage(nifti), tmp_path / "meta" / f"{stem}.mhd")
    nifti = tiny_recipe(label=LabelConfig(tumour=(1, 2, 4)))
    meta = replace(
        nifti,
        layout=LayoutConfig(image="{case}/{case}_flair.mhd", label="{case}/{case}_seg.mhd"),
    )
    for name, recipe in (("nifti", nifti), ("meta", meta)):
        pack(recipe, tmp_path / name, tmp_path / f"{name}-out", workers=1)
        assert not read_json(tmp_path / f"{name}-out" / SUMMARY)[
            "notes"
        ]  # the .raw files fit the .mhd files
    pairs, expected = (
        DatasetReader(tmp_path / f"{name}-out").read_all() for name in ("meta", "nifti")
    )
    np.testing.assert_array_equal(pairs.images, expected.images)
    np.testing.assert_array_equal(pairs.masks, expected.masks)
    verify(tmp_path / "meta-out", tmp_path / "meta", 1, lambda line: None)

    voxels = tmp_path / "meta/case1/case1_flair.raw"
    voxels.write_bytes(np.fromfile(voxels, np.int16)[::-1].tobytes())
    with pytest.raises(UserError, match=r"case1: .*case1_flair\.mhd changed"):
        verify(tmp_path / "meta-out", tmp_path / "meta", 1, lambda line: None)
    lines = []
    pack(meta, tmp_path / "meta", tmp_path / "meta-out", workers=1, report=lines.append)
    assert "2 of them are packed already" in lines
