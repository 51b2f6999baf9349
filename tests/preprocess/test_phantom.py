"""Made-up cases: in the real layouts, the same for a seed, and not too easy."""

import hashlib
import time

import nibabel as nib
import numpy as np
import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.phantoms.make import write_phantoms
from hvae_hpc.preprocess.phantoms.shapes import Grid, cut_box, draw_noise, make_noise
from hvae_hpc.preprocess.recipes.recipe import load_recipe
from hvae_hpc.preprocess.store.reader import read_dataset
from tests.preprocess.scans import draw_case, save


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    write_phantoms("brats2021", folder, 4, seed=0)
    return folder


@pytest.fixture(scope="module")
def necks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("necks")
    write_phantoms("hecktor2022", folder, 6, seed=0)
    return folder


def contents(folder):
    """Return hashes, since pytest takes minutes to tell the difference between megabytes."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pack_all(name, folder, out):
    manifest = pack(load_recipe(name), folder, out, workers=1)
    return read_dataset(out, [case.case_id for case in manifest.cases])


def best_threshold_dice(pairs):
    """Return the mean Dice of the best single threshold, chosen with the masks in view."""
    truth = pairs.masks == 1
    scores = []
    for threshold in np.linspace(0.1, 0.95, 35):
        found = pairs.images > threshold
        sizes = found.sum((1, 2)) + truth.sum((1, 2))
        scores.append((2 * (found & truth).sum((1, 2)) / sizes).mean())
    return max(scores)


def test_heads_look_like_brats_on_disk(heads):
    image = nib.load(heads / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz")
    label = nib.load(heads / "BraTS2021_00003" / "BraTS2021_00003_seg.nii.gz")
    assert image.shape == label.shape == (240, 240, 155)
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_array_equal(image.affine, label.affine)
    np.testing.assert_array_equal(image.affine[:3, 3], [0, 239, 0])
    voxels, labels = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert 0.1 < (voxels > 0).mean() < 0.3  # a brain of 1 to 2.5 litres in 8.9
    assert voxels.min() == 0
    assert (voxels[labels > 0] > 0).all()


def test_heads_have_nested_labels(heads):
    found = set()
    for path in sorted(heads.glob("*/*_seg.nii.gz")):
        labels = np.asarray(nib.load(path).dataobj)
        found |= set(np.unique(labels).tolist())
        # The core touches oedema hardly anywhere: the enhancing rim lies between.
        if (labels == 1).any():
            grown = np.roll(labels == 1, 1, axis=0) & (labels == 2)
            assert grown.sum() < 0.1 * (labels == 1).sum()
    assert found == {0, 1, 2, 4}


def test_necks_look_like_hecktor_on_disk(necks):
    pet = nib.load(necks / "imagesTr" / "CHUM-001__PT.nii.gz")
    ct = nib.load(necks / "imagesTr" / "CHUM-001__CT.nii.gz")
    label = nib.load(necks / "labelsTr" / "CHUM-001.nii.gz")
    assert label.shape == ct.shape != pet.shape
    np.testing.assert_array_equal(label.affine, ct.affine)
    assert min(pet.header.get_zooms()[:2]) > 3 * max(ct.header.get_zooms()[:2])
    assert not np.allclose(pet.affine[:3, 3], ct.affine[:3, 3])
    assert nib.aff2axcodes(pet.affine) == nib.aff2axcodes(ct.affine) == ("L", "P", "S")
    assert pet.get_data_dtype() == np.float32
    assert pet.get_fdata().min() >= 0
    assert 3 < pet.get_fdata().max() < 60
    labels = [
        np.unique(np.asarray(nib.load(path).dataobj)).tolist()
        for path in (necks / "labelsTr").iterdir()
    ]
    assert [0, 1, 2] in labels


def test_pet_and_label_show_the_tumour_at_the_same_place(necks, tmp_path):
    pairs = pack_all("hecktor2022", necks, tmp_path)
    for image, mask in zip(pairs.images, pairs.masks, strict=True):
        assert image[mask == 1].mean() > 3 * image[(mask == 0) & (image > 0)].mean()


def test_a_threshold_is_not_enough(heads, necks, tmp_path):
    assert 0.1 < best_threshold_dice(pack_all("brats2021", heads, tmp_path / "heads")) < 0.7
    assert 0.3 < best_threshold_dice(pack_all("hecktor2022", necks, tmp_path / "necks")) < 0.85


@pytest.mark.parametrize("name", ["brats2021", "hecktor2022"])
def test_a_case_is_a_function_of_seed_and_number(tmp_path, name):
    write_phantoms(name, tmp_path / "one", 1, seed=5, workers=1)
    write_phantoms(name, tmp_path / "two", 2, seed=5, workers=2)
    write_phantoms(name, tmp_path / "other", 1, seed=6)
    one, two, other = (contents(tmp_path / folder) for folder in ("one", "two", "other"))
    assert one == {path: content for path, content in two.items() if path in one}
    assert len(set(two.values())) == len(two)
    assert not set(one.values()) & set(other.values())


def test_a_case_that_is_there_is_not_made_again_and_half_a_case_is(tmp_path):
    assert write_phantoms("hecktor2022", tmp_path, 2, seed=0) == 2
    before = contents(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert write_phantoms("hecktor2022", tmp_path, 2, seed=0) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    (tmp_path / "labelsTr" / "CHUM-001.nii.gz").unlink()
    assert write_phantoms("hecktor2022", tmp_path, 2, seed=0) == 1
    assert contents(tmp_path) == before


def test_phantoms_never_overwrite_real_data_or_another_seed(tmp_path):
    path = tmp_path / "BraTS2021_00000" / "BraTS2021_00000_flair.nii.gz"
    save(path, draw_case()[0])
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"BraTS2021_00000_flair.nii.gz: is '', expected 'made-up phantom, seed 0'"
    ):
        write_phantoms("brats2021", tmp_path, 1, seed=0)
    assert path.read_bytes() == before
    write_phantoms("hecktor2022", tmp_path, 1, seed=0)
    with pytest.raises(
        UserError, match="is 'made-up phantom, seed 0', expected 'made-up phantom, seed 1'"
    ):
        write_phantoms("hecktor2022", tmp_path, 1, seed=1)


def test_a_recipe_without_phantoms_is_told():
    with pytest.raises(
        UserError, match="no phantoms for recipe 'mine', expected one of brats2021, hecktor2022"
    ):
        write_phantoms("mine", None, 1, 0)


def test_a_head_takes_no_more_than_some_seconds_to_write(tmp_path):
    start = time.process_time()
    write_phantoms("brats2021", tmp_path, 1, seed=1)
    assert time.process_time() - start < 5  # 0.7 s on an idle core; generous, for busy machines


def test_noise_is_one_function_whatever_grid_it_is_seen_on():
    coarse = Grid(shape=(20, 20, 20), spacing_mm=(2.0, 2.0, 2.0), origin_mm=(0.0, 0.0, 0.0))
    fine = Grid(shape=(40, 40, 40), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, 0.0, 0.0))
    noise = make_noise(np.random.default_rng(0), np.zeros(3), np.full(3, 39.0), 5.0)
    np.testing.assert_allclose(noise(coarse.axes), noise(fine.axes)[::2, ::2, ::2], atol=1e-4)
    large = Grid(shape=(90, 90, 90), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, 0.0, 0.0))
    assert 0.85 < draw_noise(np.random.default_rng(1), large.axes, 5.0).std() < 1.15


def test_a_part_of_a_grid_is_what_lies_within_reach():
    grid = Grid(shape=(10, 10, 10), spacing_mm=(2.0, 2.0, 2.0), origin_mm=(0.0, 0.0, 0.0))
    part, axes = cut_box(grid.axes, np.array([5.0, 0.0, 40.0]), 3.5)
    assert part == (slice(1, 5), slice(0, 2), slice(10, 10))
    assert axes[0].ravel().tolist() == [2.0, 4.0, 6.0, 8.0]
